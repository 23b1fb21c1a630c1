"""Follows the log records of all nodes of a cluster, also of those that join meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from math import inf
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, TypeVar

from wsrelay.control import ControlClient, NodeGone
from wsrelay.control.records import LogRecord

from .cluster import living
from .running import say

__all__ = ["follow_all"]

T = TypeVar("T")

_MOMENT: Final = 0.2
"""Seconds in which the records of several nodes are gathered, to be put in order."""

_LOOK: Final = 2.0
"""Seconds between two looks for nodes that have joined."""

_MOST: Final = 2_000
"""Records of a node by which it is known what was shown; it keeps 1,000 itself."""

_Key = tuple[float, str]

_Came = tuple[str, LogRecord | Exception | None]
"""A node, and what came of it: a record, why there are none, or None at the end."""


def follow_all(client: ControlClient, of: str | None) -> Iterator[LogRecord]:
    """Yield the records of all nodes as they come; those of a moment together, the oldest first.

    Ends when no node knows `of`. Raises `NodeGone` once the node that is asked has gone.
    """
    nodes, found = _Nodes(client, of), False
    while True:
        nodes.look()
        for record in sorted(nodes.records(), key=lambda one: one.time):
            found = True
            yield record
        if not nodes.followed and not found:
            return


class _Nodes:
    """The nodes whose records are followed, each by a thread."""

    def __init__(self, client: ControlClient, of: str | None) -> None:
        self._client = client
        self._of = of
        self._came: SimpleQueue[_Came] = SimpleQueue()
        self._looked = -inf
        self.followed: set[str] = set()
        self._latest: dict[str, deque[_Key]] = {}
        """The latest records of each."""
        self._known: dict[str, set[_Key]] = {}
        """What those were when it was followed for the last time: they may come again."""
        self._said: dict[str, str] = {}

    def look(self) -> None:
        """Follow those that have joined, unless that was done just now.

        Raises `NodeGone` if the node that is asked is: the records of all others come through it.
        """
        if time.monotonic() - self._looked < _LOOK:
            return
        try:
            names = {one.name for one in living(self._client)}
        except NodeGone:
            if self.followed:  # it is busy
                return
            raise
        finally:
            self._looked = time.monotonic()
        for name in names - self.followed:
            self.followed.add(name)
            self._known[name] = set(self._latest.setdefault(name, deque(maxlen=_MOST)))
            Thread(target=self._follow, args=[name], daemon=True).start()

    def _follow(self, name: str) -> None:
        try:
            for record in self._client.on(name).logs(self._of, follow=True):
                self._came.put((name, record))
        except (NodeGone, ValueError) as error:
            self._came.put((name, error))
        finally:
            self._came.put((name, None))

    def records(self) -> Iterator[LogRecord]:
        """Wait for records, at most until the next look, and yield those of a moment."""
        for name, what in _of_a_moment(self._came, _LOOK):
            if what is None:
                self.followed.discard(name)
            elif not isinstance(what, LogRecord):
                self._say(name, str(what))
            elif (key := (what.time, what.text)) not in self._known[name]:
                self._latest[name].append(key)
                yield what

    def _say(self, name: str, why: str) -> None:
        if self._of is None and self._said.get(name) != why:  # else another node knows it
            self._said[name] = why
            say(f"wsrelay: the log records of node {name} are not known: {why}")


def _of_a_moment(came: SimpleQueue[T], patience: float) -> list[T]:
    """Wait for something, and return it with what follows in a moment, however much that is."""
    found: list[T] = []
    with contextlib.suppress(Empty):
        found.append(came.get(timeout=patience))
        end = time.monotonic() + _MOMENT
        while (left := end - time.monotonic()) > 0:
            found.append(came.get(timeout=left))
    return found
