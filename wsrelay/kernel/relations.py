"""Relations between processes: monitors (one-way) and links (both ways)."""

from __future__ import annotations

from wsrelay.errors import TooMany
from wsrelay.values.pid import PID

from .names import MOST

__all__ = ["Relations"]

Edges = dict[PID, set[PID]]


class Relations:
    """Monitors and links between living processes; each exists once or not at all."""

    def __init__(self) -> None:
        self._watchers: Edges = {}
        self._watched: Edges = {}
        self._links: Edges = {}

    def __bool__(self) -> bool:
        return bool(self._watchers or self._watched or self._links)

    def check(self, one: PID, other: PID, *, monitor: bool = False, link: bool = False) -> None:
        """Raise `TooMany` if a process cannot monitor or be linked to one more."""
        if monitor:
            _bound(self._watched, one, other, "monitor")
        if link:
            _bound(self._links, one, other, "link")

    def monitor(self, watcher: PID, target: PID) -> None:
        """Record a monitor; a second time changes nothing. Raises `TooMany`."""
        self.check(watcher, target, monitor=True)
        self._watchers.setdefault(target, set()).add(watcher)
        self._watched.setdefault(watcher, set()).add(target)

    def unmonitor(self, watcher: PID, target: PID) -> None:
        """Undo `monitor`."""
        _remove(self._watchers, target, watcher)
        _remove(self._watched, watcher, target)

    def link(self, one: PID, other: PID) -> None:
        """Link two processes; a second time changes nothing. Raises `TooMany`."""
        self.check(one, other, link=True)
        self._links.setdefault(one, set()).add(other)
        self._links.setdefault(other, set()).add(one)

    def unlink(self, one: PID, other: PID) -> None:
        """Undo `link`."""
        _remove(self._links, one, other)
        _remove(self._links, other, one)

    def release(self, pid: PID) -> tuple[list[PID], list[PID]]:
        """Forget the process; returns its watchers and the processes linked to it."""
        for target in self._watched.pop(pid, ()):
            _remove(self._watchers, target, pid)
        watchers = list(self._watchers.pop(pid, ()))
        for watcher in watchers:
            _remove(self._watched, watcher, pid)
        linked = list(self._links.pop(pid, ()))
        for other in linked:
            _remove(self._links, other, pid)
        return watchers, linked


def _bound(edges: Edges, pid: PID, other: PID, what: str) -> None:
    existing = edges.get(pid, ())
    if len(existing) >= MOST and other not in existing:
        raise TooMany(what, MOST)


def _remove(edges: Edges, key: PID, value: PID) -> None:
    if (values := edges.get(key)) is not None:
        values.discard(value)
        if not values:
            del edges[key]
