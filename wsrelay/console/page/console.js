// The console: from the address to a page, and from what changes to what is shown.

import { connections } from "./clients.js";
import { mark, say, to } from "./dom.js";
import { ends } from "./ends.js";
import { plural, time } from "./figures.js";
import { home } from "./home.js";
import { listen } from "./keys.js";
import { Live } from "./live.js";
import { logs } from "./logs.js";
import { nodes } from "./nodes.js";
import { Orders } from "./orders.js";
import { process } from "./process.js";

const PAGES = { home, connections, ends, logs, nodes, process };
const MOST_ADDRESSES = 2;

const $ = id => document.getElementById(id);

let page = null;
let shown = "";
let query = {};

const live = new Live({ state: show, lines: message => page?.hear?.(message), status: tell });
const orders = new Orders(live);

/** The page and the query that the address says. */
function address() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const found = Object.fromEntries(new URLSearchParams(search));
  const name = Object.hasOwn(PAGES, path) ? path : "home";
  for (const key of ["descending", "trace", "payload"]) {
    if (key in found) found[key] = found[key] === "true";
  }
  if ("start" in found) found.start = Number(found.start) || 0;
  return { name, found };
}

/** Go where the address says. */
function go() {
  const { name, found } = address();
  query = found;
  live.look({ page: name, ...asked(found) });
  const which = `${name} ${name === "process" ? found.of : ""}`;
  for (const tab of $("tabs").children) mark(tab, "aria-current", tab.dataset.page === name ? "page" : null);
  if (which === shown) return show();
  shown = which;
  made(name);
  scrollTo(0, 0);
}

/** Make the page; whether it may write is known only when the process behind it has said so. */
function made(name) {
  page = null;
  $("view").replaceChildren();
  if (live.state.write === undefined) return;
  page = PAGES[name]({ ask: change, live, orders, write: live.state.write, of: query.of });
  $("view").replaceChildren(page.element);
  show();
}

/** What of the query the process behind the page is asked for. */
function asked({ search, sort, descending, start, of, kind, level, trace, payload }) {
  return { search, sort, descending, start, of, kind, level, trace, payload };
}

/** Ask for something else on the same page; the address tells of it. */
function change(what) {
  const { name, found } = address();
  const next = { ...found, ...what };
  if (next.start === 0) delete next.start;
  if (next.descending === true) delete next.descending;
  const text = to(name, Object.fromEntries(Object.entries(next).map(([key, value]) => [key, value === false && key === "descending" ? "false" : value])));
  history.replaceState(null, "", text);
  go();
}

function show() {
  if (page === null) {
    if (live.state.write !== undefined) made(address().name);
    return;
  }
  if (live.state.page !== address().name || !live.isCurrent) return;
  page.update(live.state, query);
  const all = Object.values(live.state.nodes ?? {});
  const here = all.filter(node => node.state === "up");
  const problem = live.state.problem;
  const places = here.flatMap(node => node.addresses ?? []);
  say($("where"), problem ?? `${plural(here.length, "node")}${places.length && places.length <= MOST_ADDRESSES ? ` at ${places.join(", ")}` : ""}`);
  document.title = title();
}

function title() {
  const found = live.state.findings;
  const amount = found ? found.order.length + found.more : 0;
  return amount > 0 ? `(${amount}) wsrelay console` : "wsrelay console";
}

/** Say how the connection to the console is. */
function tell(status) {
  const badge = $("status");
  say(badge, { open: "live", connecting: "connecting", waiting: "lost", closed: "paused" }[status.state]);
  mark(badge, "data-state", status.state);
  const lost = $("lost");
  const late = live.at === 0 ? "" : ` Shown is what was known at ${time(live.at / 1000)}.`;
  lost.hidden = status.state === "open" || (status.state === "connecting" && status.opens === 0);
  if (!lost.hidden && status.state === "waiting") {
    say(lost, `The console cannot be reached; trying again.${late}`);
    locked(late);
  } else if (!lost.hidden && late) say(lost, `Connecting again.${late}`);
  mark(document.body, "data-live", status.state);
}

/** A console that was started anew has another token. */
async function locked(late) {
  const answer = await fetch("./", { method: "HEAD" }).catch(() => null);
  if (answer?.status === 403 || answer?.status === 401) {
    say($("lost"), `This console was started anew: open the address that it has printed.${late}`);
  }
}

addEventListener("hashchange", go);
// Ages go on also where nothing has changed.
setInterval(() => live.isOpen && show(), 1000);
listen({ page: () => page, help: $("help"), helpButton: $("help-button"), home: () => (location.hash = "#/") });
live.start();
go();
