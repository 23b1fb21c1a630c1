"""What the control socket tells of processes and connections, one by one, and of those that ended.

Each function takes the node and the query of a request, and raises `ValueError` for what is wrong
in it, or `Unknown`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from wsrelay.errors import InvalidPID
from wsrelay.node import Node
from wsrelay.node.connections import GATEWAY
from wsrelay.node.detail import detail
from wsrelay.node.ends import MOST_ENDS
from wsrelay.node.info import ConnectionEndInfo, EndInfo, ProcessDetail, TraceRecord
from wsrelay.node.snapshot import full, locate
from wsrelay.node.taps import Taps
from wsrelay.node.trace import MOST_SECONDS, MOST_TRACED, Trace
from wsrelay.session.command import may_be_sent
from wsrelay.values.message import CLOSE
from wsrelay.values.pid import PID, address

from .finding import Unknown, unknown

__all__ = ["Query", "Traces", "close", "ends", "find", "process"]

Query = Mapping[str, str]

_KINDS: Final = ("process", "connection")


def ends(node: Node, query: Query) -> list[EndInfo] | list[ConnectionEndInfo]:
    """Return the last ends of `kind` (`process` or `connection`), the oldest first.

    `of` is a PID or name; with the PID of a process, connections are those whose target it was. At
    most `limit` (100): the last ones or, with `after`, the number of an end, the first ones after
    that.
    """
    kind = query.get("kind", "process")
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r:.80} and must be process or connection")
    limit, after = _number(query, "limit", 100, 1, MOST_ENDS), _number(query, "after", 0, 0)
    part = slice(limit) if after else slice(-limit, None)
    if kind == "process":
        return _process_ends(node, query.get("of"), after)[part]
    return _connection_ends(node, query.get("of"), after)[part]


def _process_ends(node: Node, of: str | None, after: int = 0) -> list[EndInfo]:
    found = list(node.engine.ends.processes(after))
    if of is None:
        return found
    pid = full(of, {one.pid for one in found})
    return [one for one in found if (one.pid == pid if pid else of in one.names)]


def _connection_ends(node: Node, of: str | None, after: int) -> list[ConnectionEndInfo]:
    found = list(node.engine.ends.connections(after))
    if of is None:
        return found
    pids = [(one.connection.pid, one.connection.target) for one in found]
    pid = full(of, set(itertools.chain(*pids)))
    return [
        one
        for one, known in zip(found, pids, strict=True)
        if (pid in known if pid else of in one.names)
    ]


def process(node: Node, query: Query) -> ProcessDetail:
    """Return everything about the process `of`, a PID or name."""
    pid = find(node, query)
    if pid not in node.engine.processes:
        raise ValueError(f"{pid} is a connection, which is no process: see `wsrelay connections`")
    return detail(node, pid)


def find(node: Node, query: Query) -> PID:
    """Return the living process or connection `of`, a PID or name; raises `Unknown`."""
    if not (text := query.get("of")):
        raise ValueError("of is missing: say which process by its PID or name")
    try:
        pid = locate(node, text)
    except InvalidPID as error:
        raise ValueError(str(error)) from None
    if pid is not None:
        return pid
    if ended := _process_ends(node, text):
        pid = PID(ended[-1].pid)
        raise Unknown(f"{pid} has ended; `wsrelay ends {pid.id}` says how")
    raise unknown(node, text)


class Traces:
    """The traces of a node that somebody reads."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._taps = Taps(node)
        self._running: set[Trace] = set()

    def begin(self, query: Query) -> AsyncGenerator[TraceRecord, None]:
        """Return what passes the process or connection `of` from now on; see `Trace`.

        `payload` shows contents; `count` (1000) and `seconds` (60) bound it.
        """
        trace = Trace(
            self._node,
            self._taps,
            find(self._node, query),
            contents=query.get("payload", "0") != "0",
            count=_number(query, "count", 1_000, 1, MOST_TRACED),
            seconds=_seconds(query),
        )
        return self._records(trace)

    async def _records(self, trace: Trace) -> AsyncGenerator[TraceRecord, None]:
        self._running.add(trace)
        try:
            async with contextlib.aclosing(trace.records()) as records:
                async for record in records:
                    yield record
        finally:
            self._running.discard(trace)

    def end(self) -> None:
        """End them all, because the node ends."""
        for trace in [*self._running]:
            trace.end("the node ends")


def close(node: Node, to: str, code: int, reason: str, by: str) -> None:
    """Close a client's connection; raises `ValueError` for a code that must not be sent."""
    if not may_be_sent(code):
        raise ValueError(
            f"code {code} may not be sent; RFC 6455 allows 1000-1003, 1007-1014, 3000-4999"
        )
    pid = locate(node, to) or node.engine.elsewhere.find(address(to))
    if pid is None or pid.host != GATEWAY:
        raise ValueError(f"{to} is a process and no connection: `wsrelay cancel` asks it to end")
    if (connection := node.connection(pid)) is not None:
        connection.close(code, reason, by)
    else:
        node.send(to, CLOSE, {"code": code, "reason": reason})


def _number(query: Query, key: str, default: int, least: int, most: int = 10**12) -> int:
    """Return a number of a query; raises `ValueError`."""
    text = query.get(key, "")
    if not text:
        return default
    if not (text.isdecimal() and text.isascii() and least <= int(text[:20]) <= most):
        raise ValueError(f"{key} is {text!r:.80} and must be a number from {least} to {most}")
    return int(text)


def _seconds(query: Query) -> float:
    """Return how long a trace may take; raises `ValueError`."""
    text = query.get("seconds", "") or "60"
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) <= MOST_SECONDS:
            return seconds
    raise ValueError(f"seconds is {text!r:.80} and must be a number from 0 to {MOST_SECONDS:.0f}")
