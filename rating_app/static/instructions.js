// What raters are told about the task, in the words of each mode.

import { listed, make } from "./elements.js";

const INTRODUCTIONS = {
  ab: "You will hear two short pieces of music made for the same description, and say which one you prefer.",
  rating: "You will hear short pieces of music, one at a time, and say how good each one is.",
  arena: "You type what you would like to hear. Two pieces of music are made for your words, and you say which one you prefer.",
};
const ASKED = {
  text_adherence: "which one fits the description better",
  quality: "which one has the better sound quality",
};
const SCALES = {
  quality: "how good it sounds, from 1 to 100",
  relevance: "how well it fits the description, from 1 to 100",
  mos: "what you would call it all in all, from bad to excellent",
};

/** One sentence for the first screen. */
export function introduction(study) {
  return INTRODUCTIONS[study.mode];
}

/** The standard instructions: what is asked, that ties are fine, the keys, how to take answers back. */
export function instructions(study) {
  const rows = study.mode === "rating" ? forClips(study) : forPairs(study);
  rows.push(["Change your mind", "You can stop at any time. At the end you get a code; whoever has it can have your answers removed."]);
  return make(
    "dl",
    { className: "at-howto" },
    ...rows.map(([term, text]) => {
      const parts = Array.isArray(text) ? text : [text];
      return make("div", {}, make("dt", { textContent: term }), make("dd", {}, ...parts));
    }),
  );
}

const key = (text) => make("kbd", { textContent: text });

function least(study, what) {
  const seconds = study.minimum_listening_seconds;
  return seconds > 0 ? ` You can answer once you have heard ${seconds} ${seconds === 1 ? "second" : "seconds"} of ${what}.` : "";
}

function forPairs(study) {
  const asked = ["which one you prefer overall", ...study.questions.map((name) => ASKED[name]).filter(Boolean)];
  const rows = [
    ["Listen", `Switch between A and B as often as you like; the music goes on at the same place. Headphones help.${least(study, "each")}`],
    ["Answer", `Say ${listed(asked)}.`],
    ["No difference?", "A tie is a fine answer, and so is “neither”. Nobody knows a right one: only your ears count."],
    ["Keys", [key("Space"), " plays, ", key("1"), " ", key("2"), " switch, ", key("A"), " ", key("B"), " ", key("T"), " ", key("N"), " answer, ", key("?"), " shows all."]],
  ];
  if (study.mode === "arena") rows.unshift(["Describe", "Say in a few words what you want to hear: instruments, tempo, mood. Please type nothing about real people."]);
  return rows;
}

function forClips(study) {
  return [
    ["Listen", `Each clip comes alone. Hear it as often as you like. Headphones help.${least(study, "it")}`],
    ["Answer", `Say ${listed(study.scales.map((name) => SCALES[name]))}. Use the whole scale; two clips may well get the same answer.`],
    ["No right answer", "Some clips are better than others and nobody knows which: only your ears count."],
    ["Keys", [key("Space"), " plays, ", key("←"), " ", key("→"), " move, ", key("Enter"), " saves, ", key("S"), " skips, ", key("?"), " shows all."]],
  ];
}
