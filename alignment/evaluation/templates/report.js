"use strict";
// One clip at a time: starting one pauses the rest.
const players = [...document.querySelectorAll("audio")];
for (const player of players) {
  player.addEventListener("play", () => {
    for (const other of players) if (other !== player) other.pause();
  });
}
// Charts: the caption shows the value nearest to the pointer.
for (const chart of document.querySelectorAll(".chart[data-points]")) {
  const points = JSON.parse(chart.dataset.points);
  const value = chart.querySelector(".chart-value");
  const plot = chart.querySelector(".chart-plot");
  const dot = chart.querySelector(".dot");
  const home = [dot.style.left, dot.style.top];
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    let near = points[0];
    for (const point of points) if (Math.abs(point[0] - x) < Math.abs(near[0] - x)) near = point;
    dot.style.left = near[0] + "%";
    dot.style.top = near[1] + "%";
    value.textContent = "step " + near[2] + ": " + near[3] + (chart.dataset.unit ? " " + chart.dataset.unit : "");
  });
  plot.addEventListener("pointerleave", () => {
    [dot.style.left, dot.style.top] = home;
    value.textContent = value.dataset.last;
  });
}
