// The page: opens the study its address names and hands over to the mode that the study asks for.
//
//   onboarding.js  export async function runOnboarding(page, study) -> body of POST /rate/session without study, invite
//   pairs.js       export class PairMode      study.mode "ab"
//   rating.js      export class RatingMode    study.mode "rating"
//   arena.js       export class ArenaMode     study.mode "arena"
//
// A mode is made once, `new Mode(page)`, and has
//   async begin()   shows the first thing to do; page.fail() shows what it throws, and "Try again" calls it once more
//   act(name)       optional: a click on [data-do=name] or its key, while this mode's section is shown
//   key(event)      optional: a keydown that the page itself did not use; true = used
//   close()         optional: called before another mode is made on the same elements; none of its listeners may act on
//   frame()         optional: called once per screen frame while the player plays, and after page.touch()
//
// What the page offers (everything else in this class is its own business):
//   page.study                        state.study; page.progress {done, available}; page.root
//   page.section(phase, html?)        a card <section data-phase-of=phase>, made at the first call; html is our own, static
//   page.phase(phase)                 shows that section alone and moves the focus to its [data-focus] or its heading
//   page.part(name)                   the element [data-at=name]
//   await page.style(name)            loads static/<name>.css
//   page.call(path, body?)            JSON of one of our routes; throws ApiError with a sentence for the rater
//   page.context, page.player         the AudioContext and an ABPlayer on it; page.wakeAudio() inside a click starts them
//   await page.loadAudio(url)         an AudioBuffer, tried three times
//   page.outbox.add(path, body)       a vote or a rating on its way: kept until the server has committed it; body.key and
//                                     body.pair or body.item name it; the page shows "Saving", "Saved" and refusals
//   page.say(text, kind?)             one polite sentence (kind: busy, saved, waiting, refused)
//   page.showProgress({done, available})
//   await page.answered()             after each answered item: counts it, and proposes a break when one is due;
//                                     false when the session is complete (then return page.finish())
//   await page.finish()               the summary; the session's end
//   await page.ratePair()             the next pair of /rate/pair on the A/B page; resolves true once it is answered and
//                                     safely on its way, false when there is none (for the arena)
//   await page.practise(pairs)        practice pairs on the A/B page, nothing is sent; each {id, prompt, first_side,
//                                     clips: {left, right}, lesson: text shown after the answer}; needs no session

import { ABPlayer } from "./abplayer.js";
import { ApiError, Outbox, call } from "./outbox.js";
import { Pacing } from "./pacing.js";
import { PairMode } from "./pairs.js";
import { Tabs } from "./tabs.js";

const MODES = {
  rating: async (page) => new (await import("./rating.js")).RatingMode(page),
  arena: async (page) => new (await import("./arena.js")).ArenaMode(page),
};

export class Page {
  constructor(root) {
    this.root = root;
    this.outbox = new Outbox();
    this.tabs = new Tabs();
    this.study = null;
    this.session = null; // the handle of the listening session, sent with every call
    this.mode = null;
    this.progress = null;
    this.pairs = new PairMode(this);
    this.pacing = new Pacing(this);
    this.listen();
  }

  // ---- start -------------------------------------------------------------------------------------------------

  /** The study and the invitation that this page's own address names. */
  get address() {
    const query = new URLSearchParams(location.search);
    return Object.fromEntries(["study", "invite"].flatMap((name) => (query.has(name) ? [[name, query.get(name)]] : [])));
  }

  async open() {
    this.outbox.flush(); // also for a study that has been closed since
    try {
      const state = await call(`/rate/state?${new URLSearchParams(this.address)}`);
      this.study = state.study;
      if (state.study) this.describe(state.study);
      if (state.problem) return this.notice(state.problem);
      if (state.session) this.join(state);
      else await this.enrol();
      await this.begin();
    } catch (error) {
      this.fail(error, () => this.open());
    }
  }

  describe(study) {
    this.part("badge").hidden = !study.demo;
    this.part("title").textContent = study.title;
    this.part("title").hidden = !study.title;
    if (study.title) document.title = study.title;
  }

  /** Consent and everything else that comes before the first session; asked again until the server has taken it. */
  async enrol() {
    const { runOnboarding } = await import("./onboarding.js");
    const body = await runOnboarding(this, this.study);
    this.join(await call("/rate/session", { ...body, ...this.address }));
  }

  join(state) {
    this.session = state.session_key;
    this.outbox.session = state.session_key;
    this.showProgress(state.progress);
  }

  async begin() {
    if (this.study.mode === "ab") this.mode = this.pairs;
    this.mode ??= await MODES[this.study.mode](this);
    await this.mode.begin();
  }

  // ---- what is shown -----------------------------------------------------------------------------------------

  part(name) {
    return this.root.querySelector(`[data-at="${name}"]`);
  }

  section(phase, html = "") {
    let section = this.root.querySelector(`[data-phase-of="${phase}"]`);
    if (!section) {
      section = document.createElement("section");
      section.className = `at-card at-page at-${phase}`;
      section.dataset.phaseOf = phase;
      section.hidden = true;
      section.innerHTML = html;
      this.part("main").append(section);
    }
    return section;
  }

  phase(name) {
    this.root.dataset.phase = name;
    for (const section of this.root.querySelectorAll("[data-phase-of]")) section.hidden = section.dataset.phaseOf !== name;
    const shown = this.root.querySelector(`[data-phase-of="${name}"]`);
    const target = shown?.querySelector("[data-focus]") ?? shown?.querySelector("h1");
    if (target?.matches("h1")) target.tabIndex = -1;
    target?.focus({ preventScroll: true });
    if (name !== "loading") window.scrollTo({ top: 0, behavior: "instant" });
  }

  /** The folder of the static files, with their digest in it. */
  style(name) {
    const href = new URL(`${name}.css`, import.meta.url).href;
    if (document.querySelector(`link[href="${href}"]`)) return Promise.resolve();
    return new Promise((resolve) => {
      const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href, onload: resolve, onerror: resolve });
      document.head.append(link);
    });
  }

  say(text, kind = "") {
    const status = this.part("status");
    status.textContent = text;
    status.dataset.kind = kind;
  }

  /** Answers that could not be saved are told for as long as they lie here. */
  showStuck() {
    const many = this.outbox.stuck.length;
    const what = this.study?.mode === "rating" ? "rating" : "vote";
    this.part("stuck").hidden = many === 0;
    this.part("stuck").textContent = many === 1 ? `1 ${what} could not be saved; it stays on this device.` : many ? `${many} ${what}s could not be saved; they stay on this device.` : "";
  }

  /** Something that no new attempt changes: a closed study, an invitation that is used up. */
  notice(sentence) {
    this.part("notice").textContent = sentence;
    this.phase("notice");
  }

  fail(error, retry = () => this.mode.begin()) {
    if (!(error instanceof ApiError)) console.error(error);
    this.player?.pause();
    this.retry = retry;
    this.part("problem").textContent = error instanceof ApiError ? error.message : "The page met a fault of its own. Please reload it.";
    this.phase("problem");
    window.addEventListener("online", () => this.root.dataset.phase === "problem" && this.act("retry"), { once: true });
  }

  showProgress(progress) {
    if (!progress) return;
    this.progress = progress;
    this.pacing.show();
  }

  // ---- what modes use ----------------------------------------------------------------------------------------

  call(path, body, options) {
    return call(path, body, { session: this.session, ...options });
  }

  get context() {
    this.audio ??= new AudioContext({ latencyHint: "interactive" });
    return this.audio;
  }

  wakeAudio() {
    return this.context.resume();
  }

  get player() {
    if (!this.abplayer) {
      this.abplayer = new ABPlayer(this.context);
      this.tabs.mind(this.abplayer);
    }
    return this.abplayer;
  }

  async loadAudio(url) {
    for (let attempt = 1; ; attempt++) {
      try {
        const response = await fetch(url, { credentials: "same-origin", cache: "no-store" });
        if (!response.ok) throw new ApiError("A clip could not be loaded.", response.status);
        return await this.context.decodeAudioData(await response.arrayBuffer());
      } catch (error) {
        if (attempt === 3) throw error instanceof ApiError ? error : new ApiError("A clip could not be loaded.", 0);
      }
    }
  }

  answered() {
    return this.pacing.answered();
  }

  finish() {
    return this.pacing.finish();
  }

  ratePair() {
    return this.pairs.rateOne();
  }

  practise(pairs) {
    return this.pairs.practise(pairs);
  }

  touch() {
    this.dirty = true;
    this.frame();
  }

  /** Once per screen frame while something moves. */
  frame() {
    this.framing ??= requestAnimationFrame(() => {
      this.framing = null;
      this.abplayer?.count();
      this.current?.frame?.(this.dirty);
      this.dirty = false;
      if (this.abplayer?.playing) this.frame();
    });
  }

  /** Who is on the page now: the A/B page also stands in for the arena and for practice. */
  get current() {
    return this.root.dataset.phase === "rate" ? this.pairs : this.mode;
  }

  // ---- input -------------------------------------------------------------------------------------------------

  act(name) {
    if (name === "help") return this.part("help").showModal();
    if (name === "retry") return this.phase("loading"), Promise.resolve(this.retry()).catch((error) => this.fail(error, this.retry));
    if (this.pacing.act(name)) return;
    this.current?.act?.(name);
  }

  listen() {
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button && !button.disabled) this.act(button.dataset.do);
    });
    document.addEventListener("keydown", (event) => {
      if (this.part("help").open) return;
      const writing = event.target.matches?.('textarea, input[type="text"]');
      if (event.key !== "?" || writing) this.current?.key?.(event);
      else event.preventDefault(), this.act("help");
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.touch());
    new ResizeObserver(() => this.touch()).observe(this.root);
    // Screen frames stop in a hidden tab; listening there still counts.
    setInterval(() => this.abplayer?.count(), 250);
    this.outbox.addEventListener("saved", () => this.outbox.waiting.length === this.outbox.stuck.length && this.say("Saved", "saved"));
    this.outbox.addEventListener("saved", () => this.showStuck());
    this.outbox.addEventListener("stuck", ({ detail }) => {
      this.showStuck();
      // Those that were sent along are saved, and no other event says so: one is still left.
      if (this.part("status").dataset.kind === "busy") this.say(detail.saved ? "Saved" : "", detail.saved ? "saved" : "");
    });
    this.outbox.addEventListener("waiting", () =>
      this.say("Not saved yet: the server cannot be reached. Your answer is kept on this device and sent again.", "waiting"),
    );
    this.outbox.addEventListener("refused", ({ detail }) => this.say(`Not recorded: ${detail.error.message}`, "refused"));
  }
}

function open() {
  const root = document.getElementById("attune");
  if (!root || root.dataset.opened) return Boolean(root);
  root.dataset.opened = "true";
  const page = new Page(root);
  window.attune = page;
  page.open();
  return true;
}

// Gradio builds its page after this script has loaded.
if (!open()) {
  const observer = new MutationObserver(() => open() && observer.disconnect());
  observer.observe(document.documentElement, { childList: true, subtree: true });
}
