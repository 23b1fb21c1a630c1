"""NATS and the ways to it, with their faults: the doubles of `doubles.py` in a run's time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from doubles import BusDouble, Network, Server, StoreDouble

from .scheduler import Scheduler

__all__ = ["Fabric"]

_NEAR: Final = 0.002
_FAR: Final = 0.3
"""Seconds of one crossing: nearly always, and now and then."""

_LOST: Final = 0.3
"""The part of publishes that are lost while they may be."""

_STORE: Final = "/store"
"""What the name of a node's connection to the store ends with: it can be cut alone."""


class Fabric(Network):
    """The ways between nodes and NATS. What goes wrong is noted in the trace.

    A node's bus and its store are two connections, each of which may be cut, slow, or lose answers.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self.later = lambda seconds, call: scheduler.later(seconds, _ignoring, call)
        self.delay = self._crossing
        self.lose_answer = self._loses
        self.server = Server(self)
        self.lost_at = math.inf
        """When the store has last lost writes that it had answered."""
        self.loss = 0.0
        """The part of the store's answers that are lost."""
        self.disturbed: dict[str, list[tuple[float, float]]] = {}
        """For each node, since when and until when its store was not as usual."""
        self._scheduler = scheduler
        self._slow: dict[str, float] = {}
        """Connections whose crossings take up to so many seconds."""
        self._cuts: dict[str, int] = {}
        self._lossy: set[str] = set()

    def drops(self, node: str) -> bool:
        """Whether NATS loses what a node publishes now, and nobody is told."""
        return node in self._lossy and self._scheduler.random.random() < _LOST

    @staticmethod
    def store_of(node: str) -> str:
        """Return what a node's connection to the store is called."""
        return node + _STORE

    def forget(self, bus: BusDouble | None, store: StoreDouble | None) -> None:
        """Drop the connections of a node that has died."""
        if bus in self.buses:
            self.buses.remove(bus)
        if store in self.stores:
            self.stores.remove(store)

    def _crossing(self, node: str) -> float:
        chance = self._scheduler.random
        if (most := self._slow.get(node)) is not None:
            return chance.uniform(0.0, most)
        return chance.uniform(0.0, _FAR if chance.random() < 0.005 else _NEAR)

    def _loses(self, node: str, key: str) -> bool:
        del key
        if self._scheduler.random.random() >= self.loss:
            return False
        self._disturb(node, self._scheduler.now, self._scheduler.now + 1.0)
        return True

    # Faults

    def cut_bus(self, node: str, seconds: float, *, told: bool) -> None:
        """Cut a node off the others; unless it is told, it learns of that only in the end."""
        self._note(f"the bus of {node} is cut for {seconds:.3f} s{'' if told else ', silently'}")
        self._cut(node, seconds, told=told)

    def cut_store(self, node: str, seconds: float) -> None:
        """Cut a node off the store."""
        self._note(f"the store of {node} is cut for {seconds:.3f} s")
        self._disturb(node, self._scheduler.now, self._scheduler.now + seconds)
        self._cut(node + _STORE, seconds, told=True)

    def cut_both(self, node: str, seconds: float) -> None:
        """Cut a node off everything."""
        self.cut_bus(node, seconds, told=self._scheduler.random.random() < 0.5)
        self.cut_store(node, seconds)

    def slow_store(self, node: str, seconds: float) -> None:
        """Let what a node asks of the store take up to 2 s each way, for a while."""
        self._note(f"the store of {node} is slow for {seconds:.3f} s")
        self._disturb(node, self._scheduler.now, self._scheduler.now + seconds + 2.0)
        self._slow[node + _STORE] = 2.0
        self._scheduler.later(seconds, self._quicken, node)

    def _quicken(self, node: str) -> None:
        self._slow.pop(node + _STORE, None)

    def lose(self, node: str, seconds: float) -> None:
        """Let some of what a node publishes vanish, for a while."""
        self._note(f"what {node} publishes is lost in part for {seconds:.3f} s")
        self._lossy.add(node)
        self._scheduler.later(seconds, self._lossy.discard, node)

    def stop_server(self, nodes: list[str], seconds: float, lost: int) -> None:
        """Kill NATS, and start it again later, without the last writes."""
        self._note(f"NATS is away for {seconds:.3f} s, and loses {lost} writes")
        for node in nodes:
            self._disturb(node, self._scheduler.now, self._scheduler.now + seconds)
        self.cut()
        self._scheduler.later(seconds, self._start_server, lost)

    def _start_server(self, lost: int) -> None:
        if lost:
            self.server.lose(lost)
            self.lost_at = self._scheduler.now
        self.heal()

    def _cut(self, connection: str, seconds: float, *, told: bool) -> None:
        self._cuts[connection] = self._cuts.get(connection, 0) + 1
        self.cut(connection, told=told)
        self._scheduler.later(seconds, self._mend, connection)

    def _mend(self, connection: str) -> None:
        self._cuts[connection] -= 1
        if not self._cuts[connection]:
            for bus in self.buses:
                if bus.node == connection:
                    bus.disconnect()  # as a client does that finds its connection broken
            self.heal(connection)

    def _disturb(self, node: str, since: float, until: float) -> None:
        self.disturbed.setdefault(node.removesuffix(_STORE), []).append((since, until))

    def _note(self, line: str) -> None:
        self._scheduler.note(line)

    def faults(self) -> list[Callable[[str, float], None]]:
        """Return what may happen to one node for a while."""
        return [
            lambda node, seconds: self.cut_bus(node, seconds, told=True),
            lambda node, seconds: self.cut_bus(node, seconds, told=False),
            self.cut_store,
            self.cut_both,
            self.slow_store,
            self.lose,
            self.lose,
        ]


def _ignoring(call: Callable[[], object]) -> None:
    call()
