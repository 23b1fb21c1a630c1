"""What a process can send to a connection: `ws.send`, `ws.close`, `ws.control` or its own topics.

Each message is parsed once, even when it goes to many connections.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from wsrelay.errors import InvalidPID
from wsrelay.values.message import CLOSE, CONTROL, SEND
from wsrelay.values.pid import PID
from wsrelay.values.printable import printable
from wsrelay.values.trace_context import TRACED, split
from wsrelay.wire import payload

from . import rfc6455
from .header import MOST_METADATA, check_topic, heartbeat

__all__ = [
    "CloseCommand",
    "Command",
    "ControlCommand",
    "InvalidCommand",
    "LargeSendCommand",
    "SendCommand",
    "frame_of",
    "may_be_sent",
    "parse",
]


class SendCommand:
    """A message for the client, text or binary.

    `frame` and `size` are computed once, on first use, however many clients the message goes to.
    """

    __slots__ = ("data", "frame", "size")

    frame: bytes
    """The message as a server's WebSocket frame."""

    size: int
    """The size of the payload in bytes."""

    def __init__(self, data: str | bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SendCommand) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __repr__(self) -> str:
        return f"SendCommand({self.data!r})"

    def __getattr__(self, name: str) -> Any:
        """Compute the attribute; from then on it is found without this call."""
        data = self.data
        if name == "size" and (isinstance(data, bytes) or data.isascii()):
            self.size = len(data)
            return self.size
        if name not in ("frame", "size"):
            raise AttributeError(name)
        # Text that is not ASCII is encoded for both at once.
        is_text = isinstance(data, str)
        content = data.encode() if isinstance(data, str) else data
        self.size = len(content)
        self.frame = rfc6455.frame(rfc6455.TEXT if is_text else rfc6455.BINARY, content)
        return self.size if name == "size" else self.frame


class LargeSendCommand(SendCommand):
    """A large message for the client: `content`, its payload, is a part of what a process wrote.

    `head` belongs before it. `data` is decoded only for those who ask for it.
    """

    __slots__ = ("content", "head", "is_text")

    def __init__(self, content: memoryview, *, is_text: bool) -> None:
        self.content = content
        self.size = len(content)
        self.is_text = is_text
        self.head = rfc6455.large_head(rfc6455.TEXT if is_text else rfc6455.BINARY, self.size)

    def __getattr__(self, name: str) -> Any:
        """Compute `data` or `frame`, which are not kept."""
        if name == "data":
            return str(self.content, "utf-8") if self.is_text else bytes(self.content)
        if name == "frame":
            return b"".join((self.head, self.content))
        raise AttributeError(name)


class CloseCommand(Struct, frozen=True):
    """Start the closing handshake."""

    code: int = 1000
    reason: str = ""


class ControlCommand(Struct, frozen=True, kw_only=True):
    """Transfer or reconfigure the connection; what is UNSET stays as it is."""

    target_pid: PID | UnsetType = UNSET
    message_topic: str | UnsetType = UNSET
    heartbeat_interval: float | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    cancel_on_leave: bool | UnsetType = UNSET


class InvalidCommand(Struct, frozen=True):
    """A command that cannot be carried out: its topic and what is wrong with it."""

    topic: str
    error: str


Command = SendCommand | CloseCommand | ControlCommand | InvalidCommand


class _Text(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    data: str


class _Binary(Struct, forbid_unknown_fields=True, tag_field="type", tag="binary"):
    data: bytes


class _Close(Struct, forbid_unknown_fields=True):
    code: int = 1000
    reason: str = ""


class _Control(Struct, forbid_unknown_fields=True):
    target_pid: str | UnsetType = UNSET
    message_topic: str | UnsetType = UNSET
    heartbeat_interval: str | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    cancel_on_leave: bool | UnsetType = UNSET


_RIGHT: Final = {
    SEND: 'a payload is {"type": "text", "data": str} or {"type": "binary", "data": bytes}',
    CLOSE: 'a payload is {"code": int, "reason": str}, both optional',
    CONTROL: f"a payload may have {', '.join(_Control.__struct_fields__)}",
}

_ORDERS: Final = {CLOSE, CONTROL}

_MOST_IN_ORDER: Final = 16 * 1024
"""Elements; the connection keeps its metadata, and 256 KB could take 18 MB once decoded."""

_LENGTH: Final = 4
"""Bytes of the length of a text or of bytes of 64 KiB or more in MessagePack."""

_LARGE_SENDS: Final = (
    (msgspec.msgpack.encode({"type": "text", "data": "x" * 65536})[: -65536 - _LENGTH], True),
    (msgspec.msgpack.encode({"type": "binary", "data": bytes(65536)})[: -65536 - _LENGTH], False),
)
"""How the payloads of large messages begin, and whether that is text."""

_decode_send = msgspec.msgpack.Decoder(_Text | _Binary).decode
_decode_close = msgspec.msgpack.Decoder(_Close | None).decode
_decode_control = msgspec.msgpack.Decoder(_Control).decode


def may_be_sent(code: int) -> bool:
    """Whether RFC 6455 section 7.4 lets an endpoint send this close code."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999  # noqa: PLR2004


def frame_of(content: bytes) -> bytes:
    """Return the frame that a client gets for the payload of a `ws.send`.

    It is empty if the payload is not right, which `parse` explains.
    """
    try:
        data = _decode_send(content).data
    except (ValueError, RecursionError):
        return b""
    if type(data) is str:
        return rfc6455.frame(rfc6455.TEXT, data.encode())
    return rfc6455.frame(rfc6455.BINARY, data)


def parse(topic: str, content: bytes | memoryview) -> Command:
    """Parse a message to a connection; a mistake in it is returned as `InvalidCommand`."""
    try:
        if topic in _ORDERS and len(content) > _MOST_IN_ORDER:
            _check_order(content)
        match topic:
            case "ws.send":
                if type(content) is memoryview and (large := _large_send(content)) is not None:
                    return large
                return SendCommand(_decode_send(content).data)
            case "ws.close":
                return _close(_decode_close(content) or _Close())
            case "ws.control":
                return _control(_decode_control(content))
            case _ if topic.startswith("ws."):
                raise ValueError(  # noqa: TRY301 - handled like what the others raise
                    f"{printable(topic)} cannot be sent to a connection, which takes ws.send, "
                    "ws.close, ws.control, and topics that do not begin with ws. (its client gets "
                    "those as JSON)"
                )
            case _:
                if content[:1] == TRACED:  # which is not for clients
                    _, content = split(bytes(content))
                return SendCommand(_json(topic, payload.decode_bounded(content)))
    except (TypeError, ValueError, RecursionError) as error:
        what = str(error) or type(error).__name__
        if isinstance(error, msgspec.MsgspecError) and topic in _RIGHT:
            what = f"{_RIGHT[topic]}: {what}"
        return InvalidCommand(topic, what)


assert (SEND, CLOSE, CONTROL) == ("ws.send", "ws.close", "ws.control")  # noqa: S101 - match needs literals


def _large_send(content: memoryview) -> LargeSendCommand | None:
    """Return the command of a large message, or None if it has not the form that workers write."""
    for head, is_text in _LARGE_SENDS:
        start = len(head) + _LENGTH
        if content[: len(head)] == head:
            data = content[start:]
            if int.from_bytes(content[len(head) : start], "big") != len(data):
                return None
            if is_text:
                try:
                    str(data, "utf-8")
                except UnicodeDecodeError:
                    return None
            return LargeSendCommand(data, is_text=is_text)
    return None


def _check_order(content: bytes | memoryview) -> None:
    """Raise `ValueError` for an order that would be too large once decoded."""
    if len(content) > MOST_METADATA:
        raise ValueError(
            f"it has {len(content)} bytes, at most {MOST_METADATA} are allowed; let the process "
            "itself keep larger data, by client_pid"
        )
    payload.size_to_decode(content, _MOST_IN_ORDER)


def _close(given: _Close) -> CloseCommand:
    if not may_be_sent(given.code):
        raise ValueError(
            f"code {given.code} may not be sent; RFC 6455 allows 1000-1003, 1007-1014, 3000-4999"
        )
    return CloseCommand(given.code, given.reason)


def _control(given: _Control) -> ControlCommand:
    try:
        target = given.target_pid if given.target_pid is UNSET else PID(given.target_pid)
    except InvalidPID as error:
        raise ValueError(f"target_pid: {error}") from None
    topic, interval = given.message_topic, given.heartbeat_interval
    return ControlCommand(
        target_pid=target,
        message_topic=topic if topic is UNSET else check_topic(topic),
        heartbeat_interval=interval if interval is UNSET else heartbeat(interval),
        metadata=given.metadata,
        cancel_on_leave=given.cancel_on_leave,
    )


def _json(topic: str, data: Any) -> str:
    try:
        return msgspec.json.encode({"topic": topic, "data": data}).decode()
    except TypeError:  # a key that JSON cannot represent
        return msgspec.json.encode({"topic": topic, "data": _text_keys(data)}).decode()


def _text_keys(data: Any) -> Any:
    if isinstance(data, dict):
        return {_key(key): _text_keys(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_text_keys(value) for value in data]
    return data


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return base64.b64encode(key).decode()
    return msgspec.json.encode(_text_keys(key)).decode().strip('"')
