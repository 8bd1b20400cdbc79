// The arena: a rater's own words, both versions sing them, and the blind pair follows.

import { ApiError } from "./outbox.js";
import { make } from "./elements.js";

const STORE = "attune.arena.v1";
const LOOK_MS = 700;
const LOOK_MS_WAITING = 1500;
const LOOK_MS_OFFLINE = 4000;
const EXAMPLES = [
  "a slow piano waltz in a minor key with a soft double bass",
  "fast drums and a bright marimba over a walking bass",
  "calm strings with a flute melody, no drums",
  "a cheerful brass band marching by",
];
const HTML = `
  <h1 id="at-arena-label"></h1>
  <form data-at="arena-form" autocomplete="off" novalidate>
    <div class="at-box">
      <label for="at-arena-text">Describe the music</label>
      <textarea id="at-arena-text" data-at="arena-text" data-focus rows="3" aria-describedby="at-arena-count at-arena-refusal"
                placeholder="Instruments, tempo, mood …"></textarea>
      <p class="at-under"><span>Please write nothing about real people.</span><span id="at-arena-count" data-at="arena-count"></span></p>
    </div>
    <p class="at-refusal" id="at-arena-refusal" data-at="arena-refusal" role="alert"></p>
    <div class="at-examples" role="group" aria-label="Examples" data-at="arena-examples"></div>
    <div class="at-buttons">
      <button type="submit" class="at-primary" data-at="arena-ask">Make two versions</button>
      <button type="button" class="at-quiet" data-do="arena-finish" data-at="arena-finish" hidden>I am done</button>
    </div>
  </form>
  <div class="at-wait" data-at="arena-wait" hidden>
    <blockquote data-at="arena-words"></blockquote>
    <progress data-at="arena-progress" max="1" value="0" aria-label="Share of both versions made"></progress>
    <p data-at="arena-stage" role="status" aria-live="polite"></p>
    <p class="at-refusal" data-at="arena-fault" role="alert"></p>
    <div class="at-buttons">
      <button type="button" class="at-primary" data-do="arena-again" data-at="arena-again" hidden>Try these words again</button>
      <button type="button" class="at-quiet" data-do="arena-other" data-at="arena-other" hidden>Write something else</button>
    </div>
  </div>`;

export class ArenaMode {
  constructor(page) {
    this.page = page;
    this.section = page.section("arena", HTML);
    this.section.setAttribute("aria-labelledby", "at-arena-label");
    this.longest = page.study.arena.longest_prompt;
    this.rated = 0;
    this.choose = null; // goes on after a failure: "again" or "other"
    this.closed = new AbortController();
    this.build();
  }

  /** Hands the elements over to another ArenaMode: this one hears nothing of them any more. */
  close() {
    this.closed.abort();
  }

  // ---- one prompt after the other ----------------------------------------------------------------------------

  async begin() {
    await this.page.style("arena");
    let wish = this.remembered();
    for (;;) {
      wish ??= await this.words();
      const ended = await this.sing(wish);
      if (ended === "again") {
        wish = await this.ask(wish.text).catch((error) => this.refused(wish.text, error));
        continue;
      }
      this.remember(null);
      wish = null;
      if (ended === "done") this.page.say("Both versions are ready.");
      if (ended === "done" && (await this.page.ratePair())) {
        this.rated += 1;
        await this.page.answered();
      }
    }
  }

  /** What this tab waits for: a reload goes on waiting. */
  remembered() {
    try {
      const kept = JSON.parse(sessionStorage.getItem(STORE));
      return kept?.session === this.page.session ? kept : null;
    } catch {
      return null;
    }
  }

  remember(wish) {
    try {
      if (wish) sessionStorage.setItem(STORE, JSON.stringify({ ...wish, session: this.page.session }));
      else sessionStorage.removeItem(STORE);
    } catch {}
    return wish;
  }

  // ---- the box -----------------------------------------------------------------------------------------------

  /** Shows the box; resolves with {id, text} once the server has taken a prompt. */
  words(text = "", refusal = "") {
    const { page } = this;
    this.show("form", this.rated ? "What should come next?" : "What would you like to hear?");
    page.part("arena-finish").hidden = this.rated === 0;
    this.fill(text);
    page.part("arena-refusal").textContent = refusal;
    page.part("arena-text").focus();
    return new Promise((resolve) => (this.asked = resolve));
  }

  refused(text, error) {
    return this.words(text, error.message);
  }

  async submit() {
    const { page, asked } = this;
    const text = page.part("arena-text").value.trim();
    if (!asked || this.asking) return;
    const fault = !text ? "Type a few words first, or take one of the examples." : this.count() < 0 ? `That is too long: ${this.longest} characters fit.` : "";
    page.part("arena-refusal").textContent = fault;
    if (fault) return page.part("arena-text").focus();
    this.asking = true;
    page.part("arena-ask").disabled = true;
    page.wakeAudio(); // the pair that comes of it may play without another gesture
    try {
      const wish = await this.ask(text);
      this.asked = null;
      asked(wish);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      page.part("arena-refusal").textContent = error.message;
      page.part("arena-text").focus();
    } finally {
      this.asking = false;
      page.part("arena-ask").disabled = false;
    }
  }

  async ask(text) {
    const { id } = await this.page.call("/rate/arena", { text });
    return this.remember({ id, text });
  }

  fill(text) {
    this.page.part("arena-text").value = text;
    this.count();
  }

  /** How many characters are left, also on the page. */
  count() {
    const left = this.longest - [...this.page.part("arena-text").value.trim()].length;
    const count = this.page.part("arena-count");
    count.textContent = left < 0 ? `${-left} too many` : `${left} left`;
    count.toggleAttribute("data-over", left < 0);
    return left;
  }

  // ---- the wait ----------------------------------------------------------------------------------------------

  /** Looks until both versions have sung: "done", or after a failure what the rater chooses, "again" or "other". */
  async sing(wish) {
    const { page } = this;
    this.show("wait", "Two versions are being made");
    page.part("arena-words").textContent = wish.text;
    page.part("arena-fault").textContent = "";
    page.part("arena-progress").value = 0;
    this.offer(false);
    this.tell("Your words are on their way.");
    for (;;) {
      let ticket = null;
      try {
        ticket = await page.call(`/rate/arena/${wish.id}`);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (!error.passing) return this.failed(error.message);
        this.tell("The server cannot be reached. Your words are kept there; this page goes on looking.");
      }
      if (ticket?.state === "done") return "done";
      if (ticket?.state === "failed") return this.failed(ticket.error);
      if (ticket) this.follow(ticket);
      const pause = !ticket ? LOOK_MS_OFFLINE : ticket.state === "waiting" ? LOOK_MS_WAITING : LOOK_MS;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  follow({ state, progress, queue_position: place }) {
    this.page.part("arena-progress").value = progress;
    if (state === "waiting") return this.tell(place <= 1 ? "You are next in line." : `${place - 1} ${place === 2 ? "prompt is" : "prompts are"} before yours.`);
    // Said aloud only every quarter: a screen reader should not count along.
    const quarter = Math.floor(progress * 4) * 25;
    this.tell(quarter ? `Both versions are being made: more than ${quarter}% is done.` : "Both versions are being made.");
  }

  /** One sentence on the page, which screen readers say politely; only when it is a new one. */
  tell(sentence) {
    const stage = this.page.part("arena-stage");
    if (stage.textContent !== sentence) stage.textContent = sentence;
  }

  failed(sentence) {
    const { page } = this;
    this.show("wait", "That did not work out");
    this.tell("");
    page.part("arena-fault").textContent = sentence;
    this.offer(true);
    page.part("arena-again").focus();
    return new Promise((resolve) => (this.choose = resolve));
  }

  offer(shown) {
    for (const name of ["arena-again", "arena-other"]) this.page.part(name).hidden = !shown;
    for (const name of ["arena-progress", "arena-stage"]) this.page.part(name).hidden = shown;
  }

  // ---- what is shown -----------------------------------------------------------------------------------------

  show(what, heading) {
    const { page } = this;
    this.section.querySelector("h1").textContent = heading;
    page.part("arena-form").hidden = what !== "form";
    page.part("arena-wait").hidden = what !== "wait";
    page.say("");
    page.phase("arena");
    if (what === "wait") {
      const title = this.section.querySelector("h1");
      title.tabIndex = -1;
      title.focus({ preventScroll: true });
    }
  }

  act(name) {
    if (name === "arena-finish") return this.page.finish();
    if (name !== "arena-again" && name !== "arena-other") return;
    const { choose } = this;
    this.choose = null;
    choose?.(name.slice(6));
  }

  build() {
    const { page } = this;
    const { signal } = this.closed;
    page.part("arena-examples").replaceChildren(
      ...EXAMPLES.filter((text) => text.length <= this.longest).map((text) =>
        make("button", { type: "button", textContent: text, onclick: () => (this.fill(text), page.part("arena-text").focus()) }),
      ),
    );
    page.part("arena-form").addEventListener("submit", (event) => (event.preventDefault(), this.submit()), { signal });
    page.part("arena-text").addEventListener("input", () => this.count(), { signal });
    // Enter sends, as in every box of one thought; Shift and Enter begin a new line.
    page.part("arena-text").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    }, { signal });
  }
}
