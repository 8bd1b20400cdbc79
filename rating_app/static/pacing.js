// How far the session is, a break when one is due, and the summary at its end.

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const LONGEST_SHOWN = 300; // a total beyond this would only discourage

export class Pacing {
  constructor(page) {
    this.page = page;
    this.resolve = null; // goes on after a break
  }

  get rules() {
    return this.page.study.pacing;
  }

  /** {done, total}: answered, and in all as far as this session goes; total null when it is too far away. */
  get reach() {
    const { done, available } = this.page.progress;
    const total = done + available;
    return { done, total: this.rules.pairs_per_session || total <= LONGEST_SHOWN ? total : null };
  }

  get what() {
    return this.page.study.mode === "rating" ? "clips" : "pairs";
  }

  show() {
    const { page } = this;
    const { done, total } = this.reach;
    page.part("progress").hidden = page.study.mode === "arena";
    page.part("progress-bar").hidden = total === null;
    page.part("progress-bar").max = Math.max(1, total ?? 1);
    page.part("progress-bar").value = total === null ? 0 : done;
    page.part("progress-text").textContent = total === null ? `${done} rated` : `${done} of ${total}`;
  }

  /** What the server knew, with what was answered since it was asked (`held` names what was on its way then: the
      server may have counted that already). It can be behind us and never makes the count fall. */
  update(progress, held) {
    const { page } = this;
    const waiting = page.outbox.held.filter((one) => !held.includes(one)).length;
    const done = progress.done + waiting;
    if (page.progress && done < page.progress.done) return;
    page.showProgress({ done, available: Math.max(0, progress.available - waiting) });
  }

  /** Counts an answer; waits for the end of a break when one is due. False when nothing more is asked. */
  async answered() {
    const { page } = this;
    const done = page.progress.done + 1;
    const available = Math.max(0, page.progress.available - 1);
    page.showProgress({ done, available });
    const { break_every: every } = this.rules;
    if (every && done % every === 0 && available > 0) await this.rest();
    return available > 0;
  }

  rest() {
    const { page } = this;
    page.part("break-text").textContent = `You have rated ${page.progress.done} ${this.what}. Ears tire before one notices it; a little quiet helps them.`;
    const until = performance.now() + this.rules.break_seconds * 1000;
    const tick = () => {
      const left = Math.max(0, (until - performance.now()) / 1000);
      page.part("break-clock").textContent = left > 0 ? clock(Math.ceil(left)) : "";
      if (left === 0) {
        clearInterval(timer);
        page.say("The break is over. Go on when you like.");
      }
    };
    const timer = setInterval(tick, 250);
    page.phase("break");
    tick();
    return new Promise((resolve) => {
      this.resolve = () => {
        clearInterval(timer);
        this.resolve = null;
        page.say("");
        resolve();
      };
    });
  }

  act(name) {
    if (name === "continue" && this.resolve) return this.resolve(), true;
    if (name === "stop") return this.finish(), true;
    if (name === "again") return this.again(), true;
    if (name === "copy") return this.copy(), true;
    return false;
  }

  /** The summary. Answers that are still on their way are waited for, unless there is no connection. */
  async finish() {
    const { page } = this;
    page.abplayer?.pause();
    page.pairs.leave();
    await page.outbox.flush();
    try {
      this.summary(await page.call("/rate/finish", {}));
    } catch (error) {
      if (!error.passing || page.outbox.empty) return page.fail(error, () => this.finish());
      this.summary(null);
    }
  }

  summary(told) {
    const { page } = this;
    const { waiting: kept, stuck } = page.outbox;
    const waiting = kept.length - stuck.length;
    const one = this.what === "clips" ? "clip" : "pair";
    const figures = told
      ? [
          [String(told.answered), `${told.answered === 1 ? one : this.what} rated`],
          [told.minutes < 1 ? "< 1 min" : `${Math.round(told.minutes)} min`, "of your time"],
          [String(told.available), `${told.available === 1 ? one : this.what} still to hear`],
        ]
      : [[String(page.progress.done), `${this.what} rated`]];
    page.part("figures").replaceChildren(
      ...figures.map(([value, text]) => {
        const [group, term, said] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
        [term.textContent, said.textContent] = [text, value];
        group.append(term, said);
        return group;
      }),
    );
    page.part("done-text").textContent =
      waiting > 0
        ? `${waiting === 1 ? "One answer waits" : `${waiting} answers wait`} for the connection. Leave this page open, or open it again later: nothing is lost.`
        : told && !told.answered
          ? told.available
            ? "You have not rated anything yet."
            : "There is nothing to rate in this study at the moment."
          : stuck.length
            ? "Every other answer is saved. Open this page again later to send what is left."
            : "Every answer is saved. You can close this page.";
    page.part("withdraw").hidden = !told?.code;
    page.part("code").textContent = told?.code ?? "";
    page.root.querySelector('[data-do="again"]').hidden = !told?.available;
    page.phase("done");
  }

  async again() {
    const { page } = this;
    page.mode?.close?.(); // its elements are the next one's
    page.mode = null;
    page.progress = null;
    try {
      await page.enrol();
      await page.begin();
    } catch (error) {
      page.fail(error, () => page.open());
    }
  }

  /** The clipboard exists only on secure origins; elsewhere the code is selected. */
  async copy() {
    const code = this.page.part("code");
    getSelection().selectAllChildren(code);
    await navigator.clipboard?.writeText(code.textContent).catch(() => {});
    this.page.say(navigator.clipboard ? "The code is copied." : "The code is selected; copy it now.");
  }
}
