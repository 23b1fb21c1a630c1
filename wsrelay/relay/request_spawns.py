"""What one HTTP request has spawned, in case its answer is not an upgrade."""

from __future__ import annotations

from typing import Final

from wsrelay.node import Node
from wsrelay.values import current
from wsrelay.values.pid import PID

__all__ = ["RequestSpawns"]

_WHY: Final = "the request that spawned it was answered without an upgrade"


class RequestSpawns:
    """The processes that a request spawned before it was answered.

    `drop` cancels those that have no client and that nobody else has found by name. If `wanted` is
    false, nothing is recorded and so nothing is dropped.
    """

    def __init__(self, node: Node, *, wanted: bool) -> None:
        self._node = node
        self._wanted = wanted
        self._pids: list[PID] = []

    def watch(self) -> None:
        """Record what code in the current context spawns from now on, including in its threads."""
        if self._wanted:
            current.spawned_by_request.set(self._pids.append)

    def drop(self) -> None:
        """Cancel what nobody will use; what is spawned later serves another purpose."""
        pids, self._pids[:] = self._pids[:], []
        for pid in pids:
            if self._node.is_unused(pid):
                self._node.cancel(pid, _WHY)
