// What keys do on the A/B page.

const KEYS = {
  " ": "play", Enter: "submit", Escape: "escape",
  1: "left", 2: "right", ArrowUp: "left", ArrowDown: "right",
  ArrowLeft: "back", ArrowRight: "forward", Home: "home",
  "[": "loop-start", "]": "loop-end",
};
const LETTERS = {
  a: "choose-A", b: "choose-B", t: "choose-TIE", n: "choose-BOTH_BAD",
  l: "loop", s: "skip", f: "trouble", c: "comment", h: "here",
};
const REPEATING = new Set(["back", "forward"]);

/** The action of a keydown; null when the key belongs to what has the focus, or to nobody. */
export function actionOf(event) {
  const { key, target } = event;
  const bracket = key === "[" || key === "]"; // typed with Alt on many keyboards
  if (event.metaKey || ((event.ctrlKey || event.altKey) && !bracket)) return null;
  if (target.matches?.('textarea, input[type="text"]')) return key === "Escape" ? "leave-text" : null;
  const isRadio = target.matches?.('input[type="radio"]');
  if (isRadio && (key.startsWith("Arrow") || (key === " " && !target.checked))) return null;
  if (target.matches?.("button") && (key === " " || key === "Enter")) return null;
  if (target.matches?.(".at-grip") && /^(Arrow|Home|End|Page)/.test(key)) return null;
  const action = KEYS[key] ?? LETTERS[key.toLowerCase()] ?? null;
  // A key that is held down may seek, and nothing else.
  return event.repeat && !REPEATING.has(action) ? "none" : action;
}
