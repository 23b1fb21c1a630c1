// The connection to the process behind this page: what that knows, kept up to date by differences.

import { connect } from "./wsrelay.js";

const PATIENCE = 30_000; // a page that nobody sees keeps its connection for so long

export class Live {
  /** What is visible, as the process has it (console/states.py). */
  state = {};
  /** When that was last true, as `Date.now()` counts. */
  at = 0;

  #connection = null;
  #look = null;
  #looks = 0;
  #asked = 0;
  #isNew = true;
  #answers = new Map();
  #resting;
  #hear;

  /** @param {{ state(): void, lines(message: object): void, status(status: object): void }} hear */
  constructor(hear) {
    this.#hear = hear;
  }

  /** Connect; what is heard from now on may ask for something. */
  start() {
    this.#connection = connect("./live", { queue: { messages: 0 }, retry: () => true });
    this.#connection.onDropped(() => {});
    this.#connection.on("state", message => this.#changed(message));
    this.#connection.on("lines", message => this.#hear.lines(message));
    this.#connection.on("answer", message => this.#answered(message));
    this.#connection.on("error", message => console.error("wsrelay console:", message.error));
    this.#connection.onState(status => this.#became(status));
    document.addEventListener("visibilitychange", () => this.#rest());
  }

  get isOpen() {
    return this.#connection?.status.state === "open";
  }

  /** Show something else from now on; see `Look` in console/looks.py. */
  look(look) {
    this.#looks += 1;
    this.#look = { type: "look", number: this.#looks, ...look };
    if (this.isOpen) this.#connection.sendJson(this.#look);
  }

  /** Whether what is known is what was last looked for. */
  get isCurrent() {
    return this.state.look === this.#looks;
  }

  /** Ask for something and return a promise of the answer, which fails with what is wrong. */
  ask(message) {
    if (!this.isOpen) return Promise.reject(new Error("the console is not connected"));
    this.#asked += 1;
    const id = this.#asked;
    this.#connection.sendJson({ ...message, id });
    return new Promise((resolve, reject) => this.#answers.set(id, { resolve, reject }));
  }

  #became(status) {
    if (status.state === "open") {
      this.#isNew = true;
      if (this.#look !== null) this.#connection.sendJson(this.#look);
    } else {
      for (const { reject } of this.#answers.values()) reject(new Error("the connection was lost"));
      this.#answers.clear();
    }
    this.#hear.status(status);
  }

  #changed({ patch }) {
    this.state = patched(this.#isNew ? {} : this.state, patch);
    this.#isNew = false;
    this.at = Date.now();
    this.#hear.state();
  }

  #answered({ id, value, error }) {
    const waiting = this.#answers.get(id);
    this.#answers.delete(id);
    if (error === undefined) waiting?.resolve(value);
    else waiting?.reject(new Error(error));
  }

  /** Nothing is computed for a page that nobody sees. */
  #rest() {
    clearTimeout(this.#resting);
    if (document.hidden) this.#resting = setTimeout(() => this.#connection.close(), PATIENCE);
    else if (this.#connection.status.state === "closed") this.#connection.reconnect();
  }
}

/** JSON Merge Patch (RFC 7396), as console/merge_patch.py makes it. */
export function patched(old, patch) {
  const made = { ...old };
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete made[key];
    else if (typeof value === "object" && !Array.isArray(value)) made[key] = patched(plain(made[key]), value);
    else made[key] = value;
  }
  return made;
}

function plain(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? value : {};
}
