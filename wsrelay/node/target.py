"""What a client's connection needs of its target, wherever that runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from wsrelay.values.pid import PID

__all__ = ["RelayTarget", "TargetLane", "TargetState"]


class TargetState(Protocol):
    """What a target says of itself without being called; for a process here it is its row."""

    @property
    def takes_mail(self) -> bool:
        """Whether its inbox still takes messages."""


class TargetLane(Protocol):
    """The way of clients' messages to a target, in order."""

    @property
    def full(self) -> bool:
        """Whether the target's clients should wait."""

    @property
    def backlog(self) -> int:
        """Bytes that are known to wait for the target."""

    def relay(self, data: bytes) -> bool:
        """Pass a packed `RelayFrame` on, always; returns whether there is room for more."""

    def when_room(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back once, when there is room for clients' messages or the target is gone."""


class RelayTarget(Protocol):
    """The process that a connection is bound to.

    What it is sent by `tell` and the like is a dead letter if it no longer takes mail.
    """

    pid: PID
    names: list[str]
    """The last names that it had, as far as this node has noted them."""
    arrivals: int
    """Clients on their way to it, which are bound to it once their upgrade is through."""

    @property
    def row(self) -> TargetState:
        """Its state."""

    @property
    def pipe(self) -> TargetLane:
        """The way of its clients' messages; another one takes its place when it is started."""

    @property
    def takes_mail(self) -> bool:
        """Whether its inbox still takes messages."""

    @property
    def died(self) -> float:
        """When it exited, in seconds of `time.monotonic`; 0 if it has not, or not on this node."""

    def occupied(self) -> None:
        """Note that it has a client, or one on its way."""

    def left(self) -> None:
        """Note that a client has left, or will not come."""

    def bind(self, client: PID) -> None:
        """Report its exit to that connection, from now on until `unbind`."""

    def unbind(self, client: PID) -> bool:
        """Undo `bind`; returns whether that was the last client of a process that lives here."""

    def join(
        self,
        client: PID,
        metadata: dict[str, Any] | None,
        *,
        receipt: bool = False,
        trace: str = "",
    ) -> bool:
        """Send it `ws.join` and bind the connection; returns whether it took that.

        `receipt`: the connection is told when the target has read it. `trace` is the context of
        the upgrade.
        """

    def attach(self, client: PID, metadata: dict[str, Any] | None) -> None:
        """Set the metadata for a client's messages from now on."""

    def tell(self, client: PID, topic: str, content: dict[str, Any]) -> bool:
        """Send it a message from the relay; returns whether it took that."""

    def leave(self, client: PID, code: int, reason: str) -> bool:
        """Send it `ws.leave`; returns whether it took that."""
