"""Processes that live as long as somebody is in them, and a while longer."""

from __future__ import annotations

import asyncio

from wsrelay.node import Node
from wsrelay.pid import PID

__all__ = ["Rooms"]


class Rooms:
    """One process per room name; cancelled `linger` seconds after its last client left."""

    def __init__(self, node: Node, target: str, linger: float) -> None:
        self._node = node
        self._target = target
        self._linger = linger
        self._timers: dict[PID, asyncio.TimerHandle] = {}

    def enter(self, room: str) -> PID:
        """Return the room's process, started if need be; raises `HostFull`.

        A client that is asked in but never comes counts as one that has left.
        """
        pid = self._node.get_or_spawn(f"room:{room}", self._target)
        self._node.when_idle(pid, lambda: self._wait(pid))
        self._wait(pid)
        return pid

    def _wait(self, pid: PID) -> None:
        if (timer := self._timers.pop(pid, None)) is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[pid] = loop.call_later(self._linger, self._end, pid)

    def _end(self, pid: PID) -> None:
        del self._timers[pid]
        if not self._node.clients(pid):
            self._node.cancel(pid, "the room is empty")
