// The log of all nodes, as it is written.

import { h } from "./dom.js";
import { lines, record } from "./lines.js";

export function logs({ ask }) {
  const log = lines({
    label: "Log",
    empty: "No records yet. They are shown as they are written.",
    made: line => record(line, true),
  });
  let typing;
  const field = h("input", {
    type: "search",
    class: "search",
    placeholder: "Search the log",
    "aria-label": "Search the log",
    spellcheck: "false",
    oninput: () => {
      clearTimeout(typing);
      typing = setTimeout(() => ask({ search: field.value }), 250);
    },
  });
  const levels = h(
    "select",
    { "aria-label": "Level", onchange: () => ask({ level: levels.value }) },
    ...["debug", "info", "warning", "error"].map(level =>
      h("option", { value: level }, level === "debug" ? "all levels" : `${level} and above`)),
  );
  const element = h(
    "section",
    { class: "card list tall-card" },
    h("div", { class: "bar" }, h("h2", {}, "Logs"), h("span", { class: "grow" }), levels, field),
    log.element,
  );

  function update(_state, query) {
    if (document.activeElement !== field) field.value = query.search ?? "";
    levels.value = query.level ?? "debug";
  }

  function hear(message) {
    if (message.first) log.clear();
    log.add(message.log ?? [], message.left?.log);
  }

  function key(name) {
    if (name !== "/") return false;
    field.focus();
    return true;
  }

  return { element, update, hear, key };
}
