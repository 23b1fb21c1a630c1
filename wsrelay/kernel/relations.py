"""Relations between processes: monitors (one-way) and links (both ways)."""

from __future__ import annotations

from msgspec import Struct

from wsrelay.errors import TooMany
from wsrelay.values.pid import PID

from .names import MOST

__all__ = ["Ended", "Relations"]

Edges = dict[PID, set[PID]]


class Ended(Struct, frozen=True):
    """What a process leaves: watchers, processes linked to it, those that nobody watches now."""

    watchers: list[PID]
    linked: list[PID]
    unwatched: list[PID]


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

    def observe(self, observer: PID, target: PID) -> None:
        """Record a monitor of another node, which may have any number of them."""
        self._watchers.setdefault(target, set()).add(observer)
        self._watched.setdefault(observer, set()).add(target)

    def unmonitor(self, watcher: PID, target: PID) -> None:
        """Undo `monitor` or `observe`."""
        _remove(self._watchers, target, watcher)
        _remove(self._watched, watcher, target)

    def is_watched(self, target: PID) -> bool:
        """Whether there is a monitor of the process."""
        return target in self._watchers

    def link(self, one: PID, other: PID) -> None:
        """Link two processes; a second time changes nothing. Raises `TooMany`."""
        self.check(one, other, link=True)
        self._links.setdefault(one, set()).add(other)
        self._links.setdefault(other, set()).add(one)

    def unlink(self, one: PID, other: PID) -> None:
        """Undo `link`."""
        _remove(self._links, one, other)
        _remove(self._links, other, one)

    def count_links(self, pid: PID) -> int:
        """Return how many links the process has."""
        return len(self._links.get(pid, ()))

    def is_linked(self, one: PID, other: PID) -> bool:
        """Whether the two processes are linked."""
        return other in self._links.get(one, ())

    def of(self, pid: PID) -> Ended:
        """Return whom a process is related to; `unwatched` are all those that it watches."""
        edges = (self._watchers, self._links, self._watched)
        return Ended(*(list(one.get(pid, ())) for one in edges))

    def release(self, pid: PID) -> Ended | None:
        """Forget the process; returns those whom that concerns, None if there are none."""
        unwatched = []
        for target in self._watched.pop(pid, ()):
            _remove(self._watchers, target, pid)
            if target != pid and target not in self._watchers:
                unwatched.append(target)
        watchers = list(self._watchers.pop(pid, ()))
        for watcher in watchers:
            _remove(self._watched, watcher, pid)
        linked = list(self._links.pop(pid, ()))
        for other in linked:
            _remove(self._links, other, pid)
        return Ended(watchers, linked, unwatched) if watchers or linked or unwatched else None

    def of_node(self, node: str) -> list[PID]:
        """Return the processes of that node that have any relation."""
        kinds = (self._watchers, self._watched, self._links)
        return list({pid for edges in kinds for pid in edges if pid.node == node})


def _bound(edges: Edges, pid: PID, other: PID, what: str) -> None:
    existing = edges.get(pid, ())
    if len(existing) >= MOST and other not in existing:
        raise TooMany(what, MOST)


def _remove(edges: Edges, key: PID, value: PID) -> None:
    if (values := edges.get(key)) is not None:
        values.discard(value)
        if not values:
            del edges[key]
