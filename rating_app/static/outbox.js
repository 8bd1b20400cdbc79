// Votes on their way: kept in localStorage until the server says it has committed them.

const KEY = "attune.outbox.v1";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }

  /** True when the same request may succeed later; otherwise the server understood and refused. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** The JSON answer of one of our own routes. Raises ApiError; status 0 means that no answer came. */
export async function call(path, body, options = {}) {
  const request = { credentials: "same-origin", cache: "no-store", ...options };
  if (body !== undefined) {
    request.method = "POST";
    request.headers = { "Content-Type": "application/json" };
    request.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw new ApiError("The server cannot be reached.", 0);
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok || answer === null) throw new ApiError(answer?.error ?? "The server could not answer.", response.status || 500);
  return answer;
}

/** crypto.randomUUID exists only on secure origins; a study in a local network may not be one. */
export function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Emits "saved" after a commit, "refused" when the server will not take a vote, "waiting" when it cannot be reached. */
export class Outbox extends EventTarget {
  constructor(storage = localStorage) {
    super();
    this.storage = storage;
    this.delay = 1000;
    this.timer = null;
    this.flushing = null;
    window.addEventListener("online", () => this.flush());
  }

  get votes() {
    try {
      return JSON.parse(this.storage.getItem(KEY)) ?? [];
    } catch {
      return [];
    }
  }

  set votes(votes) {
    this.storage.setItem(KEY, JSON.stringify(votes));
  }

  add(vote) {
    if (!this.votes.some((kept) => kept.pair === vote.pair)) this.votes = [...this.votes, vote];
    return this.flush();
  }

  remove(vote) {
    this.votes = this.votes.filter((kept) => kept.key !== vote.key);
  }

  flush() {
    this.flushing ??= this.send().finally(() => (this.flushing = null));
    return this.flushing;
  }

  async send() {
    clearTimeout(this.timer);
    for (let vote = this.votes[0]; vote; vote = this.votes[0]) {
      try {
        const receipt = await call("/rate/votes", vote, { keepalive: true });
        this.remove(vote);
        this.delay = 1000;
        this.dispatchEvent(new CustomEvent("saved", { detail: { vote, receipt } }));
      } catch (error) {
        if (!error.passing) {
          this.remove(vote);
          this.dispatchEvent(new CustomEvent("refused", { detail: { vote, error } }));
          continue;
        }
        this.timer = setTimeout(() => this.flush(), this.delay);
        this.delay = Math.min(30000, this.delay * 2);
        this.dispatchEvent(new CustomEvent("waiting", { detail: { vote, error } }));
        return;
      }
    }
  }
}
