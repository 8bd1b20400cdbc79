// Before listening: the volume, and whether there are headphones.

import { make } from "./elements.js";

const ROUTES = [
  ["headphones", "Headphones or earphones"],
  ["loudspeakers", "Loudspeakers"],
  ["built-in", "The speaker of this phone, tablet or computer"],
];
const PLACES = ["First", "Second", "Third"];
const RAMP_SECONDS = 0.05;
// Woods et al. 2017 take 5 of 6. Three right at once end it early, two wrong too, for then 5 of 6 is out of reach.
// Somebody who guesses passes in 33 of 729 cases.
const FEWEST_TRIALS = 3;
const MOST_TRIALS = 6;
const NEEDED = 5;

/** true, false, or null while more trials are needed, for answers that were right or wrong. */
export function headphoneVerdict(answers) {
  const wrong = answers.filter((right) => !right).length;
  if (answers.length < FEWEST_TRIALS) return null;
  if (wrong > MOST_TRIALS - NEEDED) return false;
  if (wrong === 0 || answers.length === MOST_TRIALS) return true;
  return null;
}

export class Checks {
  constructor(page, onboarding) {
    this.page = page;
    this.onboarding = onboarding;
    this.playing = null; // { source, gain } that sounds now
  }

  /** The check sounds' description and a buffer of one of them, fetched once. */
  async sounds() {
    this.told ??= this.page.call("/rate/check").catch((error) => {
      this.told = null;
      throw error;
    });
    return this.told;
  }

  /** Plays a buffer; resolves with the source once it sounds. */
  async sound(url, { loop }) {
    const { context } = this.page;
    const woken = this.page.wakeAudio(); // inside the click
    const buffer = await this.page.loadAudio(url);
    await woken;
    this.silence();
    const [source, gain] = [context.createBufferSource(), context.createGain()];
    Object.assign(source, { buffer, loop });
    gain.gain.setValueAtTime(0, context.currentTime);
    gain.gain.linearRampToValueAtTime(1, context.currentTime + RAMP_SECONDS);
    source.connect(gain).connect(context.destination);
    source.start();
    this.playing = { source, gain };
    return source;
  }

  silence() {
    if (!this.playing) return;
    const { source, gain } = this.playing;
    this.playing = null;
    const { currentTime } = this.page.context;
    gain.gain.cancelScheduledValues(currentTime);
    gain.gain.setValueAtTime(gain.gain.value, currentTime);
    gain.gain.linearRampToValueAtTime(0, currentTime + RAMP_SECONDS);
    source.stop(currentTime + RAMP_SECONDS);
  }

  // ---- volume ------------------------------------------------------------------------------------------------

  level() {
    const { onboarding } = this;
    const fault = make("p", { className: "at-fault", role: "alert" });
    const text = make("span", { textContent: "Play the sound" });
    const button = make("button", { type: "button", className: "at-sound", "data-at": "level", "aria-pressed": "false" }, make("i", { "aria-hidden": "true" }), text);
    const show = (on) => {
      button.setAttribute("aria-pressed", String(on));
      text.textContent = on ? "Stop the sound" : "Play the sound";
    };
    button.onclick = async () => {
      if (this.playing) return this.silence(), show(false);
      fault.textContent = "";
      try {
        await this.sound((await this.sounds()).level, { loop: true });
        show(true);
      } catch (error) {
        fault.textContent = error.message;
      }
    };
    const content = [
      make("p", { textContent: "Start with your volume low. Play the steady sound and turn it up until it is comfortable: the music will be as loud as this. Then leave it there." }),
      button,
      fault,
    ];
    return onboarding.screen("Set your volume", content, { next: onboarding.lastWord });
  }

  // ---- headphones --------------------------------------------------------------------------------------------

  askRoute() {
    const { onboarding } = this;
    const choice = (value, text) => {
      const input = make("input", { type: "radio", name: "route", value: value ?? "", checked: onboarding.kept.route === value });
      input.onchange = () => onboarding.memory.set({ route: value });
      return make("label", { className: "at-option" }, input, make("span", { textContent: text }));
    };
    const content = [
      make("p", { textContent: "Headphones let you hear more of the difference. Put some on if you have them; nobody is turned away without." }),
      make("fieldset", { className: "at-options" }, make("legend", { textContent: "What are you listening with?" }),
        ...ROUTES.map(([value, text]) => choice(value, text)), choice(null, "Prefer not to say")),
    ];
    return onboarding.screen("Headphones", content, { next: onboarding.lastWord });
  }

  /** The antiphase test. "next", "back", or "start"; its result is kept and refuses nobody. */
  async headphones() {
    const { onboarding } = this;
    const fault = make("p", { className: "at-fault", role: "alert" });
    let check = null;
    const words = [
      "You hear three tones, one after the other, and say which one is the quietest. It is easy with headphones and hard without, so please put some on if you have them.",
      "Nobody is turned away: only the result is kept, and it tells the study how its listeners heard.",
    ];
    const way = await onboarding.screen("Headphone check", [...words.map((textContent) => make("p", { textContent })), fault], {
      next: "Start the check",
      skip: "Skip the check",
      submit: async () => {
        try {
          check = await this.sounds();
          return true;
        } catch (error) {
          fault.textContent = `${error.message} You can try again, or skip the check.`;
          return false;
        }
      },
    });
    if (way !== "next") return way;
    const answers = [];
    const trials = shuffled(check.trials);
    while (headphoneVerdict(answers) === null) {
      const right = await this.trial(trials[answers.length], answers.length + 1);
      if (right === "skip") return "skip";
      answers.push(right);
    }
    const passed = headphoneVerdict(answers);
    onboarding.memory.set({ headphones: passed });
    const told = passed
      ? "That sounded like headphones. You will hear every detail."
      : "That sounded like loudspeakers, or like headphones on one ear. You can put headphones on and try again, or go on as you are.";
    const end = make("p", { "data-at": "verdict", textContent: told });
    if (passed) return onboarding.screen("Headphone check", [end], { next: onboarding.lastWord, back: false });
    const on = await onboarding.screen("Headphone check", [end], { next: "Try again", skip: "Go on as I am", back: false });
    return on === "next" ? this.headphones() : on;
  }

  /** One trial: true or false, or "skip" when the rater skips the rest. */
  trial({ url, quiet, starts, tone_seconds }, number) {
    const { onboarding, page } = this;
    const fault = make("p", { className: "at-fault", role: "alert" });
    const lamps = PLACES.map((_, place) => make("i", { textContent: String(place + 1) }));
    const play = make("button", { type: "button", className: "at-sound", "data-at": "tones" }, make("i", { "aria-hidden": "true" }), make("span", { textContent: "Play the three tones" }));
    return new Promise((resolve) => {
      const choices = PLACES.map((text, place) =>
        make("button", { type: "button", className: "at-choice", "data-at": `tone-${place + 1}`, disabled: true, textContent: text, onclick: () => (this.silence(), resolve(place === quiet)) }),
      );
      play.onclick = async () => {
        play.disabled = true;
        try {
          const source = await this.sound(url, { loop: false });
          const begun = page.context.currentTime;
          const shine = () => {
            const at = page.context.currentTime - begun;
            lamps.forEach((lamp, place) => lamp.toggleAttribute("data-on", at >= starts[place] && at < starts[place] + tone_seconds));
            if (this.playing?.source === source) requestAnimationFrame(shine);
          };
          shine();
          source.onended = () => {
            if (this.playing?.source === source) this.playing = null;
            for (const choice of choices) choice.disabled = false;
            if (play.isConnected) choices[0].focus();
            page.say("Which one was the quietest?");
          };
        } catch (error) {
          fault.textContent = error.message;
          play.disabled = false;
          play.focus();
        }
      };
      const content = [
        make("div", { className: "at-trial" }, play, make("span", { className: "at-lamps", "aria-hidden": "true" }, ...lamps)),
        fault,
        make("div", { className: "at-row", role: "group", "aria-labelledby": "at-tones-label" }, make("p", { id: "at-tones-label", textContent: "Which tone was the quietest? If you are not sure, guess." }), ...choices),
      ];
      onboarding.screen(`Three tones, round ${number}`, content, { next: "Skip the check", look: "at-quiet", back: false }).then(() => resolve("skip"));
    });
  }
}

function shuffled(list) {
  const left = [...list];
  const mixed = [];
  while (left.length) mixed.push(...left.splice(Math.floor(Math.random() * left.length), 1));
  return mixed;
}
