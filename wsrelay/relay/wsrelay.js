// A WebSocket that comes back. One ES module, without dependencies and without a build step:
//
//   import { connect } from "/wsrelay.js";
//
//   const room = connect("/ws/blue");
//   room.on("said", ({ name, text }) => show(name, text));
//   room.showState(document.getElementById("status"));
//   room.sendJson({ type: "say", text: "hello" });
//
// All times are in milliseconds.

const FIRST_DELAY = 500; // the longest wait before the first try; it doubles with each that fails
const LONGEST_DELAY = 30_000;
const STABLE = 5_000; // who ends a connection sooner than this is not tried again at the first delay
const HANDSHAKE = 30_000; // a server may wait for a room's end, and for the start of the next
const TICK = 15_000;
const SLEPT = 90_000; // timers of hidden pages run once a minute, so a shorter gap proves no sleep
const SETTLED = 500; // what arrives sooner after a sleep may have arrived before it
const PATIENCE = 2_000;

/**
 * @typedef {string | BufferSource | Blob} Data
 *
 * @typedef {object} Status
 * @property {"connecting" | "open" | "waiting" | "closed"} state
 * @property {number} opens How many times the connection has been open, the present one included.
 * @property {string} [protocol] While open: the subprotocol that the server selected, or "".
 * @property {number} [retryAt] While waiting: when the next try is, as `Date.now()` counts.
 * @property {number} [code] While waiting or closed: the close code of what has ended. A connection
 *   that was lost, or did not come about, has 1006.
 * @property {string} [reason] The reason that goes with it.
 * @property {boolean} [clean] Whether it ended with a closing handshake.
 *
 * @typedef {object} Options
 * @property {string | string[] | (() => string | string[] | Promise<string | string[]>)} [protocols]
 *   The subprotocols to offer, or a function that is asked before each try.
 * @property {string} [kind] The field of a JSON message that tells its kind. Default: "type".
 * @property {{ messages?: number, bytes?: number }} [queue] How much `send` keeps while the
 *   connection is away. Default: 100 messages, 256 KiB.
 * @property {(end: { code: number, reason: string }) => boolean | undefined | void} [retry] Whether
 *   to come back after this end. Without it, or if it returns undefined, all ends are followed by
 *   another try but 1000, 1008 and 3000 to 4999.
 */

/**
 * Open a connection, which is reopened until `close` is called or the server ends it for good.
 *
 * @param {string | URL | (() => string | URL | Promise<string | URL>)} url Where to connect to; may
 *   be relative to the page, and begin with `http`. A function is asked before each try, for a
 *   fresh token, say; if it fails, that counts as a try that failed.
 * @param {Options} [options]
 * @returns {Connection}
 * @throws {TypeError | SyntaxError | DOMException} If the URL or the subprotocols are unusable.
 */
export function connect(url, options = {}) {
  return new Connection(url, options);
}

/** A connection; made by `connect`. Each `on...` method returns a function that takes the handler off. */
export class Connection {
  #url;
  #protocols;
  #kind;
  #limit;
  #retry;

  /** @type {Map<unknown, Set<Function>>} */
  #kinds = new Map();
  /** @type {Set<Function>} */
  #texts = new Set();
  /** @type {Set<Function>} */
  #binaries = new Set();
  /** @type {Set<Function>} */
  #states = new Set();
  /** @type {Set<Function>} */
  #drops = new Set();
  /** @type {Set<string>} */
  #warned = new Set();

  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Readonly<Status>} */
  #status = { state: "connecting", opens: 0 };
  /** The present try; what belongs to an earlier one is ignored. */
  #attempt = {};
  /** Tries in a row that failed, and connections that ended too soon. */
  #failures = 0;
  #openedAt = 0;
  /** When a timer last ran while the connection was open. */
  #tickedAt = 0;
  /** Since when the connection may be dead without knowing; 0: no doubt. */
  #doubtedAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} The handshake, the next try, or the tick. */
  #timer;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #doubt;
  /** @type {AbortController | null} */
  #listening = null;

  /** @type {Data[]} */
  #queue = [];
  #queuedBytes = 0;

  /**
   * @param {string | URL | (() => string | URL | Promise<string | URL>)} url
   * @param {Options} options
   */
  constructor(url, { protocols = [], kind = "type", queue = {}, retry } = {}) {
    this.#url = url;
    this.#protocols = protocols;
    this.#kind = kind;
    this.#limit = { messages: 100, bytes: 256 * 1024, ...queue };
    this.#retry = retry;
    this.#connect();
  }

  /** What a page shows. */
  get status() {
    return this.#status;
  }

  /**
   * Handle the JSON messages of one kind: objects whose field `type` (option `kind`) is this kind
   * are given as they are; of `{"topic": ..., "data": ...}`, which is how the relay writes what
   * processes send, the topic is the kind and the data is given.
   *
   * @param {string | number} kind
   * @param {(message: any) => void} handler
   */
  on(kind, handler) {
    let handlers = this.#kinds.get(kind);
    if (handlers === undefined) this.#kinds.set(kind, (handlers = new Set()));
    return added(handlers, handler);
  }

  /**
   * Handle the text messages that no `on` takes.
   *
   * @param {(text: string) => void} handler
   */
  onText(handler) {
    return added(this.#texts, handler);
  }

  /**
   * Handle the binary messages.
   *
   * @param {(data: ArrayBuffer) => void} handler
   */
  onBinary(handler) {
    return added(this.#binaries, handler);
  }

  /**
   * Handle changes of the status; the handler is called at once with the present one.
   *
   * @param {(status: Readonly<Status>) => void} handler
   */
  onState(handler) {
    const off = added(this.#states, handler);
    called(handler, this.#status);
    return off;
  }

  /**
   * Show the status on the page: the state in one element, as its text and its `data-state`; in
   * another how the connection has ended, from then until it is open again. `wsrelay.css` has
   * looks for them, `.status` and `.ended`.
   *
   * @param {HTMLElement} chip
   * @param {HTMLElement} [ended] Its first child gets the text, and its button connects again.
   */
  showState(chip, ended) {
    const words = ended?.firstElementChild;
    const button = ended?.querySelector("button");
    if (button) button.onclick = () => this.reconnect();
    let why = "";
    let before = 0;
    return this.onState(({ state, opens, code, reason }) => {
      chip.textContent = chip.dataset.state = state;
      // Tries that fail afterwards do not hide how it has ended.
      if (code !== undefined && (why === "" || state === "closed")) {
        const silent = opens > before ? "connection lost" : "no connection to the server";
        why = [`Closed with ${code}`, reason || (code === 1006 && silent)].filter(Boolean).join(": ") + ".";
      }
      if (state === "open") why = "";
      else if (state !== "connecting") before = opens;
      if (!ended) return;
      if (words) words.textContent = state === "closed" ? why : `${why} Trying again.`;
      ended.dataset.state = state;
      ended.hidden = why === "";
    });
  }

  /**
   * Handle messages that will not be sent, because too many wait already (`"full"`) or because the
   * connection has ended (`"closed"`). Without a handler the console tells.
   *
   * @param {(data: Data, why: "full" | "closed") => void} handler
   */
  onDropped(handler) {
    return added(this.#drops, handler);
  }

  /**
   * Send one message; while the connection is away it waits, and is sent in its turn afterwards.
   *
   * @param {Data} data
   * @returns {boolean} Whether it has been sent or waits; if not, `onDropped` is called too.
   * @throws {TypeError} If it is neither text nor bytes.
   */
  send(data) {
    const bytes = data instanceof ArrayBuffer || ArrayBuffer.isView(data) || data instanceof Blob;
    if (typeof data !== "string" && !bytes) {
      throw new TypeError(`send takes text or bytes, not ${named(data)}; sendJson takes other values`);
    }
    if (this.#status.state === "closed") return this.#drop(data, "closed");
    if (this.#socket !== null && this.#ready) {
      this.#socket.send(data);
      return true;
    }
    const size = new Blob([data]).size;
    if (this.#queue.length >= this.#limit.messages || this.#queuedBytes + size > this.#limit.bytes) {
      return this.#drop(data, "full");
    }
    this.#queue.push(copied(data));
    this.#queuedBytes += size;
    return true;
  }

  /**
   * Send a value as JSON text; see `send`.
   *
   * @param {unknown} value
   * @returns {boolean}
   * @throws {TypeError} If it cannot be written as JSON.
   */
  sendJson(value) {
    const text = JSON.stringify(value);
    if (text === undefined) throw new TypeError(`${named(value)} cannot be written as JSON`);
    return this.send(text);
  }

  /** Connect now, and anew: without waiting for the next try, and also when open or closed. */
  reconnect() {
    this.#failures = 0;
    this.#release(1000, "reconnecting");
    this.#connect();
  }

  /**
   * End the connection: nothing is called, sent or tried any more. What was sent before still goes
   * out; what waits because the connection is away is dropped.
   *
   * @param {number} [code] 1000, or 3000 to 4999.
   * @param {string} [reason] At most 123 bytes of UTF-8.
   * @throws {RangeError} If the code or the reason is unusable; the connection stays as it is.
   */
  close(code = 1000, reason = "") {
    if (code !== 1000 && !(Number.isInteger(code) && code >= 3000 && code <= 4999)) {
      throw new RangeError(`a page may close with 1000, or 3000 to 4999, not with ${code}`);
    }
    if (new Blob([reason]).size > 123) {
      throw new RangeError("a reason is at most 123 bytes of UTF-8");
    }
    if (this.#status.state === "closed") return;
    this.#release(code, reason);
    this.#end({ code, reason, clean: true });
  }

  // From state to state

  #connect() {
    const attempt = (this.#attempt = {});
    if (typeof this.#url === "function" || typeof this.#protocols === "function") {
      this.#prepare(attempt);
    } else {
      this.#open(this.#url, this.#protocols);
    }
    this.#listen();
    this.#timer = setTimeout(() => this.#lost(1006, "no answer", false), HANDSHAKE);
    this.#become({ state: "connecting" });
  }

  /** @param {object} attempt */
  async #prepare(attempt) {
    try {
      await null; // so that the functions may use what `connect` returns
      const url = typeof this.#url === "function" ? await this.#url() : this.#url;
      const offered = this.#protocols;
      const protocols = typeof offered === "function" ? await offered() : offered;
      if (attempt === this.#attempt) this.#open(url, protocols);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      console.error("wsrelay: no URL to connect to:", error);
      this.#lost(1006, String(error instanceof Error ? error.message : error), false);
    }
  }

  /**
   * @param {string | URL} url
   * @param {string | string[]} protocols
   */
  #open(url, protocols) {
    const socket = new WebSocket(absolute(url), protocols);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened(socket);
    socket.onmessage = ({ data }) => this.#received(data);
    socket.onclose = ({ code, reason, wasClean }) => this.#lost(code, reason, wasClean);
    this.#socket = socket;
  }

  /** @param {WebSocket} socket */
  #opened(socket) {
    clearTimeout(this.#timer);
    this.#openedAt = this.#tickedAt = Date.now();
    this.#timer = setInterval(() => this.#wake(), TICK);
    this.#become({ state: "open", opens: this.#status.opens + 1, protocol: socket.protocol });
  }

  /**
   * @param {number} code
   * @param {string} reason
   * @param {boolean} clean
   */
  #lost(code, reason, clean) {
    if (this.#status.state === "open" && Date.now() - this.#openedAt >= STABLE) this.#failures = 0;
    this.#release(1000, "reconnecting");
    const end = { code, reason, clean };
    const attempt = this.#attempt;
    const again = this.#returns(end);
    if (attempt !== this.#attempt) return; // `retry` itself has closed or reconnected
    if (!again) {
      this.#end(end);
      return;
    }
    const atOnce = this.#failures === 0 && (code === 1012 || code === 1013);
    // Full jitter: the clients of a server that restarts come back spread over the whole time.
    const longest = Math.min(FIRST_DELAY * 2 ** this.#failures, LONGEST_DELAY);
    const delay = atOnce ? 0 : Math.random() * longest;
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.#become({ state: "waiting", retryAt: Date.now() + delay, ...end });
  }

  /** @param {{ code: number, reason: string }} end */
  #returns({ code, reason }) {
    try {
      const answer = this.#retry?.({ code, reason });
      if (answer !== undefined) return answer;
    } catch (error) {
      reported(error);
    }
    return !(code === 1000 || code === 1008 || (code >= 3000 && code <= 4999));
  }

  /** @param {{ code: number, reason: string, clean: boolean }} end */
  #end(end) {
    this.#listening?.abort();
    this.#listening = null;
    const unsent = this.#queue;
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#become({ state: "closed", ...end });
    for (const data of unsent) this.#drop(data, "closed");
  }

  /**
   * Let go of the socket and of all timers.
   *
   * @param {number} code
   * @param {string} reason
   */
  #release(code, reason) {
    clearTimeout(this.#timer);
    clearTimeout(this.#doubt);
    this.#doubtedAt = 0;
    this.#attempt = {};
    const socket = this.#socket;
    if (socket === null) return;
    this.#socket = socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(code, reason);
  }

  /** @param {Omit<Status, "opens"> & { opens?: number }} change */
  #become(change) {
    const status = (this.#status = Object.freeze({ opens: this.#status.opens, ...change }));
    this.#flush();
    for (const handler of [...this.#states]) {
      // A handler may have closed or reconnected: the others know already.
      if (status === this.#status) called(handler, status);
    }
  }

  // Sleep

  #listen() {
    if (this.#listening !== null) return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    const { document, addEventListener } = globalThis;
    addEventListener?.("online", () => this.#wake(true), { signal });
    addEventListener?.("pageshow", ({ persisted }) => this.#wake(persisted), { signal });
    document?.addEventListener("resume", () => this.#wake(), { signal });
    document?.addEventListener("visibilitychange", () => document.hidden || this.#wake(), { signal });
  }

  /** Look after the connection; `broken`: it has probably not survived what happened. */
  #wake(broken = false) {
    const { state } = this.#status;
    if (state === "waiting" || (state === "connecting" && broken)) {
      this.#release(1000, "reconnecting");
      this.#connect();
    } else if (state === "open" && this.#socket !== null) {
      const now = Date.now();
      const slept = now - this.#tickedAt > SLEPT;
      this.#tickedAt = now;
      if (this.#socket.readyState > 1) {
        this.#lost(1006, "", false);
      } else if ((broken || slept) && this.#doubtedAt === 0) {
        // A page can neither ping nor see pings. So what is sent waits, until something arrives or
        // the time is over.
        this.#doubtedAt = now;
        this.#doubt = setTimeout(() => this.#lost(1006, "silent after a sleep", false), PATIENCE);
      }
    }
  }

  // Messages

  get #ready() {
    return this.#status.state === "open" && this.#doubtedAt === 0 && this.#socket?.readyState === 1;
  }

  #flush() {
    if (!this.#ready) return;
    for (const data of this.#queue) this.#socket?.send(data);
    this.#queue = [];
    this.#queuedBytes = 0;
  }

  /** @param {string | ArrayBuffer} data */
  #received(data) {
    if (this.#doubtedAt !== 0 && Date.now() - this.#doubtedAt > SETTLED) {
      clearTimeout(this.#doubt);
      this.#doubtedAt = 0;
      this.#flush();
    }
    if (typeof data !== "string") {
      if (!told(this.#binaries, data)) this.#warn("a binary message came, and there is no onBinary");
      return;
    }
    const [kind, message] = this.#kinds.size ? this.#read(data) : [];
    const handlers = this.#kinds.get(kind);
    if ((handlers === undefined || !told(handlers, message)) && !told(this.#texts, data)) {
      const what = kind === undefined ? "text" : `a message of the kind ${JSON.stringify(kind)}`;
      this.#warn(`${what} came, and there is neither an on nor an onText that takes it`);
    }
  }

  /**
   * @param {string} text
   * @returns {[kind?: unknown, message?: unknown]}
   */
  #read(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return [];
    }
    if (typeof message !== "object" || message === null) return [];
    if (Object.hasOwn(message, this.#kind)) return [message[this.#kind], message];
    return "topic" in message && "data" in message ? [message.topic, message.data] : [];
  }

  /**
   * @param {Data} data
   * @param {"full" | "closed"} why
   */
  #drop(data, why) {
    if (!told(this.#drops, data, why)) {
      const cause = why === "full" ? "too many wait for the connection" : "the connection is closed";
      this.#warn(`a message is dropped, because ${cause}`);
    }
    return false;
  }

  /** @param {string} text */
  #warn(text) {
    if (this.#warned.has(text) || this.#warned.size >= 20) return;
    this.#warned.add(text);
    console.warn(`wsrelay: ${text}`);
  }
}

/**
 * @param {Set<Function>} handlers
 * @param {Function} handler
 */
function added(handlers, handler) {
  if (typeof handler !== "function") throw new TypeError(`${named(handler)} is no handler function`);
  handlers.add(handler);
  return () => void handlers.delete(handler);
}

/**
 * Call all handlers, whatever one of them throws; returns whether there is one.
 *
 * @param {Set<Function>} handlers
 * @param {...unknown} values
 */
function told(handlers, ...values) {
  const all = [...handlers];
  for (const handler of all) called(handler, ...values);
  return all.length > 0;
}

/**
 * @param {Function} handler
 * @param {...unknown} values
 */
function called(handler, ...values) {
  try {
    handler(...values);
  } catch (error) {
    reported(error);
  }
}

/**
 * Make an error one that nobody has caught, so that it is seen where those are.
 *
 * @param {unknown} error
 */
function reported(error) {
  queueMicrotask(() => {
    throw error;
  });
}

/** @param {unknown} value */
function named(value) {
  const type = typeof value;
  return value === null || type === "undefined" ? String(value) : `a value of the type ${type}`;
}

/**
 * What a message is now: who sent it may write something else into the same memory.
 *
 * @param {Data} data
 * @returns {Data}
 */
function copied(data) {
  if (ArrayBuffer.isView(data)) {
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  }
  return data instanceof ArrayBuffer ? data.slice(0) : data;
}

/**
 * @param {string | URL} url
 * @returns {string}
 */
function absolute(url) {
  if (typeof url !== "string" && !(url instanceof URL)) {
    throw new TypeError(`a URL is text or a URL, not ${named(url)}`);
  }
  const made = new URL(url, globalThis.document?.baseURI ?? globalThis.location?.href);
  made.protocol = made.protocol.replace(/^http/, "ws");
  made.hash = "";
  if (!/^wss?:$/.test(made.protocol)) {
    throw new SyntaxError(`a WebSocket's URL begins with ws, wss, http or https: ${made.href}`);
  }
  return made.href;
}
