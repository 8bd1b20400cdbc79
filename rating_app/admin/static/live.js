// A part of a page that the server renders again now and then; everything works without it.

/** Keeps one box fresh, and says in a line above it when that does not work. */
export class Live {
  constructor(box, line) {
    this.box = box;
    this.line = line;
    this.ended = false; // the session is over: asking again would not help
  }

  say(text) {
    if (this.line.textContent !== text) this.line.textContent = text;
    this.line.hidden = !text;
  }

  /** Whether the reader is in the middle of something that a replacement would take away. */
  busy() {
    const { box } = this;
    const chosen = document.getSelection();
    const selecting = chosen && !chosen.isCollapsed && box.contains(chosen.anchorNode);
    const using = box.contains(document.activeElement) && document.activeElement !== box;
    return selecting || using || box.querySelector("details[data-hold][open]") !== null;
  }

  /** What the server answers; null when it does not, which is said. */
  async ask(address) {
    try {
      const answer = await fetch(address, {
        headers: { "X-Attune-Fragment": "1" }, credentials: "same-origin", cache: "no-store", redirect: "error",
      });
      if (answer.status === 401) {
        this.ended = true;
        this.say("Your session ended; log in again to see fresh figures.");
        return null;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      return answer;
    } catch {
      this.say("The server does not answer; these figures may be old.");
      return null;
    }
  }

  /** Puts a fresh rendering in place of the old one; true when it is there. */
  async replace(address = this.box.dataset.source) {
    if (this.busy()) return false;
    const answer = await this.ask(address);
    const html = answer && (await answer.text());
    if (html === null || this.busy()) return false;
    const { box } = this;
    const scrolled = [...box.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    box.innerHTML = html; // our own template, every value in it escaped by the server
    [...box.querySelectorAll(".scroll")].forEach((one, i) => (one.scrollLeft = scrolled[i] || 0));
    box.dataset.refreshed = String(Number(box.dataset.refreshed || 0) + 1);
    this.say("");
    return true;
  }

  /** Calls `step` every so often while the page is seen, until the session ends. */
  every(milliseconds, step) {
    let running = false;
    const turn = async () => {
      if (running || document.hidden || this.ended) return;
      running = true;
      await step().finally(() => (running = false));
      if (this.ended) clearInterval(timer);
    };
    const timer = setInterval(turn, milliseconds);
    document.addEventListener("visibilitychange", turn);
  }
}
