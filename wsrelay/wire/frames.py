"""The frames between the node and its workers, and between the node and its templates.

A frame on a pipe is its length (4 bytes, big endian) followed by one MessagePack array whose first
item is the frame's tag. Payloads travel inside as bytes of MessagePack, which the node forwards
without looking at them. Everything else that a worker writes is bounded before it is decoded, each
field by its type and all of them together by `MAX_HEAD`.
"""

from __future__ import annotations

import functools
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, Raw, Struct

from wsrelay.errors import PayloadError, WireError
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import LONGEST, PID
from wsrelay.values.rights import Rights

from . import payload

__all__ = [
    "INTERRUPT",
    "LONGEST_TARGET",
    "MAX_FRAME",
    "MAX_HEAD",
    "MAX_RECEIVERS",
    "PIPE_CLOSED",
    "WINDOW",
    "AckFrame",
    "AttachFrame",
    "BroadcastFrame",
    "CancelFrame",
    "CatalogFrame",
    "CloseInboxFrame",
    "DeliverFrame",
    "DetachFrame",
    "DoneFrame",
    "DrainFrame",
    "ExecFrame",
    "ExitedFrame",
    "FinishedFrame",
    "ForkFailedFrame",
    "ForkFrame",
    "ForkedFrame",
    "Frame",
    "FrameReader",
    "FromTemplate",
    "FromWorker",
    "GetOrSpawnFrame",
    "InterruptFrame",
    "JoinGroupFrame",
    "KillFrame",
    "LeaveGroupFrame",
    "LoadFailedFrame",
    "LoadedFrame",
    "LogFrame",
    "LookupFrame",
    "MembersFrame",
    "PackedResult",
    "ReadyFrame",
    "RegisterFrame",
    "RelateFrame",
    "RelayFrame",
    "ReplyFrame",
    "Request",
    "SendFrame",
    "SignalFrame",
    "SpawnFrame",
    "StartFrame",
    "TerminateFrame",
    "ToTemplate",
    "ToWorker",
    "TrapLinksFrame",
    "UnregisterFrame",
    "WorkerError",
    "check_size",
    "decode_to_worker",
    "encoded",
    "from_template",
    "from_worker",
    "pack",
    "pack_request",
    "portions",
    "to_template",
    "to_worker",
]

MAX_FRAME: Final = 64 * 1024 * 1024
"""Bytes of the largest frame; a greater length is garbage, not a message."""

MAX_HEAD: Final = 1024 * 1024
"""Bytes of a worker's frame besides payloads and code: the part that the node decodes."""

MAX_RECEIVERS: Final = 10_000
"""Receivers of one frame; a message for more is written as several frames."""

_MOST_ELEMENTS: Final = MAX_RECEIVERS + 100
"""Elements in the head of a frame."""

_SMALL: Final = 64 * 1024
"""Bytes of a frame that is decoded without a check: it takes at most 4 MB, for a moment."""

_WRAPPING: Final = MAX_HEAD
"""Bytes that the node may add to what a worker has written when passing it on."""

_LONGEST_FROM_TEMPLATE: Final = 1024 * 1024
"""Bytes of a template's frame; templates cut theirs to less."""

WINDOW: Final = 128 * 1024
"""Bytes of data frames that the node sends ahead of what the worker has acknowledged."""

PIPE_CLOSED: Final = 237
"""The exit code of a worker that cannot say how it ended because its handler closed its pipe."""

INTERRUPT: Final[int] = getattr(signal, "SIGRTMAX", signal.SIGURG)
"""The signal that interrupts a handler; not a frame, since the handler may never read its pipe.

It is the last of the real-time signals, which programs and libraries hardly use; where there are
none (macOS), it is a signal that is ignored by default.
"""


Text = Annotated[str, Meta(max_length=LONGEST)]
"""A PID, a name, a group, a topic, a host, a reason."""

LONGEST_TARGET: Final = 8 * 1024
"""Characters of a target, which may be a path."""

TargetText = Annotated[str, Meta(max_length=LONGEST_TARGET)]

ErrorText = Annotated[str, Meta(max_length=128 * 1024)]
"""An error's line, a traceback."""

Record = Annotated[str, Meta(max_length=512 * 1024)]
"""A log record's text."""


class Frame(Struct, array_like=True, forbid_unknown_fields=True):
    """Base of all frames."""


class WorkerError(Struct):
    """An `ExitError` as a worker reports it, with bounds."""

    kind: ExitKind
    message: ErrorText
    traceback: ErrorText | None = None

    def told(self) -> ExitError:
        """Return it as an `ExitError`."""
        return ExitError(self.kind, self.message, self.traceback)


class PackedResult(Struct):
    """A `Result` as the node reports it: `value` is MessagePack, which the receiver decodes."""

    value: bytes
    error: ExitError | None = None

    @classmethod
    def of(cls, result: Result) -> PackedResult:
        """Make it from a result; that of a worker has a `Raw` value, as the worker wrote it."""
        value = result.value
        if type(value) is Raw:  # up to 64 MB, possibly for many watchers: encode without a copy
            return cls(cast("bytes", memoryview(value)), result.error)
        return cls(payload.pack(value), result.error)

    def opened(self) -> Result:
        """Return the result; a value that is not data, which no worker of ours writes, is None."""
        try:
            return Result(payload.decode(self.value), self.error)
        except (ValueError, RecursionError):
            return Result(None, self.error)


# Node to worker. Data frames (Deliver to CloseInbox) keep their order and wait until the worker has
# room; the others go ahead of them.


class CatalogFrame(Frame, tag=9):
    """What can be spawned: the hosts, and the ids of entries, each with its host if it has one."""

    hosts: list[str]
    entries: dict[str, str | None]

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry whose id is `target`, or None if there is no such entry.

        An entry without a host belongs to the first host.
        """
        if target is None or target not in self.entries:
            return None
        return self.entries[target] or self.hosts[0]


class StartFrame(Frame, tag=0):
    """First frame to a fresh worker: its identity and what it runs.

    `target` is text (see `targets`) or None. With None, `code` is the cloudpickle of
    `(function, args, kwargs)`; with a target it is that of `(args, kwargs)` or empty, or, if
    `plain`, their MessagePack. `title` is what `ps` shows. `rights` are those of a walled-in host.
    """

    pid: str
    ids: str
    known: CatalogFrame
    target: str | None
    code: bytes
    log_level: int
    title: str
    plain: bool = False
    rights: Rights | None = None


class DeliverFrame(Frame, tag=1):
    """A message from another process."""

    topic: str
    sender: str
    payload: bytes


class AttachFrame(Frame, tag=2):
    """From here on, `metadata` belongs to each message relayed from this client."""

    client: str
    metadata: Raw


class RelayFrame(Frame, tag=3):
    """A message from the relay; the worker adds `client_pid` and the client's metadata to it."""

    topic: str
    client: str
    payload: dict[str, Any]


class DetachFrame(Frame, tag=4):
    """The client's last relayed message has been sent, so its metadata can be dropped."""

    client: str


class CloseInboxFrame(Frame, tag=5):
    """No message follows."""


class SignalFrame(Frame, tag=6):
    """An event; overtakes data."""

    kind: str
    sender: str
    reason: str = ""
    result: PackedResult | None = None


class FinishedFrame(Frame, tag=8):
    """The process that the `ExecFrame` of the same `ref` started has ended."""

    ref: int
    result: PackedResult


class ReplyFrame(Frame, tag=7):
    """The answer to the request with the same `ref`: a value, or the error's class and message."""

    ref: int
    value: Any = None
    error: str | None = None
    message: str = ""


# Worker to node.


class ReadyFrame(Frame, tag=0):
    """The handler is loaded and about to be called."""


class SendFrame(Frame, tag=1):
    """One message for one process or name, or for many."""

    to: Text | Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]
    topic: Text
    payload: bytes


class _LargeSendFrame(Frame, tag=1):
    """A `SendFrame` whose payload is decoded as a part of the frame, not as a copy."""

    to: Text | Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]
    topic: Text
    payload: memoryview


class SpawnFrame(Frame, tag=2):
    """Start a process under the PID that the worker made; the target is as in `StartFrame`."""

    pid: Text
    host: Text
    target: TargetText | None
    code: bytes
    monitored: bool = False
    linked: bool = False
    plain: bool = False


class GetOrSpawnFrame(Frame, tag=3):
    """Find the process of that name, or start this one; answered with `ReplyFrame`."""

    ref: int
    name: Text
    spawn: SpawnFrame


class CancelFrame(Frame, tag=4):
    """Ask a process to end."""

    to: Text
    reason: Text


class TerminateFrame(Frame, tag=5):
    """End a process at once."""

    to: Text


class AckFrame(Frame, tag=6):
    """The total of bytes of data frames taken from the channels: there is room for more.

    It is a running total, so that a frame that comes twice, too late or never does no harm.
    """

    total: int


class LogFrame(Frame, tag=7):
    """A record of the worker's `logging`, or of the template's.

    `extra` is a map; `level_name` is empty for the standard levels of `logging`. `printed` is how
    many bytes of its output were waiting to be read when it logged this: they come first.
    """

    level: int
    logger: Text
    text: Record
    extra: Raw = Raw(b"\x80")
    level_name: Text = ""
    printed: int = 0


class DoneFrame(Frame, tag=8):
    """The worker's last frame: what the handler returned or raised.

    `received` counts the data frames that arrived; `unread` lists the clients whose `ws.join` was
    among them and was never read.
    """

    value: bytes
    error: WorkerError | None
    received: int
    unread: Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]


class ExecFrame(Frame, tag=9):
    """Start a process and answer with `FinishedFrame` when it has ended."""

    ref: int
    spawn: SpawnFrame


class RelateFrame(Frame, tag=10):
    """Begin or end a relation to another process."""

    kind: Literal["monitor", "unmonitor", "link", "unlink"]
    to: Text


class TrapLinksFrame(Frame, tag=11):
    """Choose between getting LINK_DOWN and being ended."""

    trap: bool


class RegisterFrame(Frame, tag=12):
    """Give a process a name; answered with `ReplyFrame`."""

    ref: int
    name: Text
    pid: Text


class LookupFrame(Frame, tag=13):
    """Ask for the process of a name; answered with `ReplyFrame`."""

    ref: int
    name: Text


class UnregisterFrame(Frame, tag=14):
    """Free a name; answered with `ReplyFrame`."""

    ref: int
    name: Text


class JoinGroupFrame(Frame, tag=15):
    """Let a process join a group."""

    group: Text
    to: Text


class LeaveGroupFrame(Frame, tag=16):
    """Let a process leave a group."""

    group: Text
    to: Text


class MembersFrame(Frame, tag=17):
    """Ask for a group's members; answered with `ReplyFrame`."""

    ref: int
    group: Text


class BroadcastFrame(Frame, tag=18):
    """One message for all members of a group."""

    group: Text
    topic: Text
    payload: bytes


class DrainFrame(Frame, tag=19):
    """Ask for a `ReplyFrame` when most of what was sent to a connection is on its way.

    `waits` is false when nobody is waiting for it any more.
    """

    ref: int
    to: Text
    waits: bool = True


# Node to template. `ForkFrame` carries descriptors: the worker's ends of its pipes.


class ForkFrame(Frame, tag=0):
    """Fork a worker; `ref` is the node's number for it."""

    ref: int


class KillFrame(Frame, tag=1):
    """SIGKILL the worker's process group."""

    ref: int


class InterruptFrame(Frame, tag=2):
    """Send the worker `INTERRUPT`, for a node that has no pidfd to do so itself."""

    ref: int


# Template to node.


class LoadedFrame(Frame, tag=0):
    """Preloading succeeded."""


class LoadFailedFrame(Frame, tag=1):
    """Preloading failed: one line, and the traceback of the user's code or an empty string."""

    message: str
    details: str


class ForkedFrame(Frame, tag=2):
    """The worker runs; `has_pidfd` says that the platform has pidfds."""

    ref: int
    os_pid: int
    has_pidfd: bool


class ForkFailedFrame(Frame, tag=3):
    """The operating system refused to fork."""

    ref: int
    message: str


class ExitedFrame(Frame, tag=4):
    """The worker was reaped; `code` as in `subprocess`: negative for a signal."""

    ref: int
    code: int


ToWorker = (
    StartFrame
    | DeliverFrame
    | AttachFrame
    | RelayFrame
    | DetachFrame
    | CloseInboxFrame
    | SignalFrame
    | ReplyFrame
    | FinishedFrame
    | CatalogFrame
)
Request = (
    GetOrSpawnFrame | RegisterFrame | LookupFrame | UnregisterFrame | MembersFrame | DrainFrame
)
FromWorker = (
    ReadyFrame
    | SendFrame
    | SpawnFrame
    | CancelFrame
    | TerminateFrame
    | AckFrame
    | LogFrame
    | DoneFrame
    | ExecFrame
    | RelateFrame
    | TrapLinksFrame
    | JoinGroupFrame
    | LeaveGroupFrame
    | BroadcastFrame
    | Request
)
ToTemplate = ForkFrame | KillFrame | InterruptFrame
FromTemplate = (
    LoadedFrame | LoadFailedFrame | ForkedFrame | ForkFailedFrame | ExitedFrame | LogFrame
)

_PREFIX: Final = 4
"""Bytes of a frame's length."""

_HEADER: Final = 3
"""Bytes of the length of a text of up to 64 KB, at most."""

_LONGEST_CHARACTER: Final = 4
"""Bytes of one character in UTF-8, at most."""

_ROOM_FOR_RECEIVERS: Final = MAX_HEAD - 64 * 1024
"""Bytes that the receivers of a frame may take besides its topic and its own parts."""

_length = struct.Struct(">I").unpack_from
_decode_request = msgspec.msgpack.Decoder(FromWorker).decode
_decode_large_send = msgspec.msgpack.Decoder(_LargeSendFrame).decode

_SEND: Final = SendFrame.__struct_config__.tag
"""The second byte of a message's frame, behind the length of the array."""

T = TypeVar("T")
F = TypeVar("F", bound="Frame")


def _plain(value: Any) -> str:
    """Encode a PID: msgspec refuses subclasses of str. Hot paths pass plain text already."""
    if isinstance(value, PID):
        return str(value)
    raise TypeError(f"a frame cannot hold {value!r}")


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


def pack(frame: Frame) -> bytes:
    """Return the bytes of a frame, with its length first."""
    body = _encode(frame)
    return len(body).to_bytes(_PREFIX, "big") + body


def encoded(frame: F) -> F:
    """Encode a frame once; the returned value stands for it inside other frames."""
    return cast("F", Raw(_encode(frame)))


def pack_request(frame: Frame) -> bytes:
    """Return the bytes of a worker's frame after checking that the node can read them.

    Raises `PayloadError`: a wrong argument of user code (such as a name that is not text) must fail
    at its caller, and not as garbage at the node, which would end the worker.
    """
    try:
        body = _encode(frame)
        if type(frame) is not SendFrame:  # its fields have been checked already
            if len(body) > _SMALL:
                _check_head(body)
            _decode_request(body)
    except (TypeError, ValueError, OverflowError) as error:
        kind = type(frame).__name__.removesuffix("Frame")
        raise PayloadError(f"{kind} cannot be sent to the node: {error}") from None
    data = len(body).to_bytes(_PREFIX, "big") + body
    check_size(len(data))
    return data


def check_size(size: int) -> None:
    """Raise `PayloadError` for more bytes than a message may hold."""
    if size > MAX_FRAME:
        raise PayloadError(f"{size} bytes are more than a message may hold, {MAX_FRAME}")


def portions(receivers: list[str]) -> Iterator[list[str]]:
    """Yield the receivers in portions that each fit into a frame."""
    count, characters = len(receivers), sum(map(len, receivers))
    if (
        count <= MAX_RECEIVERS
        and count * _HEADER + characters * _LONGEST_CHARACTER <= _ROOM_FOR_RECEIVERS
    ):
        yield receivers
        return
    portion: list[str] = []
    room = _ROOM_FOR_RECEIVERS
    for receiver in receivers:
        size = _HEADER + len(receiver) * (1 if receiver.isascii() else _LONGEST_CHARACTER)
        if portion and (len(portion) == MAX_RECEIVERS or size > room):
            yield portion
            portion, room = [], _ROOM_FOR_RECEIVERS
        portion.append(receiver)
        room -= size
    yield portion


def _check_head(body: bytes | memoryview) -> None:
    """Raise `ValueError` for a frame that would become too large when decoded."""
    size = payload.size_to_decode(body, _MOST_ELEMENTS)
    if size > MAX_HEAD:
        raise ValueError(f"it has {size} bytes besides the payload, at most {MAX_HEAD} are allowed")


@functools.cache
def _decoder(kind: Any) -> Callable[[bytes | memoryview], Any]:
    """Return the decoder for frames of a kind; made once, before any fork, since it is large."""
    return msgspec.msgpack.Decoder(kind).decode


class FrameReader(Generic[T]):
    """Takes bytes as they come off a pipe and returns frames.

    Call `feed` with what was read; it returns `(frame, size in bytes)` for each complete frame. For
    bytes that are not a frame of the expected kind it raises `WireError`: at once, or in the next
    call if there were frames before them to return. `feed(b"")` is such a call.

    Of a frame that is larger than one read, the rest can be read straight into `space()`. What was
    read into it is fed like everything else, and is not copied.
    """

    def __init__(
        self,
        kind: Any,
        *,
        limit: int = MAX_FRAME,
        bounded: bool = False,
        decode_large: Callable[[memoryview], T] | None = None,
    ) -> None:
        self._decode = _decoder(kind)
        self._decode_large = decode_large or self._decode
        """Decodes what was read into `space()`."""
        self._bounded = bounded
        """Whether bounds are checked before decoding."""
        self._longest = limit + _PREFIX
        self._small = min(_SMALL, self._longest)
        self.rest: bytes | bytearray = b""
        """Bytes that were read of frames that have not been returned yet."""
        self._space: memoryview | None = None
        """The end of `rest` that is still to be read, if there is room for the whole frame."""
        self.wanted = 0
        """Size in bytes of the frame that has begun, or 0 until its length is known."""

    @property
    def partial(self) -> int:
        """Bytes held that have not been returned as frames."""
        return len(self.rest) - len(self._space or b"")

    @property
    def missing(self) -> int:
        """Bytes that this frame still lacks, as far as is known."""
        return max(self.wanted - self.partial, 0)

    def drop(self) -> None:
        """Forget the incomplete frame: the rest of it will not come."""
        self.rest, self._space, self.wanted = b"", None, 0

    def one(self, data: bytes | memoryview) -> T | None:
        """Return the frame if these bytes are one small frame and nothing else, and none is held.

        Otherwise it returns None, having done nothing, and `feed` takes the bytes. Most reads bring
        one such frame, which `feed` would return in a list.
        """
        size = len(data)
        if self.rest or not _PREFIX < size <= self._small or _length(data)[0] != size - _PREFIX:
            return None
        try:
            frame: T = self._decode(data[_PREFIX:])
        except (ValueError, RecursionError):
            return None  # `feed` says what is wrong with it
        return frame

    def space(self) -> memoryview:
        """Return where the rest of the frame that has begun belongs, and take memory for all of it.

        From then on, `feed` takes only the beginning of it, once something has been read into that.
        """
        if self._space is None:
            whole, read = bytearray(self.wanted), len(self.rest)
            whole[:read] = self.rest
            self.rest, self._space = whole, memoryview(whole)[read:]
        return self._space

    def feed(self, data: bytes | memoryview, most: int = sys.maxsize) -> list[tuple[T, int]]:
        """Add bytes that were read and return at most `most` of the frames that are now complete.

        If there may be more, call `feed(b"")` to get them. If a signal handler raises in here,
        nothing has been added, and the same bytes can be fed again.
        """
        if self.rest:
            if self._space is not None:
                return self._feed_space(len(data))
            if len(self.rest) + len(data) < self.wanted:
                self.rest += data
                return []
            # A copy, because a Raw inside a frame must not pin a buffer that still grows.
            data = b"".join((self.rest, data))
        frames: list[tuple[T, int]] = []
        start, end, wanted = 0, len(data), 0
        problem = ""
        while end - start >= _PREFIX and len(frames) < most:
            size = _length(data, start)[0] + _PREFIX
            if size > self._longest:
                problem = f"at most {self._longest - _PREFIX} are allowed"
                break
            stop = start + size
            if stop > end:
                wanted = size
                break
            body = data[start + _PREFIX : stop]
            try:
                if size > _SMALL and self._bounded:
                    _check_head(body)
                frames.append((self._decode(body), size))
            except (ValueError, RecursionError) as error:
                problem = str(error)
                break
            start = stop
        rest = bytearray(data[start:]) if start < end else b""
        self.rest, self.wanted = rest, wanted
        if problem and not frames:
            raise _not_a_frame(size, problem)
        return frames

    def _feed_space(self, read: int) -> list[tuple[T, int]]:
        """Go on after so many bytes have been read into `space()`."""
        assert self._space is not None  # noqa: S101 - checked before
        space, size = self._space[read:], self.wanted
        if space:
            self._space = space
            return []
        body = memoryview(self.rest)[_PREFIX:]
        try:
            if size > _SMALL and self._bounded:
                _check_head(body)
            frames = [(self._decode_large(body), size)]
        except (ValueError, RecursionError) as error:
            raise _not_a_frame(size, str(error)) from None
        self.rest, self._space, self.wanted = b"", None, 0
        return frames


def _not_a_frame(size: int, problem: str) -> WireError:
    return WireError(f"{size - _PREFIX} bytes are not a frame: {problem}")


def from_worker() -> FrameReader[FromWorker]:
    """Make the node's reader for a worker's pipe."""
    return FrameReader(FromWorker, bounded=True, decode_large=_decode_large_request)


def _decode_large_request(body: memoryview) -> FromWorker:
    """Decode a worker's frame; the payload of a message stays in it, if it is most of the frame."""
    if body[1] != _SEND:
        other: FromWorker = _decode_request(body)
        return other
    frame = _decode_large_send(body)
    content = frame.payload
    is_most = 2 * len(content) > len(body)  # otherwise it would keep more memory than is counted
    return SendFrame(frame.to, frame.topic, cast("bytes", content) if is_most else bytes(content))


def to_worker() -> FrameReader[ToWorker]:
    """Make the worker's reader for its pipe."""
    return FrameReader(ToWorker, limit=MAX_FRAME + _WRAPPING)


def from_template() -> FrameReader[FromTemplate]:
    """Make the node's reader for a template's control socket; log records are the longest."""
    return FrameReader(FromTemplate, limit=_LONGEST_FROM_TEMPLATE)


def to_template() -> FrameReader[ToTemplate]:
    """Make the template's reader for its control socket."""
    return FrameReader(ToTemplate)


decode_to_worker: Callable[[bytes | memoryview], ToWorker] = _decoder(ToWorker)
"""Decodes what follows the length of a worker's frame; raises `msgspec.MsgspecError`."""

for _kind in (FromWorker, FromTemplate, ToTemplate):
    _decoder(_kind)
