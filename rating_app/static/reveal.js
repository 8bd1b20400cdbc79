// After the vote: which version was which, if the study tells it, or what a practice pair was meant to show.

export class Reveal {
  constructor(page) {
    this.page = page;
    this.resolve = null;
  }

  get open() {
    return this.resolve !== null;
  }

  /** Shows the two names; resolves when the rater goes on. Called only once the vote is committed. */
  versions(names) {
    return this.show("Your vote is saved. This is what you heard:", [`A: ${names.left}`, `B: ${names.right}`]);
  }

  lesson(text) {
    return this.show("Practice", [text]);
  }

  show(heading, lines) {
    const { page } = this;
    page.part("after-heading").textContent = heading;
    page.part("after-lines").replaceChildren(
      ...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })),
    );
    page.part("form").hidden = true;
    page.part("after").hidden = false;
    page.part("after-heading").tabIndex = -1;
    page.part("after").querySelector("button").focus({ preventScroll: true });
    page.part("after").scrollIntoView({ block: "nearest" });
    return new Promise((resolve) => (this.resolve = resolve));
  }

  goOn() {
    const { resolve } = this;
    this.hide();
    resolve?.();
  }

  hide() {
    this.resolve = null;
    this.page.part("form").hidden = false;
    this.page.part("after").hidden = true;
  }
}
