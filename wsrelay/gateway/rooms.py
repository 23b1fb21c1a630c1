"""Rooms: processes that live while they have clients, and a while longer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote, unquote, unquote_to_bytes

from wsrelay.node import Node
from wsrelay.relay.asgi import Scope
from wsrelay.values.pid import PID

__all__ = ["Rooms", "room_name"]

_PATIENCE: Final = 15.0
"""Seconds that an admitted client has for its upgrade; the start timeout is 10."""


_ESCAPE: Final = re.compile("%(?=[0-9A-Fa-f]{2})")
_UNDECODED: Final = re.compile("[\udc80-\udcff]")


def room_name(scope: Scope, path: str) -> str | None:
    """Return the room that a request's URL names below `path`, or None if it names none.

    The name is decoded, except for what would merge two rooms into one: an encoded slash, bytes
    that are not UTF-8, and a percent sign that looks like the start of an escape stay encoded.
    """
    asked = _decoded(scope).removeprefix(scope.get("root_path", ""))
    if asked == path:
        return ""
    return asked.removeprefix(f"{path}/") if asked.startswith(f"{path}/") else None


def _decoded(scope: Scope) -> str:
    path: str = scope["path"]
    raw = (scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1")
    if unquote(raw) != path:  # the server gives none, or something has changed the path
        raw = quote(path)
    return "/".join(map(_segment, raw.split("/")))


def _segment(raw: str) -> str:
    text = unquote_to_bytes(raw).decode(errors="surrogateescape")
    text = _ESCAPE.sub("%25", text).replace("/", "%2F")
    return _UNDECODED.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)


class Rooms:
    """One process per room name, cancelled `linger` seconds after its last client has left."""

    def __init__(self, node: Node, target: str | Callable[..., Any], linger: float) -> None:
        self._node = node
        self._target = target
        self._linger = linger
        self._rooms: dict[PID, _Room] = {}

    def enter(self, name: str) -> PID:
        """Return the room's process, starting it if necessary; raises `HostFull`."""
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
    """Counts the clients in one room and those on their way in."""

    def __init__(self, node: Node, pid: PID, linger: float) -> None:
        self._node = node
        self._pid = pid
        self._linger = linger
        self._loop = asyncio.get_running_loop()
        self._inside = 0
        self._expected = 0
        self._empty_until = self._loop.time() + linger
        """The earliest time at which it may end if it stays empty."""
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """Wait for an admitted client; one that never arrives is eventually forgotten."""
        self._expected += 1
        self._end_at(max(self._empty_until, self._loop.time() + _PATIENCE))

    def clients(self, count: int) -> None:
        """Note how many clients are inside."""
        if count > self._inside:
            self._expected = max(self._expected - 1, 0)
        self._inside = count
        if not count:
            self._empty_until = self._loop.time() + self._linger
            patience = _PATIENCE if self._expected else 0.0
            self._end_at(max(self._empty_until, self._loop.time() + patience))

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _end_at(self, when: float) -> None:
        self.close()
        self._timer = self._loop.call_at(when, self._end)

    def _end(self) -> None:
        self._expected = 0
        if not self._inside:
            self._node.cancel(self._pid, "the room is empty")
