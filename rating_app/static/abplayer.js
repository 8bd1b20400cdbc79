// Two clips at one playhead: both sources always run together, and switching only moves two gains.

export const RAMP_SECONDS = 0.01;
const BIN_SECONDS = 0.05;
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
    this.voice = null;
    this.restingAt = 0;
    this.heard = { left: new Uint8Array(0), right: new Uint8Array(0) };
    this.switches = 0;
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
    if (!this.voice) return this.restingAt;
    const t = this.elapsed();
    return this.loop ? t % this.duration : Math.min(t, this.duration);
  }

  /** Media seconds since the start of the clip, not wrapped at the loop. */
  elapsed() {
    return this.voice.at + Math.max(0, this.context.currentTime - this.voice.when);
  }

  /** Clips of unequal length are padded with silence, so that both loop at the same moment. */
  setClips(left, right, side = "left") {
    this.halt();
    const length = Math.max(left.length, right.length);
    this.buffers = { left: this.padded(left, length), right: this.padded(right, length) };
    this.duration = length / left.sampleRate;
    const bins = Math.max(1, Math.round(this.duration / BIN_SECONDS));
    this.heard = { left: new Uint8Array(bins), right: new Uint8Array(bins) };
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
    if (this.restingAt >= this.duration - 0.02) this.restingAt = 0;
    this.voice = this.sound(this.restingAt);
    this.log("play");
    this.emit("change");
  }

  sound(at) {
    const when = this.context.currentTime;
    const voice = { at, when, counted: at, sources: {}, envelopes: {} };
    for (const side of SIDES) {
      const source = this.context.createBufferSource();
      const envelope = new Fader(this.context, 0);
      source.buffer = this.buffers[side];
      source.loop = this.loop;
      source.connect(envelope.node).connect(this.faders[side].node);
      envelope.ramp(1, when);
      source.start(when, at);
      voice.sources[side] = source;
      voice.envelopes[side] = envelope;
    }
    voice.sources.left.onended = () => voice === this.voice && this.finished();
    return voice;
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

  seek(seconds) {
    if (!this.buffers) return;
    const target = Math.min(Math.max(0, seconds), this.duration - 0.001);
    const old = this.voice;
    if (old) {
      this.count();
      this.voice = this.sound(target);
      this.silence(old);
    } else {
      this.restingAt = target;
    }
    this.log("seek");
    this.emit("change");
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
    this.count();
    if (this.voice) {
      const at = this.position;
      Object.assign(this.voice, { at, counted: at, when: this.context.currentTime });
      for (const side of SIDES) this.voice.sources[side].loop = loop;
    }
    this.loop = loop;
    this.log("loop");
    this.emit("change");
  }

  /** Books what sounded since the last call on the side that sounded. The audio clock stands still when nothing does. */
  count() {
    if (!this.voice) return;
    const until = this.loop ? this.elapsed() : Math.min(this.elapsed(), this.duration);
    const from = this.voice.counted;
    if (until <= from) return;
    this.voice.counted = until;
    const bins = this.heard[this.side];
    const width = this.duration / bins.length;
    // A bin counts when its middle was heard: contiguous calls book each middle exactly once.
    const first = Math.ceil(from / width - 0.5);
    const last = Math.min(Math.ceil(until / width - 0.5), first + bins.length);
    for (let bin = first; bin < last; bin++) bins[bin % bins.length] = 1;
    this.emit("heard");
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
