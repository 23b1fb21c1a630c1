"""Nodes of one cluster in one event loop, whose links are queues of packed frames."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping
from typing import Any

from one_node import running_node
from support import until

from wsrelay import HostOptions, Node
from wsrelay.cluster import link
from wsrelay.cluster.frames import PeerFrame
from wsrelay.cluster.framing import pack, unpack
from wsrelay.cluster.peer import Peer
from wsrelay.errors import PayloadError, WireError
from wsrelay.node.elsewhere import Elsewhere
from wsrelay.peers.exchange import Exchange
from wsrelay.peers.processes import Processes
from wsrelay.values.targets import TargetEntry

FULL = 256 * 1024


class DirectWay:
    """A way whose frames arrive at the other node in the event loop's next iteration.

    While it is `stopped` they wait. `seen` has the kinds of all frames that were sent.
    """

    def __init__(
        self,
        me: Peer,
        receive: Callable[[Peer, PeerFrame], Iterator[None] | None],
        broken: Callable[[Peer, str], None],
    ) -> None:
        self.me = me
        self.most = 16 * 1024 * 1024
        self.backlog = 0
        self.sent = self.published = 0
        self.stopped = False
        self.ended: str | None = None
        self.seen: list[str] = []
        self._receive = receive
        self._broken = broken
        self._queue: deque[bytes] = deque()
        self._callbacks: dict[Hashable, Callable[[], None]] = {}
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Handle | None = None

    @property
    def full(self) -> bool:
        return self.backlog >= FULL

    @property
    def busy(self) -> bool:
        return self.backlog >= self.most

    def send(self, frame: PeerFrame) -> None:
        if self.ended is None:
            self.seen.append(type(frame).__name__)
            self.write(pack(frame))

    def write(self, data: bytes) -> None:
        """Send bytes that may be no frame."""
        if len(data) > link.LARGEST:
            raise PayloadError(f"{len(data)} bytes")
        self._queue.append(data)
        self.sent += 1
        self.backlog += len(data)
        self._come_back()

    def when_room(self, token: Hashable, callback: Callable[[], None]) -> None:
        self._callbacks[token] = callback
        self._tell_room()

    def forget(self, token: Hashable) -> None:
        self._callbacks.pop(token, None)

    def end(self, problem: str) -> None:
        self.ended = problem
        self._queue.clear()
        self.backlog = 0
        self._tell_room()

    def stop(self) -> None:
        """Let frames wait."""
        self.stopped = True

    def go(self) -> None:
        self.stopped = False
        self._come_back()

    @property
    def tokens(self) -> list[Hashable]:
        """Who waits for room."""
        return list(self._callbacks)

    def _come_back(self) -> None:
        if self._next is None and not self.stopped and self._queue:
            self._next = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._next = None
        if self.stopped or not self._queue:
            return
        data = self._queue.popleft()
        self.published += 1
        self.backlog -= len(data)
        self._come_back()
        self._tell_room()
        try:
            for _ in self._receive(self.me, unpack(data)) or ():
                pass
        except WireError as error:
            self.end(str(error))
            self._broken(self.me, str(error))

    def _tell_room(self) -> None:
        if not self.full:
            callbacks, self._callbacks = self._callbacks, {}
            for callback in callbacks.values():
                callback()


class InMemory:
    """The option `cluster` of a node whose links tests make; it keeps what it has made."""

    node_name = "alone"

    def __init__(self) -> None:
        self.processes: Processes | None = None

    def attach(self, node: Node) -> Elsewhere:
        self.processes = Processes(Exchange(node))
        return self.processes


class Cluster:
    """Some nodes, each connected to all others."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = dict(nodes)
        self.ways: dict[tuple[str, str], DirectWay] = {}
        """By the node that writes and the one that reads."""
        self._lives = dict.fromkeys(nodes, 0)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def exchange(self, name: str) -> Exchange:
        elsewhere = self.nodes[name].engine.elsewhere
        assert isinstance(elsewhere, Processes)
        return elsewhere.exchange

    def peer(self, name: str) -> Peer:
        return Peer(name, f"life{self._lives[name]}")

    def connect(self, one: str, other: str) -> None:
        """Have two nodes meet."""
        for me, you in ((one, other), (other, one)):

            def broken(peer: Peer, problem: str, me: str = me, you: str = you) -> None:
                self.exchange(you).down(peer)
                self.ways[you, me].end(problem)
                self.exchange(me).down(self.peer(you))

            self.ways[me, you] = DirectWay(self.peer(me), self.exchange(you).receive, broken)
        for me, you in ((one, other), (other, one)):
            self.exchange(me).up(self.peer(you), self.ways[me, you])

    def lose(self, name: str) -> None:
        """Have all others learn that a node is gone; that goes on, as nobody told it."""
        gone = self.peer(name)
        for other in self.nodes:
            if other != name:
                self.exchange(other).down(gone)
                self.ways[other, name].end("gone")

    def meet_again(self, name: str) -> None:
        """Have a node that was lost join again, as another life."""
        for other in self.nodes:
            if other != name:
                self.exchange(name).down(self.peer(other))
                self.ways[name, other].end("gone")
        self._lives[name] += 1
        for other in self.nodes:
            if other != name:
                self.connect(name, other)

    async def quiet(self) -> None:
        """Wait until no frame is on its way."""
        await until(lambda: not any(way.backlog for way in self.ways.values()), "all is read")


@contextlib.asynccontextmanager
async def cluster(
    *hosts: HostOptions,
    names: tuple[str, ...] = ("a", "b"),
    entries: Mapping[str, TargetEntry] | None = None,
) -> AsyncIterator[Cluster]:
    """Nodes with the same hosts and entries, each connected to all others."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = {}
        for name in names:
            nodes[name] = await stack.enter_async_context(
                running_node(*hosts, name=name, entries=entries, cluster=InMemory())
            )
        made = Cluster(nodes)
        for number, one in enumerate(names):
            for other in names[number + 1 :]:
                made.connect(one, other)
        await made.quiet()
        yield made


def nothing_is_left(made: Cluster) -> None:
    """No node keeps anything for another, or because of it."""
    for name, node in made.nodes.items():
        assert not node.kernel.relations, name
        assert not node.kernel.groups, name
        assert not node.calls, name
        assert not node.starts.execs, name
        elsewhere: Any = node.engine.elsewhere
        assert not elsewhere._execs, name
        assert not elsewhere._groups._joining, name
        for neighbour in made.exchange(name).neighbours.values():
            kept = (
                *(neighbour.asked, neighbour.serving, neighbour.unlinking),
                *(neighbour.held, neighbour.holds),
            )
            assert not any(kept), (name, neighbour.node, kept)
    assert not any(way.tokens for way in made.ways.values())
