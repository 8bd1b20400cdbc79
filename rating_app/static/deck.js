// The player one sees: both waveforms under one playhead, a ruler with the loop region, and the transport.

import { drawWaveform } from "./waveform.js";

const SIDES = ["left", "right"];
const NUDGE_SECONDS = 0.1;
const LOOP_BUTTON_SECONDS = 2;

export class Deck {
  constructor(page) {
    this.page = page;
    this.element = page.root.querySelector(".at-player");
    this.scale = 1;
    this.drag = null; // { kind: "seek" | "region", ... } between pointer down and up
    this.mark = null; // what the comment is tied to
    this.listen();
  }

  get player() {
    return this.page.player;
  }

  wave(side) {
    return this.element.querySelector(`.at-track[data-side="${side}"] .at-wave`);
  }

  /** A new pair: its ruler, and waveforms at one scale. */
  show(scale) {
    this.scale = scale;
    this.drag = this.mark = null;
    const { duration } = this.player;
    const step = [0.25, 0.5, 1, 2, 5, 10, 15, 30, 60].find((each) => duration / each <= 6) ?? 120;
    const ticks = [];
    for (let at = 0; at <= duration + 1e-6; at += step) {
      const tick = document.createElement("span");
      tick.style.left = `${(100 * at) / duration}%`;
      tick.textContent = String(at);
      ticks.push(tick);
    }
    this.element.querySelector(".at-ticks").replaceChildren(...ticks);
    this.showState();
  }

  /** What changes with a click, not with time. */
  showState() {
    const { player, page } = this;
    page.root.dataset.playing = String(player.playing);
    page.root.dataset.side = player.side;
    page.part("play-text").textContent = player.playing ? "Pause" : "Play";
    for (const side of SIDES) this.element.querySelector(`[data-do="${side}"]`).setAttribute("aria-pressed", String(side === player.side));
    this.element.querySelector('[data-do="loop"]').setAttribute("aria-pressed", String(player.loop));
    this.element.querySelector('[data-do="loop-part"]').setAttribute("aria-pressed", String(player.loop && player.region !== null));
    this.showRegion();
    page.touch();
  }

  showRegion() {
    const { player } = this;
    const region = this.drag?.region ?? player.region;
    const { duration } = player;
    for (const bar of this.element.querySelectorAll(".at-region")) {
      bar.hidden = !region;
      if (!region) continue;
      bar.style.left = `${(100 * region.start) / duration}%`;
      bar.style.width = `${(100 * (region.end - region.start)) / duration}%`;
    }
    for (const grip of this.element.querySelectorAll(".at-grip")) {
      const value = region ? region[grip.dataset.end] : 0;
      grip.setAttribute("aria-valuemax", duration.toFixed(1));
      grip.setAttribute("aria-valuenow", value.toFixed(1));
      grip.setAttribute("aria-valuetext", `${value.toFixed(1)} seconds`);
    }
  }

  /** Where the comment is tied to: a mark on the clip's waveform. */
  showMark(range) {
    this.mark = range;
    for (const side of SIDES) {
      const mark = this.wave(side).querySelector(".at-mark");
      mark.hidden = range?.side !== side;
      if (mark.hidden) continue;
      const { duration } = this.player;
      mark.style.left = `${(100 * range.start) / duration}%`;
      mark.style.width = range.end === null ? "0" : `${(100 * (range.end - range.start)) / duration}%`;
    }
  }

  /** Once per screen frame: the playhead, and with `dirty` the waveforms. */
  frame(dirty) {
    const { duration, heard, buffers } = this.player;
    const position = this.drag?.kind === "seek" && this.drag.moved ? this.drag.at : this.player.position;
    this.page.part("time").textContent = `${position.toFixed(1)} / ${duration.toFixed(1)} s`;
    for (const side of SIDES) {
      const wave = this.wave(side);
      wave.querySelector(".at-head").style.left = `${duration ? (100 * position) / duration : 0}%`;
      wave.setAttribute("aria-valuemax", duration.toFixed(1));
      wave.setAttribute("aria-valuenow", position.toFixed(1));
      wave.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${duration.toFixed(1)} seconds`);
      if (dirty && buffers) drawWaveform(wave.querySelector("canvas"), buffers[side], heard[side], this.scale);
    }
  }

  // ---- the loop region ---------------------------------------------------------------------------------------

  setRegion(region) {
    this.player.setRegion(region);
    const made = this.player.region;
    this.page.say(made ? `Looping from ${made.start.toFixed(1)} to ${made.end.toFixed(1)} seconds` : "Looping the whole clip");
  }

  /** [ and ]: this end goes to the playhead, the other stays, or is the clip's own where it would be on the wrong side. */
  setEnd(end) {
    const { position, region, duration } = this.player;
    const other = end === "start" ? (region?.end ?? duration) : (region?.start ?? 0);
    if (end === "start") this.setRegion({ start: position, end: other > position ? other : duration });
    else this.setRegion({ start: other < position ? other : 0, end: position });
  }

  /** The button: a stretch from the playhead on, or none when there is one. */
  togglePart() {
    const { region, position, duration, loop } = this.player;
    if (region && loop) return this.setRegion(null);
    const length = Math.min(LOOP_BUTTON_SECONDS, duration / 3);
    const start = Math.min(position, duration - length);
    this.setRegion({ start, end: start + length });
    this.element.querySelector('.at-grip[data-end="start"]').focus({ preventScroll: true });
  }

  /** True when there was one. */
  clearRegion() {
    if (!this.player.region) return false;
    // The handle that has the focus goes away with the region.
    if (this.element.contains(document.activeElement)) this.element.querySelector('[data-do="play"]').focus({ preventScroll: true });
    this.setRegion(null);
    return true;
  }

  nudge(end, key) {
    const { region, duration } = this.player;
    if (!region) return false;
    const steps = { ArrowLeft: -NUDGE_SECONDS, ArrowDown: -NUDGE_SECONDS, ArrowRight: NUDGE_SECONDS, ArrowUp: NUDGE_SECONDS };
    const ends = { Home: 0, End: duration };
    if (!(key in steps) && !(key in ends)) return false;
    const moved = { ...region, [end]: ends[key] ?? region[end] + steps[key] };
    if (moved.start < moved.end) this.player.setRegion(moved);
    return true;
  }

  // ---- pointers ----------------------------------------------------------------------------------------------

  secondsAt(event) {
    const lane = this.element.querySelector(".at-wave .at-lane").getBoundingClientRect();
    return Math.min(Math.max(0, (event.clientX - lane.left) / lane.width), 1) * this.player.duration;
  }

  press(event) {
    // A click with the mouse leaves the focus where it is, so that Space goes on playing and pausing.
    if (event.target.closest("button")) event.preventDefault();
    if (event.button !== 0 || !this.player.buffers) return;
    const [wave, ruler, grip] = [".at-wave", ".at-ruler", ".at-grip"].map((name) => event.target.closest(name));
    if (!wave && !ruler) return;
    event.preventDefault();
    const at = this.secondsAt(event);
    if (grip) {
      const { start, end } = this.player.region;
      this.drag = { kind: "region", anchor: grip.dataset.end === "start" ? end : start, moved: true };
      grip.focus({ preventScroll: true });
    } else if (ruler || event.shiftKey) {
      this.drag = { kind: "region", anchor: at, moved: false };
    } else {
      this.player.switchTo(wave.closest(".at-track").dataset.side);
      const { region } = this.player;
      if (region && (at < region.start || at > region.end)) this.player.setRegion(null);
      this.player.seek(at);
      this.drag = { kind: "seek", at, moved: false };
    }
    this.element.setPointerCapture(event.pointerId);
  }

  move(event) {
    const { drag } = this;
    if (!drag) return;
    const at = this.secondsAt(event);
    if (drag.kind === "seek") {
      // The playhead follows the pointer; the sound jumps once, when it is let go.
      drag.moved ||= Math.abs(at - drag.at) > this.player.duration / 100;
      drag.at = at;
      this.page.touch();
    } else if (drag.kind === "region") {
      drag.moved ||= Math.abs(at - drag.anchor) > this.player.duration / 100;
      if (drag.moved) drag.region = { start: Math.min(at, drag.anchor), end: Math.max(at, drag.anchor) };
      this.showRegion();
    }
  }

  release() {
    const { drag } = this;
    this.drag = null;
    if (drag?.kind === "seek" && drag.moved) this.player.seek(drag.at);
    if (drag?.kind === "region" && drag.region) this.setRegion(drag.region);
    else if (drag?.kind === "region" && !drag.moved) this.clearRegion();
    else this.showRegion();
  }

  listen() {
    this.element.addEventListener("pointerdown", (event) => this.press(event));
    this.element.addEventListener("pointermove", (event) => this.move(event));
    this.element.addEventListener("pointerup", () => this.release());
    this.element.addEventListener("pointercancel", () => this.release());
    this.element.addEventListener("keydown", (event) => {
      const grip = event.target.closest?.(".at-grip");
      if (grip && this.nudge(grip.dataset.end, event.key)) event.preventDefault();
    });
  }
}
