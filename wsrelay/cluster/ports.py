"""What a cluster needs of the outside: a bus between nodes and a store that decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from wsrelay.errors import WsrelayError

__all__ = ["Bus", "Conflict", "Entry", "Store", "Unavailable"]


class Entry(Struct, frozen=True):
    """A key of the store with its value; `revision` grows with every write to the store."""

    key: str
    value: bytes
    revision: int


class Conflict(WsrelayError):  # noqa: N818 - what has happened
    """A compare-and-set found another revision than the one expected."""


class Unavailable(WsrelayError):  # noqa: N818 - what has happened
    """The store did not answer in time; whether it has done what was asked is not known."""


class Bus(Protocol):
    """Publishes to whoever subscribes: at most once, and in order from one publisher."""

    on_connected: list[Callable[[], None]]
    """Called each time when it is connected, again included."""
    on_disconnected: list[Callable[[], None]]

    @property
    def connected(self) -> bool:
        """Whether what is published now is sent."""

    def publish(self, subject: str, data: bytes) -> None:
        """Send, without waiting; what is published while not connected is dropped."""

    async def subscribe(self, subject: str, callback: Callable[[str, bytes], None]) -> None:
        """Call back with subject and data of what comes; the last token may be `>`."""

    async def aclose(self) -> None:
        """Send what was published, and disconnect."""


class Store(Protocol):
    """Keys and values that are changed by compare-and-set, in one order that all nodes see.

    All methods raise `Unavailable`.
    """

    @property
    def sequence(self) -> int:
        """The highest revision of the store that was seen in any answer."""

    async def get(self, key: str) -> Entry | None:
        """Return what the store has decided last; None if there is no such key."""

    async def put(self, key: str, value: bytes, expected: int) -> int:
        """Write if the key's revision is `expected`, 0 for none; returns the new revision.

        Raises `Conflict`. A key that was deleted counts as none.
        """

    async def delete(self, key: str, expected: int) -> int:
        """Delete if the key's revision is `expected`; returns the revision of that.

        Raises `Conflict`.
        """

    async def list(self, prefix: str) -> list[Entry]:
        """Return the keys that begin with the prefix; slow, for starts and operators."""

    async def aclose(self) -> None:
        """Disconnect."""
