// Asks how far the first clips are, and opens the listening page as soon as the app answers.

const bar = document.getElementById("bar");
const count = document.getElementById("count");

function show({ done, total }) {
  if (!total) return;
  bar.max = total;
  bar.value = done;
  count.textContent = done < total ? `${done} of ${total} clips` : "Opening the page";
}

async function look() {
  try {
    const answer = await fetch("/rate/state", { cache: "no-store" });
    if (answer.status !== 503) return location.reload();
    show((await answer.json()).preparing ?? {});
  } catch {
    count.textContent = "The server does not answer. If it stays so, look at the window where it was started.";
  }
  setTimeout(look, 400);
}

look();
