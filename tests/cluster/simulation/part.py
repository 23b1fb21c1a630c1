"""What a node says and does as a member of its cluster, noted and checked as it happens.

The code is the product's (`wsrelay.peers`): only what it asks of NATS goes to the run's `Fabric`.
`Part` hears what the membership tells the node, before the node does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from doubles import BusDouble, StoreDouble

from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Entry
from wsrelay.peers.options import Cluster

from .fabric import Fabric

if TYPE_CHECKING:
    from .world import Machine

__all__ = ["LEASE", "Part", "SimBus", "SimStore", "received", "timed", "told"]

LEASE: Final = 3.0

_IN_TIME: Final = 2.1
"""Seconds that a search for the process of a name may take: the start timeout, and some turns."""

_SHORT: Final = LEASE / 2
"""Seconds of trouble within a lease and a half that must not get a node declared dead."""


class SimBus(BusDouble):
    """The bus of the node whose event loop runs."""

    _network: Fabric

    def __init__(self, _: Cluster) -> None:
        machine = _machine()
        super().__init__(machine.world.fabric, machine.name)
        machine.part.bus = self

    async def open(self) -> None:
        pass

    def publish(self, subject: str, data: bytes) -> None:
        if not self._network.drops(self.node):
            super().publish(subject, data)


class SimStore(StoreDouble):
    """The store of the node whose event loop runs."""

    def __init__(self, _: Cluster) -> None:
        machine = _machine()
        fabric = machine.world.fabric
        self.on_rewound: list[Callable[[int, int], None]] = []
        self._loop = machine.loop
        self._last = self._rewinds = 0
        super().__init__(fabric.server, fabric.store_of(machine.name))
        machine.part.store = self

    async def open(self) -> None:
        await self._usable.wait()

    def connect(self) -> None:
        """Ask first how far the store is, as after each connection."""
        delay = self._network.delay(self.node) + self._network.delay(self.node)
        self._network.later(delay, self._connected)

    def _connected(self) -> None:
        if self._network.reaches(self.node):
            if self._server.sequence < self._last:
                self._rewound(self._server.sequence)
            super().connect()

    async def _ask(self, key: str, operation: Callable[[], Any]) -> Any:
        before, rewinds = self._last, self._rewinds
        result = await super()._ask(key, operation)
        if isinstance(result, int):
            if result <= before and rewinds == self._rewinds:
                self._rewound(result)
            self._last = max(self._last, result)
        elif isinstance(result, Entry):
            self._last = max(self._last, result.revision)
        return result

    def _rewound(self, sequence: int) -> None:
        seen, self._last = self._last, sequence
        self._rewinds += 1
        for rewound in self.on_rewound:
            self._loop.call_soon(rewound, seen, sequence)


class Part:
    """One life of a node, as a member of the cluster."""

    def __init__(self, machine: Machine) -> None:
        self.cluster = Cluster(["nats://127.0.0.1"], name="sim", node=machine.name, lease=LEASE)
        self.machine = machine
        self.peer: Peer | None = None
        """Its incarnation, until it learns that it is dead."""
        self.up: set[Peer] = set()
        self.down: set[Peer] = set()
        self.bus: BusDouble | None = None
        self.store: StoreDouble | None = None
        self._world = machine.world
        self.broke = machine.world.broke

    def sees(self, machine: Machine) -> bool:
        """Whether it knows the node of that machine, in its present life."""
        return machine.part is not None and machine.part.peer in self.up

    def heard(self, event: str, *about: Any) -> None:
        """Note what the membership tells."""
        match event:
            case "on_joined":
                self.peer, self.up, self.down = about[0], set(), set()
                self._note(f"joins as {self.peer.incarnation}")
                self._world.peers[self.peer] = self
            case "on_up":
                self._note(f"sees {about[0]} up")
                self.up.add(about[0])
            case "on_down":
                self._note(f"sees {about[0]} down: {about[1]}")
                self._goes_down(about[0])
            case "on_dead":
                self._note(f"is dead: {about[0]}")
                self.peer = None
            case "on_frozen" | "on_thawed" | "on_writes_lost":
                self._note(f"is told {event}")

    def _goes_down(self, peer: Peer) -> None:
        """Check that an incarnation may be taken for dead."""
        if peer in self.down:
            self.broke("down once", f"{self.peer} sees {peer} down again")
        self.up.discard(peer)
        self.down.add(peer)
        other = self._world.peers.get(peer)
        if other is None or other.peer != peer or other.machine.loop.is_dead:
            return
        if other.machine.is_closing or self._world.is_decided_again(peer):
            return
        if (deadline := other.machine.deadline) > self.machine.scheduler.now:
            what = f"{self.peer} sees {peer} down, whose processes may run until {deadline:.3f}"
            self.broke("frozen first", what)
        trouble = other.trouble()
        if trouble < _SHORT:
            what = f"{self.peer} sees {peer} down after {trouble:.3f} s of trouble"
            self.broke("the living stay", what)

    def trouble(self) -> float:
        """Return the seconds of trouble that it has had lately."""
        now = self.machine.scheduler.now
        since = now - 1.5 * LEASE
        spans = self.machine.stalls + self._world.fabric.disturbed.get(self.machine.name, [])
        return sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in spans)

    def _note(self, what: str) -> None:
        self._world.note(f"{self.machine.name} {what}")


def told(event: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that the membership calls, such that the node's `Part` hears it first."""

    def tell(self: Any, *about: Any) -> Any:
        _machine().part.heard(event, *about)
        return original(self, *about)

    return tell


def received(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `Exchange.receive`, which must not be called for a node that is down."""

    def receive(self: Any, peer: Peer, frame: Any) -> Any:
        part = _machine().part
        if peer in part.down and peer.node in self.neighbours:
            part.broke("silent after down", f"{part.machine.name} hears {frame!r:.80} of {peer}")
        return original(self, peer, frame)

    return receive


def timed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `ClusterNames.get_or_spawn`, which must end within the start timeout, 2 s."""

    async def get_or_spawn(self: Any, order: Any) -> Any:
        machine = _machine()
        begun = machine.scheduler.now
        try:
            return await original(self, order)
        finally:
            seconds = 0.0 if machine.loop.is_dead else machine.running_since(begun)
            if seconds > _IN_TIME:
                what = f"{machine.name} looks for {order.name} for {seconds:.3f} s"
                machine.part.broke("in time", what)

    return get_or_spawn


def _machine() -> Any:
    """Return the machine whose event loop runs."""
    return asyncio.get_running_loop().machine  # type: ignore[attr-defined]
