// How far jobs are, by JSON every two seconds; what is on the page changes only when a job begins, ends or turns a step.

import { Live } from "./live.js";

const EVERY_MS = 2000;
const box = document.getElementById("figures");
const live = new Live(box, document.getElementById("live"));
const log = document.getElementById("log"); // on a job's own page
let mark = box.dataset.mark;

/** Moves a job's bar and writes its line. */
function tell({ id, share, line }) {
  const card = box.querySelector(`[data-job="${CSS.escape(id)}"]`);
  if (!card) return;
  const bar = card.querySelector("progress");
  if (bar && share !== null) bar.value = share;
  else if (bar) bar.removeAttribute("value");
  const told = card.querySelector("[data-part=line]");
  if (told && told.textContent !== line) told.textContent = line;
}

/** Appends the log's new lines; stays at its end if the reader was there. */
function append({ lines, next }) {
  log.dataset.after = String(next);
  if (!lines.length) return;
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  document.getElementById("log-empty").hidden = true;
  log.hidden = false;
  log.append(lines.map((one) => `${one}\n`).join(""));
  if (atEnd) log.scrollTop = log.scrollHeight;
}

async function step() {
  const after = log ? `?after=${log.dataset.after}` : "";
  const answer = await live.ask(box.dataset.state + after);
  const found = answer && (await answer.json().catch(() => null));
  if (!found) return;
  live.say("");
  found.jobs.forEach(tell);
  if (found.log) append(found.log);
  if (found.mark !== mark && (await live.replace())) mark = found.mark;
}

if (log) log.scrollTop = log.scrollHeight;
live.every(EVERY_MS, step);
