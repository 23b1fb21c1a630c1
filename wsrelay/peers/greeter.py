"""Hello: what each node says of itself each second to all others.

A node says it on a subject that ends with its name, so that NATS can see to it that no node says it
for another: `wsr.<cluster>.hello.<node>`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Final

import msgspec

from wsrelay.cluster.frames import HelloFrame
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Bus

from .asking import wait
from .listener import MembershipListener, NodeLoad

__all__ = ["Greeter"]

logger = logging.getLogger(__name__)

_EVERY: Final = 1.0
"""Seconds between two hellos."""

_AT_ONCE: Final = 0.2
"""The fewest seconds between two of them, however many nodes ask."""

_GARBAGE: Final = 10.0
"""Seconds between two lines in the log about hellos that are dropped."""


class Greeter:
    """Says hello over the bus, and passes on those of the others."""

    def __init__(
        self, bus: Bus, cluster: str, clock: Callable[[], float], listener: MembershipListener
    ) -> None:
        self.on_hello: Callable[[HelloFrame], None] = lambda _hello: None
        self._bus = bus
        self._subject = f"wsr.{cluster}.hello"
        self._clock = clock
        self._listener = listener
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(HelloFrame).decode
        self._me = Peer("", "")
        self._asks = True
        self._told = -math.inf
        self._hurry = asyncio.Event()
        self._is_open = False
        self._knows_load = True

    async def open(self) -> None:
        """Subscribe to the hellos of others; once is enough."""
        if not self._is_open:
            self._is_open = True
            self._bus.on_connected.append(self._on_connected)
            await self._bus.subscribe(f"{self._subject}.*", self._heard)

    def close(self) -> None:
        """Forget the others."""
        self.on_hello = lambda _hello: None
        if self._on_connected in self._bus.on_connected:
            self._bus.on_connected.remove(self._on_connected)

    async def greet(self, me: Peer) -> None:
        """Say hello, and ask for theirs; then each second, and when asked, for ever."""
        self._me = me
        self._asks = True
        while True:
            self._hurry.clear()
            said = self._clock()
            self._say(me, self._load())
            await wait(self._hurry, _EVERY)
            if (early := said + _AT_ONCE - self._clock()) > 0:
                await asyncio.sleep(early)

    def hurry(self) -> None:
        """Say hello as soon as that may be, because something has changed."""
        self._hurry.set()

    def say_goodbye(self, me: Peer) -> None:
        """Say that this was the last hello of an incarnation, so that its lease is read now."""
        self._say(me, NodeLoad(), leaving=True)

    def _say(self, me: Peer, load: NodeLoad, *, leaving: bool = False) -> None:
        if not self._bus.connected:
            return
        hello = HelloFrame(
            me.node,
            me.incarnation,
            hosts=load.hosts,
            entries=load.entries,
            draining=load.draining,
            frozen=load.frozen,
            clients=load.clients,
            version=load.version,
            ask=self._asks and not leaving,
            leaving=leaving,
        )
        self._asks = False
        self._bus.publish(f"{self._subject}.{me.node}", self._encode(hello))

    def _load(self) -> NodeLoad:
        try:
            load = self._listener.load()
        except Exception:
            if self._knows_load:
                logger.exception("the load of this node is not known, so nothing is placed here")
            self._knows_load = False
            return NodeLoad(draining=True)
        self._knows_load = True
        return load

    def _heard(self, subject: str, data: bytes) -> None:
        try:
            hello = self._decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._drop(f"a hello that no node of this version has said: {error}")
            return
        if subject != f"{self._subject}.{hello.node}":
            self._drop(f"who may say hello on {subject} has said it for node {hello.node}")
            return
        self.on_hello(hello)
        if hello.ask and hello.node != self._me.node:
            self._hurry.set()

    def _drop(self, why: str) -> None:
        now = self._clock()
        if now - self._told >= _GARBAGE:
            self._told = now
            logger.warning("dropped: %.300s", why)

    def _on_connected(self) -> None:
        self._asks = True
        self._hurry.set()
