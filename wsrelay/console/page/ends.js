// What has ended lately: who, how, and why.

import { h, mark, say, to } from "./dom.js";
import { count, duration, time } from "./figures.js";
import { table } from "./table.js";

export const howBad = end => (end.crash ? "bad" : null);

const NAME = row => row.name;

const COMMON = [
  { title: "How", sort: "how", text: row => row.how, level: howBad, more: row => (row.kind && row.kind !== row.how ? row.kind : "") },
  { title: "When", sort: "ended", number: true, text: row => time(row.ended) },
];

const PROCESSES = [
  { title: "Name", text: NAME, link: row => to("process", { of: row.pid }) },
  ...COMMON,
  { title: "Why", from: "wide", text: row => row.message || row.reason || "", more: row => row.by && `by ${row.by}` },
  { title: "Lived", number: true, from: "wide", text: row => duration(row.lived) },
  { title: "Clients", number: true, from: "wider", text: row => count(row.clients) },
  { title: "Target", from: "wider", text: row => row.target },
  { title: "PID", from: "wider", text: row => row.pid },
];

const CLIENTS = [
  { title: "Client", text: NAME },
  { title: "Process", text: row => row.target_name, link: row => to("process", { of: row.target }) },
  ...COMMON,
  { title: "Code", number: true, text: row => String(row.code), level: row => ([1000, 1001, 1005].includes(row.code) || row.code >= 3000 ? null : "bad") },
  { title: "Reason", from: "wide", text: row => row.reason, more: row => row.by && `by ${row.by}` },
  { title: "Lived", number: true, from: "wide", text: row => duration(row.lived) },
  { title: "Messages", number: true, from: "wider", text: row => count(row.messages) },
];

export function ends({ ask }) {
  const unknown = h("p", { class: "notice", hidden: true });
  const tabs = ["process", "connection"].map(kind =>
    h("button", { type: "button", role: "tab", onclick: () => ask({ kind, start: 0 }) }, kind === "process" ? "Processes" : "Connections"));
  const lists = {
    process: table({ title: "Ended processes", noun: "end", sort: "ended", columns: PROCESSES, empty: "No process has ended lately.", ask }),
    connection: table({ title: "Ended connections", noun: "end", sort: "ended", columns: CLIENTS, empty: "No connection has ended lately.", ask }),
  };
  const element = h(
    "div",
    { class: "stack" },
    unknown,
    h("div", { class: "tabs", role: "tablist", "aria-label": "What has ended" }, ...tabs),
    ...Object.values(lists).map(list => list.element),
  );
  let kind = "process";

  function update(state, query) {
    kind = query.kind === "connection" ? "connection" : "process";
    unknown.hidden = !state.unknown;
    say(unknown, state.unknown ? `Not known to this node: how processes ended (${state.unknown.join(", ")})` : "");
    ["process", "connection"].forEach((one, index) => {
      mark(tabs[index], "aria-selected", String(one === kind));
      lists[one].element.hidden = one !== kind;
    });
    lists[kind].update(state.table, query);
  }

  return { element, update, key: name => lists[kind].key(name) };
}
