// The logic of wsrelay.js with a clock, a chance and sockets of the test's own: `node --test`.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { beforeEach, test } from "node:test";

const SOURCE = new URL("../../wsrelay/relay/wsrelay.js", import.meta.url);
const { connect } = await import(`data:text/javascript,${encodeURIComponent(readFileSync(SOURCE, "utf8"))}`);

const PAGE = "https://example.com/app/index.html";
const soon = setImmediate;

class Clock {
  now = 1_000_000;
  timers = new Map();
  #last = 0;

  set = (call, delay, every = 0) => {
    this.timers.set(++this.#last, { at: this.now + delay, every, call });
    return this.#last;
  };
  clear = id => this.timers.delete(id);

  /** Let time pass, with all that is due in it. */
  pass(milliseconds) {
    const until = this.now + milliseconds;
    for (;;) {
      const due = [...this.timers].filter(([, { at }]) => at <= until).sort((a, b) => a[1].at - b[1].at)[0];
      if (due === undefined) break;
      const [id, timer] = due;
      this.now = timer.at;
      if (timer.every) timer.at += timer.every;
      else this.timers.delete(id);
      timer.call();
    }
    this.now = until;
  }

  /** Let time pass in which nothing runs. */
  sleep(milliseconds) {
    this.now += milliseconds;
    for (const timer of this.timers.values()) timer.at += milliseconds;
  }
}

class Socket {
  readyState = 0;
  protocol = "";
  sent = [];

  constructor(url, protocols) {
    Object.assign(this, { url, protocols });
    sockets.push(this);
  }

  open(protocol = "") {
    this.readyState = 1;
    this.protocol = protocol;
    this.onopen();
  }

  send(data) {
    assert.equal(this.readyState, 1);
    this.sent.push(data);
  }

  come(data) {
    this.onmessage?.({ data });
  }

  json(value) {
    this.come(JSON.stringify(value));
  }

  /** The server, or the network, ends it. */
  end(code, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason, wasClean: code !== 1006 });
  }

  close(code, reason) {
    this.readyState = 2;
    this.closed = [code, reason];
  }
}

/** What listens on the window and the document. */
class Events extends EventTarget {
  listeners = 0;
  hidden = false;
  baseURI = PAGE;

  addEventListener(type, handler, options) {
    this.listeners += 1;
    options.signal.addEventListener("abort", () => { this.listeners -= 1; });
    super.addEventListener(type, handler, options);
  }

  happen(type, values = {}) {
    this.dispatchEvent(Object.assign(new Event(type), values));
  }
}

let clock, chance, sockets, events, complaints, uncaught;

beforeEach(() => {
  clock = new Clock();
  chance = 1;
  sockets = [];
  events = new Events();
  complaints = [];
  uncaught = [];
  Object.assign(globalThis, {
    WebSocket: Socket,
    document: events,
    addEventListener: events.addEventListener.bind(events),
    setTimeout: clock.set,
    setInterval: (call, every) => clock.set(call, every, every),
    clearTimeout: clock.clear,
    queueMicrotask: call => { try { call(); } catch (error) { uncaught.push(error.message); } },
  });
  Date.now = () => clock.now;
  Math.random = () => chance;
  console.warn = text => complaints.push(text);
  console.error = (...texts) => complaints.push(texts.join(" "));
});

const last = () => sockets.at(-1);
const settled = () => new Promise(soon);

function opened(options) {
  const room = connect("/ws/blue", options);
  last().open();
  return room;
}

/** How long it waits before its next try. */
function waits(room) {
  assert.equal(room.status.state, "waiting");
  return room.status.retryAt - clock.now;
}

function nothingIsLeft() {
  assert.equal(clock.timers.size, 0);
  assert.equal(events.listeners, 0);
  for (const socket of sockets) assert.equal(socket.onclose, null);
}

// When it comes back

test("the wait before a try doubles with each that fails, up to half a minute", () => {
  const room = connect("/ws");
  const delays = [];
  for (let i = 0; i < 9; i += 1) {
    last().end(1006);
    delays.push(waits(room));
    clock.pass(delays.at(-1));
  }
  assert.deepEqual(delays, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
  assert.equal(sockets.length, 10);
});

test("the wait is any part of that, so that not all clients come back at once", () => {
  const room = connect("/ws");
  chance = 0.25;
  last().end(1006);
  assert.equal(waits(room), 125);
  clock.pass(124);
  assert.equal(sockets.length, 1);
  clock.pass(1);
  chance = 0;
  last().end(1006);
  assert.equal(waits(room), 0);
});

for (const code of [1012, 1013]) {
  test(`after ${code} it comes back at once, but waits if that does not help`, () => {
    const room = opened();
    last().end(code, "come again");
    assert.equal(waits(room), 0);
    clock.pass(0);
    last().open();
    last().end(code);
    assert.equal(waits(room), 1000);
    clock.pass(1000);
    last().open();
    last().end(code);
    assert.equal(waits(room), 2000);
  });
}

test("a connection that has lasted makes the earlier failures forgotten", () => {
  const room = connect("/ws");
  for (let i = 0; i < 4; i += 1) {
    last().end(1006);
    clock.pass(waits(room));
  }
  last().open();
  clock.pass(4_999);
  last().end(1011);
  assert.equal(waits(room), 8_000);
  clock.pass(8_000);
  last().open();
  clock.pass(5_000);
  last().end(1011);
  assert.equal(waits(room), 500);
});

for (const code of [1001, 1005, 1006, 1009, 1011, 1014]) {
  test(`after ${code} it comes back`, () => {
    const room = opened();
    last().end(code);
    clock.pass(waits(room));
    last().open();
    assert.equal(room.status.opens, 2);
  });
}

for (const code of [1000, 1008, 3000, 4000, 4001, 4999]) {
  test(`after ${code} it stays closed, and nothing is left`, () => {
    const room = opened();
    last().end(code, "enough");
    assert.deepEqual(room.status, { state: "closed", opens: 1, code, reason: "enough", clean: true });
    events.happen("online");
    assert.equal(sockets.length, 1);
    nothingIsLeft();
  });
}

test("`retry` decides otherwise, and undefined leaves the rule as it is", () => {
  const asked = [];
  const answers = { 4001: true, 1011: false };
  const room = opened({ retry: end => { asked.push(end); return answers[end.code]; } });
  for (const code of [4001, 1012, 1011]) {
    last().end(code, "why");
    if (code !== 1011) clock.pass(waits(room));
  }
  assert.equal(room.status.state, "closed");
  assert.deepEqual(asked, [4001, 1012, 1011].map(code => ({ code, reason: "why" })));
});

test("a `retry` that throws is reported, and the rule holds", () => {
  const room = opened({ retry: () => { throw new Error("a bug"); } });
  last().end(1011);
  assert.equal(room.status.state, "waiting");
  assert.deepEqual(uncaught, ["a bug"]);
});

test("`retry` and handlers of the state may close, or reconnect", () => {
  const room = opened({ retry: () => { room.close(4000, "enough"); return true; } });
  last().end(1011);
  assert.equal(room.status.reason, "enough");
  nothingIsLeft();
  const other = opened();
  const seen = [];
  other.onState(({ state }) => state === "waiting" && other.reconnect());
  other.onState(({ state }) => seen.push(state));
  last().end(1011);
  assert.deepEqual(seen, ["open", "connecting"]);
  other.close();
  nothingIsLeft();
});

test("a handshake that nobody answers is given up after half a minute", () => {
  const room = connect("/ws");
  clock.pass(29_999);
  assert.equal(room.status.state, "connecting");
  clock.pass(1);
  assert.equal(room.status.state, "waiting");
  assert.equal(sockets[0].readyState, 2);
});

// Where it connects to

test("a URL may be relative and begin with http", () => {
  const urls = ["/ws/blue", "ws?x=1#here", "http://other.example/ws", "wss://other.example/ws", new URL("/a", PAGE)];
  for (const url of urls) connect(url);
  assert.deepEqual(sockets.map(socket => socket.url), [
    "wss://example.com/ws/blue",
    "wss://example.com/app/ws?x=1",
    "ws://other.example/ws",
    "wss://other.example/ws",
    "wss://example.com/a",
  ]);
});

test("an unusable URL is refused at once, and leaves nothing", () => {
  assert.throws(() => connect("ftp://example.com/"), /begins with ws, wss, http or https/);
  assert.throws(() => connect("wss://:x/"), /Invalid URL/);
  assert.throws(() => connect(undefined), { name: "TypeError", message: /text or a URL, not undefined/ });
  nothingIsLeft();
});

test("a function is asked for the URL and the subprotocols before each try", async () => {
  let token = 0;
  const room = connect(() => `/ws?token=${++token}`, { protocols: async () => [`bearer.${token}`] });
  await settled();
  last().open("bearer.1");
  assert.equal(room.status.protocol, "bearer.1");
  last().end(1012);
  clock.pass(0);
  await settled();
  assert.deepEqual(sockets.map(socket => [socket.url, socket.protocols]), [
    ["wss://example.com/ws?token=1", ["bearer.1"]],
    ["wss://example.com/ws?token=2", ["bearer.2"]],
  ]);
});

test("a function that fails is asked again, as if the try had failed", async () => {
  const answers = [() => { throw new Error("logged out"); }, () => Promise.reject(new Error("offline")), () => null, () => "/ws"];
  const room = connect(() => answers.shift()());
  const reasons = [];
  for (const delay of [500, 1000, 2000]) {
    await settled();
    assert.equal(waits(room), delay);
    reasons.push([room.status.code, room.status.reason]);
    clock.pass(delay);
  }
  await settled();
  last().open();
  assert.deepEqual(reasons, [[1006, "logged out"], [1006, "offline"], [1006, "a URL is text or a URL, not null"]]);
  assert.equal(complaints.length, 3);
});

test("a function that answers or fails after the end is not listened to", async () => {
  for (const end of [(answer, _) => answer("/ws"), (_, fail) => fail(new Error("late"))]) {
    let settle;
    const room = connect(() => new Promise((answer, fail) => { settle = () => end(answer, fail); }));
    await settled();
    room.close();
    settle();
    await settled();
    assert.equal(room.status.state, "closed");
  }
  assert.equal(sockets.length, 0);
  assert.deepEqual(complaints, []);
  nothingIsLeft();
});

// Messages that are sent

test("what is sent while it is away goes out in order, before anything newer", () => {
  const room = connect("/ws");
  room.onState(({ state }) => { if (state === "open") room.send("newer"); });
  assert.equal(room.send("first"), true);
  last().open();
  assert.deepEqual(last().sent, ["first", "newer"]);
  last().end(1006);
  const bytes = new Uint8Array([1, 2, 3, 4]);
  room.send(bytes.subarray(1, 3));
  room.send(bytes.buffer);
  bytes.fill(9); // the caller's own again
  room.sendJson({ type: "say" });
  clock.pass(waits(room));
  last().open();
  const [view, buffer, json, newer] = last().sent;
  assert.deepEqual([[...view], [...new Uint8Array(buffer)]], [[2, 3], [1, 2, 3, 4]]);
  assert.deepEqual([json, newer], ['{"type":"say"}', "newer"]);
});

test("what waits is bounded in number and bytes, and what is dropped is told", () => {
  const room = connect("/ws", { queue: { messages: 3, bytes: 10 } });
  const dropped = [];
  room.onDropped((data, why) => dropped.push([data, why]));
  assert.deepEqual(["ääää", "12", "345", "6"].map(text => room.send(text)), [true, true, false, false]);
  last().open();
  assert.deepEqual(last().sent, ["ääää", "12"]);
  last().end(1006);
  assert.deepEqual(["a", "b", "c", "d"].map(text => room.send(text)), [true, true, true, false]);
  assert.deepEqual(dropped, [["345", "full"], ["6", "full"], ["d", "full"]]);
  assert.deepEqual(complaints, []);
});

test("what waits when it ends for good is told, too, and so is what comes later", () => {
  const room = connect("/ws");
  const dropped = [];
  const off = room.onDropped((data, why) => dropped.push([data, why]));
  room.send("waits");
  last().end(1008);
  assert.equal(room.send("late"), false);
  assert.deepEqual(dropped, [["waits", "closed"], ["late", "closed"]]);
  off();
  room.send("late");
  room.send("late");
  assert.deepEqual(complaints, ["wsrelay: a message is dropped, because the connection is closed"]);
});

test("only text and bytes are sent, and only what is JSON as JSON", () => {
  const room = opened();
  for (const value of [undefined, null, 1, {}]) assert.throws(() => room.send(value), /send takes text or bytes/);
  assert.throws(() => room.sendJson(undefined), /undefined cannot be written as JSON/);
  assert.throws(() => room.sendJson(1n), TypeError);
  room.send(new Blob(["x"]));
  room.sendJson(null);
  assert.deepEqual([last().sent[0].size, last().sent[1]], [1, "null"]);
});

// Messages that come

test("JSON is handed out by its kind, and what the relay writes for processes by its topic", () => {
  const room = opened();
  const got = [];
  room.on("say", message => got.push(["say", message]));
  room.on(7, message => got.push([7, message]));
  room.on("news", message => got.push(["news", message]));
  room.onText(text => got.push(["text", text]));
  const said = { type: "say", topic: "news", data: 1 };
  last().json(said);
  last().json({ type: 7 });
  last().json({ topic: "news", data: null });
  const others = ['{"type":"shout"}', '{"topic":"news"}', "[1]", "null", "7", "hello", '{"type":["say"]}'];
  for (const text of others) last().come(text);
  assert.deepEqual(got, [["say", said], [7, { type: 7 }], ["news", null], ...others.map(text => ["text", text])]);
});

test("another field may tell the kind", () => {
  const room = opened({ kind: "op" });
  const got = [];
  room.on("move", message => got.push(message));
  last().json({ op: "move", type: "other" });
  assert.deepEqual(got, [{ op: "move", type: "other" }]);
});

test("binary messages are bytes, and have handlers of their own", () => {
  const room = opened();
  const got = [];
  room.onBinary(data => got.push(data));
  room.onText(() => assert.fail());
  const data = new ArrayBuffer(3);
  last().come(data);
  assert.equal(last().binaryType, "arraybuffer");
  assert.equal(got[0], data);
});

test("what nobody takes is told once", () => {
  const room = opened();
  room.on("say", () => {});
  for (let i = 0; i < 3; i += 1) {
    last().json({ type: "shout" });
    last().come("hello");
    last().come(new ArrayBuffer(1));
  }
  for (let i = 0; i < 100; i += 1) last().json({ type: `kind ${i}` });
  assert.match(complaints[0], /a message of the kind "shout" came, and there is neither an on nor an onText/);
  assert.match(complaints[1], /text came/);
  assert.match(complaints[2], /a binary message came, and there is no onBinary/);
  assert.equal(complaints.length, 20);
});

test("a handler that throws keeps no other from its message", () => {
  const room = opened();
  const got = [];
  room.on("say", () => { throw new Error("a bug"); });
  room.on("say", message => got.push(message.text));
  last().json({ type: "say", text: "hi" });
  assert.deepEqual([got, uncaught], [["hi"], ["a bug"]]);
});

test("a handler can be taken off, and must be a function", () => {
  const room = opened();
  const got = [];
  const off = room.on("say", () => got.push("say"));
  const offText = room.onText(() => got.push("text"));
  last().json({ type: "say" });
  off();
  last().json({ type: "say" });
  offText();
  last().json({ type: "say" });
  assert.deepEqual(got, ["say", "text"]);
  assert.throws(() => room.onState(undefined), /undefined is no handler function/);
});

// What the page shows

test("the states tell when the next try is, and how it ended", () => {
  const room = connect("/ws");
  const seen = [];
  room.onState(status => seen.push(status));
  last().open("chat");
  last().end(1011, "target process crashed");
  clock.pass(waits(room));
  last().open();
  last().end(4001, "kicked");
  assert.deepEqual(seen, [
    { state: "connecting", opens: 0 },
    { state: "open", opens: 1, protocol: "chat" },
    { state: "waiting", opens: 1, retryAt: 1_000_500, code: 1011, reason: "target process crashed", clean: true },
    { state: "connecting", opens: 1 },
    { state: "open", opens: 2, protocol: "" },
    { state: "closed", opens: 2, code: 4001, reason: "kicked", clean: true },
  ]);
});

/** The elements that `showState` needs, as far as it uses them. */
function elements() {
  const button = {};
  const words = { textContent: "" };
  const ended = { dataset: {}, hidden: true, firstElementChild: words, querySelector: () => button };
  return { chip: { dataset: {} }, ended, words, button };
}

test("`showState` shows the state, how it ended until it is open again, and offers to connect", () => {
  const { chip, ended, words, button } = elements();
  const room = connect("/ws");
  const off = room.showState(chip, ended);
  const shown = () => [chip.textContent, ended.hidden ? null : words.textContent];
  assert.deepEqual(shown(), ["connecting", null]);
  last().end(1006);
  assert.deepEqual(shown(), ["waiting", "Closed with 1006: no connection to the server. Trying again."]);
  button.onclick();
  last().open();
  assert.deepEqual(shown(), ["open", null]);
  last().end(1012, "node shuts down");
  assert.deepEqual(shown(), ["waiting", "Closed with 1012: node shuts down. Trying again."]);
  clock.pass(waits(room));
  last().end(1006);
  assert.deepEqual(shown(), ["waiting", "Closed with 1012: node shuts down. Trying again."]);
  clock.pass(waits(room));
  assert.equal(chip.dataset.state, "connecting");
  last().open();
  last().end(1006);
  assert.deepEqual(shown(), ["waiting", "Closed with 1006: connection lost. Trying again."]);
  clock.pass(waits(room));
  last().end(4001, "thrown out");
  assert.deepEqual(shown(), ["closed", "Closed with 4001: thrown out."]);
  assert.deepEqual([chip.dataset.state, ended.dataset.state], ["closed", "closed"]);
  button.onclick();
  assert.deepEqual(shown(), ["connecting", "Closed with 4001: thrown out. Trying again."]);
  last().open();
  last().end(1000);
  assert.deepEqual(shown(), ["closed", "Closed with 1000."]);
  off();
  room.reconnect();
  assert.equal(chip.textContent, "closed");
});

test("`showState` can do with a chip alone", () => {
  const { chip } = elements();
  opened().showState(chip);
  last().end(1011);
  assert.equal(chip.textContent, "waiting");
});

// By hand

test("`close` ends it in every state, and nothing is left", async () => {
  const at = {
    connecting: () => connect("/ws"),
    preparing: () => connect(() => "/ws"),
    open: () => opened(),
    doubted: () => { const room = opened(); events.happen("online"); return room; },
    waiting: () => { const room = opened(); last().end(1011); return room; },
  };
  for (const [name, make] of Object.entries(at)) {
    const room = make();
    const seen = [];
    room.onState(({ state }) => seen.push(state));
    const socket = last();
    room.close(4000, "bye");
    room.close(); // again: no more
    socket.come("late");
    await settled();
    assert.deepEqual(room.status, { state: "closed", opens: room.status.opens, code: 4000, reason: "bye", clean: true });
    assert.equal(seen.length, 2);
    if (name === "open") assert.deepEqual(socket.closed, [4000, "bye"]);
    nothingIsLeft();
  }
  assert.deepEqual(complaints, []);
});

test("an unusable code or reason is refused, and changes nothing", () => {
  const room = opened();
  for (const code of [0, 999, 1001, 1012, 2999, 3000.5, 5000, NaN, "x"]) {
    assert.throws(() => room.close(code), { name: "RangeError", message: /may close with 1000, or 3000 to 4999/ });
  }
  assert.throws(() => room.close(1000, "ä".repeat(62)), /at most 123 bytes/);
  assert.equal(room.status.state, "open");
  assert.equal(last().closed, undefined);
});

test("`reconnect` connects at once, anew, and also after the end", () => {
  const room = opened();
  room.reconnect();
  assert.deepEqual(sockets[0].closed, [1000, "reconnecting"]);
  assert.equal(room.status.state, "connecting");
  last().end(1006);
  room.reconnect();
  assert.equal(sockets.length, 3);
  last().end(1006);
  assert.equal(waits(room), 500); // the count of failures begins anew
  room.close();
  nothingIsLeft();
  room.reconnect();
  last().open();
  assert.equal(room.status.state, "open");
  events.happen("online");
  clock.pass(2_000);
  assert.equal(room.status.state, "waiting"); // it listens again
});

// Sleep

for (const [name, values] of [["online", {}], ["pageshow", { persisted: true }], ["visibilitychange", {}], ["resume", {}]]) {
  test(`\`${name}\` ends the wait for the next try`, () => {
    const room = opened();
    last().end(1006);
    waits(room);
    events.happen(name, values);
    assert.equal(room.status.state, "connecting");
    assert.equal(sockets.length, 2);
    clock.pass(500);
    assert.equal(sockets.length, 2);
  });
}

test("a page that becomes hidden goes on waiting", () => {
  const room = opened();
  last().end(1006);
  events.hidden = true;
  events.happen("visibilitychange");
  waits(room);
});

test("a try under way begins anew when the network comes back", () => {
  connect("/ws");
  events.happen("visibilitychange");
  assert.equal(sockets.length, 1);
  events.happen("online");
  assert.equal(sockets.length, 2);
});

for (const [name, values, what] of [["online", {}, "the network"], ["pageshow", { persisted: true }, "the page"]]) {
  test(`a connection that is silent when ${what} is back is replaced, and nothing is lost`, () => {
    const room = opened();
    events.happen(name, values);
    assert.equal(room.send("waits"), true);
    assert.deepEqual(sockets[0].sent, []);
    clock.pass(1_999);
    assert.equal(room.status.state, "open");
    clock.pass(1);
    assert.equal(room.status.reason, "silent after a sleep");
    assert.equal(sockets[0].readyState, 2);
    clock.pass(waits(room));
    last().open();
    assert.deepEqual(last().sent, ["waits"]);
  });
}

test("a page that is shown for the first time has no doubt", () => {
  opened();
  events.happen("pageshow", { persisted: false });
  clock.pass(10_000);
  assert.equal(sockets.length, 1);
});

test("a connection on which something arrives then is kept", () => {
  const room = opened();
  room.onText(() => {});
  events.happen("online");
  events.happen("online"); // one doubt, not two
  room.send("waits");
  clock.pass(400);
  last().come("this may have waited since before");
  assert.deepEqual(last().sent, []);
  clock.pass(200);
  last().come("alive");
  assert.deepEqual(last().sent, ["waits"]);
  clock.pass(10_000);
  assert.equal(room.status.state, "open");
  assert.equal(sockets.length, 1);
});

for (const wakes of ["the timer", "resume", "visibilitychange"]) {
  test(`a sleep is known by the clock: ${wakes}`, () => {
    const room = opened();
    clock.pass(60_000);
    clock.sleep(100_000);
    if (wakes === "the timer") clock.pass(15_000);
    else events.happen(wakes);
    clock.pass(2_000);
    assert.equal(room.status.state, "waiting");
  });
}

test("to look at another page for a while is no sleep, though timers are rare then", () => {
  const room = opened();
  for (let i = 0; i < 10; i += 1) {
    clock.sleep(45_000);
    clock.pass(15_000);
  }
  clock.sleep(45_000);
  events.happen("visibilitychange");
  clock.pass(10_000);
  assert.equal(room.status.state, "open");
  assert.equal(sockets.length, 1);
});

test("a socket that has ended in the sleep without telling is noticed at once", () => {
  const room = opened();
  last().readyState = 3;
  room.send("waits");
  events.happen("visibilitychange");
  clock.pass(waits(room));
  last().open();
  assert.deepEqual(last().sent, ["waits"]);
});
