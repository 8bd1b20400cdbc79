// What survives a reload: a pair's idempotency key, answers and what was heard, under the pair's own name.

const PREFIX = "attune.draft.v2.";

export class Drafts {
  constructor(storage = localStorage) {
    this.storage = storage;
  }

  read(pair) {
    try {
      return JSON.parse(this.storage.getItem(PREFIX + pair));
    } catch {
      return null;
    }
  }

  /** Storage that is full or forbidden loses the draft and nothing else. */
  write(pair, draft) {
    try {
      this.storage.setItem(PREFIX + pair, JSON.stringify(draft));
    } catch {}
  }

  /** The key of a pair's vote, the same in every tab: answered in two of them, it is still one vote. */
  keyOf(pair, make) {
    const draft = this.read(pair) ?? {};
    if (!draft.key) this.write(pair, { ...draft, key: (draft.key = make()) });
    return draft.key;
  }

  /** After the commit. The answers go; the key stays for tabs that still show the pair, and the oldest keys go too. */
  settle(pair) {
    const draft = this.read(pair);
    if (draft) this.write(pair, { key: draft.key, settled: Date.now() });
    const settled = [];
    for (let i = 0; i < this.storage.length; i++) {
      const name = this.storage.key(i);
      if (name.startsWith(PREFIX)) settled.push([this.read(name.slice(PREFIX.length))?.settled ?? Infinity, name]);
    }
    settled.sort(([a], [b]) => a - b);
    for (const [, name] of settled.slice(0, Math.max(0, settled.length - 50))) this.storage.removeItem(name);
  }
}
