"""A client, as the messages that the relay sends for it have it: the PID of its connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, Self

from msgspec import UNSET, UnsetType

from wsrelay.errors import PayloadError

from . import current
from .json_text import json_text
from .message import CLOSE, CONTROL, SEND
from .pid import PID

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    M = TypeVar("M", default=dict[str, Any])
else:
    from typing import TypeVar

    M = TypeVar("M")

__all__ = ["Client", "content_of", "control_of"]

_KINDS: Final = {str: "text", bytes: "binary"}


class Client(PID, Generic[M]):
    """The PID of a connection, and what can be done with its client.

    It compares and hashes like its text. A copy, pickled or not, is a plain `PID`. `metadata` is
    what was in force when the message came that this is the client of: after a `ws.control` with
    `metadata`, messages have another `Client`, equal to the one before. Without any it is `{}`.

    In `async def` handlers there is `wsrelay.aio.Client`, whose `send`, `send_json` and `drain` are
    awaited.
    """

    __slots__ = ("metadata", "trace")
    metadata: M
    trace: str
    """The context of its upgrade, for `wsrelay.tracing`; empty without traces."""

    def __new__(cls, text: str, metadata: Any = None) -> Self:
        """Make one of a PID, as text; raises `InvalidPID`."""
        self = super().__new__(cls, text)
        self.metadata = {} if metadata is None else metadata
        self.trace = ""
        return self

    @classmethod
    def known(cls, text: str, metadata: M, trace: str = "") -> Self:
        """Make one of text that is known to be a PID."""
        self = cls.trusted(text)
        self.metadata = metadata
        self.trace = trace
        return self

    def __reduce__(self) -> tuple[type[PID], tuple[str]]:
        """Become a PID where it is copied or pickled: its metadata is of one message."""
        return PID, (str(self),)

    def send(self, data: str | bytes) -> None:
        """Send the client a message: text if it is `str`, else binary. See `process.send`."""
        # As `content_of`, without the call.
        worker = current.here
        content = {"type": _KINDS.get(type(data)) or _kind(data), "data": data}
        if worker is None or not worker.pipe.send_short(self, SEND, content):
            current.caller().send(self, SEND, content)

    def send_json(self, value: object) -> None:
        """Send the client a value as JSON text; raises `PayloadError`. See `process.send_json`."""
        Client.send(self, json_text(value))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake; what was sent before arrives before it.

        RFC 6455 lets an endpoint send 1000-1003, 1007-1014 and 3000-4999; applications have
        4000-4999 to themselves.
        """
        current.caller().send(self, CLOSE, {"code": code, "reason": reason})

    def transfer(
        self,
        to: str,
        *,
        message_topic: str | UnsetType = UNSET,
        heartbeat_interval: str | UnsetType | None = UNSET,
        metadata: dict[str, Any] | UnsetType | None = UNSET,
        cancel_on_leave: bool | UnsetType = UNSET,
    ) -> None:
        """Bind the client to another process, which is sent `ws.join` for it; this one `ws.leave`.

        What is given besides is changed at the same time. If the process is not alive, nothing
        changes, and this one is sent `ws.error`. Raises `InvalidPID`.
        """
        content = control_of(
            to,
            message_topic=message_topic,
            heartbeat_interval=heartbeat_interval,
            metadata=metadata,
            cancel_on_leave=cancel_on_leave,
        )
        current.caller().send(self, CONTROL, content)

    def drain(self, timeout: float | None = None) -> None:
        """Wait until most of what was sent to the client is on its way; see `process.drain`."""
        current.worker().drain(self, timeout)


def content_of(data: str | bytes) -> dict[str, str | bytes]:
    """Return the payload of a `ws.send`; raises `PayloadError` for what is neither text nor bytes.

    Bytes are also a `bytearray` and a `memoryview`.
    """
    return {"type": _KINDS.get(type(data)) or _kind(data), "data": data}


def _kind(data: object) -> str:
    if isinstance(data, str):
        return "text"
    if isinstance(data, bytes | bytearray | memoryview):
        return "binary"
    raise PayloadError(
        f"data: {data!r:.80} has the type {type(data).__qualname__}, and is neither str nor bytes; "
        "send_json sends other data"
    )


def control_of(to: str, **given: object) -> dict[str, object]:
    """Return the payload of a `ws.control` that transfers a client; raises `InvalidPID`."""
    changes = {name: value for name, value in given.items() if value is not UNSET}
    return {"target_pid": str(PID(to)), **changes}
