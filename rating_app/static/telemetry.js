// What the player did, told to the server every few seconds and with the vote.

const EVERY_MS = 4000;
export const MOST_EVENTS = 200; // in one request

export class Telemetry {
  /** `booked` is called after every event. */
  constructor(page, booked) {
    this.page = page;
    this.booked = booked;
    this.pair = null;
    this.events = [];
    this.seq = 0;
    setInterval(() => this.send(), EVERY_MS);
    window.addEventListener("pagehide", () => this.send());
    document.addEventListener("visibilitychange", () => document.hidden && this.send());
    window.addEventListener("blur", () => page.abplayer && this.record("blur", page.abplayer.side, page.abplayer.position));
  }

  /** Events are booked on this pair from now on; null books none. A pair that another tab may have open too, or that
   *  was open before, goes on after a gap: no number stands for two events, and the gap says that some may be missing. */
  begin(pair, seenBefore = null) {
    this.pair = pair;
    this.events = [];
    this.seq = seenBefore === null ? 0 : seenBefore + 100 + Math.floor(Math.random() * 5000);
  }

  record(type, side, position) {
    if (!this.pair) return;
    this.events.push({ seq: this.seq++, type, side, position: Math.round(position * 1000) / 1000, at_ms: Date.now() });
    this.booked();
  }

  /** The events that a vote takes along. Without a connection for very long the oldest are dropped, never the vote. */
  take() {
    return this.events.splice(0).slice(-MOST_EVENTS);
  }

  send() {
    if (!this.pair || !this.events.length) return;
    const [pair, events] = [this.pair, this.events.splice(0, MOST_EVENTS)];
    // Unsent events go back in front: the server knows each by its number, so twice does no harm.
    this.page.call("/rate/events", { pair, events }, { keepalive: true }).catch((error) => {
      if (error.passing && this.pair === pair) this.events.unshift(...events);
    });
  }
}
