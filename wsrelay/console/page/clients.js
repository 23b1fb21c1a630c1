// Tables of connections.

import { to } from "./dom.js";
import { count, since, size } from "./figures.js";
import { table } from "./table.js";

/**
 * @param {object} options
 * @param {Function} options.ask
 * @param {boolean} [options.of] They are those of one process.
 * @param {(row: any) => void} [options.close] Closes one.
 */
export function clients({ ask, of = false, close, title = "Connections" }) {
  const target = { title: "Process", sort: "target", text: row => row.target_name, link: row => to("process", { of: row.target }) };
  return table({
    title,
    noun: "connection",
    sort: "outbox",
    few: of,
    empty: of ? "It has no clients." : "No client is connected.",
    ask,
    columns: [
      { title: "Client", sort: "client", text: row => row.client, more: row => (row.address === row.client ? "" : row.address) },
      ...(of ? [] : [target]),
      { title: "Waits for it", sort: "outbox", number: true, text: row => (row.outbox ? size(row.outbox) : "0"), level: row => (row.outbox > 0 ? "wait" : null) },
      { title: "Messages", sort: "messages", number: true, from: "wide", text: row => count(row.messages) },
      { title: "Dropped", sort: "dropped", number: true, from: "wide", text: row => count(row.dropped), level: row => (row.dropped > 0 ? "bad" : null) },
      { title: "Connected for", sort: "age", number: true, text: row => since(row.started), from: "wide" },
      { title: "Path", from: "wider", text: row => row.path },
      { title: "PID", from: "wider", text: row => row.pid },
      ...(close ? [{ title: "", number: true, text: () => "Close", press: close }] : []),
    ],
  });
}

export function connections({ ask, orders, write }) {
  const list = clients({ ask, close: write ? row => orders.close(row.pid, row.client) : undefined });
  return { element: list.element, update: (state, query) => list.update(state.table, query), key: list.key };
}
