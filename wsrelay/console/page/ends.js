// What has ended lately: who, how, and why.

import { h, say, to } from "./dom.js";
import { count, duration, time } from "./figures.js";
import { table } from "./table.js";

/** Ends that nobody needs to look into. */
const IN_ORDER = new Set(["returned", "cancelled", "empty", "parent", "shutdown", "terminated"]);

export const howBad = end => (IN_ORDER.has(end.how) ? null : "bad");

export function ends({ ask }) {
  const unknown = h("p", { class: "notice", hidden: true });
  const list = table({
    title: "Ends",
    noun: "end",
    sort: "ended",
    empty: "No process has ended lately.",
    ask,
    columns: [
      { title: "Name", text: row => row.name, link: row => to("process", { of: row.pid }) },
      { title: "How", sort: "how", text: row => row.how, level: howBad, more: row => (row.kind === row.how ? "" : row.kind) },
      { title: "When", sort: "ended", number: true, text: row => time(row.ended) },
      { title: "Why", from: "wide", text: row => row.message || row.reason || "", more: row => row.by && `by ${row.by}` },
      { title: "Lived", number: true, from: "wide", text: row => duration(row.ended - row.started) },
      { title: "Clients", number: true, from: "wider", text: row => count(row.clients) },
      { title: "Target", from: "wider", text: row => row.target },
      { title: "PID", from: "wider", text: row => row.pid },
    ],
  });
  const element = h("div", { class: "stack" }, unknown, list.element);

  function update(state, query) {
    unknown.hidden = !state.unknown;
    say(unknown, state.unknown ? `Not known to this node: how processes ended (${state.unknown.join(", ")})` : "");
    list.update(state.table, query);
  }

  return { element, update, key: list.key };
}
