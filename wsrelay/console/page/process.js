// One process: what it takes, what belongs to it, its clients, its log, its stack, how it ended.

import { chart } from "./chart.js";
import { clients } from "./clients.js";
import { h, keyed, mark, point, say, to } from "./dom.js";
import { howBad } from "./ends.js";
import { count, duration, percent, rate, since, size, time } from "./figures.js";
import { lines, record } from "./lines.js";
import { fill } from "./nodes.js";

export function process({ ask, live, orders, write, of }) {
  const title = h("h2", { class: "title" });
  const status = h("span", { class: "status" });
  const where = h("span", { class: "muted mono" });
  const notice = h("p", { class: "notice", hidden: true });
  const facts = h("dl", { class: "pairs" });
  const more = h("details", {}, h("summary", {}, "Options"), h("dl", { class: "pairs" }));
  const relations = h("dl", { class: "pairs" });
  const traceback = h("pre", { class: "traceback", tabindex: "0", hidden: true });
  const charts = {
    cpu: chart("CPU", percent, 1),
    memory: chart("Memory", size, 4),
    messages: chart("Messages/s", rate, 6),
    mailbox: chart("Mailbox", size, 5),
  };
  const stats = h("div", { class: "stats" }, ...Object.values(charts).map(one => one.element));
  const list = clients({ ask, of: true, title: "Clients", close: write ? row => orders.close(row.pid, row.client) : undefined });
  const log = lines({ label: "Log of this process", empty: "No log records of it.", made: line => record(line, false) });
  const stack = stacks(live, of);
  const messages = traced(ask);
  let buttons = null;
  const head = h("section", { class: "card" }, h("div", { class: "bar" }, title, status, h("span", { class: "grow" })), where, notice, facts, relations, more, traceback);
  const living = h("div", { class: "stack" }, stats, list.element, h("div", { class: "halves" }, stack.element, messages.element));
  const element = h(
    "div",
    { class: "stack" },
    h("a", { class: "back", href: "#/" }, "\u2190 Processes"),
    head,
    living,
    h("section", { class: "card list" }, h("h2", {}, "Log"), log.element),
  );

  function update(state, query) {
    const one = state.process;
    const ended = state.ended;
    living.hidden = one === undefined;
    traceback.hidden = !ended?.traceback;
    if (one) alive(one, state, query);
    else if (ended) gone(ended);
    else if (state.missing) missing();
  }

  function alive(one, state, query) {
    say(title, one.name);
    say(status, one.gone ? "gone" : one.stalled ? "stalled" : one.state);
    mark(status, "data-state", one.gone ? "crashed" : one.stalled ? "stalled" : one.state);
    say(where, one.pid);
    const node = state.nodes?.[one.node];
    notice.hidden = !one.gone;
    say(notice, one.gone ? `Its node has gone (${node?.problem}). Shown is what was known last.` : "");
    if (write && buttons === null) {
      buttons = orders.ofProcess(one.pid, one.name);
      head.firstChild.append(buttons.bar);
    }
    fill(facts, {
      Target: one.full_target,
      Code: one.code,
      Node: node?.name,
      Host: one.host,
      "OS PID": one.os_pid,
      Running: since(one.started),
      Clients: count(one.clients),
      "Took a message": one.idle === undefined ? undefined : `${duration(one.idle)} ago`,
      Waiting: one.waiting || undefined,
      Received: one.received === undefined ? undefined : count(one.received),
      Sent: one.sent === undefined ? undefined : count(one.sent),
      Mailbox: one.mail_limit ? `${size(one.mailbox)} of ${size(one.mail_limit)}` : size(one.mailbox),
      Timers: one.timers && `${count(one.timers)}, the next in ${duration(one.next_timer)}`,
      Limits: one.limits && pairs(one.limits),
      "Not known to this node": one.unknown?.join(", "),
    });
    fill(relations, {
      Names: one.names?.length > 1 ? one.names.join(", ") : undefined,
      Groups: one.groups?.join(", "),
      Parent: links(one.parent),
      Children: links(one.children),
      Links: links(one.links),
      Monitors: links(one.monitors),
      "Monitored by": links(one.monitored_by),
      "Called by": one.called_by?.join("; "),
      Calls: one.calls?.join("; "),
    });
    more.hidden = one.options === undefined;
    if (one.options) fill(more.lastChild, one.options);
    for (const [name, figure] of Object.entries(charts)) figure.update(state.series?.[name]);
    list.update(state.table, query);
    messages.update(query);
  }

  function gone(one) {
    say(title, one.name);
    say(status, `ended: ${one.how}`);
    mark(status, "data-state", howBad(one) ? "crashed" : "exited");
    say(where, one.pid);
    buttons?.bar.remove();
    buttons = null;
    notice.hidden = true;
    fill(facts, {
      How: one.kind === one.how ? one.how : `${one.how} (${one.kind})`,
      Why: one.message || one.reason,
      By: one.by,
      Ended: time(one.ended),
      Lived: duration(one.lived),
      Clients: count(one.clients),
      Target: one.target,
    });
    fill(relations, {});
    more.hidden = true;
    say(traceback, one.traceback);
  }

  function missing() {
    say(title, of);
    say(status, "not here");
    mark(status, "data-state", "exited");
    buttons?.bar.remove();
    buttons = null;
    notice.hidden = false;
    say(notice, "No node has this process: it has ended, and how is no longer known.");
    fill(facts, {});
    fill(relations, {});
    more.hidden = true;
  }

  function hear(message) {
    if (message.first) {
      log.clear();
      messages.clear();
    }
    log.add(message.log ?? [], message.left?.log);
    messages.hear(message);
  }

  return { element, update, hear, key: list.key };
}

function pairs(values) {
  return Object.entries(values).map(([name, value]) => `${name} ${value}`).join(", ");
}

/** Links to processes, by PID. */
function links(named) {
  if (named === undefined) return undefined;
  const list = h("span", { class: "links" });
  list.wsrelayText = JSON.stringify(named);
  const all = Object.entries(named);
  all.forEach(([pid, name], index) => list.append(h("a", { href: to("process", { of: pid }) }, name), index < all.length - 1 ? ", " : ""));
  return list;
}

function stacks(live, of) {
  const text = h("pre", { class: "traceback", hidden: true, tabindex: "0" });
  const error = h("p", { class: "error", role: "alert" });
  const button = h("button", { class: "small", type: "button", onclick: take }, "Take");
  const element = h("section", { class: "card list" }, h("div", { class: "bar" }, h("h2", {}, "Stack"), h("span", { class: "grow" }), button),
    h("p", { class: "hint" }, "Where its threads are in the code at this moment; it is not disturbed."), error, text);

  async function take() {
    button.disabled = true;
    say(error, "");
    try {
      const found = await live.ask({ type: "stack", of });
      say(text, found);
      text.hidden = false;
    } catch (problem) {
      say(error, problem.message);
    } finally {
      button.disabled = false;
    }
  }

  return { element };
}

/** A message as it passed, or a note about the trace. */
function message(line) {
  const to = line.direction === "out";
  const peer = [line.names?.[0] ?? line.peer, line.others && `and ${count(line.others)} more`].filter(Boolean).join(" ");
  return h(
    "li",
    { class: "line", "data-direction": line.direction },
    h("time", {}, time(line.time)),
    line.note ? h("span", { class: "muted" }, line.note) : null,
    line.note ? null : h("span", { class: `direction ${line.direction}` }, to ? "\u2191 out" : "\u2193 in"),
    line.topic ? h("strong", {}, line.topic) : null,
    peer ? h("span", {}, `${to ? "to" : "from"} ${peer}`) : null,
    line.note ? null : h("span", { class: "muted" }, size(line.size ?? 0)),
    line.payload ? h("span", { class: "text" }, line.payload) : null,
  );
}

function traced(ask) {
  const rows = lines({
    label: "Messages",
    empty: "Not traced.",
    made: message,
  });
  const error = h("p", { class: "error", role: "alert" });
  const button = h("button", { class: "small", type: "button", onclick: () => ask({ trace: !on, payload: full.checked && !on }) }, "Trace");
  const full = h("input", { type: "checkbox" });
  const check = h("label", { class: "check" }, full, "with contents");
  let on = false;
  const element = h("section", { class: "card list" }, h("div", { class: "bar" }, h("h2", {}, "Messages"), h("span", { class: "grow" }), check, button),
    h("p", { class: "hint" }, "The messages to and from it, as they pass."), error, rows.element);
  return {
    element,
    clear: rows.clear,
    update(query) {
      on = query.trace === true;
      say(button, on ? "Stop" : "Trace");
    },
    hear(message) {
      if (message.trace) {
        say(error, "");
        rows.add(message.trace, message.left?.trace);
      }
      if (message.problem) say(error, message.problem);
    },
  };
}
