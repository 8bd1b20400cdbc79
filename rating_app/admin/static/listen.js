// Two clips of one prompt at one playhead; who sings on which side is chosen freely. Built on the listening page's player.

import { ABPlayer } from "./player/abplayer.js";
import { commonScale, drawWaveform } from "./player/waveform.js";

const SIDES = ["left", "right"];
const KEPT = 16; // decoded clips
const SEEK_SECONDS = 1;

const root = document.getElementById("listen");
const deck = document.getElementById("deck");
const part = (name) => document.getElementById(`deck-${name}`);
const doing = (name) => deck.querySelector(`[data-do="${name}"]`);
const pick = (side) => deck.querySelector(`[data-pick="${side}"]`);

class Listening {
  constructor() {
    this.rows = [...root.querySelectorAll(".sung > li")];
    this.row = 0;
    this.take = 0;
    this.decoded = new Map();
    this.asked = 0; // the newest choice: an older one that loads later counts for nothing
    this.buffers = null;
    deck.hidden = false;
    root.querySelector(".keys").hidden = false;
    this.listen();
    this.load({ play: false }); // the waveforms of the first prompt; nothing sounds before a gesture
  }

  get player() {
    if (!this.made) {
      this.context = new AudioContext();
      this.made = new ABPlayer(this.context);
      for (const name of ["change", "heard"]) this.made.addEventListener(name, () => this.show());
      const frame = () => (this.frame(), requestAnimationFrame(frame));
      frame();
    }
    return this.made;
  }

  address(side) {
    const version = this.rows[this.row].querySelector(`[data-version="${pick(side).value}"]`);
    const takes = version.querySelectorAll("a");
    return takes[Math.min(this.take, takes.length - 1)]?.href ?? null;
  }

  async buffer(address) {
    if (!this.decoded.has(address)) {
      const answer = await fetch(address, { credentials: "same-origin", redirect: "error" });
      if (!answer.ok) throw new Error(String(answer.status));
      this.decoded.set(address, await this.context.decodeAudioData(await answer.arrayBuffer()));
      if (this.decoded.size > KEPT) this.decoded.delete(this.decoded.keys().next().value);
    }
    return this.decoded.get(address);
  }

  /** Loads what is chosen and plays it on `side`, from the start with a new prompt, else from where the playhead is. */
  async load({ side = this.made?.side ?? "left", play = true, keep = false } = {}) {
    const { player } = this;
    const mine = ++this.asked;
    const at = keep ? player.position : 0;
    this.tell();
    const addresses = SIDES.map((each) => this.address(each));
    try {
      if (addresses.includes(null)) throw new Error("not sung");
      const [left, right] = await Promise.all(addresses.map((each) => this.buffer(each)));
      if (mine !== this.asked) return;
      this.buffers = [left, right];
      player.setClips(left, right, side);
      if (at) player.seek(Math.min(at, player.duration - 0.05));
      this.scale = commonScale([left, right]);
      part("seek").max = player.duration.toFixed(2);
      part("fault").textContent = "";
      this.dirty = true;
      if (play) await player.play();
    } catch {
      if (mine !== this.asked) return;
      this.buffers = null;
      player.pause();
      part("fault").textContent = "This clip cannot be loaded; the store may have lost it, or your session ended.";
    }
  }

  /** What is chosen, in words. */
  tell() {
    const row = this.rows[this.row];
    part("prompt").textContent = row.querySelector(".sung-prompt").textContent;
    for (const each of this.rows) each.classList.toggle("is-playing", each === row);
    const heard = new Map(SIDES.map((side) => [pick(side).value, side]));
    for (const each of root.querySelectorAll(".sung-version")) {
      each.classList.toggle("is-chosen", each.closest("li") === row && heard.has(each.dataset.version));
    }
    this.show();
  }

  show() {
    const playing = this.made?.playing ?? false;
    const side = this.made?.side ?? "left";
    doing("play").textContent = playing ? "Pause" : "Play";
    deck.dataset.playing = String(playing);
    deck.dataset.side = side;
    for (const each of SIDES) doing(each).setAttribute("aria-pressed", String(each === side));
    doing("loop").setAttribute("aria-pressed", String(this.made?.loop ?? true));
    doing("previous").disabled = this.row === 0;
    doing("next").disabled = this.row === this.rows.length - 1;
    this.dirty = true;
  }

  /** Once per screen frame: the playhead, and what else changed. */
  frame() {
    const { made, buffers } = this;
    if (!buffers) return;
    const { position, duration } = made;
    part("time").textContent = `${position.toFixed(1)} / ${duration.toFixed(1)} s`;
    if (document.activeElement !== part("seek") || made.playing) part("seek").value = String(position);
    for (const side of SIDES) {
      const wave = deck.querySelector(`.deck-track[data-side="${side}"] .deck-wave`);
      wave.querySelector(".deck-head").style.left = `${duration ? (100 * position) / duration : 0}%`;
      if (this.dirty) drawWaveform(wave.querySelector("canvas"), made.buffers[side], made.heard[side], this.scale);
    }
    this.dirty = false;
  }

  go(step) {
    const row = Math.min(this.rows.length - 1, Math.max(0, this.row + step));
    if (row === this.row) return;
    this.row = row;
    this.take = 0;
    this.load();
  }

  act(name) {
    if (name === "previous" || name === "next") return this.go(name === "next" ? 1 : -1);
    if (!this.buffers) return this.load({ side: SIDES.includes(name) ? name : undefined });
    if (SIDES.includes(name)) return this.player.switchTo(name);
    if (name === "play") return this.player.toggle();
    if (name === "loop") return this.player.setLoop(!this.player.loop);
    if (name === "back" || name === "forward") this.player.seek(this.player.position + (name === "back" ? -1 : 1) * SEEK_SECONDS);
  }

  /** A version's clip was clicked: it sounds, on its own side, or on 2 when it has none yet. */
  hear(row, version, take) {
    const keep = row === this.row && take === this.take && this.buffers !== null;
    [this.row, this.take] = [row, take];
    let side = SIDES.find((each) => pick(each).value === version);
    if (!side) {
      side = "right";
      pick(side).value = version;
    }
    this.load({ side, keep });
  }

  listen() {
    deck.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button) this.act(button.dataset.do);
    });
    deck.addEventListener("change", (event) => {
      if (event.target.dataset.pick) this.load({ side: event.target.dataset.pick, keep: this.buffers !== null });
    });
    part("seek").addEventListener("input", (event) => this.buffers && this.player.seek(Number(event.target.value)));
    for (const wave of deck.querySelectorAll(".deck-wave")) {
      wave.addEventListener("pointerdown", (event) => {
        if (!this.buffers) return;
        const box = wave.getBoundingClientRect();
        this.player.switchTo(wave.closest(".deck-track").dataset.side);
        this.player.seek(((event.clientX - box.left) / box.width) * this.player.duration);
      });
    }
    root.querySelector(".sung").addEventListener("click", (event) => {
      const link = event.target.closest("a[data-take]");
      if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.hear(this.rows.indexOf(link.closest("li")), link.closest("[data-version]").dataset.version, Number(link.dataset.take));
    });
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => (this.dirty = true));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=range]), select, textarea, summary")) return;
    const { key, target } = event;
    if ((key === " " || key === "Enter") && target.matches("button, a")) return;
    if (key.startsWith("Arrow") && target.matches("input")) return;
    const names = { " ": "play", 1: "left", 2: "right", ArrowLeft: "back", ArrowRight: "forward", n: "next", p: "previous", l: "loop" };
    const name = names[key] ?? names[key.toLowerCase()];
    if (!name || (event.repeat && !["back", "forward"].includes(name))) return;
    event.preventDefault();
    this.act(name);
  }
}

if (deck) window.attuneListening = new Listening();
