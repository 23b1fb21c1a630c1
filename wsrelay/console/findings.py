"""What needs attention, from what is known: the worst first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec import Struct

from .figures import duration, size
from .watched import BUSY, WatchedConnection, WatchedProcess, short_target
from .watched_node import WatchedNode

__all__ = ["Finding", "findings", "is_crash"]

_BUSY_FOR: Final = 3.0
_WAITING_FOR: Final = 5.0
_SLOW_FOR: Final = 3.0
"""Seconds for which something has to be so before it is worth telling."""

_GROWN: Final = 32 * 1024 * 1024
"""Bytes by which a process must have grown within a minute."""

_LATELY: Final = 600.0
"""Seconds for which a crash is told."""

_LONGEST: Final = 200
"""Characters of what is told of a crash."""

_FULL: Final = 0.9
"""The part of a host's or a node's limit that counts as full."""

_IN_ORDER: Final = frozenset({"link", "parent", "shutdown"})
_KINDS_IN_ORDER: Final = frozenset({"returned", "cancelled", "terminated"})
"""How processes end that have not crashed themselves, and of which kind such an end is."""


class Finding(Struct, frozen=True, kw_only=True):
    """One thing that needs attention.

    `page` is where the console shows more: `process`, `ends` or `nodes`; `of` is the PID, what to
    search for, or the key of the node. `name` is whom it concerns, `text` what is wrong. `level` is
    `bad`, `warn` or `note`; within a level what has more `weight` comes first.
    """

    level: str
    page: str
    of: str
    name: str
    text: str
    weight: float = 0.0

    @property
    def key(self) -> str:
        """What it is known by from one look to the next."""
        return f"{self.page}/{self.of}/{self.level}/{self.text.partition(' ')[0]}"


_LEVELS: Final = {"bad": 0, "warn": 1, "note": 2}


def findings(nodes: Iterable[WatchedNode], now: float, clock: float) -> list[Finding]:
    """Return what needs attention; `now` is on the watch's clock, `clock` is Unix time."""
    found: list[Finding] = []
    for node in nodes:
        found += _of_node(node, now)
        if node.state == "gone":
            continue
        for process in node.processes.values():
            found += _of_process(process, now)
        for connection in node.connections.values():
            found += _of_connection(connection, node, now)
        found += _of_ends(node, clock)
    return sorted(found, key=lambda one: (_LEVELS[one.level], -one.weight, one.key))


def _of_node(node: WatchedNode, now: float) -> Iterator[Finding]:
    def of(level: str, text: str, weight: float = 0.0) -> Finding:
        return Finding(
            level=level, page="nodes", of=node.key, name=node.name, text=text, weight=weight
        )

    for_long = duration(now - node.since)
    if node.state == "gone":
        yield of("bad", f"gone for {for_long}: {node.problem}", 1e12)
    elif node.state == "silent":
        yield of("bad", f"not reachable for {for_long}: {node.problem}", 1e12)
    if node.info.get("draining"):
        yield of("note", "draining: it starts nothing any more")
    for host in node.info.get("hosts", ()):
        count, most = host["processes"], host["max_processes"]
        if most and count >= most * _FULL:
            yield of("warn", f"host {host['name']} runs {count} of at most {most} processes")
    held, most = node.info.get("buffered", 0), node.info.get("max_buffered", 0)
    if most and held >= most * _FULL:
        yield of("warn", f"{size(held)} of unfinished messages of at most {size(most)}")
    for member in node.members:
        if member["state"] in {"dead", "silent", "frozen", "misfit"}:
            yield of("bad", f"node {member['name']} of its cluster is {member['state']}", 1e11)


def _of_process(process: WatchedProcess, now: float) -> Iterator[Finding]:
    def of(level: str, text: str, weight: float) -> Finding:
        return Finding(
            level=level,
            page="process",
            of=process.pid,
            name=process.name,
            text=text,
            weight=weight,
        )

    info = process.info
    busy = 0.0 if process.busy_since is None else now - process.busy_since
    if busy >= _BUSY_FOR:
        cpu = process.usage.cpu or 0
        core = "of a core" if cpu >= BUSY else "of a core, all that is left for it,"
        yield of("warn", f"burns {cpu:.0f} % {core} for {duration(busy)}", busy)
    if (idle := process.takes_nothing(now)) >= _WAITING_FOR or info.get("stalled"):
        waiting = info.get("waiting")
        many = f"{waiting} messages wait" if waiting else f"{size(info['mailbox'])} wait"
        many = "1 message waits" if waiting == 1 else many
        level = "bad" if info.get("stalled") else "warn"
        last = duration(process.took_last(now))
        yield of(level, f"has taken no message for {last}, {many}", 1e6 + idle)
    if (growth := process.growth(now)) is not None and growth[0] >= _GROWN:
        grown, seconds = growth
        when = "in a minute" if seconds >= 55 else f"in {duration(seconds)}"  # noqa: PLR2004 - of marks 5 s apart
        yield of("warn", f"memory grew by {size(grown)} {when}", grown)


def _of_connection(
    connection: WatchedConnection, node: WatchedNode, now: float
) -> Iterator[Finding]:
    slow = 0.0 if connection.slow_since is None else now - connection.slow_since
    if slow < _SLOW_FOR:
        return
    info = connection.info
    target = node.processes.get(info["target"])
    waits = f"{size(info['outbox'])} wait for {duration(slow)}"
    yield Finding(
        level="warn",
        page="process",
        of=info["target"],
        name=info["target"] if target is None else target.name,
        text=f"its client {connection.client} does not read: {waits}",
        weight=info["outbox"],
    )


def _of_ends(node: WatchedNode, clock: float) -> Iterator[Finding]:
    crashes: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for end in node.ends["process"]:
        if is_crash(end) and clock - end["ended"] <= _LATELY:
            crashes[_name_of(end)].append(end)
    for name, ends in crashes.items():
        last = ends[-1]
        ago = duration(max(clock - last["ended"], 0.0))
        times = "crashed once" if len(ends) == 1 else f"crashed {len(ends)} times lately"
        message = f": {last['message']}" if last.get("message") else ""
        yield Finding(
            level="note" if len(ends) == 1 else "warn",
            page="ends",
            of=name,
            name=name,
            text=f"{times}, last {ago} ago ({last['kind']}{message})"[:_LONGEST],
            weight=1e9 * len(ends),
        )


def is_crash(end: dict[str, Any]) -> bool:
    """Whether a process has ended by a fault of its own, or was killed from outside."""
    return end["kind"] not in _KINDS_IN_ORDER and end["how"] not in _IN_ORDER


def _name_of(end: dict[str, Any]) -> str:
    return str(end["names"][0]) if end["names"] else short_target(end["target"])
