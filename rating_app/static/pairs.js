// The A/B page: one pair after the other, listened to, answered, and handed to the outbox.

import { Ahead } from "./ahead.js";
import { Ballot } from "./ballot.js";
import { Comment } from "./comment.js";
import { Deck } from "./deck.js";
import { Drafts } from "./draft.js";
import { actionOf } from "./keys.js";
import { randomKey } from "./outbox.js";
import { Reveal } from "./reveal.js";
import { Telemetry } from "./telemetry.js";
import { commonScale } from "./waveform.js";

const SIDES = ["left", "right"];
const LETTER = { left: "A", right: "B" };
const SEEK_SECONDS = 0.5;
const BROKEN_AFTER_SECONDS = 0.5; // of the clip that is said to be broken
const COMMIT_PATIENCE_MS = 20_000;
const OUTCOMES = ["saved", "refused", "waiting", "stuck"]; // of sending an answer

export class PairMode {
  constructor(page) {
    this.page = page;
    this.pair = null; // { info, buffers, scale } on the page and open for an answer
    this.ahead = new Ahead(page, "pair", { current: () => this.pair, load: (info) => this.load(info) });
    this.shown = 0;
    this.practising = false;
    this.drafts = new Drafts();
    this.ballot = new Ballot(page.part("form"));
    this.deck = new Deck(page);
    this.comment = new Comment(page);
    this.reveal = new Reveal(page);
    this.telemetry = new Telemetry(page, () => this.keep());
    this.listen();
  }

  get study() {
    return this.page.study;
  }

  // ---- one pair after the other ------------------------------------------------------------------------------

  async begin() {
    for (let pair = await this.ahead.take(); pair; pair = await this.ahead.take()) {
      await this.rate(pair);
      await this.page.answered();
    }
    await this.page.finish();
  }

  /** One pair of the server's choice; false when there is none. */
  async rateOne() {
    const pair = await this.ahead.take();
    if (pair) await this.rate(pair, { alone: true });
    return pair !== null;
  }

  async practise(pairs) {
    this.practising = true;
    this.page.root.dataset.practice = "true";
    try {
      for (const info of pairs) await this.rate(await this.load(info), { alone: true });
    } finally {
      this.practising = false;
      delete this.page.root.dataset.practice;
      this.leave();
    }
  }

  /** Off the page: nothing is played, booked or answered any more. */
  leave() {
    this.pair = this.ahead.next = null;
    this.telemetry.begin(null);
    this.page.abplayer?.pause();
  }

  /** A pair with both clips decoded. */
  async load(info) {
    const [left, right] = await Promise.all(SIDES.map((side) => this.page.loadAudio(info.clips[side])));
    return { info, buffers: { left, right }, scale: commonScale([left, right]) };
  }

  rate(pair, { alone = false } = {}) {
    this.show(pair);
    if (!alone) this.ahead.begin();
    return new Promise((resolve) => (this.resolve = resolve));
  }

  show(pair) {
    const { page, ballot } = this;
    this.watchPlayer();
    const draft = this.practising ? null : this.drafts.read(pair.info.id);
    this.pair = pair;
    this.shown += 1;
    this.voteKey = this.practising ? null : this.drafts.keyOf(pair.info.id, randomKey);
    this.shownAt = performance.now();
    if (this.practising) this.telemetry.begin(null);
    else this.telemetry.begin(pair.info.id, draft && (draft.seq ?? 0));
    this.reveal.hide();
    this.openTrouble(false);
    ballot.form.reset();
    if (this.built !== this.study) ballot.build((this.built = this.study));
    page.part("comment-box").hidden = !this.study.ask_comment;
    page.part("prompt").textContent = pair.info.prompt;
    page.player.setClips(pair.buffers.left, pair.buffers.right, pair.info.first_side);
    this.deck.show(pair.scale);
    this.comment.pin(null);
    if (draft?.answers) this.restore(draft);
    page.phase("rate");
    page.touch();
    performance.measure("attune-pair-shown", { start: performance.getEntriesByName("attune-vote").at(-1)?.startTime ?? this.shownAt });
  }

  // ---- answers -----------------------------------------------------------------------------------------------

  missingSeconds(side) {
    const { player } = this.page;
    const needed = Math.min(this.study.minimum_listening_seconds, player.duration * 0.95);
    return Math.max(0, needed - player.heardSeconds(side));
  }

  get unlocked() {
    return this.pair !== null && SIDES.every((side) => this.missingSeconds(side) < 0.001);
  }

  /** What still keeps the vote from being sent, in words; an empty string when nothing does. */
  obstacle() {
    const short = SIDES.filter((side) => this.missingSeconds(side) >= 0.001);
    if (!short.length) return this.ballot.missing;
    return `Listen to ${short.map((side) => `${LETTER[side]} for ${this.missingSeconds(side).toFixed(1)}\u00a0s`).join(" and ")}`;
  }

  mayCallBroken(side) {
    return this.pair !== null && this.page.player.heardSeconds(side) >= BROKEN_AFTER_SECONDS;
  }

  /** The clip on this side is clearly broken: a vote for the other one. */
  callBroken(side) {
    if (this.mayCallBroken(side)) this.vote(side === "left" ? "B" : "A", side);
  }

  /** Sends the vote and goes on. A second click finds nothing to vote on. */
  async vote(outcome, broken = null) {
    const { pair, page, ballot } = this;
    const full = outcome !== "SKIP" && outcome !== "FAULT" && !broken;
    if (!pair || (full && this.obstacle())) return;
    this.pair = null;
    performance.mark("attune-vote");
    page.player.pause();
    const { resolve, practising } = this;
    if (practising) {
      if (full && pair.info.lesson) await this.reveal.lesson(pair.info.lesson);
      return resolve();
    }
    const { player } = page;
    const body = {
      pair: pair.info.id,
      key: this.voteKey,
      outcome,
      axes: full ? ballot.axes : {},
      confidence: full ? ballot.confidence : null,
      ...this.comment.answer,
      broken,
      heard: { left: player.heardSeconds("left"), right: player.heardSeconds("right") },
      switches: player.switches,
      decision_ms: Math.round(performance.now() - this.shownAt),
      events: this.telemetry.take(),
    };
    this.telemetry.begin(null);
    page.say("Saving…", "busy");
    page.outbox.add("/rate/votes", body);
    page.tabs.tell("answered", { pair: pair.info.id });
    if (full && this.study.reveal) await this.showVersions(pair.info.id, body.key);
    resolve();
  }

  /** Which was which, once the vote is committed; without a connection the next pair comes instead. */
  async showVersions(pair, key) {
    if (!(await this.committed(key))) return;
    try {
      await this.reveal.versions(await this.page.call(`/rate/reveal?pair=${pair}`));
    } catch (error) {
      this.page.say(error.message, "refused");
    }
  }

  committed(key) {
    const { outbox } = this.page;
    return new Promise((resolve) => {
      const done = ({ type, detail }) => detail.body.key === key && finish(type === "saved");
      const timer = setTimeout(() => finish(false), COMMIT_PATIENCE_MS);
      const finish = (saved) => {
        clearTimeout(timer);
        for (const type of OUTCOMES) outbox.removeEventListener(type, done);
        resolve(saved);
      };
      for (const type of OUTCOMES) outbox.addEventListener(type, done);
    });
  }

  // ---- what survives a reload --------------------------------------------------------------------------------

  keep() {
    if (!this.pair || this.practising) return;
    const { player } = this.page;
    this.drafts.write(this.pair.info.id, {
      key: this.voteKey,
      seq: this.telemetry.seq,
      answers: this.ballot.answers,
      heard: { left: Array.from(player.heard.left), right: Array.from(player.heard.right) },
      comment: this.comment.text,
      range: this.comment.range,
    });
  }

  restore(draft) {
    this.page.player.restoreHeard(draft.heard);
    this.comment.text = draft.comment;
    if (draft.range) this.comment.pin(draft.range);
    this.ballot.answers = draft.answers;
  }

  // ---- what is shown -----------------------------------------------------------------------------------------

  frame(dirty) {
    this.deck.frame(dirty);
    if (!dirty) return;
    const { page } = this;
    for (const side of SIDES) {
      const missing = this.missingSeconds(side);
      page.part(`heard-${side}`).textContent = missing >= 0.001 ? `${missing.toFixed(1)} s to hear` : "✓ heard";
      page.root.querySelector(`[data-do="broken-${side}"]`).disabled = !this.mayCallBroken(side);
    }
    const { unlocked } = this;
    if (unlocked && page.root.dataset.unlocked === "false") page.say("Both are heard; you can vote.");
    page.root.dataset.unlocked = String(unlocked);
    this.ballot.lock(!unlocked);
    this.comment.show();
    const obstacle = this.pair ? this.obstacle() : "";
    page.part("submit").disabled = !this.pair || obstacle !== "";
    if (page.part("hint").textContent !== obstacle) page.part("hint").textContent = obstacle;
  }

  openTrouble(open) {
    const { page } = this;
    page.part("trouble").hidden = !open;
    page.root.querySelector('[data-do="trouble"]').setAttribute("aria-expanded", String(open));
    if (!open) return;
    this.cameFrom = document.activeElement;
    page.part("trouble").querySelector("button:enabled").focus();
  }

  // ---- input -------------------------------------------------------------------------------------------------

  act(name) {
    const { page, deck } = this;
    const { player } = page;
    if (this.reveal.open && (name === "go-on" || name === "submit")) return this.reveal.goOn();
    // Playing and listening go on while the versions are shown.
    if (name === "play") return player.toggle();
    if (SIDES.includes(name)) return player.switchTo(name);
    if (name === "loop") return player.setLoop(!player.loop);
    if (name === "loop-part") return deck.togglePart();
    if (name === "loop-start" || name === "loop-end") return deck.setEnd(name.slice(5));
    if (name === "back" || name === "forward") return player.seek(player.position + (name === "back" ? -1 : 1) * SEEK_SECONDS);
    if (name === "home") return player.seek(0);
    if (name === "escape") return this.escape();
    if (!this.pair) return;
    if (name === "skip") this.vote("SKIP");
    if (name === "fault") this.vote("FAULT");
    if (name === "submit") this.vote(this.ballot.chosen("outcome"));
    if (name === "trouble") this.openTrouble(page.part("trouble").hidden);
    if (name.startsWith("broken-")) this.callBroken(name.slice(7));
    if (name.startsWith("choose-")) this.ballot.choose("outcome", name.slice(7));
    if (!this.study.ask_comment) return;
    if (name === "comment") this.comment.focus();
    if (name === "here") this.comment.here();
    if (name === "unpin") this.comment.pin(null), this.comment.focus();
  }

  escape() {
    if (this.page.part("trouble").hidden) return this.deck.clearRegion();
    this.openTrouble(false);
    this.cameFrom?.focus({ preventScroll: true });
  }

  key(event) {
    const action = actionOf(event);
    if (action === null) return;
    event.preventDefault();
    if (action === "leave-text") this.page.root.querySelector('[data-do="play"]').focus({ preventScroll: true });
    else this.act(action);
  }

  watchPlayer() {
    if (this.watched) return;
    this.watched = this.page.player;
    const { watched: player, page } = this;
    const mine = (act) => (event) => page.root.dataset.phase === "rate" && act(event);
    player.addEventListener("change", mine(() => this.deck.showState()));
    player.addEventListener("heard", () => page.touch());
    player.addEventListener("log", ({ detail }) => this.telemetry.record(detail.type, detail.side, detail.position));
  }

  listen() {
    const { page } = this;
    const { form } = this.ballot;
    form.addEventListener("submit", (event) => (event.preventDefault(), this.act("submit")));
    for (const type of ["change", "input"]) form.addEventListener(type, () => (this.keep(), page.touch()));
    this.comment.addEventListener("change", () => (this.deck.showMark(this.comment.range), this.keep()));
    window.addEventListener("pagehide", () => this.keep());
    for (const type of ["saved", "refused"]) page.outbox.addEventListener(type, ({ detail }) => this.drafts.settle(detail.body.pair));
    page.tabs.addEventListener("answered", ({ detail }) => {
      this.ahead.answeredElsewhere.add(detail.pair);
      if (this.pair?.info.id !== detail.pair) return;
      this.leave();
      page.say("You answered that pair in another tab; this is the next one.");
      this.resolve();
    });
  }
}
