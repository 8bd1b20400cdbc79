// What is heard next, fetched while the present one is listened to: a pair, or a single clip.

const AGAIN_MS = 3000;

export class Ahead {
  /** `kind`, pair or item, also names the route. `current()` is what is on the page, `load(info)` decodes its audio. */
  constructor(page, kind, { current, load }) {
    Object.assign(this, { page, kind, current, load });
    this.next = null; // a promise of the one after the present
    this.answeredElsewhere = new Set(); // in another tab
  }

  /** The one that was fetched ahead, or one asked for now; null when the study has none left for this rater. */
  async take() {
    const { next } = this;
    this.next = null;
    const ahead = next && (await next);
    if (ahead?.info && !this.answeredElsewhere.has(ahead.info.id)) return ahead;
    // None left, or no connection: what the server knows counts, once it knows our last answer.
    if (next) await this.page.outbox.flush();
    return this.fetch();
  }

  async fetch() {
    const { page, kind } = this;
    const { held } = page.outbox;
    const inHand = [this.current()?.info.id, ...held].filter(Boolean);
    const answer = await page.call(`/rate/${kind}?except=${encodeURIComponent(inHand.slice(-20).join(","))}`);
    page.pacing.update(answer.progress, held);
    return answer[kind] && this.load(answer[kind]);
  }

  /** Begins to fetch the next one; without a connection tried again from time to time. */
  begin() {
    const current = this.current();
    const next = this.fetch().catch(() => {
      if (this.next === next) this.next = null;
      setTimeout(() => this.current() === current && !this.next && this.begin(), AGAIN_MS);
      return null;
    });
    this.next = next;
  }
}
