// The nodes, their process hosts, and the clusters that they belong to.

import { h, keyed, mark, say } from "./dom.js";
import { UNKNOWN, count, duration, since, size } from "./figures.js";

export function nodes() {
  const element = h("div", { class: "stack" });
  const empty = h("p", { class: "card empty" }, "This user has no running node.");
  element.append(empty);
  const list = h("div", { class: "stack" });
  element.append(list);

  function update(state, query) {
    const keys = Object.keys(state.nodes ?? {});
    empty.hidden = keys.length > 0;
    keyed(list, keys, made, (card, key) => card.wsrelayShow(state.nodes[key], state.details?.[key], query.of === key));
  }

  return { element, update, key: () => false };
}

function made() {
  const name = h("h2");
  const status = h("span", { class: "status" });
  const problem = h("p", { class: "notice bad", hidden: true });
  const facts = h("dl", { class: "facts" });
  const hosts = h("div", { class: "meters" });
  const members = h("tbody");
  const cluster = h(
    "div",
    { class: "scroll", hidden: true },
    h("table", {},
      h("caption", {}, "Cluster"),
      h("thead", {}, h("tr", {}, ...["Node", "State", "Processes", "Clients", "Link"].map((title, index) => h("th", { class: index > 1 ? "number" : null }, title)))),
      members),
  );
  const card = h("section", { class: "card node" }, h("div", { class: "bar" }, name, status), problem, facts, hosts, cluster);

  card.wsrelayShow = (node, details, isMeant) => {
    mark(card, "data-state", node.state);
    card.classList.toggle("chosen", isMeant);
    say(name, node.application ? `${node.name} \u00b7 ${node.application.split("/").at(-1)}` : node.name);
    say(status, node.state === "up" ? (details?.draining ? "draining" : "running") : node.state);
    mark(status, "data-state", node.state === "up" ? (details?.draining ? "cancelling" : "running") : node.state === "gone" ? "crashed" : "waiting");
    problem.hidden = node.state === "up";
    say(problem, node.state === "up" ? "" : `For ${duration(node.away)}: ${node.problem}. Shown is what was known last.`);
    fill(facts, {
      "Serves at": node.addresses?.join(", "),
      Up: details?.started === undefined ? (node.member ? "on another machine" : UNKNOWN) : since(details.started),
      "OS PID": node.os_pid,
      Processes: count(details?.processes),
      Connections: count(details?.connections),
      "Dead letters": count(details?.dead_letters),
      "Unfinished messages": size(details?.buffered),
      Version: details?.version,
    });
    const all = details?.hosts ?? {};
    keyed(hosts, Object.keys(all), meter, (element, key) => element.wsrelayShow(key, all[key]));
    const others = details?.members ?? {};
    const names = Object.keys(others);
    cluster.hidden = names.length === 0;
    keyed(members, names, member, (row, key) => row.wsrelayShow(key, others[key]));
  };
  return card;
}

export function fill(list, values) {
  const known = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  keyed(
    list,
    known.map(([name]) => name),
    name => h("div", {}, h("dt", {}, name), h("dd")),
    (element, name) => {
      const value = values[name];
      if (value instanceof Node) {
        if (element.lastChild.firstChild !== value) element.lastChild.replaceChildren(value);
      } else say(element.lastChild, value);
    },
  );
}

function meter() {
  const name = h("span");
  const amount = h("span", { class: "muted" });
  const bar = h("span", { class: "bar-of" });
  const element = h("div", { class: "meter" }, name, amount, bar);
  element.wsrelayShow = (key, host) => {
    say(name, key);
    say(amount, `${count(host.processes)} of ${count(host.most)}${host.os_pid ? `, template ${host.os_pid}` : ", not started"}`);
    bar.style.setProperty("--share", `${Math.min(100, (host.processes / (host.most || 1)) * 100).toFixed(1)}%`);
    bar.classList.toggle("full", host.processes >= host.most * 0.9);
  };
  return element;
}

function member() {
  const cells = [0, 1, 2, 3, 4].map(index => h("td", { class: index > 1 ? "number" : null }));
  const row = h("tr", {}, ...cells);
  row.wsrelayShow = (name, one) => {
    const values = [
      one.asked ? `${name} (this one)` : name,
      one.state,
      count(one.processes),
      count(one.clients),
      one.asked ? "" : one.backlog === undefined ? "none" : one.backlog || one.delay ? `${size(one.backlog)} wait, ${one.delay.toFixed(1)} s` : "good",
    ];
    cells.forEach((cell, index) => say(cell, values[index]));
    mark(cells[1], "class", one.state === "up" ? "good" : ["dead", "silent", "frozen", "misfit"].includes(one.state) ? "bad" : "wait");
  };
  return row;
}
