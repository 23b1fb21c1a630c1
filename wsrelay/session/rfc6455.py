"""The frames of RFC 6455 that the relay's hot path deals with: whole messages in one frame.

Everything else (fragments, control frames, errors) is left to wsproto.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["BINARY", "CLOSE", "PING", "PONG", "TEXT", "frame", "head", "large_head"]

_FIN: Final = 0x80
TEXT: Final = _FIN | 0x1
BINARY: Final = _FIN | 0x2
CLOSE: Final = _FIN | 0x8
PING: Final = _FIN | 0x9
PONG: Final = _FIN | 0xA
"""First bytes of frames: FIN, no reserved bits, and the opcode (RFC 6455 section 5.2)."""

_MASKED: Final = 0x80
_TWO_BYTES: Final = 126
"""From this size on, the size is held by two further bytes, or by eight."""

_longer = struct.Struct(">BBH").pack
_longest = struct.Struct(">BBQ").pack
_HEADS: Final = {
    first: [bytes((first, size)) for size in range(_TWO_BYTES)]
    for first in (TEXT, BINARY, PING, PONG)
}


def frame(first: int, data: bytes) -> bytes:
    """Return a server's frame: `first` is its first byte, and the payload is not masked."""
    size = len(data)
    if size < _TWO_BYTES:
        return _HEADS[first][size] + data
    if size < 1 << 16:
        return _longer(first, _TWO_BYTES, size) + data
    return large_head(first, size) + data


def large_head(first: int, size: int) -> bytes:
    """Return what precedes the payload of a server's frame, which has 64 KiB or more."""
    return _longest(first, _TWO_BYTES + 1, size)


def head(data: bytes | bytearray, start: int, end: int) -> tuple[int, int, bool] | None:
    """Return the sizes of the header (mask included) and of the payload of a client's frame.

    The third item is whether the header is as RFC 6455 requires: masked, and with the size in as
    few bytes as possible. The frame begins at `start` and the received bytes end at `end`. Returns
    None if the header is not complete.
    """
    if end - start < 2:  # noqa: PLR2004 - the shortest header
        return None
    size = data[start + 1]
    is_right = size >= _MASKED
    size &= 0x7F
    header = 6 if is_right else 2
    if size >= _TWO_BYTES:
        extended, least = (2, _TWO_BYTES) if size == _TWO_BYTES else (8, 1 << 16)
        header += extended
        size = int.from_bytes(data[start + 2 : start + 2 + extended], "big")
        is_right = is_right and size >= least
    return (header, size, is_right) if end - start >= header else None
