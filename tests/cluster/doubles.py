"""A bus, a store and the network before them, in memory, with delays, losses and cuts.

    network = Network()
    server = Server(network)              # what the store has decided
    store = StoreDouble(server, "node-1") # a node's own connections
    bus = BusDouble(network, "node-1")

All faults are fields and methods of `Network` and `Server`; time is the loop's. With
`virtually(main())` it passes only while everything waits, and takes none.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from wsrelay.cluster.ports import Conflict, Entry, Unavailable

T = TypeVar("T")


class Network:
    """The ways between nodes and the servers; what is under way when a way is cut is lost."""

    def __init__(self) -> None:
        self.delay: Callable[[str], float] = lambda _node: 0.0
        """Seconds that one crossing from or to a node takes; the order of a bus is kept."""
        self.lose_answer: Callable[[str, str], bool] = lambda _node, _key: False
        """Whether a node does not hear of what the store has just done to a key for it."""
        self.later: Callable[[float, Callable[[], object]], object] = lambda delay, callback: (
            asyncio.get_running_loop().call_later(delay, callback)
        )
        """How the servers wait, whatever the node does that has asked."""
        self.off: set[str] = set()
        """Nodes that reach neither bus nor store."""
        self.down = False
        """Whether no node reaches them."""
        self.buses: list[BusDouble] = []
        self.stores: list[StoreDouble] = []

    def reaches(self, node: str) -> bool:
        return not self.down and node not in self.off

    def _connections(self) -> list[BusDouble | StoreDouble]:
        return [*self.buses, *self.stores]

    def cut(self, node: str | None = None, *, told: bool = True) -> None:
        """Cut one node off, or all; it is `told`, or believes that it is connected."""
        if node is None:
            self.down = True
        else:
            self.off.add(node)
        for connection in self._connections():
            if told and node in (None, connection.node):
                connection.disconnect()

    def heal(self, node: str | None = None) -> None:
        """Undo `cut`."""
        if node is None:
            self.down = False
        else:
            self.off.discard(node)
        for connection in self._connections():
            if self.reaches(connection.node):
                connection.connect()


class BusDouble:
    """One node's `Bus`."""

    def __init__(self, network: Network, node: str) -> None:
        self.node = node
        self.on_connected: list[Callable[[], None]] = []
        self.on_disconnected: list[Callable[[], None]] = []
        self.connected = network.reaches(node)
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._callbacks: list[tuple[str, Callable[[str, bytes], None]]] = []
        self._ways: dict[BusDouble, _Way] = {}
        network.buses.append(self)

    def publish(self, subject: str, data: bytes) -> None:
        if not (self.connected and self._network.reaches(self.node)):
            return
        for bus in self._network.buses:
            if bus.wants(subject):
                way = self._ways.setdefault(bus, _Way(self._network, self, bus))
                way.send(subject, data)

    async def subscribe(self, subject: str, callback: Callable[[str, bytes], None]) -> None:
        self._callbacks.append((subject, callback))

    async def aclose(self) -> None:
        self._callbacks.clear()
        self.connected = False
        if self in self._network.buses:
            self._network.buses.remove(self)

    def disconnect(self) -> None:
        if self.connected:
            self.connected = False
            for callback in self.on_disconnected:
                self._loop.call_soon(callback)

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            for callback in self.on_connected:
                self._loop.call_soon(callback)

    def wants(self, subject: str) -> bool:
        return any(_matches(pattern, subject) for pattern, _ in self._callbacks)

    def take(self, subject: str, data: bytes) -> None:
        for pattern, callback in self._callbacks:
            if _matches(pattern, subject):
                self._loop.call_soon(callback, subject, data)


class _Way:
    """From one bus to another: what goes in comes out in order, or not at all."""

    def __init__(self, network: Network, one: BusDouble, other: BusDouble) -> None:
        self._network, self._one, self._other = network, one, other
        self._under_way: deque[tuple[str, bytes]] = deque()

    def send(self, subject: str, data: bytes) -> None:
        self._under_way.append((subject, data))
        delay = self._network.delay(self._one.node) + self._network.delay(self._other.node)
        self._network.later(delay, self._arrive)

    def _arrive(self) -> None:
        subject, data = self._under_way.popleft()  # in order, though timers may not be
        if self._network.reaches(self._one.node) and self._network.reaches(self._other.node):
            self._other.take(subject, data)


def _matches(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and _same(wanted[:-1], given)
    return len(given) == len(wanted) and _same(wanted, given)


def _same(wanted: list[str], given: list[str]) -> bool:
    return all(one in ("*", other) for one, other in zip(wanted, given, strict=False))


class Server:
    """What the store has decided, for all nodes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.log: list[tuple[str, bytes | None]] = []
        """All writes, the first one with revision 1; None deletes."""
        self._last: dict[str, int] = {}

    @property
    def sequence(self) -> int:
        return len(self.log)

    def get(self, key: str) -> Entry | None:
        revision = self._last.get(key, 0)
        value = self.log[revision - 1][1] if revision else None
        return None if value is None else Entry(key, value, revision)

    def write(self, key: str, value: bytes | None, expected: int) -> int:
        entry = self.get(key)
        if expected != (entry.revision if entry else 0):
            raise Conflict(f"{key} has revision {entry and entry.revision}, not {expected}")
        self.log.append((key, value))
        self._last[key] = self.sequence
        return self.sequence

    def list(self, prefix: str) -> list[Entry]:
        names = sorted(name for name in self._last if name.startswith(prefix))
        return [entry for name in names if (entry := self.get(name))]

    def lose(self, count: int) -> None:
        """Forget the last writes, as a server that had not written them to its disk."""
        del self.log[-count:]
        self._last = {key: index for index, (key, _) in enumerate(self.log, 1)}


class StoreDouble:
    """One node's `Store`: each request crosses, is carried out, and its answer crosses.

    What is under way when the node is told that it is cut off fails at once; what is asked then
    waits for the way back.
    """

    def __init__(self, server: Server, node: str, patience: float = 1.0) -> None:
        self.sequence = 0
        self.node = node
        self.patience = patience
        """Seconds until an answer that has not come is given up."""
        self._server = server
        self._network = server.network
        self._waiting: set[asyncio.Future[Any]] = set()
        self._usable = asyncio.Event()
        self._network.stores.append(self)
        if self._network.reaches(node):
            self.connect()

    def disconnect(self) -> None:
        self._usable.clear()
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(Unavailable("the connection was lost"))

    def connect(self) -> None:
        self._usable.set()

    async def get(self, key: str) -> Entry | None:
        return await self._ask(key, lambda: self._server.get(key))

    async def put(self, key: str, value: bytes, expected: int) -> int:
        return await self._ask(key, lambda: self._server.write(key, value, expected))

    async def delete(self, key: str, expected: int) -> int:
        return await self._ask(key, lambda: self._server.write(key, None, expected))

    async def list(self, prefix: str) -> list[Entry]:
        return await self._ask(prefix, lambda: self._server.list(prefix))

    async def aclose(self) -> None:
        self.disconnect()
        if self in self._network.stores:
            self._network.stores.remove(self)

    async def _ask(self, key: str, operation: Callable[[], T]) -> T:
        network, node = self._network, self.node
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def arrive() -> None:
            if not network.reaches(node):
                return
            try:
                settle = functools.partial(answer.set_result, operation())
            except Conflict as error:
                settle = functools.partial(answer.set_exception, error)
            if not network.lose_answer(node, key):
                network.later(network.delay(node), lambda: come_back(settle))

        def come_back(settle: Callable[[], None]) -> None:
            if network.reaches(node) and not answer.done():
                settle()

        try:
            async with asyncio.timeout(self.patience):
                await self._usable.wait()
                self._waiting.add(answer)
                network.later(network.delay(node), arrive)
                result = await answer
        except TimeoutError:
            raise Unavailable(f"no answer about {key} within {self.patience:g} s") from None
        finally:
            self._waiting.discard(answer)
        revision = result.revision if isinstance(result, Entry) else result
        if isinstance(revision, int):
            self.sequence = max(self.sequence, revision)
        return result


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time all but stands still while something runs, and jumps while all waits."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now


class _Jump(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if ready := super().select(0):
            return ready
        if timeout is None:
            raise AssertionError("everything waits for something that never comes")
        # Whoever waits for less than the loop can tell apart gets there, as on a real clock.
        self._turns = 0 if timeout > 0 else self._turns + 1
        self._loop.now += timeout if timeout > 0 else 1e-9 * (self._turns % 1_000 == 0)
        return []


def virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine as `asyncio.run`, but without waiting."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
