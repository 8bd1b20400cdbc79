// The vote form: which answers a study asks, what is chosen, and what is still missing.

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
const CERTAINTY = [
  [1, "Guessing"],
  [2, "Fairly sure"],
  [3, "Certain"],
];

export class Ballot {
  constructor(form) {
    this.form = form;
    this.questions = [];
  }

  part(name) {
    return this.form.querySelector(`[data-at="${name}"]`);
  }

  /** Builds what this study asks. */
  build(study) {
    this.questions = study.questions;
    this.part("questions").replaceChildren(
      ...study.questions.map((name) => this.scale(name, QUESTIONS[name] ?? name, STEPS)),
      ...(study.ask_confidence ? [this.scale("confidence", "How sure are you?", CERTAINTY, "optional")] : []),
    );
  }

  scale(name, question, steps, note = "") {
    const field = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = question;
    if (note) {
      const small = document.createElement("small");
      small.textContent = ` ${note}`;
      legend.append(small);
    }
    const scale = document.createElement("div");
    scale.className = "at-scale";
    scale.style.setProperty("--at-steps", steps.length);
    for (const [value, text] of steps) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name, value: String(value) });
      const caption = document.createElement("span");
      caption.textContent = text;
      label.append(input, caption);
      scale.append(label);
    }
    field.append(legend, scale);
    return field;
  }

  chosen(name) {
    return this.form.querySelector(`input[name="${name}"]:checked`)?.value;
  }

  choose(name, value) {
    const input = this.form.querySelector(`input[name="${name}"][value="${value}"]`);
    if (!input || input.matches(":disabled")) return;
    input.checked = true;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }

  /** What is still to be answered, in words; an empty string when nothing is. */
  get missing() {
    if (!this.chosen("outcome")) return "Choose your overall preference";
    const open = this.questions.filter((name) => this.chosen(name) === undefined);
    if (!open.length) return "";
    return open.length === 1 ? "One question is still open" : `${open.length} questions are still open`;
  }

  get axes() {
    return Object.fromEntries(this.questions.map((name) => [name, Number(this.chosen(name))]));
  }

  get confidence() {
    return Number(this.chosen("confidence")) || null;
  }

  /** Everything chosen, for a draft; `answers` puts it back. */
  get answers() {
    return Object.fromEntries(["outcome", "confidence", ...this.questions].map((name) => [name, this.chosen(name)]));
  }

  set answers(answers) {
    for (const [name, value] of Object.entries(answers ?? {})) {
      const input = this.form.querySelector(`input[name="${CSS.escape(name)}"][value="${CSS.escape(value)}"]`);
      if (input) input.checked = true;
    }
  }

  lock(locked) {
    for (const field of this.form.querySelectorAll("fieldset")) field.disabled = locked;
  }
}
