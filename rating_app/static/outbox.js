// Answers on their way: kept in this browser until the server says that it has committed them.

const PREFIX = "attune.answer.v2.";
const LONGEST_KEEPALIVE = 60_000; // browsers refuse more than 64 KiB of keepalive requests
const REFUSALS = new Set([400, 401, 404, 409, 410, 413, 422]);
const JUDGEMENTS = new Set([409, 410]); // what the rules of the study say of an answer; the same answer never fares better

export class ApiError extends Error {
  /** `status` 0: no answer came, or none of our own; `reached` tells which. */
  constructor(message, status, { reached = status > 0 } = {}) {
    super(message);
    this.status = status;
    this.reached = reached;
  }

  /** True when the same request may succeed later; otherwise the server understood it and refused. */
  get passing() {
    return !REFUSALS.has(this.status);
  }
}

/** The JSON answer of one of our own routes. Raises ApiError. */
export async function call(path, body, { session = null, keepalive = false } = {}) {
  const request = { credentials: "same-origin", cache: "no-store", headers: {} };
  if (session) request.headers["X-Attune-Session"] = session;
  if (body !== undefined) {
    request.method = "POST";
    request.headers["Content-Type"] = "application/json";
    request.body = JSON.stringify(body);
    request.keepalive = keepalive && request.body.length * 3 < LONGEST_KEEPALIVE;
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw new ApiError("The server cannot be reached.", 0);
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  // A page of a proxy or of a hotel's network is no answer of ours, whatever status it has.
  if (typeof answer?.error !== "string") throw new ApiError("The server could not answer.", response.status >= 500 ? response.status : 0, { reached: true });
  throw new ApiError(answer.error, response.status);
}

/** crypto.randomUUID exists only on secure origins; a study in a local network may not be one. */
export function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Emits "saved" after a commit, "refused" when the rules of the study say no, "waiting" when there is no connection or no
 *  use of it yet, and "stuck" when this one answer alone could not be saved: it stays here, the others go on, and it is
 *  sent again with the next answer and when the page is opened again. Each answer has an entry of its own in localStorage: two tabs never overwrite each other's. */
export class Outbox extends EventTarget {
  constructor(storage = localStorage) {
    super();
    this.storage = storage;
    this.session = null;
    this.unkept = new Map(); // answers that localStorage would not take
    this.stuckKeys = new Set();
    this.delay = 1000;
    this.timer = null;
    this.flushing = null;
    window.addEventListener("online", () => this.flush());
    document.addEventListener("visibilitychange", () => document.hidden || this.flush());
  }

  /** Answers of this browser that are not saved yet, the oldest first. */
  get waiting() {
    const kept = [...this.unkept.values()];
    for (let i = 0; i < this.storage.length; i++) {
      const name = this.storage.key(i);
      if (!name.startsWith(PREFIX)) continue;
      try {
        kept.push(JSON.parse(this.storage.getItem(name)));
      } catch {} // not one of ours
    }
    return kept.filter((entry) => entry?.body?.key).sort((a, b) => a.at - b.at);
  }

  get empty() {
    return this.waiting.length === 0;
  }

  /** Answers that could not be saved although the server was there. */
  get stuck() {
    return this.waiting.filter(({ body }) => this.stuckKeys.has(body.key));
  }

  /** Pairs or items that have an answer on its way. */
  get held() {
    return this.waiting.map(({ body }) => body.pair ?? body.item).filter(Boolean);
  }

  add(path, body) {
    const entry = { path, body, session: this.session, at: Date.now() };
    this.dispatchEvent(new CustomEvent("added", { detail: entry }));
    const name = PREFIX + body.key;
    try {
      if (this.storage.getItem(name) === null) this.storage.setItem(name, JSON.stringify(entry));
    } catch {
      this.unkept.set(body.key, entry); // storage is full or forbidden: kept while this page is open
    }
    return this.flush();
  }

  remove({ body }) {
    this.unkept.delete(body.key);
    this.stuckKeys.delete(body.key);
    this.storage.removeItem(PREFIX + body.key);
  }

  flush() {
    this.flushing ??= this.send().finally(() => (this.flushing = null));
    return this.flushing;
  }

  /** Every answer is tried once, the oldest first. One that cannot be saved does not hold up those after it. */
  async send() {
    clearTimeout(this.timer);
    const tried = new Set();
    const failed = [];
    let saved = false;
    const next = () => this.waiting.find(({ body }) => !tried.has(body.key));
    for (let entry = next(); entry; entry = next()) {
      tried.add(entry.body.key);
      try {
        const receipt = await call(entry.path, entry.body, { session: entry.session, keepalive: true });
        if (receipt.saved !== true) throw new ApiError("The server could not answer.", 0, { reached: true });
        this.remove(entry);
        saved = true;
        this.dispatchEvent(new CustomEvent("saved", { detail: { ...entry, receipt } }));
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (JUDGEMENTS.has(error.status)) {
          this.remove(entry);
          this.dispatchEvent(new CustomEvent("refused", { detail: { ...entry, error } }));
          continue;
        }
        failed.push({ ...entry, error });
        if (!error.reached || error.status === 429) break; // no connection, or too much of it: no other would fare better
      }
    }
    this.after(failed, saved);
  }

  after(failed, saved) {
    if (saved) this.delay = 1000;
    let again = false;
    for (const entry of failed) {
      const { error, body } = entry;
      // The server is there for others, or has read this answer and can make nothing of it.
      if (error.reached && error.status !== 429 && (saved || !error.passing)) this.stuckKeys.add(body.key);
      const stuck = this.stuckKeys.has(body.key);
      again ||= !stuck;
      this.dispatchEvent(new CustomEvent(stuck ? "stuck" : "waiting", { detail: { ...entry, saved } }));
    }
    if (!again) return;
    this.timer = setTimeout(() => this.flush(), this.delay);
    this.delay = Math.min(30000, this.delay * 2);
  }
}
