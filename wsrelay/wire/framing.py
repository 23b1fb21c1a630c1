"""Frames as bytes: packing them, taking them apart, and the bounds that hold before decoding.

A frame on a pipe is its length (4 bytes, big endian) and its body (`frames`).
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Meta, Raw

from wsrelay.errors import PayloadError, WireError
from wsrelay.values.pid import PID

from . import payload
from .frames import (
    MAX_FRAME,
    MAX_HEAD,
    MAX_RECEIVERS,
    Frame,
    FromTemplate,
    FromWorker,
    SendFrame,
    Text,
    ToTemplate,
    ToWorker,
)

__all__ = [
    "SMALL",
    "FrameReader",
    "check_head",
    "check_size",
    "decode_to_worker",
    "encode_frame",
    "encoded",
    "from_template",
    "from_worker",
    "pack",
    "pack_request",
    "portions",
    "to_template",
    "to_worker",
]

_MOST_ELEMENTS: Final = MAX_RECEIVERS + 100
"""Elements in the head of a frame."""

SMALL: Final = 64 * 1024
"""Bytes of a frame that is decoded without a check: it takes at most 4 MB, for a moment."""

_WRAPPING: Final = MAX_HEAD
"""Bytes that the node may add to what a worker has written when passing it on."""

_LONGEST_FROM_TEMPLATE: Final = 1024 * 1024
"""Bytes of a template's frame; templates cut theirs to less."""

_PREFIX: Final = 4
"""Bytes of a frame's length."""

_HEADER: Final = 3
"""Bytes of the length of a text of up to 64 KB, at most."""

_LONGEST_CHARACTER: Final = 4
"""Bytes of one character in UTF-8, at most."""

_ROOM_FOR_RECEIVERS: Final = MAX_HEAD - 64 * 1024
"""Bytes that the receivers of a frame may take besides its topic and its own parts."""


class _LargeSendFrame(Frame, tag=1):
    """A `SendFrame` whose payload is decoded as a part of the frame, not as a copy."""

    to: Text | Annotated[list[Text], Meta(max_length=MAX_RECEIVERS)]
    topic: Text
    payload: memoryview


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


encode_frame = msgspec.msgpack.Encoder(enc_hook=_plain).encode
"""Encodes a frame without its length."""


def pack(frame: Frame) -> bytes:
    """Return the bytes of a frame, with its length first."""
    body = encode_frame(frame)
    return len(body).to_bytes(_PREFIX, "big") + body


def encoded(frame: F) -> F:
    """Encode a frame once; the returned value stands for it inside other frames."""
    return cast("F", Raw(encode_frame(frame)))


def pack_request(frame: Frame) -> bytes:
    """Return the bytes of a worker's frame after checking that the node can read them.

    Raises `PayloadError`: a wrong argument of user code (such as a name that is not text) must fail
    at its caller, and not as garbage at the node, which would end the worker.
    """
    try:
        body = encode_frame(frame)
        if type(frame) is not SendFrame:  # its fields have been checked already
            if len(body) > SMALL:
                check_head(body)
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


def check_head(body: bytes | memoryview) -> None:
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
        self._small = min(SMALL, self._longest)
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
                if size > SMALL and self._bounded:
                    check_head(body)
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
            if size > SMALL and self._bounded:
                check_head(body)
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
