"""Processes that live as long as somebody is in them, and a while longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from wsrelay.node import Node
from wsrelay.pid import PID

__all__ = ["Rooms"]

_PATIENCE: Final = 15.0
"""Seconds that a client who was asked in has for the upgrade; the start timeout is 10."""


class Rooms:
    """One process per room name; cancelled `linger` seconds after its last client left."""

    def __init__(self, node: Node, target: str | Callable[..., Any], linger: float) -> None:
        self._node = node
        self._target = target
        self._linger = linger
        self._rooms: dict[PID, _Room] = {}

    def enter(self, name: str) -> PID:
        """Return the room's process, started if need be; raises `HostFull`."""
        pid = self._node.get_or_spawn(f"room:{name}", self._target)
        if (room := self._rooms.get(pid)) is None:
            room = self._rooms[pid] = _Room(self._node, pid, self._linger)
            self._node.clients.watch(pid, self._clients_changed)
        room.expect()
        return pid

    def _clients_changed(self, pid: PID, count: int | None) -> None:
        if count is None:
            self._rooms.pop(pid).close()
        else:
            self._rooms[pid].clients(count)


class _Room:
    """Counts who is in one room and who is on the way in."""

    def __init__(self, node: Node, pid: PID, linger: float) -> None:
        self._node = node
        self._pid = pid
        self._linger = linger
        self._loop = asyncio.get_running_loop()
        self._inside = 0
        self._expected = 0
        self._empty_until = self._loop.time() + linger
        """When it may end at the earliest if it stays empty."""
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Wait for a client who was asked in; one who never comes is forgotten in time."""
        self._expected += 1
        self._end_at(max(self._empty_until, self._loop.time() + _PATIENCE))

    def clients(self, count: int) -> None:
        """Learn how many are inside."""
        if count > self._inside:
            self._expected = max(self._expected - 1, 0)
        self._inside = count
        if not count:
            self._empty_until = self._loop.time() + self._linger
            patience = _PATIENCE if self._expected else 0.0
            self._end_at(max(self._empty_until, self._loop.time() + patience))

    def close(self) -> None:
        """Learn that the process has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _end_at(self, when: float) -> None:
        self.close()
        self._timer = self._loop.call_at(when, self._end)

    def _end(self) -> None:
        self._expected = 0
        if not self._inside:
            self._node.cancel(self._pid, "the room is empty")
