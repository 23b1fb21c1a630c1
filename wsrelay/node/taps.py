"""Taps: what sees the messages of one process or connection as they pass.

Nothing here is made before somebody looks. A process is tapped at its pipe, where everything that
it is sent and sends passes, and a connection at its session; mail to both at the table of
endpoints, where the sender is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import msgspec
from msgspec import Raw, Struct

from wsrelay import wire
from wsrelay.values.message import CANCEL, SEND
from wsrelay.values.pid import PID
from wsrelay.wire import payload

from .endpoint import Endpoint, Mail
from .ends import EndRequest
from .node import Node

__all__ = ["Passing", "Taps"]

_MOST_HEARD: Final = 2048
"""Characters or bytes of a client's message that are kept to be shown."""

_LENGTH: Final = 4
"""Bytes of the length of a worker's frame."""

_PREAMBLES: Final = {0xC4: 2, 0xD9: 2, 0xC5: 3, 0xDA: 3, 0xC6: 5, 0xDB: 5}
"""How many bytes stand before text or bytes in MessagePack, by the first of them; else it is 1."""


class Passing(Struct, frozen=True):
    """A message that passes: the fields are those of `TraceRecord`.

    `content` is MessagePack; if it is text or bytes for or from a client, `size` is that of those.
    """

    direction: str
    topic: str
    peer: str
    content: bytes | memoryview
    size: int
    others: int = 0


Listener = Callable[[Callable[[], Passing]], None]
"""Gets a function that makes what passes, which is work: of a flood not everything is looked at."""


class _Body(Struct):
    """The payload of a client's message, whose data is not decoded."""

    type: str
    data: Raw


class _ClientMessage(Struct, array_like=True, tag=3):
    """A `wire.RelayFrame`, whose payload is not decoded."""

    topic: str
    client: str
    payload: Raw


_decode_message = msgspec.msgpack.Decoder(_ClientMessage).decode
_decode_body = msgspec.msgpack.Decoder(_Body).decode


class Taps:
    """The taps of a node, one for each process or connection that somebody listens to."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._taps: dict[PID, _Tap] = {}

    def listen(self, pid: PID, listener: Listener, ended: Callable[[], None]) -> None:
        """Call a listener with what passes, and `ended` once when that process has ended.

        It must be alive.
        """
        engine = self._node.engine
        if (tap := self._taps.get(pid)) is None:
            tap = self._taps[pid] = _Tap(self._node, pid)
            tap.open()
            engine.ends.watchers.setdefault(pid, []).append(tap.end)
        tap.listeners[listener] = ended

    def leave(self, pid: PID, listener: Listener) -> None:
        """Undo `listen`; the last listener takes the tap away."""
        if (tap := self._taps.get(pid)) is not None:
            tap.listeners.pop(listener, None)
            if not tap.listeners:
                del self._taps[pid]
                tap.close()


class _Tap:
    """Sees what passes one process or connection; a `LanesTap`."""

    def __init__(self, node: Node, pid: PID) -> None:
        self.pid = pid
        self.listeners: dict[Listener, Callable[[], None]] = {}
        self._node = node
        self._engine = node.engine

    def open(self) -> None:
        """Begin to see."""
        endpoints, pid = self._engine.endpoints, self.pid
        endpoints[pid] = cast("Endpoint", _TappedEndpoint(endpoints[pid], self.mail))
        if (process := self._engine.processes.get(pid)) is not None:
            process.pipe.tap(self)
        elif (connection := self._node.connection(pid)) is not None:
            connection.hear(self.heard)

    def close(self) -> None:
        """Leave everything as it was."""
        engine, pid = self._engine, self.pid
        tapped = engine.endpoints.get(pid)
        if isinstance(tapped, _TappedEndpoint):
            engine.endpoints[pid] = tapped.endpoint
        if (process := engine.processes.get(pid)) is not None:
            process.pipe.tap(None)
        elif (connection := self._node.connection(pid)) is not None:
            connection.hear(None)
        if (watchers := engine.ends.watchers.get(pid)) is not None:
            watchers.remove(self.end)
            if not watchers:
                del engine.ends.watchers[pid]

    def end(self) -> None:
        """Tell all that it has ended."""
        for ended in [*self.listeners.values()]:
            ended()

    def _tell(self, seen: Callable[[], Passing]) -> None:
        for listener in [*self.listeners]:
            listener(seen)

    def mail(self, mail: Mail) -> None:
        """See a message that a process or the node has sent it."""
        self._tell(partial(_message, "in", mail.topic, mail.sender, mail.content))

    def sent(self, frame: wire.Frame | bytes | memoryview) -> None:
        """See what a process is sent by the relay, its node, or as an answer."""
        match frame:
            case bytes() | memoryview():
                self._tell(partial(_from_client, memoryview(frame)[_LENGTH:]))
            case wire.RelayFrame():
                self._tell(partial(_relayed, frame))
            case wire.SignalFrame():
                self._tell(partial(_event, frame))
            case wire.FinishedFrame():
                self._tell(partial(_answer, "in", "", frame.result.value, frame.refused))
            case wire.PresenceFrame():
                self._tell(partial(_presence, frame))

    def received(self, frame: wire.FromWorker) -> None:
        """See what a process sends."""
        match frame:
            case wire.SendFrame() | wire.SendAfterFrame():
                to = [frame.to] if isinstance(frame.to, str) else frame.to
                if to:
                    self._out(frame.topic, to[0], frame.payload, len(to) - 1)
            case wire.BroadcastFrame():
                self._out(frame.topic, f"group {frame.group}", frame.payload)
            case wire.CallFrame():
                self._out(frame.topic, frame.to, frame.payload)
            case wire.AnswerFrame():
                call = self._node.calls.waiting.get(self.pid, {}).get(frame.call)
                peer = "" if call is None else str(call.caller)
                self._tell(partial(_answer, "out", peer, frame.value, frame.refused))

    def _out(self, topic: str, peer: str, content: bytes, others: int = 0) -> None:
        self._tell(partial(_message, "out", topic, peer, content, others))

    def heard(self, topic: str, data: str | bytes) -> None:
        """See what the client of a connection has sent."""
        connection = self._node.connection(self.pid)
        target = "" if connection is None else str(connection.target)
        self._tell(partial(_heard, topic, target, data))


def _message(
    direction: str, topic: str, peer: str, content: bytes | memoryview, others: int = 0
) -> Passing:
    shown, size = content, len(content)
    if topic == SEND:
        with contextlib.suppress(ValueError, RecursionError):  # what the client will not get
            shown, size = _data(content)
    return Passing(direction, topic, peer, shown, size, others)


def _from_client(data: memoryview) -> Passing:
    frame = _decode_message(data)
    return Passing("in", frame.topic, frame.client, *_data(frame.payload))


def _relayed(frame: wire.RelayFrame) -> Passing:
    content = payload.pack(frame.payload)
    shown, size = _data(content) if "data" in frame.payload else (content, len(content))
    return Passing("in", frame.topic, frame.client, shown, size)


def _event(frame: wire.SignalFrame) -> Passing:
    told: dict[str, Any] = {}
    if frame.reason or frame.kind == CANCEL:
        told["reason"] = frame.reason
    if frame.result is not None:
        error = frame.result.error
        told["error"] = None if error is None else str(error)
    content = payload.pack(told)
    return Passing("in", frame.kind, frame.sender, content, len(content))


def _answer(direction: str, peer: str, value: bytes, refused: str | None) -> Passing:
    content = value if refused is None else payload.pack({"refused": refused})
    return Passing(direction, "answer", peer, content, len(content))


def _presence(frame: wire.PresenceFrame) -> Passing:
    content = payload.pack({"kind": frame.kind, "members": len(frame.members)})
    return Passing("in", "presence", f"group {frame.group}", content, len(content))


def _heard(topic: str, target: str, data: str | bytes) -> Passing:
    size = len(data.encode() if isinstance(data, str) else data)
    return Passing("out", topic, target, payload.pack(data[:_MOST_HEARD]), size)


def _data(content: bytes | memoryview | Raw) -> tuple[memoryview, int]:
    """Return the data of a message of a client or for one, and how many bytes that has."""
    data = memoryview(_decode_body(content).data)
    return data, len(data) - _PREAMBLES.get(data[0], 1)


class _TappedEndpoint:
    """Stands for a process or connection in the table of endpoints, and tells of its mail."""

    def __init__(self, endpoint: Endpoint, delivered: Callable[[Mail], None]) -> None:
        self.endpoint = endpoint
        self._delivered = delivered

    def __getattr__(self, name: str) -> Any:
        """Leave the rest to the endpoint."""
        return getattr(self.endpoint, name)

    @property
    def asked(self) -> EndRequest | None:
        """Who has asked it to end."""
        return self.endpoint.asked

    @asked.setter
    def asked(self, asked: EndRequest | None) -> None:
        self.endpoint.asked = asked

    def write_through(self, frame: bytes) -> bool:
        """Do nothing, so that it is delivered, which tells the sender."""
        del frame
        return False

    def deliver(self, mail: Mail) -> bool:
        """Deliver it and tell of it."""
        if not self.endpoint.deliver(mail):
            return False
        self._delivered(mail)
        return True
