"""A client's message as the `RelayFrame` that its target reads, made from parts.

It has the very bytes that `pack` makes of the frame. What is the same for all messages of a
connection is encoded once, and a text stays in the bytes in which the client has sent it. Only the
node imports this.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["relay_head", "relayed"]

_encode = msgspec.msgpack.Encoder().encode


def relay_head(topic: str, client: str) -> bytes:
    """Return what is the same in the frames of all messages of a client, for `relayed`."""
    return b"\x94\x03" + _encode(topic) + _encode(str(client)) + b"\x82\xa4type"


def relayed(head: bytes, content: bytes, is_text: bool) -> bytes:
    """Return the frame of a message, with its length first; the `content` of a text is UTF-8."""
    size = len(content)
    if size < _FEW:
        kind = _TEXTS[size] if is_text else _BINARIES[size]
    elif size < _MANY:
        kind = (_LONG_TEXT if is_text else _LONG_BINARY) + size.to_bytes(2, "big")
    else:
        kind = _preamble(size, is_text)
    return b"".join(((len(head) + len(kind) + size).to_bytes(4, "big"), head, kind, content))


def _preamble(size: int, is_text: bool) -> bytes:
    """Return what stands between the head and the content of a message of that size."""
    if is_text:
        first, kind = b"\xd9\xda\xdb", b"\xa4text\xa4data"
        if size < _SHORT_TEXT:
            return kind + bytes((0xA0 | size,))
    else:
        first, kind = b"\xc4\xc5\xc6", b"\xa6binary\xa4data"
    width = 0 if size < _FEW else 1 if size < _MANY else 2
    return kind + first[width : width + 1] + size.to_bytes(1 << width, "big")


_FEW: Final = 1 << 8
_MANY: Final = 1 << 16
"""Sizes from which on MessagePack writes them in two bytes, and in four."""

_SHORT_TEXT: Final = 32
"""Bytes of a text from which on its size takes a byte of its own."""

_TEXTS: Final = [_preamble(size, is_text=True) for size in range(_FEW)]
_BINARIES: Final = [_preamble(size, is_text=False) for size in range(_FEW)]
_LONG_TEXT: Final = _preamble(_FEW, is_text=True)[:-2]
_LONG_BINARY: Final = _preamble(_FEW, is_text=False)[:-2]
