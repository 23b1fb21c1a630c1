"""Another node of the cluster: the way to it, and what is kept for it and because of it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from msgspec import Struct

from wsrelay.cluster.frames import PeerFrame
from wsrelay.cluster.peer import Peer
from wsrelay.node.process import WorkerProcess
from wsrelay.values.message import ExitError
from wsrelay.values.pid import PID

__all__ = ["Asked", "Neighbour", "Way"]


class Way(Protocol):
    """The way to one life of another node, a `PeerLink`: frames arrive in order, each once."""

    @property
    def full(self) -> bool:
        """Whether workers that write to it should wait."""

    @property
    def busy(self) -> bool:
        """Whether messages of the node itself, which cannot wait, are refused."""

    @property
    def backlog(self) -> int:
        """Bytes that wait here."""

    @property
    def sent(self) -> int:
        """Which number the frame has that was sent last."""

    @property
    def published(self) -> int:
        """Up to which number frames may have arrived; it stands when the way has ended."""

    def send(self, frame: PeerFrame) -> None:
        """Send a frame after those that were sent before; never waits."""

    def when_room(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back once, when the way is not full or has ended.

        There is one callback for each token; `forget` drops it.
        """

    def forget(self, token: Hashable) -> None:
        """Drop the callback that has that token."""


class Asked(Struct, eq=False):
    """A request that waits for its answer, which `convert` makes the future's result of.

    It gets the frame that answers, or the error with which the other node has gone.
    """

    future: asyncio.Future[Any]
    convert: Callable[[PeerFrame | ExitError], Any]


class Neighbour:
    """What a node keeps of another one while that is in the cluster."""

    def __init__(self, peer: Peer, way: Way) -> None:
        self.peer = peer
        self.node = peer.node
        self.pid = peer.pid
        """Stands for the node where this one counts what it has asked for."""
        self.way = way
        self.numbers = itertools.count(1)
        self.asked: dict[int, Asked] = {}
        """Requests of this node, by number."""
        self.serving: dict[int, asyncio.Future[Any]] = {}
        """Its requests that are not answered yet, by number."""
        self.unlinking: Counter[tuple[PID, PID]] = Counter()
        """Links that this node has ended, each of its processes first: what it says of them was
        said before it knew, until it has confirmed the end."""
        self.mailboxes: dict[str, int] = {}
        """Bytes that a process of each of its hosts may be sent."""
        self.told: PID | None = None
        """The process of whose end it was told last: it is told once, whoever waits there."""
        self.held: dict[PID, WorkerProcess] = {}
        """Workers that are not read because the way is full."""
        self.holds: dict[PID, set[PID]] = {}
        """Clients of it that are full, by the processes that are not read because of them."""

    def is_small_for(self, size: int) -> bool:
        """Whether some processes of it cannot be sent a message of so many bytes."""
        return any(size > most for most in self.mailboxes.values())

    # Pressure

    def pace(self, process: WorkerProcess | None) -> None:
        """Do not read a worker that has written to this node until there is room on the way."""
        if process is None or not process.launched or not self.way.full:
            return
        self.held[process.pid] = process
        process.incarnation.pipe.hold(self.peer)
        self.way.when_room(process.pid, lambda: self.release(process.pid))

    def release(self, pid: PID) -> None:
        """Undo `pace`."""
        if (process := self.held.pop(pid, None)) is not None:
            process.incarnation.pipe.release(self.peer)

    def let_go(self, process: WorkerProcess, client: PID) -> None:
        """Read a worker again, as far as a client that was full is concerned."""
        clients = self.holds.get(process.pid, set())
        if client in clients:
            clients.discard(client)
            if not clients:
                del self.holds[process.pid]
            process.incarnation.pipe.release(client)

    def forget(self, pid: PID) -> None:
        """Note that a process of this node has ended."""
        if self.held.pop(pid, None) is not None:
            self.way.forget(pid)
        self.holds.pop(pid, None)
