"""Payloads: plain data to MessagePack and back."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from wsrelay.errors import PayloadError
from wsrelay.values import misfits
from wsrelay.values.misfits import as_built_in

__all__ = ["decode", "decode_bounded", "encode", "is_plain", "pack", "size_to_decode", "writable"]

_FLAT = (str, bytes)


def encode(payload: Any, what: str = "payload") -> bytes:
    """Encode a payload; raises `PayloadError`, which names the offending type and its place.

    The result is decoded as a trial, because a payload must not fail at its receiver (a dataclass
    as a key would, and so would msgspec's own raw types).
    """
    try:
        data = _encoder.encode(payload)
        if not is_plain(payload):
            decode(data)
    except misfits.ERRORS as error:
        where, problem = misfits.find(payload, what, _encodes)
        raise PayloadError(f"{where}: {problem or error}") from None
    return data


def is_plain(payload: Any) -> bool:
    """Whether it has the form of a `ws.send`, which is known to be data without a trial."""
    return (
        type(payload) is dict
        and len(payload) == 2  # noqa: PLR2004 - `type` and `data`
        and type(payload.get("type")) is str
        and type(payload.get("data")) in _FLAT
    )


_encoder = msgspec.msgpack.Encoder(enc_hook=as_built_in)

pack = _encoder.encode
"""Encode what is known to be data, without the trial of `encode`."""


def writable(text: Any, what: str) -> str:
    """Return text that fits into a frame; raises `PayloadError`, which says what is wrong."""
    if not isinstance(text, str):
        raise PayloadError(f"{what}: {text!r:.80} is not text")
    if not _encodes(text):
        raise PayloadError(f"{what}: {misfits.problem(text)}")
    return text


def _no_extension(code: int, _: memoryview) -> Any:
    raise ValueError(f"MessagePack extension {code} is not data")


decode = msgspec.msgpack.Decoder(ext_hook=_no_extension).decode

# The size of what is decoded: an empty array is one byte, and 56 bytes and a pointer once decoded

MOST_ELEMENTS: Final = 1024 * 1024
"""Elements of a payload that is decoded outside its receiver; they take at most 80 MB."""

_WIDTHS: Final = {
    **dict.fromkeys(b"\xc4\xc7\xd9", 1),
    **dict.fromkeys(b"\xc5\xc8\xda", 2),
    **dict.fromkeys(b"\xc6\xc9\xdb", 4),
}
"""How many bytes hold the length of bytes, extensions and strings, by first byte."""

_BYTES: Final = b"\xc4\xc5\xc6"
_EXTENSIONS: Final = b"\xc7\xc8\xc9"


def _element_sizes() -> bytes:
    """Return the sizes of elements (of containers: of the head) by first byte; 0: see `_WIDTHS`."""
    sizes = bytearray([1] * 256)
    sizes[0xA0:0xC0] = range(1, 33)
    sizes[0xC4:0xE0] = bytes(
        [0, 0, 0, 0, 0, 0, 5, 9, 2, 3, 5, 9, 2, 3, 5, 9, 3, 4, 6, 10, 18, 0, 0, 0, 3, 5, 3, 5]
    )
    return bytes(sizes)


_SIZES: Final = _element_sizes()


def size_to_decode(data: bytes | memoryview, most: int) -> int:
    """Return how many bytes of the data become objects: all but the content of bytes objects.

    Raises `ValueError` for more than `most` elements. Nothing is decoded: MessagePack is a flat
    sequence of elements, however they are nested.
    """
    at = size = count = 0
    end = len(data)
    while at < end:
        if count == most:
            raise ValueError(f"it has more than {most:,} elements")
        count += 1
        first = data[at]
        step = _SIZES[first]
        if not step:
            width = _WIDTHS[first]
            step = 1 + width + (first in _EXTENSIONS)
            content = int.from_bytes(data[at + 1 : at + 1 + width], "big")
            at += content
            if first not in _BYTES:
                size += content
        at += step
        size += step
    return size


def decode_bounded(data: bytes | memoryview) -> Any:
    """Decode what a stranger wrote; also raises `ValueError` for more than `MOST_ELEMENTS`."""
    if len(data) > MOST_ELEMENTS:  # each has at least one byte
        size_to_decode(data, MOST_ELEMENTS)
    return decode(data)


def _encodes(value: Any) -> bool:
    try:
        decode(_encoder.encode(value))
    except misfits.ERRORS:
        return False
    return True
