// The rating page: asks for pairs, lets the rater listen and answer, and hands votes to the outbox.

import { ABPlayer } from "./abplayer.js";
import { ApiError, Outbox, call, randomKey } from "./outbox.js";
import { drawWaveform, peaks } from "./waveform.js";

const SIDES = ["left", "right"];
const LETTER = { left: "A", right: "B" };
const QUESTIONS = {
  text_adherence: "Which one fits the description better?",
  quality: "Which one has the better sound quality?",
};
const STEPS = [
  [-2, "A clearly"],
  [-1, "A slightly"],
  [0, "Equal"],
  [1, "B slightly"],
  [2, "B clearly"],
];
const DRAFT = "attune.draft.v1";
const SEEK_SECONDS = 0.5;
const EVENTS_EVERY_MS = 4000;

class RatingPage {
  constructor(root) {
    this.root = root;
    this.outbox = new Outbox();
    this.player = null;
    this.pair = null; // { info, buffers } on the page now
    this.next = null; // a promise of the one after it
    this.events = [];
    this.seq = 0;
    this.saved = 0;
    this.dirty = true;
    this.listen();
  }

  part(name) {
    return this.root.querySelector(`[data-at="${name}"]`);
  }

  phase(name) {
    this.root.dataset.phase = name;
  }

  // ---- start -------------------------------------------------------------------------------------------------

  async open() {
    try {
      const state = await call("/rate/state");
      this.study = state.study;
      this.part("badge").hidden = !state.study.demo;
      this.buildQuestions(state.study.questions);
      if (!state.session) return this.phase("welcome");
      this.showProgress(state.progress);
      await this.begin();
    } catch (error) {
      this.fail(error);
    }
  }

  async start() {
    const button = this.root.querySelector('[data-do="start"]');
    button.disabled = true;
    this.makePlayer().context.resume();
    try {
      const state = await call("/rate/session", { consent: this.part("consent").checked });
      this.showProgress(state.progress);
      await this.begin();
    } catch (error) {
      this.fail(error);
    }
    button.disabled = false;
  }

  async begin() {
    this.makePlayer();
    await this.outbox.flush();
    await this.show(await this.fetchPair());
  }

  fail(error) {
    if (!(error instanceof ApiError)) console.error(error);
    const known = error instanceof ApiError;
    this.part("problem").textContent = known ? error.message : "The page met a fault of its own. Please reload it.";
    this.phase("problem");
  }

  makePlayer() {
    if (this.player) return this.player;
    this.player = new ABPlayer(new AudioContext({ latencyHint: "interactive" }));
    this.player.addEventListener("change", () => this.showPlayer());
    this.player.addEventListener("heard", () => this.touch());
    this.player.addEventListener("log", ({ detail }) => this.record(detail.type, detail.side, detail.position));
    return this.player;
  }

  // ---- pairs -------------------------------------------------------------------------------------------------

  /** The next pair with both clips decoded, or null when the study has none left for this rater. */
  async fetchPair() {
    const inHand = [this.pair?.info.id, ...this.outbox.votes.map((vote) => vote.pair)].filter(Boolean);
    const answer = await call(`/rate/pair?except=${encodeURIComponent(inHand.slice(-20).join(","))}`);
    if (answer.pair === null) return { info: null, progress: answer.progress };
    const [left, right] = await Promise.all(SIDES.map((side) => this.fetchClip(answer.pair.clips[side])));
    return { info: answer.pair, progress: answer.progress, buffers: { left, right } };
  }

  async fetchClip(url) {
    for (let attempt = 1; ; attempt++) {
      try {
        const response = await fetch(url, { credentials: "same-origin", cache: "no-store" });
        if (!response.ok) throw new ApiError("A clip could not be loaded.", response.status);
        return await this.player.context.decodeAudioData(await response.arrayBuffer());
      } catch (error) {
        if (attempt === 3) throw error instanceof ApiError ? error : new ApiError("A clip could not be loaded.", 0);
      }
    }
  }

  async show(pair) {
    if (pair.progress) this.showProgress(pair.progress);
    if (!pair.info) return this.finish();
    this.pair = pair;
    this.key = randomKey();
    this.shownAt = performance.now();
    this.events = [];
    this.seq = 0;
    this.part("prompt").textContent = pair.info.prompt;
    this.part("form").reset();
    this.waveScale = Math.max(0.05, ...SIDES.flatMap((side) => Array.from(peaks(pair.buffers[side], 100))));
    this.player.setClips(pair.buffers.left, pair.buffers.right, pair.info.first_side);
    this.restoreDraft();
    this.phase("rate");
    this.showPlayer();
    this.root.querySelector('[data-do="play"]').focus({ preventScroll: true });
    this.next = this.fetchPair().catch((error) => error);
  }

  finish() {
    this.player?.pause();
    this.pair = null;
    const done = this.progress?.done ?? this.saved;
    this.part("done-text").textContent = done
      ? `You have rated every pair there is for you: ${done} in all. You can close this page.`
      : "There is nothing to rate in this study at the moment.";
    this.phase("done");
    this.root.querySelector("#at-done-title").focus();
  }

  // ---- answers -----------------------------------------------------------------------------------------------

  buildQuestions(names) {
    const box = this.part("questions");
    box.replaceChildren();
    for (const name of names) {
      const field = document.createElement("fieldset");
      const legend = document.createElement("legend");
      legend.textContent = QUESTIONS[name] ?? name;
      const scale = document.createElement("div");
      scale.className = "at-scale";
      for (const [value, text] of STEPS) {
        const label = document.createElement("label");
        const input = document.createElement("input");
        Object.assign(input, { type: "radio", name, value: String(value) });
        const caption = document.createElement("span");
        caption.textContent = text;
        label.append(input, caption);
        scale.append(label);
      }
      field.append(legend, scale);
      box.append(field);
    }
  }

  chosen(name) {
    return this.part("form").querySelector(`input[name="${name}"]:checked`)?.value;
  }

  missingSeconds(side) {
    const needed = Math.min(this.study.minimum_listening_seconds, this.player.duration * 0.95);
    return Math.max(0, needed - this.player.heardSeconds(side));
  }

  get unlocked() {
    return this.pair !== null && SIDES.every((side) => this.missingSeconds(side) < 0.001);
  }

  /** What still keeps the vote from being sent, in words; an empty string when nothing does. */
  obstacle() {
    const short = SIDES.filter((side) => this.missingSeconds(side) >= 0.001);
    if (short.length) {
      return short.map((side) => `${LETTER[side]} for ${this.missingSeconds(side).toFixed(1)} s`).join(" and ").replace(/^/, "Listen to ");
    }
    if (!this.chosen("outcome")) return "Choose your overall preference";
    const open = this.study.questions.filter((name) => this.chosen(name) === undefined);
    if (open.length) return open.length === 1 ? "One question is still open" : `${open.length} questions are still open`;
    return "";
  }

  async vote(outcome) {
    if (!this.pair || (outcome !== "SKIP" && outcome !== "FAULT" && this.obstacle())) return;
    this.player.pause();
    const axes = {};
    if (outcome !== "SKIP" && outcome !== "FAULT") {
      for (const name of this.study.questions) axes[name] = Number(this.chosen(name));
    }
    const vote = {
      pair: this.pair.info.id,
      key: this.key,
      outcome,
      axes,
      comment: this.part("comment").value.trim() || null,
      heard: { left: this.player.heardSeconds("left"), right: this.player.heardSeconds("right") },
      switches: this.player.switches,
      decision_ms: Math.round(performance.now() - this.shownAt),
      events: this.events.splice(0),
    };
    localStorage.removeItem(DRAFT);
    const next = this.next;
    this.pair = null; // a second click finds nothing to vote on
    this.say("Saving…", "busy");
    this.outbox.add(vote);
    try {
      let pair = await next;
      // A pair that could not be fetched ahead, or none left then, is asked for again once this vote is settled.
      if (pair instanceof Error || !pair.info) {
        await this.outbox.flush();
        pair = await this.fetchPair();
      }
      delete pair.progress; // older than the vote
      await this.show(pair);
    } catch (error) {
      this.fail(error);
    }
  }

  // ---- what survives a reload --------------------------------------------------------------------------------

  keepDraft() {
    if (!this.pair) return;
    const answers = Object.fromEntries(["outcome", ...this.study.questions].map((name) => [name, this.chosen(name)]));
    const heard = { left: Array.from(this.player.heard.left), right: Array.from(this.player.heard.right) };
    const { key, seq } = this;
    localStorage.setItem(DRAFT, JSON.stringify({ pair: this.pair.info.id, key, seq, answers, heard, comment: this.part("comment").value }));
  }

  restoreDraft() {
    let draft = null;
    try {
      draft = JSON.parse(localStorage.getItem(DRAFT));
    } catch {}
    if (draft?.pair !== this.pair.info.id) return;
    this.key = draft.key;
    this.seq = draft.seq;
    this.player.restoreHeard(draft.heard);
    this.part("comment").value = draft.comment;
    for (const [name, value] of Object.entries(draft.answers)) {
      const input = this.part("form").querySelector(`input[name="${name}"][value="${value}"]`);
      if (input) input.checked = true;
    }
  }

  // ---- telemetry ---------------------------------------------------------------------------------------------

  record(type, side, position) {
    if (!this.pair) return;
    this.events.push({ seq: this.seq++, type, side, position: Math.round(position * 1000) / 1000, at_ms: Date.now() });
  }

  sendEvents() {
    if (!this.pair || !this.events.length) return;
    this.keepDraft();
    const [pair, events] = [this.pair.info.id, this.events.splice(0)];
    // Unsent events go back in front: the vote carries them, and the server knows each by its number.
    call("/rate/events", { pair, events }, { keepalive: true }).catch((error) => {
      if (error.passing && this.pair?.info.id === pair) this.events.unshift(...events);
    });
  }

  // ---- what is shown -----------------------------------------------------------------------------------------

  touch() {
    this.dirty = true;
  }

  showProgress(progress) {
    this.progress = progress;
    this.part("progress").hidden = false;
    const total = progress.done + progress.available;
    this.part("progress-bar").max = Math.max(1, total);
    this.part("progress-bar").value = progress.done;
    this.part("progress-text").textContent = `${progress.done} of ${total}`;
  }

  say(text, kind) {
    const status = this.part("status");
    status.textContent = text;
    status.dataset.kind = kind;
  }

  showPlayer() {
    const { player } = this;
    this.root.dataset.playing = String(player.playing);
    this.root.dataset.side = player.side;
    this.part("play-text").textContent = player.playing ? "Pause" : "Play";
    for (const side of SIDES) this.root.querySelector(`[data-do="${side}"]`).setAttribute("aria-pressed", String(side === player.side));
    this.root.querySelector('[data-do="loop"]').setAttribute("aria-pressed", String(player.loop));
    this.dirty = true;
    this.frame();
  }

  /** Once per screen frame while something moves: book listening, move the playhead, redraw what changed. */
  frame() {
    if (this.framing) return;
    this.framing = requestAnimationFrame(() => {
      this.framing = null;
      const { player } = this;
      player.count();
      const { position, duration } = player;
      this.part("time").textContent = `${position.toFixed(1)} / ${duration.toFixed(1)} s`;
      for (const wave of this.root.querySelectorAll(".at-wave")) {
        wave.querySelector(".at-head").style.left = `${duration ? (100 * position) / duration : 0}%`;
        wave.setAttribute("aria-valuemax", duration.toFixed(1));
        wave.setAttribute("aria-valuenow", position.toFixed(1));
        wave.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${duration.toFixed(1)} seconds`);
      }
      if (this.dirty && this.pair) this.draw();
      if (player.playing) this.frame();
    });
  }

  draw() {
    this.dirty = false;
    for (const side of SIDES) {
      const canvas = this.root.querySelector(`.at-track[data-side="${side}"] canvas`);
      drawWaveform(canvas, this.player.buffers[side], this.player.heard[side], this.waveScale);
      const missing = this.missingSeconds(side);
      this.part(`heard-${side}`).textContent = missing >= 0.001 ? `${missing.toFixed(1)} s to hear` : "✓ heard";
    }
    const { unlocked } = this;
    this.root.dataset.unlocked = String(unlocked);
    for (const field of this.part("form").querySelectorAll("fieldset")) field.disabled = !unlocked;
    const obstacle = this.obstacle();
    this.part("submit").disabled = obstacle !== "";
    if (this.part("hint").textContent !== obstacle) this.part("hint").textContent = obstacle;
  }

  // ---- input -------------------------------------------------------------------------------------------------

  act(name) {
    const { player } = this;
    if (name === "start") return this.start();
    if (name === "retry") return this.pair ? this.phase("rate") : (this.phase("loading"), this.open());
    if (name === "help") return this.part("help").showModal();
    if (!this.pair) return;
    if (name === "play") player.toggle();
    if (name === "loop") player.setLoop(!player.loop);
    if (SIDES.includes(name)) player.switchTo(name);
    if (name === "back") player.seek(player.position - SEEK_SECONDS);
    if (name === "forward") player.seek(player.position + SEEK_SECONDS);
    if (name === "skip") this.vote("SKIP");
    if (name === "fault") this.vote("FAULT");
    if (name === "comment") this.part("comment").focus();
    if (name === "submit") this.vote(this.chosen("outcome"));
  }

  choose(outcome) {
    const input = this.part("form").querySelector(`input[name="outcome"][value="${outcome}"]`);
    if (!this.unlocked) return;
    input.checked = true;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  key_(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || this.part("help").open) return;
    const { target } = event;
    if (target.matches?.("textarea")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    if (event.key === "?") return event.preventDefault(), this.act("help");
    if (this.root.dataset.phase !== "rate") return;
    const isRadio = target.matches?.('input[type="radio"]');
    const isButton = target.matches?.("button");
    const isArrow = event.key.startsWith("Arrow");
    // Radios keep their arrow keys; a focused button keeps its own Space and Enter.
    if ((isRadio && isArrow) || (isRadio && event.key === " " && !target.checked)) return;
    if (isButton && (event.key === " " || event.key === "Enter")) return;
    const keys = { " ": "play", 1: "left", 2: "right", ArrowUp: "left", ArrowDown: "right", ArrowLeft: "back", ArrowRight: "forward" };
    const letters = { l: "loop", s: "skip", f: "fault", c: "comment" };
    const outcomes = { a: "A", b: "B", t: "TIE", n: "BOTH_BAD" };
    const key = event.key.toLowerCase();
    const action = keys[event.key] ?? letters[key] ?? (event.key === "Enter" ? "submit" : null);
    if (!action && !outcomes[key]) return;
    event.preventDefault();
    // A key that is held down may seek, and nothing else.
    if (event.repeat && !isArrow) return;
    if (action) this.act(action);
    else this.choose(outcomes[key]);
  }

  seekFrom(event, wave) {
    const box = wave.getBoundingClientRect();
    this.player.seek(((event.clientX - box.left) / box.width) * this.player.duration);
  }

  listen() {
    const { root } = this;
    root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button && !button.disabled) this.act(button.dataset.do);
    });
    // A click with the mouse leaves the focus where it is, so that Space goes on playing and pausing.
    root.addEventListener("pointerdown", (event) => {
      if (event.target.closest(".at-player button")) event.preventDefault();
      const wave = event.target.closest(".at-wave");
      if (!wave || !this.pair || event.button !== 0) return;
      event.preventDefault();
      this.player.switchTo(wave.closest(".at-track").dataset.side);
      this.seekFrom(event, wave);
      wave.setPointerCapture(event.pointerId);
    });
    root.addEventListener("pointermove", (event) => {
      const wave = event.target.closest?.(".at-wave");
      if (wave?.hasPointerCapture(event.pointerId)) this.seekFrom(event, wave);
    });
    this.part("consent").addEventListener("change", (event) => {
      root.querySelector('[data-do="start"]').disabled = !event.target.checked;
    });
    const form = this.part("form");
    form.addEventListener("submit", (event) => (event.preventDefault(), this.act("submit")));
    for (const type of ["change", "input"]) form.addEventListener(type, () => (this.keepDraft(), this.touch(), this.frame()));
    document.addEventListener("keydown", (event) => this.key_(event));
    window.addEventListener("blur", () => this.player && this.record("blur", this.player.side, this.player.position));
    window.addEventListener("pagehide", () => this.sendEvents());
    document.addEventListener("visibilitychange", () => document.hidden && this.sendEvents());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.touch(), this.frame()));
    new ResizeObserver(() => (this.touch(), this.player && this.frame())).observe(root);
    // Screen frames stop in a hidden tab; listening there still counts.
    setInterval(() => this.player?.count(), 250);
    setInterval(() => this.sendEvents(), EVENTS_EVERY_MS);
    this.outbox.addEventListener("saved", ({ detail }) => {
      this.saved += 1;
      this.showProgress(detail.receipt.progress);
      if (!this.outbox.votes.length) this.say("Saved", "saved");
    });
    this.outbox.addEventListener("waiting", () =>
      this.say("Not saved yet: the server cannot be reached. The vote is kept on this device and sent again.", "waiting"),
    );
    this.outbox.addEventListener("refused", ({ detail }) => this.say(`Not recorded: ${detail.error.message}`, "refused"));
  }
}

function open() {
  const root = document.getElementById("attune");
  if (!root || root.dataset.opened) return Boolean(root);
  root.dataset.opened = "true";
  const page = new RatingPage(root);
  window.attune = page;
  page.open();
  return true;
}

// Gradio builds its page after this script has loaded.
if (!open()) {
  const observer = new MutationObserver(() => open() && observer.disconnect());
  observer.observe(document.documentElement, { childList: true, subtree: true });
}
