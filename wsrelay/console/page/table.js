// A long list of which the process behind the page sends 50 rows: it searches, sorts and counts.

import { h, keyed, mark, point, say } from "./dom.js";
import { count, plural } from "./figures.js";

const PAGE = 50;

/**
 * @typedef {object} Column
 * @property {string} title
 * @property {(row: any) => string} text What stands in the cell.
 * @property {string} [sort] What the column is sorted by; without it, it is not.
 * @property {boolean} [number]
 * @property {string} [from] `wide` or `wider`: shown from that width of the window on.
 * @property {(row: any) => string | undefined} [link]
 * @property {(row: any) => string | undefined} [level] `good`, `wait` or `bad`.
 * @property {(row: any) => number} [share] From 0 to 1, as a bar below the figure.
 * @property {(row: any) => string | undefined} [more] What stands behind it, in a muted colour.
 * @property {(row: any) => void} [press] Its cell is a button with the text; what that does.
 */

/**
 * @param {object} options
 * @param {string} options.title
 * @param {string} options.noun Of one row.
 * @param {Column[]} options.columns
 * @param {string} options.sort The column that it is sorted by if nobody says otherwise.
 * @param {boolean} [options.search] Whether it has a field for a search.
 * @param {boolean} [options.few] Whether there are often so few that the field is left out.
 * @param {string} [options.empty] What stands there if there is none at all.
 * @param {(change: Record<string, any>) => void} options.ask Asks for something else of the list.
 */
export function table({ title, noun, columns, sort, search = true, few = false, empty, ask }) {
  const head = h("tr");
  const body = h("tbody");
  const counted = h("span", { class: "muted count", role: "status" });
  const nothing = h("p", { class: "empty", hidden: true });
  const previous = h("button", { class: "small", type: "button", onclick: () => turn(-1) }, "Previous");
  const next = h("button", { class: "small", type: "button", onclick: () => turn(1) }, "Next");
  const range = h("span", { class: "muted" });
  const pager = h("div", { class: "bar pager", hidden: true }, previous, range, next);
  const field = h("input", {
    type: "search",
    placeholder: `Search ${noun === "process" ? "processes" : `${noun}s`}`,
    "aria-label": `Search ${noun}s`,
    class: "search",
    spellcheck: "false",
    autocapitalize: "none",
    oninput: () => {
      clearTimeout(typing);
      typing = setTimeout(() => ask({ search: field.value, start: 0 }), 120);
    },
  });
  const grid = h(
    "div",
    { class: "scroll" },
    h("table", {}, h("thead", {}, head), body),
  );
  const element = h(
    "section",
    { class: "card list" },
    h("div", { class: "bar" }, h("h2", {}, title), counted, h("span", { class: "grow" }), search ? field : null),
    grid,
    nothing,
    pager,
  );
  let typing;
  let shown = {};
  let query = { sort, descending: true, search: "" };
  let chosen = null;

  const headings = columns.map(column => {
    const label = column.sort
      ? h("button", { type: "button", onclick: () => order(column) }, column.title)
      : column.title;
    const cell = h("th", { class: kind(column), scope: "col" }, label);
    head.append(cell);
    return cell;
  });
  body.addEventListener("click", event => {
    const row = event.target.closest("tr");
    if (event.target.closest("a, button") || row === null || String(getSelection()) !== "") return;
    choose(row);
    open();
  });

  function kind(column) {
    return [column.number && "number", column.from && `from-${column.from}`].filter(Boolean).join(" ") || null;
  }

  function order(column) {
    const same = query.sort === column.sort;
    ask({ sort: column.sort, descending: same ? !query.descending : column.number === true, start: 0 });
  }

  function turn(pages) {
    const start = shown.start + pages * PAGE;
    if (start >= 0 && start < shown.match) ask({ start });
  }

  function made() {
    return h("tr", {}, ...columns.map(column => {
      const text = h(column.link ? "a" : column.press ? "button" : "span");
      if (column.press) {
        text.className = "small danger";
        text.addEventListener("click", () => column.press(shown.rows[text.closest("tr").dataset.key]));
      }
      const more = column.more ? h("span", { class: "muted more" }) : null;
      return h("td", { class: kind(column) }, text, more && " ", more);
    }));
  }

  function fill(element, row) {
    mark(element, "class", row.gone ? "gone" : null);
    columns.forEach((column, index) => {
      const cell = element.children[index];
      const text = cell.firstChild;
      say(text, column.text(row));
      if (column.link) point(text, column.link(row));
      if (column.more) say(cell.lastChild, column.more(row));
      if (column.level) mark(text, "class", column.level(row));
      if (column.share) {
        const share = Math.max(0, Math.min(1, column.share(row) || 0));
        cell.style.setProperty("--share", share < 0.03 ? "0" : share.toFixed(2));
        cell.classList.toggle("share", true);
      }
    });
  }

  /**
   * @param {any} list What the process has sent of it, or undefined.
   * @param {Record<string, any>} asked The query of the page.
   */
  function update(list, asked) {
    query = { sort, descending: true, search: "", ...asked };
    if (document.activeElement !== field) field.value = query.search;
    shown = list ?? { total: 0, match: 0, start: 0, order: [], rows: {} };
    headings.forEach((cell, index) => {
      const column = columns[index];
      const direction = query.descending ? "descending" : "ascending";
      if (column.sort) mark(cell, "aria-sort", column.sort === query.sort ? direction : "none");
    });
    keyed(body, shown.order, made, (element, key) => {
      element.dataset.key = key;
      fill(element, shown.rows[key]);
    });
    const all = shown.match === shown.total;
    say(counted, list ? (all ? count(shown.total) : `${count(shown.match)} of ${count(shown.total)}`) : "");
    nothing.hidden = !list || shown.match > 0;
    say(nothing, shown.total === 0 ? (empty ?? `There is no ${noun}.`) : `No ${noun} matches the search.`);
    grid.hidden = !nothing.hidden;
    pager.hidden = shown.match <= PAGE;
    const last = Math.min(shown.start + PAGE, shown.match);
    say(range, `${count(shown.start + 1)} to ${count(last)} of ${plural(shown.match, "row")}`);
    previous.disabled = shown.start === 0;
    next.disabled = last >= shown.match;
    field.hidden = few && shown.total <= 10 && query.search === "";
  }

  function choose(row) {
    if (chosen !== null) mark(chosen, "aria-selected", null);
    chosen = row;
    mark(row, "aria-selected", "true");
    row.scrollIntoView({ block: "nearest" });
  }

  function open() {
    chosen?.querySelector("a")?.click();
  }

  /** What the keys do; returns whether it was one of the table's. */
  function key(name) {
    if (name === "/" && search) field.focus();
    else if (name === "j" || name === "k") {
      const rows = [...body.children];
      const at = rows.indexOf(chosen);
      const step = name === "j" ? 1 : -1;
      const row = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step];
      if (row) choose(row);
    } else if (name === "Enter" && chosen?.isConnected) open();
    else if (name === "n") turn(1);
    else if (name === "p") turn(-1);
    else if (name === "Escape" && query.search !== "") {
      field.value = "";
      ask({ search: "", start: 0 });
    } else return false;
    return true;
  }

  return { element, update, key, field };
}
