"""Masked payloads of clients (RFC 6455 section 5.3), which only our own front end reads."""

from __future__ import annotations

from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # where the wheel was built without a C compiler
    from websockets.utils import apply_mask

__all__ = ["apply_mask", "unmask"]

_LARGE: Final = 4096
"""Size in bytes from which a payload is unmasked in place instead of being copied first."""


def unmask(data: bytes | bytearray, start: int, end: int) -> bytes:
    """Return the payload that is masked between `start` and `end`; the mask precedes it."""
    mask = bytes(data[start - 4 : start])
    if end - start < _LARGE:
        return apply_mask(data[start:end], mask)
    with memoryview(data) as view:
        return apply_mask(view[start:end], mask)
