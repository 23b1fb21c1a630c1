"""What the console knows of all nodes: it looks once, and again when it is told to."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from wsrelay.control.runtime import ControlError, check, runtime_directory
from wsrelay.control.usage import OSUsage

from .node_socket import NodeSocket
from .watched import WatchedConnection, WatchedProcess
from .watched_node import Clock, WatchedNode

__all__ = ["NodesWatch"]

_KEPT: Final = 120.0
"""Seconds for which a node that has gone is still shown."""

_HISTORY: Final = 60
"""Looks whose totals are kept: at one a second, those of a minute."""


Series = dict[str, deque[tuple[int, float]]]


class NodesWatch:
    """All nodes of this user, or the one that has the control socket `only`.

    `history` has a series of totals for each of `cpu` (percent of one core), `memory` (bytes),
    `processes`, `connections` and `messages` (a second); each value goes with the number of its
    look.
    """

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self._usage = OSUsage()
        self.nodes: dict[str, WatchedNode] = {}
        self.looks = 0
        self.now = 0.0
        self.history: Series = {}
        self.trail: Series = {}
        """The same for the process `of`, also of its `mailbox` (bytes)."""
        self.of = ""
        """The PID of the process of which everything is asked."""
        self.problem = ""
        """Why no nodes can be looked for; empty if they can."""

    def processes(self) -> Iterator[WatchedProcess]:
        """Yield those of all nodes."""
        for node in self.nodes.values():
            yield from node.processes.values()

    def connections(self) -> Iterator[WatchedConnection]:
        """Yield those of all nodes."""
        for node in self.nodes.values():
            yield from node.connections.values()

    def process(self, pid: str) -> WatchedProcess | None:
        """Return a process by its PID."""
        return next((n.processes[pid] for n in self.nodes.values() if pid in n.processes), None)

    def connection(self, pid: str) -> WatchedConnection | None:
        """Return a connection by its PID."""
        found = (n.connections[pid] for n in self.nodes.values() if pid in n.connections)
        return next(found, None)

    async def look(self) -> None:
        """Ask all nodes for what they have, and the operating system for what that takes."""
        moment = Clock(time.monotonic(), time.time())
        self.now = moment.now
        self.looks += 1
        self._find()
        await asyncio.gather(*(node.look(moment, self.of) for node in self._asked()))
        self._find_members(moment)
        self._forget()
        self._sample()
        self._remember()

    # Which nodes there are

    def _asked(self) -> list[WatchedNode]:
        """Return the nodes that may answer: one that has left its cluster is not asked for."""
        return [one for one in self.nodes.values() if one.is_here or one.state != "gone"]

    def _find(self) -> None:
        for path in self._paths():
            if path.stem not in self.nodes:
                self.nodes[path.stem] = WatchedNode(path.stem, NodeSocket(str(path)))

    def _paths(self) -> list[Path]:
        if self._only is not None:
            return [Path(self._only)]
        directory = runtime_directory()
        try:
            check(directory)
        except ControlError as error:
            self.problem = str(error)
            return []
        self.problem = ""
        return sorted(directory.glob("*.sock"))

    def _find_members(self, moment: Clock) -> None:
        """Find the nodes of clusters that have no control socket here, and miss those that left."""
        here = {one.name for one in self.nodes.values() if one.members and one.is_here}
        linked: set[str] = set()
        for node in [*self.nodes.values()]:
            for member in node.members if node.state == "up" else ():
                name, key = member["name"], f"{node.key}/{member['name']}"
                if name in here or not (member.get("link") or {}).get("connected"):
                    continue
                here.add(name)
                linked.add(key)
                if key not in self.nodes or self.nodes[key].state == "gone":
                    self.nodes[key] = WatchedNode(key, NodeSocket(node.socket.path, name))
        for key, node in self.nodes.items():
            if not node.is_here and key not in linked:
                node.away("gone", "it has no link to its cluster", moment)

    def _forget(self) -> None:
        """Forget nodes that have gone long ago, and at once those that have never been there."""
        for key, node in [*self.nodes.items()]:
            never = node.is_here and not node.info
            if node.state == "gone" and (never or self.now - node.since > _KEPT):
                del self.nodes[key]

    # What they take

    def _sample(self) -> None:
        processes = {
            process.info["os_pid"]: process
            for node in self.nodes.values()
            if node.state != "gone" and node.is_here
            for process in node.processes.values()
            if process.info["os_pid"]
        }
        self._usage.sample()
        self._usage.watch(processes)
        for os_pid, process in processes.items():
            process.use(self._usage.of(os_pid), self.now)

    def _remember(self) -> None:
        here = [n for n in self.nodes.values() if n.state != "gone"]
        processes = [process for node in here for process in node.processes.values()]
        rates = [process.rate for process in processes if process.rate is not None]
        used = [process.usage.cpu for process in processes if process.usage.cpu is not None]
        totals = {
            "cpu": sum(used) if used or not processes else None,
            "memory": sum(process.usage.memory or 0 for process in processes),
            "processes": len(processes),
            "connections": sum(len(node.connections) for node in here),
            "messages": sum(rates) if rates else None,
        }
        _add(self.history, self.looks, totals)
        self._trace()

    def choose(self, pid: str) -> None:
        """From now on, ask everything about this process; about none for an empty PID."""
        if pid != self.of:
            self.of, self.trail = pid, {}
            self._trace()

    def _trace(self) -> None:
        """Add to the trail of the process that is chosen."""
        if (process := self.process(self.of)) is not None:
            cpu, memory, _ = process.usage
            figures = {"cpu": cpu, "memory": memory, "messages": process.rate}
            _add(self.trail, self.looks, {"mailbox": process.info["mailbox"], **figures})


def _add(series: Series, number: int, values: Mapping[str, float | None]) -> None:
    """Add to each series the value that is known."""
    for name, value in values.items():
        if value is not None:
            known = series.setdefault(name, deque(maxlen=_HISTORY))
            known.append((number, round(value, 1)))
