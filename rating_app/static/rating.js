// The absolute rating mode: one clip after the other, listened to, rated, and handed to the outbox.

import { Ahead } from "./ahead.js";
import { Drafts } from "./draft.js";
import { make } from "./elements.js";
import { randomKey } from "./outbox.js";
import { Scales } from "./scales.js";
import { commonScale, drawWaveform } from "./waveform.js";

const SEEK_SECONDS = 0.5;
const KEYS = { " ": "play", Enter: "submit", ArrowLeft: "back", ArrowRight: "forward", Home: "home", Escape: "escape", l: "loop", s: "skip", f: "trouble" };
const HELP = [
  ["Space", "play or pause"],
  ["← →", "half a second back, forward"],
  ["Home", "to the beginning"],
  ["L", "loop on or off"],
  ["Tab", "to the scales; digits type a number"],
  ["S F", "skip, something is wrong"],
  ["Enter", "save the rating"],
];
const HTML = `
  <div class="at-prompt">
    <h1 id="at-rating-label">Description</h1>
    <blockquote id="at-rating-prompt" data-at="rating-prompt"></blockquote>
  </div>
  <div class="at-single" role="group" aria-label="Player">
    <div class="at-wave" role="slider" tabindex="0" aria-label="Position in the clip" aria-valuemin="0" aria-valuemax="0"
         aria-valuenow="0"><div class="at-lane"><canvas aria-hidden="true"></canvas><i class="at-head"></i></div></div>
    <span class="at-heard" data-at="rating-heard"></span>
    <div class="at-transport">
      <button type="button" class="at-play" data-do="play" data-focus aria-keyshortcuts="Space" aria-describedby="at-rating-prompt">
        <svg viewBox="0 0 24 24" aria-hidden="true"><path class="at-when-paused" d="M7 4.5v15l13-7.5z"/>
          <path class="at-when-playing" d="M6 4.5h4.2v15H6zM13.8 4.5H18v15h-4.2z"/></svg>
        <span data-at="rating-play">Play</span>
      </button>
      <button type="button" class="at-quiet" data-do="loop" aria-pressed="true" aria-keyshortcuts="L">Loop</button>
      <span class="at-time" data-at="rating-time"></span>
    </div>
  </div>
  <form class="at-answers" data-at="rating-form" autocomplete="off" novalidate>
    <div class="at-questions" data-at="rating-scales"></div>
    <div class="at-send">
      <button type="submit" class="at-primary" data-at="rating-submit" aria-describedby="at-rating-hint" disabled>Save rating</button>
      <p class="at-hint" id="at-rating-hint" data-at="rating-hint"></p>
      <span class="at-others">
        <button type="button" class="at-quiet" data-do="skip" aria-keyshortcuts="S">Skip</button>
        <button type="button" class="at-quiet" data-do="trouble" aria-keyshortcuts="F" aria-expanded="false"
                aria-controls="at-rating-trouble">Something is wrong</button>
      </span>
    </div>
    <div class="at-trouble" id="at-rating-trouble" data-at="rating-trouble" role="group" aria-label="What is wrong with the audio?" hidden>
      <button type="button" data-do="fault"><b>It is broken, or I cannot hear it properly</b><small>no rating; the clip is reported</small></button>
    </div>
  </form>
  <div class="at-after" data-at="rating-after" hidden>
    <h2>Practice</h2>
    <p data-at="rating-lesson"></p>
    <button type="button" class="at-primary" data-do="go-on" aria-keyshortcuts="Enter">Go on</button>
  </div>`;

export class RatingMode {
  constructor(page) {
    this.page = page;
    this.item = null; // { info, buffer, scale } on the page and open for an answer
    this.ahead = new Ahead(page, "item", { current: () => this.item, load: (info) => this.load(info) });
    this.practising = false;
    this.closed = new AbortController();
    this.drafts = new Drafts();
    this.section = page.section("rating", HTML);
    this.section.setAttribute("aria-labelledby", "at-rating-label");
    this.wave = this.section.querySelector(".at-wave");
    this.scales = new Scales(page.part("rating-scales"));
    this.scales.build(page.study.scales);
    this.listen();
  }

  // ---- one clip after the other ------------------------------------------------------------------------------

  async begin() {
    await this.page.style("rating");
    this.showKeys();
    for (let item = await this.ahead.take(); item; item = await this.ahead.take()) {
      await this.rate(item);
      await this.page.answered();
    }
    this.leave();
    await this.page.finish();
  }

  /** Clips {id, prompt, clip, lesson} with a known flaw, of which nothing is sent. */
  async practise(clips) {
    const { page } = this;
    await page.style("rating");
    const usual = page.mode;
    page.mode = this; // clicks and keys come here
    this.practising = true;
    page.root.dataset.practice = "true";
    try {
      for (const info of clips) await this.rate(await this.load(info));
    } finally {
      page.mode = usual;
      this.practising = false;
      delete page.root.dataset.practice;
      this.close();
    }
  }

  /** Hands the elements over to another RatingMode: this one hears nothing of them any more. */
  close() {
    this.leave();
    this.closed.abort();
  }

  leave() {
    this.item = this.ahead.next = null;
    this.page.abplayer?.pause();
  }

  async load(info) {
    const buffer = await this.page.loadAudio(info.clip);
    return { info, buffer, scale: commonScale([buffer]) };
  }

  rate(item) {
    this.show(item);
    if (!this.practising) this.ahead.begin();
    return new Promise((resolve) => (this.resolve = resolve));
  }

  show(item) {
    const { page } = this;
    this.watchPlayer();
    this.item = item;
    this.key_ = this.practising ? null : this.drafts.keyOf(item.info.id, randomKey);
    this.shownAt = performance.now();
    page.part("rating-prompt").textContent = item.info.prompt;
    page.part("rating-after").hidden = true;
    page.part("rating-form").hidden = false;
    this.openTrouble(false);
    this.scales.clear();
    page.player.setClips(item.buffer);
    const draft = this.practising ? null : this.drafts.read(item.info.id);
    if (draft?.answers) {
      page.player.restoreHeard(draft.heard);
      this.scales.answers = draft.answers;
    }
    page.root.dataset.unlocked = "false";
    page.phase("rating");
    this.showState();
  }

  // ---- answers -----------------------------------------------------------------------------------------------

  get missingSeconds() {
    const { player } = this.page;
    const needed = Math.min(this.page.study.minimum_listening_seconds, player.duration * 0.95);
    return Math.max(0, needed - player.heardSeconds("left"));
  }

  get unlocked() {
    return this.item !== null && this.missingSeconds < 0.001;
  }

  obstacle() {
    if (!this.unlocked) return `Listen for ${this.missingSeconds.toFixed(1)} s`;
    return this.scales.missing;
  }

  /** Sends the rating, or with SKIP and FAULT that there is none, and goes on. A second click finds nothing to rate. */
  async submit(outcome = "RATED") {
    const { item, page, resolve } = this;
    const full = outcome === "RATED";
    if (!item || (full && this.obstacle())) return;
    this.item = null;
    page.player.pause();
    if (this.practising) {
      if (full) await this.teach(item.info.lesson);
      return resolve();
    }
    const body = {
      item: item.info.id,
      key: this.key_,
      outcome,
      ...(full ? this.scales.answers : {}),
      heard: page.player.heardSeconds("left"),
      decision_ms: Math.round(performance.now() - this.shownAt),
    };
    page.say("Saving…", "busy");
    page.outbox.add("/rate/ratings", body);
    page.tabs.tell("rated", { item: item.info.id });
    resolve();
  }

  teach(lesson) {
    const { page } = this;
    page.part("rating-lesson").textContent = lesson;
    page.part("rating-form").hidden = true;
    page.part("rating-after").hidden = false;
    page.part("rating-after").querySelector("button").focus({ preventScroll: true });
    page.part("rating-after").scrollIntoView({ block: "nearest" });
    return new Promise((resolve) => (this.goOn = resolve));
  }

  keep() {
    if (!this.item || this.practising) return;
    const heard = Array.from(this.page.player.heard.left);
    this.drafts.write(this.item.info.id, { key: this.key_, answers: this.scales.answers, heard: { left: heard } });
  }

  // ---- what is shown -----------------------------------------------------------------------------------------

  showState() {
    const { player, root } = this.page;
    root.dataset.playing = String(player.playing);
    this.page.part("rating-play").textContent = player.playing ? "Pause" : "Play";
    this.section.querySelector('[data-do="loop"]').setAttribute("aria-pressed", String(player.loop));
    this.page.touch();
  }

  frame(dirty) {
    const { page, wave } = this;
    if (page.root.dataset.phase !== "rating") return;
    const { position, duration, heard, buffers } = page.player;
    page.part("rating-time").textContent = `${position.toFixed(1)} / ${duration.toFixed(1)} s`;
    wave.querySelector(".at-head").style.left = `${duration ? (100 * position) / duration : 0}%`;
    wave.setAttribute("aria-valuemax", duration.toFixed(1));
    wave.setAttribute("aria-valuenow", position.toFixed(1));
    wave.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${duration.toFixed(1)} seconds`);
    if (!dirty) return;
    if (buffers && this.item) drawWaveform(wave.querySelector("canvas"), buffers.left, heard.left, this.item.scale);
    const missing = this.missingSeconds;
    page.part("rating-heard").textContent = missing >= 0.001 ? `${missing.toFixed(1)} s to hear` : "✓ heard";
    const { unlocked } = this;
    if (unlocked && page.root.dataset.unlocked === "false") page.say("It is heard; you can rate.");
    page.root.dataset.unlocked = String(unlocked);
    this.scales.lock(!unlocked);
    const obstacle = this.item ? this.obstacle() : "";
    page.part("rating-submit").disabled = !this.item || obstacle !== "";
    if (page.part("rating-hint").textContent !== obstacle) page.part("rating-hint").textContent = obstacle;
  }

  openTrouble(open) {
    const box = this.page.part("rating-trouble");
    box.hidden = !open;
    this.section.querySelector('[data-do="trouble"]').setAttribute("aria-expanded", String(open));
    if (!open) return;
    this.cameFrom = document.activeElement;
    box.querySelector("button").focus();
  }

  /** The help's own keys instead of the A/B page's. */
  showKeys() {
    this.page.part("help").querySelector("dl").replaceChildren(
      ...HELP.map(([keys, what]) => make("div", {}, make("dt", {}, ...keys.split(" ").map((key) => make("kbd", { textContent: key }))), make("dd", { textContent: what }))),
    );
  }

  // ---- input -------------------------------------------------------------------------------------------------

  act(name) {
    const { player } = this.page;
    if (name === "go-on") return this.goOn?.();
    if (name === "play") return player.toggle();
    if (name === "loop") return player.setLoop(!player.loop);
    if (name === "back" || name === "forward") return player.seek(player.position + (name === "back" ? -1 : 1) * SEEK_SECONDS);
    if (name === "home") return player.seek(0);
    if (name === "submit") return this.submit();
    if (name === "skip" || name === "fault") return this.submit(name.toUpperCase());
    const trouble = this.page.part("rating-trouble");
    if (name === "trouble") return this.openTrouble(trouble.hidden);
    if (name === "escape" && !trouble.hidden) return this.openTrouble(false), this.cameFrom?.focus({ preventScroll: true });
  }

  key(event) {
    const { key, target } = event;
    if (this.page.root.dataset.phase !== "rating" || event.ctrlKey || event.metaKey || event.altKey) return;
    const action = KEYS[key] ?? KEYS[key.toLowerCase()];
    if (!action) return;
    const isInput = target.matches?.("input");
    // Sliders, numbers and radios keep their arrows; a focused button keeps its own Space and Enter.
    if (isInput && (key.startsWith("Arrow") || key === "Home" || (key === " " && target.type === "radio" && !target.checked))) return;
    if (target.matches?.("button") && (key === " " || key === "Enter")) return;
    event.preventDefault();
    if (event.repeat && action !== "back" && action !== "forward") return;
    this.act(action);
  }

  seekFrom(event) {
    const lane = this.wave.querySelector(".at-lane").getBoundingClientRect();
    this.page.player.seek(Math.min(Math.max(0, (event.clientX - lane.left) / lane.width), 1) * this.page.player.duration, { quietly: true });
  }

  watchPlayer() {
    const { player } = this.page;
    if (this.watched === player) return;
    this.watched = player;
    const mine = (act) => () => this.page.root.dataset.phase === "rating" && act();
    const { signal } = this.closed;
    player.addEventListener("change", mine(() => this.showState()), { signal });
    player.addEventListener("heard", mine(() => this.page.touch()), { signal });
    player.addEventListener("log", mine(() => this.keep()), { signal });
  }

  listen() {
    const { page, wave } = this;
    const { signal } = this.closed;
    page.part("rating-form").addEventListener("submit", (event) => (event.preventDefault(), this.submit()), { signal });
    this.scales.addEventListener("change", () => (this.keep(), page.touch()));
    wave.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.item) return;
      event.preventDefault();
      wave.setPointerCapture(event.pointerId);
      this.seekFrom(event);
    }, { signal });
    wave.addEventListener("pointermove", (event) => wave.hasPointerCapture(event.pointerId) && this.seekFrom(event), { signal });
    // A click with the mouse leaves the focus where it is, so that Space goes on playing and pausing.
    this.section.querySelector(".at-single").addEventListener("pointerdown", (event) => event.target.closest("button") && event.preventDefault(), { signal });
    window.addEventListener("pagehide", () => this.keep(), { signal });
    for (const type of ["saved", "refused"]) page.outbox.addEventListener(type, ({ detail }) => detail.body.item && this.drafts.settle(detail.body.item), { signal });
    page.tabs.addEventListener("rated", ({ detail }) => {
      this.ahead.answeredElsewhere.add(detail.item);
      if (this.item?.info.id !== detail.item) return;
      this.item = null;
      page.player.pause();
      page.say("You rated that clip in another tab; this is the next one.");
      this.resolve();
    }, { signal });
  }
}
