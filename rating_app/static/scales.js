// The scales of the absolute mode: two of 1 to 100, and the five points of ITU-T P.800.

import { make } from "./elements.js";

const HUNDREDS = {
  quality: ["How good does this sound?", "bad", "excellent"],
  relevance: ["How well does it fit the description?", "not at all", "perfectly"],
};
// ITU-T P.800, annex B: the category scale of listening quality.
const POINTS = [
  [1, "Bad"],
  [2, "Poor"],
  [3, "Fair"],
  [4, "Good"],
  [5, "Excellent"],
];
const MIDDLE = 50; // where the hidden knob waits; nothing is answered until it is touched

/** Emits "change" when an answer changed. */
export class Scales extends EventTarget {
  constructor(box) {
    super();
    this.box = box;
    this.names = [];
    this.values = {};
  }

  build(names) {
    this.names = names;
    this.box.replaceChildren(...names.map((name) => (name === "mos" ? this.points() : this.hundred(name))));
    this.clear();
  }

  hundred(name) {
    const [question, low, high] = HUNDREDS[name];
    const slider = make("input", { type: "range", min: 1, max: 100, step: 1, value: MIDDLE, "aria-label": `${question} 1 is ${low}, 100 is ${high}.`, "data-scale": name });
    const number = make("input", { type: "number", min: 1, max: 100, step: 1, inputMode: "numeric", placeholder: "–", "aria-label": `${question} A number from 1 to 100.`, "data-number": name });
    // A touch counts also where the value stays: the very middle is an answer like any other.
    for (const type of ["input", "change", "pointerup"]) slider.addEventListener(type, () => this.set(name, Number(slider.value)));
    number.addEventListener("input", () => this.set(name, number.value === "" ? null : Number(number.value), { typed: true }));
    number.addEventListener("change", () => this.show(name));
    const scale = make("div", { className: "at-hundred" }, slider, number, make("span", { className: "at-ends", "aria-hidden": "true" }, make("span", { textContent: low }), make("span", { textContent: high })));
    return make("fieldset", {}, make("legend", { textContent: question }), scale);
  }

  points() {
    const steps = POINTS.map(([value, text]) => {
      const input = make("input", { type: "radio", name: "mos", value: String(value) });
      input.addEventListener("change", () => this.set("mos", value));
      return make("label", {}, input, make("span", { textContent: text }));
    });
    const scale = make("div", { className: "at-scale" }, ...steps);
    return make("fieldset", {}, make("legend", { textContent: "All in all, what would you call it?" }), scale);
  }

  /** A whole number in range is an answer; anything else is none yet. */
  set(name, value, { typed = false } = {}) {
    const most = name === "mos" ? 5 : 100;
    this.values[name] = Number.isInteger(value) && value >= 1 && value <= most ? value : null;
    this.show(name, { typed });
    this.dispatchEvent(new Event("change"));
  }

  show(name, { typed = false } = {}) {
    const value = this.values[name];
    if (name === "mos") {
      for (const input of this.box.querySelectorAll('input[name="mos"]')) input.checked = Number(input.value) === value;
      return;
    }
    const slider = this.box.querySelector(`[data-scale="${name}"]`);
    const number = this.box.querySelector(`[data-number="${name}"]`);
    slider.toggleAttribute("data-unset", value === null);
    slider.value = value ?? MIDDLE;
    slider.style.setProperty("--at-share", value === null ? "0%" : `${((value - 1) / 99) * 100}%`);
    slider.setAttribute("aria-valuetext", value === null ? "not answered yet" : String(value));
    if (!typed) number.value = value ?? "";
  }

  clear() {
    for (const name of this.names) {
      this.values[name] = null;
      this.show(name);
    }
  }

  /** Everything answered, for a draft; setting it puts it back. */
  get answers() {
    return { ...this.values };
  }

  set answers(answers) {
    for (const name of this.names) {
      this.values[name] = answers?.[name] ?? null;
      this.show(name);
    }
  }

  /** What is still to be answered, in words; an empty string when nothing is. */
  get missing() {
    const open = this.names.filter((name) => this.values[name] === null);
    if (!open.length) return "";
    return open.length === 1 ? "One question is still open" : `${open.length} questions are still open`;
  }

  lock(locked) {
    for (const field of this.box.querySelectorAll("fieldset")) field.disabled = locked;
  }
}
