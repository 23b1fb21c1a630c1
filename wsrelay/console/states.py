"""What a page shows at the moment, as JSON without nulls: it is sent as differences of this."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from .about import about
from .findings import findings, is_crash
from .listing import listed
from .looks import Look
from .watch import NodesWatch, Series
from .watched import WatchedConnection, WatchedProcess, short_target
from .watched_node import WatchedNode

__all__ = ["state_of"]

_MOST_FINDINGS: Final = 30
_MOST_NODES: Final = 100
_LONGEST: Final = 300
"""Characters of a text that others have chosen, such as a name."""

_LONGEST_TRACEBACK: Final = 16_000

_STEP: Final = 64 * 1024
"""Bytes in which memory is told, so that not every page that is touched is news."""


def state_of(watch: NodesWatch, look: Look, *, write: bool) -> dict[str, Any]:
    """Return all that is visible with this look."""
    state: dict[str, Any] = {
        "look": look.number,
        "page": look.page,
        "write": write,
        "nodes": {n.key: _node(n, watch.now) for n in [*watch.nodes.values()][:_MOST_NODES]},
    }
    if watch.problem:
        state["problem"] = watch.problem
    match look.page:
        case "home":
            state |= _home(watch, look)
        case "process":
            state |= _one(watch, look)
        case "connections":
            state |= {"table": _connections(watch.connections(), watch, look)}
            state |= _unknown(watch, "/connections")
        case "ends":
            state |= {"table": _ends(watch, look)} | _unknown(watch, "/ends")
        case "nodes":
            state |= {"details": {n.key: _details(n) for n in watch.nodes.values()}}
    return state


def _home(watch: NodesWatch, look: Look) -> dict[str, Any]:
    found = findings(watch.nodes.values(), watch.now, time.time())
    shown = found[:_MOST_FINDINGS]
    return {
        "findings": {
            "more": len(found) - len(shown),
            "order": [one.key for one in shown],
            "rows": {
                one.key: {
                    "level": one.level,
                    "page": one.page,
                    "of": one.of,
                    "name": one.name[:_LONGEST],
                    "text": one.text[:_LONGEST],
                }
                for one in shown
            },
        },
        "series": _series(watch.history),
        "table": _processes(watch, look),
    }


def _series(series: Series) -> dict[str, dict[str, float]]:
    """Return each series by the number of the look, so that only what is new is a difference."""
    return {
        name: {str(number): value for number, value in values} for name, values in series.items()
    }


# Processes


def _processes(watch: NodesWatch, look: Look) -> dict[str, Any]:
    def now(figure: Callable[[WatchedProcess], Any]) -> Callable[[WatchedProcess], Any]:
        """Of processes whose node is gone, no figure is so now: they come last."""
        return lambda one: None if watch.nodes[one.node].state == "gone" else figure(one)

    return listed(
        watch.processes(),
        look,
        columns={
            "cpu": now(_busyness),
            "name": lambda one: one.name.casefold(),
            "memory": now(lambda one: one.usage.memory and one.usage.memory // _STEP),
            "mailbox": now(lambda one: one.info["mailbox"]),
            "clients": now(lambda one: one.info["connections"]),
            "rate": now(lambda one: one.rate),
            "age": lambda one: -one.started,
            "node": lambda one: one.node,
        },
        words=lambda one: " ".join(
            (one.pid, *one.info["names"], one.info["target"], str(one.info["os_pid"]), one.node)
        ),
        key=lambda one: one.pid,
        row=lambda one: _process(one, watch),
    )


def _busyness(process: WatchedProcess) -> tuple[int, int] | None:
    """Return by what processes are in order of CPU: small differences do not swap rows."""
    used = process.usage
    return None if used.cpu is None else (round(used.cpu), process.info["mailbox"])


def _process(process: WatchedProcess, watch: NodesWatch) -> dict[str, Any]:
    info, used = process.info, process.usage
    return _known(
        pid=process.pid,
        name=process.name[:_LONGEST],
        more=len(info["names"]) - 1 if len(info["names"]) > 1 else None,
        target=short_target(info["target"])[:_LONGEST],
        state=info["state"],
        host=info["host"],
        node=process.node,
        gone=watch.nodes[process.node].state == "gone" or None,
        cpu=None if used.cpu is None else round(used.cpu, 1),
        memory=None if used.memory is None else used.memory // _STEP * _STEP,
        mailbox=info["mailbox"],
        clients=info["connections"],
        rate=None if process.rate is None else _rounded(process.rate),
        started=process.started,
        stalled=info.get("stalled") or None,
    )


def _rounded(rate: float) -> float:
    return round(rate, 1) if rate < 10 else round(rate)  # noqa: PLR2004


def _one(watch: NodesWatch, look: Look) -> dict[str, Any]:
    process = watch.process(look.of)
    if process is None:
        ends = (node.end_of(look.of) for node in watch.nodes.values())
        found = next((end for end in ends if end is not None), None)
        if found is None:
            return {"missing": look.of}
        traceback = (found.get("traceback") or "")[-_LONGEST_TRACEBACK:]
        return {"ended": {**_end_row(found, ""), "traceback": traceback}}
    clients = (one for one in watch.connections() if one.info["target"] == process.pid)
    return {
        "process": _process(process, watch) | about(process, watch),
        "series": _series(watch.trail),
        "table": _connections(clients, watch, look),
    }


# Connections


def _connections(
    connections: Iterable[WatchedConnection], watch: NodesWatch, look: Look
) -> dict[str, Any]:
    def target(one: WatchedConnection) -> str:
        process = watch.process(one.info["target"])
        return one.info["target"] if process is None else process.name

    return listed(
        connections,
        look,
        columns={
            "outbox": lambda one: one.info["outbox"],
            "client": lambda one: one.client.casefold(),
            "messages": lambda one: one.info["messages"],
            "dropped": lambda one: one.info["dropped"],
            "target": target,
            "age": lambda one: -one.started,
        },
        words=lambda one: " ".join(
            (
                one.pid,
                one.client,
                str(one.info.get("client")),
                one.info.get("path", ""),
                target(one),
            )
        ),
        key=lambda one: one.pid,
        row=lambda one: _known(
            pid=one.pid,
            client=one.client[:_LONGEST],
            address=":".join(map(str, one.info["client"])) if one.info.get("client") else None,
            path=one.info.get("path", "")[:_LONGEST],
            subprotocol=one.info.get("subprotocol"),
            target=one.info["target"],
            target_name=target(one)[:_LONGEST],
            messages=one.info["messages"],
            outbox=one.info["outbox"],
            dropped=one.info["dropped"],
            unfinished=one.info.get("unfinished", 0),
            started=one.started,
            node=one.node,
        ),
    )


# Ends


def _ends(watch: NodesWatch, look: Look) -> dict[str, Any]:
    ends = [(node.key, end) for node in watch.nodes.values() for end in node.ends[look.kind]]
    row = _end_row if look.kind == "process" else _closed_row
    return listed(
        ends,
        look,
        columns={"ended": lambda one: one[1]["ended"], "how": lambda one: one[1]["how"]},
        words=lambda one: _words_of_end(one[1]),
        key=lambda one: f"{one[0]} {one[1]['number']}",
        row=lambda one: row(one[1], one[0]),
    )


def _words_of_end(end: dict[str, Any]) -> str:
    client = end.get("connection") or {}
    words = [*end["names"], end["how"], end.get("kind"), end.get("pid"), end.get("target")]
    words += [end.get("by"), client.get("pid"), client.get("user"), client.get("target")]
    return " ".join(str(word) for word in words if word)


def _closed_row(end: dict[str, Any], node: str) -> dict[str, Any]:
    client = WatchedConnection(node, end["connection"], 0.0, end["ended"])
    target = client.info["target"]
    return _known(
        pid=client.pid,
        name=client.client[:_LONGEST],
        target=target,
        target_name=(end["names"][0] if end["names"] else target)[:_LONGEST],
        ended=int(end["ended"]),
        lived=int(client.info["uptime"]),
        how=end["how"],
        by=end.get("by"),
        code=end["code"],
        reason=end["reason"][:_LONGEST],
        messages=client.info["messages"],
    )


def _end_row(end: dict[str, Any], node: str) -> dict[str, Any]:
    return _known(
        pid=end["pid"],
        name=(end["names"][0] if end["names"] else short_target(end["target"]))[:_LONGEST],
        target=short_target(end["target"])[:_LONGEST],
        node=node,
        ended=int(end["ended"]),
        lived=int(end["ended"] - end["started"]),
        how=end["how"],
        kind=end["kind"],
        crash=is_crash(end) or None,
        by=end.get("by"),
        reason=end.get("reason", "")[:_LONGEST],
        message=end.get("message", "")[:_LONGEST],
        clients=end.get("clients", 0),
    )


# Nodes


def _node(node: WatchedNode, now: float) -> dict[str, Any]:
    return _known(
        name=node.name,
        application=node.application[:_LONGEST] or None,
        addresses=node.info.get("addresses") or None,
        os_pid=node.info.get("os_pid"),
        state=node.state,
        problem=node.problem or None,
        away=round(now - node.since) if node.state != "up" else None,
        member=not node.is_here or None,
    )


def _details(node: WatchedNode) -> dict[str, Any]:
    info = node.info
    return _known(
        version=info.get("version"),
        started=node.started,
        draining=info.get("draining") or None,
        dead_letters=info.get("dead_letters"),
        buffered=info.get("buffered"),
        max_buffered=info.get("max_buffered"),
        processes=len(node.processes),
        connections=len(node.connections) if "/connections" not in node.unknown else None,
        hosts={
            host["name"]: _known(
                os_pid=host["os_pid"], processes=host["processes"], most=host["max_processes"]
            )
            for host in info.get("hosts", ())
        },
        members={
            member["name"]: _known(
                state=member["state"],
                asked=member.get("asked") or None,
                version=member.get("version"),
                processes=_processes_of(member),
                clients=member.get("clients"),
                delay=(member.get("link") or {}).get("delay"),
                backlog=(member.get("link") or {}).get("backlog"),
            )
            for member in node.members[:_MOST_NODES]
        },
    )


def _processes_of(member: dict[str, Any]) -> int | None:
    hosts = member.get("hosts")
    return None if hosts is None else sum(count for count, _ in hosts.values())


def _unknown(watch: NodesWatch, route: str) -> dict[str, Any]:
    """Return which nodes do not know of what the page shows."""
    names = [n.name for n in watch.nodes.values() if route in n.unknown]
    return {"unknown": names[:_MOST_NODES]} if names else {}


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
