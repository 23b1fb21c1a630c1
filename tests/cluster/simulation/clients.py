"""Simulated clients: what is between them and the session machine is a slow, ordered wire.

The node's side is the real `DirectConnection`; a `Client` is the protocol that it talks to, the TCP
connection behind that, and whoever is at the other end.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from wsrelay.errors import WsrelayError
from wsrelay.node import NoTarget
from wsrelay.relay.connection import ClientPeer, ConnectionLimits
from wsrelay.relay.direct_connection import DirectConnection
from wsrelay.session.header import RelayHeader, TargetSpec
from wsrelay.session.outbox import Overflow
from wsrelay.values.pid import PID

if TYPE_CHECKING:
    from .world import Machine

__all__ = ["OUTBOX", "Client"]

OUTBOX: Final = 16 * 1024
"""Bytes of a client's outbox."""

_SOCKET: Final = 8 * 1024
"""Bytes from which on the socket takes no more."""

_PEER: Final = ClientPeer(("127.0.0.1", 1), "/", None)

_ACCEPT: Final[dict[str, Any]] = {"type": "websocket.accept"}


class Client:
    """A client, and the node's protocol for it (`direct_connection.Wire`)."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._world = machine.world
        self._scheduler = machine.scheduler
        self._random = machine.scheduler.random
        self.connection: DirectConnection | None = None
        self.pid = ""
        self.is_open = False
        """Whether the upgrade is through and neither side has closed."""
        self.writable = True
        self.write = self._write
        self.unfinished = 0
        self._arrived: deque[bytes | tuple[int]] = deque()
        """At the node: messages, and in the end the close frame's code."""
        self._held = False
        self._started = False
        self._sent = 0
        self._last_sent = self._last_received = 0.0
        self._unread = bytearray()
        """What the node has written and the client has not read."""
        self._heard: dict[str, int] = {}
        self._reads_slowly = self._random.random() < 0.25
        overflow = self._random.choice((Overflow.CLOSE, Overflow.PAUSE, Overflow.DROP))
        self._drops = overflow is Overflow.DROP
        self._limits = ConnectionLimits(OUTBOX, overflow, 1.0)

    # The upgrade

    async def connect(self, name: str | None = None) -> None:
        """Do what an upgrade does, from the header to the end of the handshake."""
        node, known = self.machine.node, self._world.known
        spec = pid = None
        if name is None and known and self._random.random() < 0.4:
            pid = PID(self._random.choice(known))
        else:
            if name is None and self._random.random() < 0.9:
                name = self._world.a_name()
            ends = 0.5 if self._random.random() < 0.3 else None
            spec = TargetSpec(target=self._world.a_target(), name=name, end_when_empty=ends)
        relay = RelayHeader(
            target_pid=pid, spec=spec, cancel_on_leave=spec is not None and spec.name is None
        )
        try:
            if spec is not None:
                arrival = await node.find_target(spec)
            else:
                assert pid is not None
                arrival = await node.arrive(pid)
        except (NoTarget, WsrelayError, ValueError):
            return
        with arrival:
            if node.draining or node.clients.crowded(arrival.pid) is not None:
                return
            relay = replace(relay, target_pid=arrival.pid)
            connection = DirectConnection(node, relay, self._limits, _PEER)
        self.connection, self.pid = connection, str(connection.pid)
        self._world.clients[self.pid] = self
        if self._random.random() < 0.03:
            connection.refused()
            return

        async def send(_: Any) -> None:
            self.is_open = True

        await connection.serve(_ACCEPT, send, lambda: lambda _: self)

    # The protocol's side, which the connection calls

    def start(self) -> None:
        """Begin to pass on what the client sends, and let the client begin."""
        self._started = True
        if self._random.random() < 0.5:
            self._send()
        self._talk_later()
        life = self._random.expovariate(1 / 5)
        code = self._random.choice((1000, 1001, 4001, 1006))
        self._scheduler.later(life, self._leave_by_itself, code)

    def _write(self, data: bytes | memoryview, /) -> None:
        """Take a frame to the client."""
        self._unread += data
        if len(self._unread) > _SOCKET:
            self.writable = False
        slow = self._reads_slowly and not self._world.is_quiet
        delay = self.machine.draw(0.3, 1.5) if slow else self.machine.draw(0.0001, 0.02)
        self._last_received = self._scheduler.after(self._last_received, delay, self._receive)

    def close(self, code: int, reason: str) -> None:
        """Close; what was written before is still read."""
        del code, reason
        self._over()

    def resume(self) -> None:
        """Go on passing messages."""
        self._held = False
        self.machine.loop.call_soon(self._pass_on)

    def abort(self) -> None:
        """Drop the connection."""
        if not self.machine.loop.is_dead:
            self.machine.loop.call_soon(self._lost)

    def _lost(self) -> None:
        if self.connection is not None and self._started:
            self._over()
            self.connection.gone(1006)

    def _over(self) -> None:
        self.is_open = self._started = False
        self._arrived.clear()

    # The client

    def _talk_later(self) -> None:
        self._scheduler.later(self._random.expovariate(self._world.talk), self._talk)

    def _talk(self) -> None:
        if not self.is_open or self._world.is_quiet:
            return
        self._send()
        self._talk_later()

    def _send(self) -> None:
        self._sent += 1
        data = str(self._sent).encode()
        if self._random.random() < 0.03:
            data = data.rjust(30_000, b" ")
        self._travel(data)

    def _travel(self, what: bytes | tuple[int]) -> None:
        delay = self.machine.draw(0.0001, 0.02)
        self._last_sent = self._scheduler.after(self._last_sent, delay, self._arrives, what)

    def _leave_by_itself(self, code: int) -> None:
        if not self._world.is_quiet:
            self.leave(code)

    def leave(self, code: int) -> None:
        """Close, or vanish (1006)."""
        if self.is_open:
            self._travel((code,))

    def _arrives(self, what: bytes | tuple[int]) -> None:
        loop = self.machine.loop
        if not self._started or loop.is_dead:
            return
        self._arrived.append(what)
        loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        """Pass on what has arrived, as far as there is room; a lost client's is passed on at all
        events.
        """
        connection = self.connection
        assert connection is not None
        lost = bool(self._arrived) and self._arrived[-1] == (1006,)
        while self._arrived and self._started and (lost or not self._held):
            what = self._arrived.popleft()
            if isinstance(what, tuple):
                self._over()
                connection.gone(what[0])
            else:
                self._held = not connection.received(what, True)

    def _receive(self) -> None:
        """Read what the node has written."""
        data, self._unread = bytes(self._unread), bytearray()
        for text in _texts(data):
            sender, number = text.split()[:2]
            count, last = int(number), self._heard.get(sender, 0)
            if count <= last or (count > last + 1 and not self._drops):
                what = f"{self.pid} gets {count} of {sender} after {last}"
                self._world.books.broke("room's order", what)
            self._heard[sender] = count
        if not self.writable and self._started and not self.machine.loop.is_dead:
            self.machine.loop.call_soon(self._writable)

    def _writable(self) -> None:
        if self._started and len(self._unread) <= _SOCKET and self.connection is not None:
            self.writable = True
            self.connection.writable()


def _texts(data: bytes) -> list[str]:
    """Return the texts of whole frames, none of them masked."""
    texts, at = [], 0
    while at < len(data):
        size, start = data[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        texts.append(data[start : start + size].decode())
        at = start + size
    return texts
