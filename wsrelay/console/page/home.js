// The first page: what needs attention, the figures of the last minute, and the processes.

import { chart } from "./chart.js";
import { h, keyed, mark, point, say, to } from "./dom.js";
import { count, percent, plural, rate, since, size } from "./figures.js";
import { table } from "./table.js";

/** The columns of a table of processes. */
const COLUMNS = [
  {
    title: "Name",
    sort: "name",
    text: row => row.name,
    link: row => to("process", { of: row.pid }),
    more: row => [row.more && `+${row.more}`, row.gone ? "gone" : row.stalled ? "stalled" : row.state !== "running" && row.state]
      .filter(Boolean).join(" "),
  },
  { title: "CPU", sort: "cpu", number: true, text: row => percent(row.cpu), share: row => row.cpu / 100, level: row => (row.cpu >= 90 ? "wait" : null) },
  { title: "Memory", sort: "memory", number: true, text: row => size(row.memory) },
  { title: "Mailbox", sort: "mailbox", number: true, from: "wide", text: row => (row.mailbox ? size(row.mailbox) : "0"), level: row => (row.mailbox > 0 ? "wait" : null) },
  { title: "Clients", sort: "clients", number: true, from: "wide", text: row => count(row.clients) },
  { title: "Messages/s", sort: "rate", number: true, from: "wide", text: row => rate(row.rate) },
  { title: "Age", sort: "age", number: true, from: "wide", text: row => since(row.started) },
  { title: "Target", from: "wider", text: row => row.target },
  { title: "PID", from: "wider", text: row => row.pid },
];

export function home({ ask }) {
  const charts = {
    cpu: chart("CPU", percent, 1),
    memory: chart("Memory", size, 4),
    messages: chart("Messages/s", rate, 6),
    connections: chart("Connections", count, 2),
    processes: chart("Processes", count, 3),
  };
  const calm = h("p", { class: "calm" }, "Nothing needs attention.");
  const more = h("p", { class: "hint" });
  const list = h("ul", { class: "findings", "aria-label": "What needs attention" });
  const counted = h("span", { class: "badge" });
  const rows = table({
    title: "Processes",
    noun: "process",
    columns: COLUMNS,
    sort: "cpu",
    empty: "No process runs. One starts when a client connects, or when something spawns it.",
    ask,
  });
  const element = h(
    "div",
    { class: "stack" },
    h("section", { class: "card attention", "aria-label": "What needs attention" }, h("div", { class: "bar" }, h("h2", {}, "Attention"), counted), calm, list, more),
    h("div", { class: "stats" }, ...Object.values(charts).map(one => one.element)),
    rows.element,
  );

  function update(state, query) {
    const found = state.findings ?? { order: [], rows: {}, more: 0 };
    const amount = found.order.length + found.more;
    calm.hidden = amount > 0;
    counted.hidden = amount === 0;
    say(counted, count(amount));
    say(more, found.more ? `and ${plural(found.more, "finding")} more` : "");
    more.hidden = !found.more;
    keyed(list, found.order, made, (item, key) => tell(item, found.rows[key]));
    for (const [name, one] of Object.entries(charts)) one.update(state.series?.[name]);
    rows.update(state.table, query);
  }

  return { element, update, key: rows.key };
}

function made() {
  return h("li", {}, h("a", {}, h("strong"), h("span")));
}

function tell(item, finding) {
  const link = item.firstChild;
  mark(item, "data-level", finding.level);
  say(link.firstChild, finding.name);
  say(link.lastChild, finding.text);
  point(link, finding.page === "ends" ? to("ends", { search: finding.of }) : to(finding.page, { of: finding.of }));
}
