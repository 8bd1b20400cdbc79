// Puts fresh figures in place of the old ones every few seconds; everything works without it.

const EVERY_MS = 5000;
const box = document.getElementById("figures");
const live = document.getElementById("live");

function say(text) {
  if (live.textContent !== text) live.textContent = text;
  live.hidden = !text;
}

/** Whether the reader is in the middle of something that a replacement would take away. */
function busy() {
  const chosen = document.getSelection();
  const selecting = chosen && !chosen.isCollapsed && box.contains(chosen.anchorNode);
  return selecting || (box.contains(document.activeElement) && document.activeElement !== box);
}

async function refresh() {
  if (document.hidden || busy()) return;
  try {
    const answer = await fetch(box.dataset.source, {
      headers: { "X-Attune-Fragment": "1" }, credentials: "same-origin", cache: "no-store", redirect: "error",
    });
    if (answer.status === 401) {
      say("Your session ended; log in again to see fresh figures.");
      clearInterval(timer);
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    const html = await answer.text();
    if (busy()) return;
    const scrolled = [...box.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    box.innerHTML = html; // our own template, every value in it escaped by the server
    [...box.querySelectorAll(".scroll")].forEach((one, i) => (one.scrollLeft = scrolled[i] || 0));
    box.dataset.refreshed = String(Number(box.dataset.refreshed || 0) + 1);
    say("");
  } catch {
    say("The server does not answer; these figures may be old.");
  }
}

const timer = setInterval(refresh, EVERY_MS);
document.addEventListener("visibilitychange", refresh);
