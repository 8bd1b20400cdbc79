// One or two clips at one playhead: all sources always run together, and switching only moves gains.

export const RAMP_SECONDS = 0.01;
export const SHORTEST_LOOP_SECONDS = 0.2;
const BIN_SECONDS = 0.05;
const EDGE_SECONDS = 0.005;
const SIDES = ["left", "right"];

/** A gain that ramps without a step, also when a new ramp begins inside the last one. */
class Fader {
  constructor(context, value) {
    this.node = context.createGain();
    this.context = context;
    this.node.gain.value = value;
    this.from = this.to = value;
    this.start = 0;
  }

  valueAt(time) {
    const share = Math.min(1, Math.max(0, (time - this.start) / RAMP_SECONDS));
    return this.from + (this.to - this.from) * share;
  }

  // `gain.value` lags behind in some browsers, so the running value is computed here.
  ramp(target, when = this.context.currentTime) {
    const now = this.valueAt(when);
    this.node.gain.cancelScheduledValues(when);
    this.node.gain.setValueAtTime(now, when);
    this.node.gain.linearRampToValueAtTime(target, when + RAMP_SECONDS);
    [this.from, this.to, this.start] = [now, target, when];
  }
}

/** Emits "change" when anything visible changed, "heard" when listening progressed, "log" for telemetry. */
export class ABPlayer extends EventTarget {
  constructor(context) {
    super();
    this.context = context;
    this.buffers = null;
    this.duration = 0;
    this.side = "left";
    this.loop = true;
    this.region = null; // { start, end } in seconds: what is looped instead of the whole clip
    this.voice = null;
    this.restingAt = 0;
    this.heard = { left: new Uint8Array(0), right: new Uint8Array(0) };
    this.switches = 0;
    this.cuts = {}; // the looped stretch of each side, kept until it changes
    this.faders = {};
    for (const side of SIDES) {
      this.faders[side] = new Fader(context, side === this.side ? 1 : 0);
      this.faders[side].node.connect(context.destination);
    }
  }

  get playing() {
    return this.voice !== null;
  }

  get position() {
    return this.voice ? this.mediaAt(this.elapsed()) : this.restingAt;
  }

  /** Media seconds run through since playing began, counted on over every return to the loop's start. */
  elapsed() {
    return Math.max(0, this.context.currentTime - this.voice.when);
  }

  /** Where in the clip the voice is, `elapsed` seconds after it began. */
  mediaAt(elapsed) {
    const { at, start, length, loops } = this.voice;
    return loops ? start + ((at - start + elapsed) % length) : Math.min(at + elapsed, this.duration);
  }

  /** The stretch that sounds again and again, or that sounds once. */
  get span() {
    return this.loop && this.region ? this.region : { start: 0, end: this.duration };
  }

  /** Clips of unequal length are padded with silence, so that both loop at the same moment. One clip alone is left. */
  setClips(left, right = left, side = "left") {
    this.halt();
    const length = Math.max(left.length, right.length);
    this.buffers = { left: this.padded(left, length), right: this.padded(right, length) };
    this.duration = length / left.sampleRate;
    const bins = Math.max(1, Math.round(this.duration / BIN_SECONDS));
    this.heard = { left: new Uint8Array(bins), right: new Uint8Array(bins) };
    this.region = null;
    this.restingAt = 0;
    this.switches = 0;
    this.side = side;
    for (const each of SIDES) this.faders[each].ramp(each === side ? 1 : 0);
    this.emit("change");
  }

  padded(buffer, length) {
    if (buffer.length === length) return buffer;
    const longer = this.context.createBuffer(buffer.numberOfChannels, length, buffer.sampleRate);
    for (let c = 0; c < buffer.numberOfChannels; c++) longer.copyToChannel(buffer.getChannelData(c), c);
    return longer;
  }

  async play() {
    if (!this.buffers || this.playing) return;
    // Browsers start audio only after a gesture; resume() must be called from inside it.
    await this.context.resume();
    if (!this.playing) this.start();
  }

  /** Begins sounding at the resting position, at once. */
  start() {
    if (this.restingAt >= this.span.end - 0.02 || this.restingAt < this.span.start) this.restingAt = this.span.start;
    this.voice = this.sound(this.restingAt);
    this.log("play");
    this.emit("change");
  }

  sound(at) {
    const when = this.context.currentTime;
    const { start, end } = this.span;
    const voice = { at, when, start, length: end - start, loops: this.loop, counted: 0, sources: {}, envelopes: {} };
    for (const side of SIDES) {
      const source = this.context.createBufferSource();
      const envelope = new Fader(this.context, 0);
      source.buffer = this.loop ? this.cut(side, start, end) : this.buffers[side];
      source.loop = this.loop;
      source.connect(envelope.node).connect(this.faders[side].node);
      envelope.ramp(1, when);
      source.start(when, this.loop ? at - start : at);
      voice.sources[side] = source;
      voice.envelopes[side] = envelope;
    }
    voice.sources.left.onended = () => voice === this.voice && this.finished();
    return voice;
  }

  /** A copy of a stretch whose ends fade over a few milliseconds, so that returning to its start does not click. */
  cut(side, start, end) {
    const buffer = this.buffers[side];
    const known = this.cuts[side];
    if (known?.buffer === buffer && known.start === start && known.end === end) return known.made;
    const rate = buffer.sampleRate;
    const first = Math.round(start * rate);
    const length = Math.max(1, Math.min(Math.round(end * rate), buffer.length) - first);
    const made = this.context.createBuffer(buffer.numberOfChannels, length, rate);
    const edge = Math.min(Math.round(EDGE_SECONDS * rate), length >> 1);
    for (let c = 0; c < buffer.numberOfChannels; c++) {
      const data = buffer.getChannelData(c).slice(first, first + length);
      for (let i = 0; i < edge; i++) {
        data[i] *= i / edge;
        data[length - 1 - i] *= i / edge;
      }
      made.copyToChannel(data, c);
    }
    this.cuts[side] = { buffer, start, end, made };
    return made;
  }

  silence(voice) {
    for (const side of SIDES) {
      voice.envelopes[side].ramp(0);
      voice.sources[side].stop(this.context.currentTime + RAMP_SECONDS + 0.002);
    }
  }

  halt() {
    if (!this.voice) return;
    this.count();
    this.restingAt = this.position;
    this.silence(this.voice);
    this.voice = null;
  }

  pause() {
    if (!this.playing) return;
    this.halt();
    this.log("pause");
    this.emit("change");
  }

  finished() {
    this.count();
    this.voice = null;
    this.restingAt = this.duration;
    this.log("ended");
    this.emit("change");
  }

  toggle() {
    return this.playing ? this.pause() : this.play();
  }

  /** Goes to a moment, at most to the ends of the loop. */
  seek(seconds) {
    if (!this.buffers) return;
    this.moveTo(seconds);
    this.log("seek");
    this.emit("change");
  }

  moveTo(seconds) {
    const { start, end } = this.span;
    const target = Math.min(Math.max(start, seconds), end - 0.001);
    const old = this.voice;
    if (old) this.count();
    if (!old) this.restingAt = target;
    else {
      this.voice = this.sound(target);
      this.silence(old);
    }
  }

  switchTo(side) {
    if (side === this.side) return;
    this.count();
    this.side = side;
    this.switches += 1;
    for (const each of SIDES) this.faders[each].ramp(each === side ? 1 : 0);
    this.log("switch");
    this.emit("change");
  }

  setLoop(loop) {
    if (loop === this.loop) return;
    const { position } = this;
    if (this.voice) this.count();
    this.loop = loop;
    this.moveTo(position);
    this.log("loop");
    this.emit("change");
  }

  /** Loops between two moments; null loops the whole clip again. The playhead stays where it is if that is inside. */
  setRegion(region) {
    if (!this.buffers) return;
    const { position } = this;
    if (this.voice) this.count();
    this.region = region && this.bounded(region);
    if (region) this.loop = true;
    const { start, end } = this.span;
    this.moveTo(position >= start && position < end ? position : start);
    this.log("loop");
    this.emit("change");
  }

  bounded({ start, end }) {
    const shortest = Math.min(SHORTEST_LOOP_SECONDS, this.duration);
    const [low, high] = start <= end ? [start, end] : [end, start];
    const from = Math.min(Math.max(0, low), this.duration - shortest);
    return { start: from, end: Math.min(this.duration, Math.max(high, from + shortest)) };
  }

  /** Books what sounded since the last call on the side that sounded. The audio clock stands still when nothing does. */
  count() {
    const { voice } = this;
    if (!voice) return;
    const until = voice.loops ? this.elapsed() : Math.min(this.elapsed(), this.duration - voice.at);
    if (until <= voice.counted) return;
    // A tab that slept may have gone round often; once round books everything.
    let from = Math.max(voice.counted, voice.loops ? until - voice.length : 0);
    voice.counted = until;
    if (!voice.loops) this.book(voice.at + from, voice.at + until);
    for (let turn = 0; voice.loops && turn < 2 && from < until; turn++) {
      const begin = this.mediaAt(from);
      const step = Math.min(until - from, voice.start + voice.length - begin);
      this.book(begin, begin + step);
      from += step + 1e-9; // past the seam, or rounding could leave us before it
    }
    this.emit("heard");
  }

  /** A bin counts when its middle was heard: contiguous stretches book each middle exactly once. */
  book(begin, end) {
    const bins = this.heard[this.side];
    const width = this.duration / bins.length;
    const first = Math.max(0, Math.ceil(begin / width - 0.5));
    const last = Math.min(bins.length, Math.ceil(end / width - 0.5));
    for (let bin = first; bin < last; bin++) bins[bin] = 1;
  }

  /** Distinct seconds of a clip that were heard, however often. */
  heardSeconds(side) {
    const bins = this.heard[side];
    if (!bins.length) return 0;
    return (bins.reduce((sum, bin) => sum + bin, 0) * this.duration) / bins.length;
  }

  restoreHeard(heard) {
    for (const side of SIDES) {
      const saved = heard?.[side];
      if (saved?.length === this.heard[side].length) this.heard[side] = Uint8Array.from(saved);
    }
    this.emit("heard");
  }

  log(type) {
    this.dispatchEvent(new CustomEvent("log", { detail: { type, side: this.side, position: this.position } }));
  }

  emit(type) {
    this.dispatchEvent(new Event(type));
  }
}
