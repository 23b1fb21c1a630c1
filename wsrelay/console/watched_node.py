"""What the console knows of one node, from one look to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

import psutil

from .node_socket import NodeAway, NodeRefuses, NodeSocket, UnknownRoute
from .watched import WatchedConnection, WatchedProcess

__all__ = ["Clock", "WatchedNode"]


class Clock:
    """The moment of one look: `now` on a monotonic clock, `clock` in seconds since 1970."""

    def __init__(self, now: float, clock: float) -> None:
        self.now = now
        self.clock = clock


_ENDS: Final = 1_000
"""Ends that are kept of each kind."""

_ENDS_AT_ONCE: Final = 200
"""Ends that are asked for at once: each may have a traceback."""


class WatchedNode:
    """A node with a control socket, or another one of its cluster, asked through that one.

    `state` is `up`, `silent` (it does not answer in time) or `gone`; then it stays as it was when
    it last answered. `problem` says why, `since` is when that began, by the monotonic clock.
    """

    def __init__(self, key: str, socket: NodeSocket) -> None:
        self.key = key
        self.socket = socket
        self.state = "up"
        self.problem = ""
        self.since = 0.0
        self.info: dict[str, Any] = {}
        self.started: int | None = None
        self.application = ""
        """What it serves or, inside another server, the command line of that."""
        self.members: list[dict[str, Any]] = []
        self.processes: dict[str, WatchedProcess] = {}
        self.connections: dict[str, WatchedConnection] = {}
        self.ends: dict[str, deque[dict[str, Any]]] = {
            kind: deque(maxlen=_ENDS) for kind in ("process", "connection")
        }
        """Those of processes and of connections, the oldest first."""
        self.detail: dict[str, Any] = {}
        """Everything about the one process that is looked at."""
        self.unknown: set[str] = set()
        """The routes that this node does not have."""

    @property
    def name(self) -> str:
        """Its name within its cluster."""
        return self.socket.at or str(self.info.get("name", self.key))

    @property
    def is_here(self) -> bool:
        """Whether it has a control socket on this machine."""
        return not self.socket.at

    def knows(self, pid: str) -> bool:
        """Whether it has that process, or has had it lately."""
        return pid in self.processes or self.end_of(pid) is not None

    def end_of(self, pid: str) -> dict[str, Any] | None:
        """Return how a process ended, if that was lately."""
        return next((end for end in reversed(self.ends["process"]) if end["pid"] == pid), None)

    async def look(self, moment: Clock, of: str) -> None:
        """Ask for everything anew, and for all about the process `of`; raises nothing."""
        try:
            await self._ask(moment)
            await self._ask_about(of)
        except NodeAway as error:
            self.away("gone" if error.is_over else "silent", str(error), moment)
        except (NodeRefuses, UnknownRoute) as error:
            self.away("silent", str(error), moment)
        else:
            self.state, self.problem = "up", ""

    def away(self, state: str, problem: str, moment: Clock) -> None:
        """Take note that it cannot be asked, and why."""
        if self.state == "up":
            self.since = moment.now
        self.state, self.problem = state, problem

    async def _ask(self, moment: Clock) -> None:
        info = await self.socket.get("/node", brief="1")
        if not self.is_here and info["name"] != self.name:
            raise UnknownRoute("the node that is here does not know how to ask others")
        self.info = info
        if self.started is None:
            self.started = round(moment.clock - self.info["uptime"])
            self.application = self.info.get("application") or ""
            if self.is_here and not self.application:
                self.application = _command(self.info["os_pid"])
        if self.is_here:
            self.members = await self._optional("/cluster", []) or []
        await self._ask_for_processes(self.info["name"], moment)
        await self._ask_for_connections(moment)
        for kind, ends in self.ends.items():
            after = str(ends[-1]["number"]) if ends else ""
            query = {"kind": kind, "after": after, "limit": str(_ENDS_AT_ONCE)}
            ends.extend(await self._optional("/ends", [], **query))

    async def _ask_about(self, pid: str) -> None:
        """Ask about one of its processes, for whom only its PID is known elsewhere."""
        self.detail = {}
        if pid in self.processes:
            try:
                self.detail = await self._optional("/process", {}, of=pid)
            except NodeRefuses:
                pass  # it has just ended

    async def _ask_for_processes(self, name: str, moment: Clock) -> None:
        found: dict[str, WatchedProcess] = {}
        async for info in self._portions("/processes", node=name):
            process = self.processes.get(info["pid"])
            if process is None:
                process = WatchedProcess(self.key, info, moment.now, moment.clock)
            else:
                process.update(info, moment.now)
            found[process.pid] = process
        self.processes = found

    async def _ask_for_connections(self, moment: Clock) -> None:
        found: dict[str, WatchedConnection] = {}
        try:
            async for info in self._portions("/connections"):
                connection = self.connections.get(info["pid"])
                if connection is None:
                    connection = WatchedConnection(self.key, info, moment.now, moment.clock)
                else:
                    connection.update(info, moment.now)
                found[connection.pid] = connection
        except UnknownRoute:
            self.unknown.add("/connections")
        self.connections = found

    async def _portions(self, route: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        after = ""
        while portion := await self.socket.get(route, **query, after=after):
            for info in portion:
                yield info
            after = portion[-1]["pid"]

    async def _optional(self, route: str, instead: Any, **query: str) -> Any:
        """Return what is at a route or, if this node does not have it, something else."""
        if route in self.unknown:
            return instead
        try:
            return await self.socket.get(route, **query)
        except UnknownRoute:
            self.unknown.add(route)
            return instead


def _command(os_pid: int) -> str:
    try:
        return " ".join(psutil.Process(os_pid).cmdline())
    except psutil.Error:
        return ""
