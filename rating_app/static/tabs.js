// Other tabs of this browser: one plays at a time, and a pair answered in one is taken from the others.

export class Tabs extends EventTarget {
  constructor() {
    super();
    this.channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel("attune");
    this.channel?.addEventListener("message", ({ data }) => this.dispatchEvent(new CustomEvent(data.type, { detail: data })));
  }

  tell(type, about = {}) {
    this.channel?.postMessage({ type, ...about });
  }

  /** Pauses this player whenever another tab's begins after it. */
  mind(player) {
    let began = 0;
    player.addEventListener("log", ({ detail }) => {
      if (detail.type !== "play") return;
      began = performance.timeOrigin + performance.now();
      this.tell("playing", { at: began });
    });
    this.addEventListener("playing", ({ detail }) => detail.at > began && player.pause());
  }
}
