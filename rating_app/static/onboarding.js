// Everything before the first pair: consent, instructions, checks of the sound, a few questions, practice.

import { Checks } from "./checks.js";
import { listed, make, paragraphs } from "./elements.js";
import { introduction, instructions } from "./instructions.js";

const STORE = "attune.onboarding.v1";
const QUESTIONS = {
  musical_training: [
    "How much musical training have you had?",
    ["None", "Some, for fun", "Several years of lessons or playing", "I work as a musician or with sound"],
  ],
  culture: [
    "Which part of the world is the music from that you grew up with?",
    ["Africa", "East Asia", "Europe", "Latin America", "Middle East and North Africa", "North America", "Oceania",
      "South Asia", "South-East Asia", "Several of these"],
  ],
  age_group: ["How old are you?", ["Under 18", "18 to 24", "25 to 34", "35 to 44", "45 to 54", "55 to 64", "65 or over"]],
};

/** The body of POST /rate/session without study and invitation. After a reload it goes on where it was. */
export async function runOnboarding(page, study) {
  await page.style("onboarding");
  return new Onboarding(page, study).run();
}

/** What this tab remembers of one study's onboarding, so that a reload loses no step. */
class Memory {
  constructor(study) {
    const { consent_version: version, consent_text: text } = study.onboarding;
    this.about = JSON.stringify([location.search, study.title, study.mode, version, text]);
    this.kept = { step: 0, agreed: false, training: false, publication: false, background: {}, route: null, headphones: null, done: false };
    try {
      const found = JSON.parse(sessionStorage.getItem(STORE));
      if (found?.about === this.about) Object.assign(this.kept, found.kept);
    } catch {} // forbidden or not ours: nothing is remembered
  }

  set(changes) {
    Object.assign(this.kept, changes);
    try {
      sessionStorage.setItem(STORE, JSON.stringify({ about: this.about, kept: this.kept }));
    } catch {}
  }
}

class Onboarding {
  constructor(page, study) {
    Object.assign(this, { page, study, rules: study.onboarding, memory: new Memory(study) });
    this.checks = new Checks(page, this);
    this.steps = [
      () => this.consent(),
      () => this.instructions(),
      this.rules.level_check && (() => this.checks.level()),
      this.rules.headphone_check === "asked" && (() => this.checks.askRoute()),
      this.rules.headphone_check === "tested" && (() => this.checks.headphones()),
      this.rules.background.length > 0 && (() => this.background()),
      this.rules.practice_pairs > 0 && (() => this.practice()),
    ].filter(Boolean);
  }

  get kept() {
    return this.memory.kept;
  }

  async run() {
    // Done in this tab already: the session is asked for again, or another one is begun.
    while (!this.kept.done) {
      const step = Math.min(this.kept.agreed ? this.kept.step : 0, this.steps.length - 1);
      this.step = step;
      const way = await this.steps[step]();
      if (way === "back") this.memory.set({ step: step - 1 });
      else if (way === "start" || step === this.steps.length - 1) this.memory.set({ done: true });
      else this.memory.set({ step: step + 1 });
    }
    this.checks.silence();
    this.page.phase("loading");
    const { training, publication, background, route, headphones } = this.kept;
    return {
      // Not asked means: what the consent text says of training, and never publication.
      consent: {
        version: this.rules.consent_version,
        training: !this.rules.ask_training || training,
        publication: this.rules.ask_publication && publication,
      },
      background,
      headphone_check: headphones,
      audio_route: route,
    };
  }

  // ---- one screen --------------------------------------------------------------------------------------------

  /** Shows a screen; resolves "next", "skip", "back" or "start". `submit` may return false to stay, or a promise.
   *  `skip` names the button that passes the step; `start` offers to pass all the rest. */
  screen(title, content, { next = "Continue", look = "at-primary", submit = () => true, skip = null, start = false, numbered = true, back = numbered } = {}) {
    const { page } = this;
    const section = page.section("welcome");
    section.setAttribute("aria-labelledby", "at-welcome-title");
    return new Promise((resolve) => {
      const last = this.step === this.steps.length - 1;
      const button = (name, text, look, way) =>
        make("button", { type: "button", className: look, "data-at": name, textContent: text, onclick: () => leave(way) });
      const form = make(
        "form",
        { className: "at-steps", noValidate: true, autocomplete: "off" },
        make("div", { className: "at-body" }, ...content),
        make(
          "div",
          { className: "at-ways" },
          make("button", { type: "submit", className: look, "data-at": next === "Start listening" ? "start" : "next", textContent: next }),
          skip && button("skip", skip, "at-quiet", "skip"),
          this.step > 0 && back ? button("back", "Back", "at-quiet", "back") : null,
          start && !last ? button("start", "Skip the preparation", "at-link", "start") : null,
        ),
      );
      const leave = (way) => {
        this.checks.silence();
        resolve(way);
      };
      form.addEventListener("submit", async (event) => {
        event.preventDefault();
        page.wakeAudio();
        if (await submit(form)) leave("next");
      });
      section.replaceChildren(
        numbered && this.steps.length > 1
          ? make("p", { className: "at-stepno", textContent: `Step ${this.step + 1} of ${this.steps.length}` })
          : "",
        make("h1", { id: "at-welcome-title", textContent: title }),
        form,
      );
      page.say("");
      page.phase("welcome");
    });
  }

  get lastWord() {
    return this.step === this.steps.length - 1 ? "Start listening" : "Continue";
  }

  // ---- the screens -------------------------------------------------------------------------------------------

  consent() {
    const { rules, kept, memory } = this;
    const box = (name, text, wanted = true) => {
      const input = make("input", { type: "checkbox", "data-at": name === "agreed" ? "consent" : name, checked: kept[name] });
      input.addEventListener("change", () => memory.set({ [name]: input.checked }));
      return wanted ? make("label", { className: "at-consent" }, input, make("span", { textContent: text })) : null;
    };
    const apart = [
      box("training", "My answers may be used to train music models.", rules.ask_training),
      box("publication", "My answers may be published as open data, under a pseudonym.", rules.ask_publication),
    ].filter(Boolean);
    const fault = make("p", { className: "at-fault", id: "at-consent-fault", role: "alert" });
    const agree = box("agreed", "I have read this and want to take part.");
    const content = [
      make("p", { className: "at-lead", textContent: introduction(this.study) }),
      make("div", { className: "at-paper", "data-at": "consent-text" }, ...paragraphs(rules.consent_text),
        rules.ask_training ? null : make("p", { textContent: "Taking part includes that the answers may train music models." })),
      agree,
      fault,
      apart.length
        ? make("fieldset", { className: "at-apart" },
            make("legend", { textContent: apart.length === 2 ? "Two things more, each for you to decide. You can take part without." : "One thing more, for you to decide. You can take part without." }), ...apart)
        : null,
    ];
    return this.screen(this.study.title || "Welcome", content, {
      next: this.lastWord,
      submit: () => {
        if (kept.agreed) return true;
        fault.textContent = "To take part, please tick this box.";
        const input = agree.querySelector("input");
        input.setAttribute("aria-describedby", fault.id);
        input.focus();
        return false;
      },
    });
  }

  instructions() {
    const own = paragraphs(this.rules.instructions);
    const content = [own.length ? make("div", { className: "at-own" }, ...own) : null, instructions(this.study)];
    return this.screen("How it works", content, { next: this.lastWord, start: true });
  }

  background() {
    const names = this.rules.background.filter((name) => name in QUESTIONS);
    const fields = names.map((name) => {
      const [question, answers] = QUESTIONS[name];
      const select = make("select", { id: `at-about-${name}`, "data-at": name });
      select.append(new Option("Prefer not to say", ""), ...answers.map((answer) => new Option(answer, answer)));
      select.value = this.kept.background[name] ?? "";
      select.addEventListener("change", () => {
        const told = { ...this.kept.background, [name]: select.value };
        if (!select.value) delete told[name];
        this.memory.set({ background: told });
      });
      return make("div", { className: "at-field" }, make("label", { htmlFor: select.id, textContent: question }), select);
    });
    const why = "This helps to see whether different people hear differently. Every answer is voluntary.";
    return this.screen("About you", [make("p", { textContent: why }), ...fields], { next: this.lastWord });
  }

  async practice() {
    const { page, rules, study } = this;
    const count = rules.practice_pairs;
    const what = study.mode === "rating" ? ["clip", "clips"] : ["pair", "pairs"];
    const number = ["", "one", "two", "three", "four", "five"][count];
    const fault = make("p", { className: "at-fault", role: "alert" });
    let pairs = null;
    const way = await this.screen(
      "A little practice",
      [
        make("p", { textContent: `Try it on ${number} ${what[count === 1 ? 0 : 1]} whose answer is known. You are told afterwards what there was to hear. Nothing of it is stored.` }),
        fault,
      ],
      {
        next: "Start practice",
        skip: "Skip practice",
        submit: async () => {
          try {
            pairs = (await page.call("/rate/practice")).pairs.slice(0, count);
            return true;
          } catch (error) {
            fault.textContent = `${error.message} You can try again, or skip the practice.`;
            return false;
          }
        },
      },
    );
    if (way !== "next") return way;
    if (study.mode === "rating") {
      const { RatingMode } = await import("./rating.js");
      await new RatingMode(page).practise(pairs.flatMap(({ prompt, clips, notes, id }) => ["right", "left"].map((side) => ({ id: `${id}-${side}`, prompt, clip: clips[side], lesson: notes[side] }))).slice(0, count));
    } else {
      await page.practise(pairs);
    }
    await this.screen("That was the practice", [make("p", { textContent: ready(study) })], { next: "Start listening", numbered: false });
    return "next";
  }
}

function ready({ mode, pacing }) {
  if (mode === "arena") return "From here on it counts: you choose the words, and there is no right answer.";
  const what = mode === "rating" ? "clips" : "pairs";
  const many = pacing.pairs_per_session ? `Up to ${pacing.pairs_per_session} ${what} follow` : `The real ${what} follow`;
  return `${listed([many, "from here on every answer counts"])}. There is no right answer any more: say what you hear.`;
}
