// A comment in the rater's words, and the moment or stretch of one clip that it is about.

const LETTER = { left: "A", right: "B" };

export class Comment extends EventTarget {
  constructor(page) {
    super();
    this.page = page;
    this.range = null; // { side, start, end }; end is null for a moment
  }

  get text() {
    return this.page.part("comment").value.trim();
  }

  set text(text) {
    this.page.part("comment").value = text ?? "";
  }

  focus() {
    this.page.part("comment").focus();
  }

  /** Ties the comment to the loop region, or to where the playhead is, of the clip that is heard now. */
  here() {
    const { player } = this.page;
    const round = (seconds) => Math.round(seconds * 100) / 100;
    const { region, side } = player;
    this.pin(region ? { side, start: round(region.start), end: round(region.end) } : { side, start: round(player.position), end: null });
    this.page.say(`The comment is tied to ${this.words}.`);
    this.focus();
  }

  pin(range) {
    this.range = range;
    this.page.part("moment").hidden = !range;
    this.page.part("moment-text").textContent = range ? this.words : "";
    this.dispatchEvent(new Event("change"));
  }

  get words() {
    const { side, start, end } = this.range;
    return end === null ? `${LETTER[side]} at ${start.toFixed(1)} s` : `${LETTER[side]} from ${start.toFixed(1)} to ${end.toFixed(1)} s`;
  }

  /** The button says what it would tie the comment to. */
  show() {
    const { player } = this.page;
    const text = `Tie to ${player.region ? "the loop" : "this moment"} in ${LETTER[player.side]}`;
    const button = this.page.part("here-text");
    if (button.textContent !== text) button.textContent = text;
  }

  /** What a vote says; a place without words says nothing. */
  get answer() {
    return { comment: this.text || null, comment_range: this.text ? this.range : null };
  }
}
