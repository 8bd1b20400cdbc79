// A clip drawn as bars; what was heard is coloured, what was not is grey.

const BAR = 3;
const GAP = 2;

/** Loudest sample of each of `count` equal stretches, 0 to 1, in whichever channel it is. */
export function peaks(buffer, count) {
  const step = buffer.length / count;
  const found = new Float32Array(count);
  for (let c = 0; c < buffer.numberOfChannels; c++) {
    const data = buffer.getChannelData(c);
    for (let i = 0; i < count; i++) {
      let peak = found[i];
      for (let j = Math.floor(i * step); j < Math.floor((i + 1) * step); j++) peak = Math.max(peak, Math.abs(data[j]));
      found[i] = peak;
    }
  }
  return found;
}

/** The loudest sample of both clips: what fills the height of the drawing. */
export function commonScale(buffers) {
  return Math.max(0.05, ...buffers.flatMap((buffer) => Array.from(peaks(buffer, 100))));
}

/** Draws `buffer` into the canvas at the size its box has now. `scale` is shared by both clips of a pair. */
export function drawWaveform(canvas, buffer, heard, scale) {
  const box = canvas.getBoundingClientRect();
  if (!box.width) return;
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, box.width, box.height);
  const style = getComputedStyle(canvas);
  const colours = [style.getPropertyValue("--at-bar"), style.getPropertyValue("--at-bar-heard")];
  const count = Math.max(1, Math.floor((box.width + GAP) / (BAR + GAP)));
  if (canvas.drawnBuffer !== buffer || canvas.drawnPeaks.length !== count) {
    canvas.drawnBuffer = buffer;
    canvas.drawnPeaks = peaks(buffer, count);
  }
  const step = box.width / count;
  for (let i = 0; i < count; i++) {
    const tall = Math.max(2, (canvas.drawnPeaks[i] / scale) * (box.height - 6));
    context.fillStyle = colours[heard[Math.min(heard.length - 1, Math.floor(((i + 0.5) / count) * heard.length))] ? 1 : 0];
    context.beginPath();
    context.roundRect(i * step, (box.height - tall) / 2, Math.max(1, step - GAP), tall, 1.5);
    context.fill();
  }
}
