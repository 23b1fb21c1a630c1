// Lines as they come, the last ones of them: log records, and messages that are traced.

import { h, say, to } from "./dom.js";
import { plural, time } from "./figures.js";

const MOST = 500;

/**
 * @param {object} options
 * @param {string} options.label
 * @param {string} options.empty
 * @param {(line: any) => Node} options.made
 */
export function lines({ label, empty, made }) {
  const nothing = h("p", { class: "empty" }, empty);
  const list = h("ol", { class: "log", "aria-label": label, tabindex: "0", hidden: true });
  const notice = h("p", { class: "hint", hidden: true });
  const element = h("div", { class: "lines" }, notice, list, nothing);
  let left = 0;

  function clear() {
    list.replaceChildren();
    left = 0;
    notice.hidden = list.hidden = true;
    nothing.hidden = false;
  }

  /** @param {any[]} news @param {number} missed How many more have come before them, which are left out. */
  function add(news, missed = 0) {
    if (news.length === 0) return;
    const follows = list.hidden || list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    list.hidden = false;
    nothing.hidden = true;
    list.append(...news.slice(-MOST).map(made));
    while (list.childElementCount > MOST) list.firstElementChild.remove();
    left += missed;
    notice.hidden = left === 0;
    say(notice, `${plural(left, "line")} left out: of many at once the last ones are shown.`);
    if (follows) list.scrollTop = list.scrollHeight;
  }

  return { element, add, clear };
}

/** A log record. @param {boolean} named Whether it says which process it is of. */
export function record(line, named) {
  const whose = line.names?.[0] ?? line.pid;
  // The text begins with the process, as in a log of many; here it stands beside it.
  const heads = line.pid ? [`${line.pid} ${whose} `, `${line.pid} `] : [];
  const text = line.text.slice(heads.find(head => line.text.startsWith(head))?.length ?? 0);
  return h(
    "li",
    { class: "line", "data-level": line.level },
    h("time", { datetime: new Date(line.time * 1000).toISOString() }, time(line.time)),
    h("span", { class: "level" }, line.level),
    named && line.pid ? h("a", { href: to("process", { of: line.pid }) }, whose) : null,
    h("span", { class: "text" }, text),
  );
}
