"""The account of what a node holds for clients that have not finished a message or request."""

from __future__ import annotations

from typing import Final

from .bounds import MOST, Bounds

__all__ = ["MAX_BUFFERED", "Buffered"]

MAX_BUFFERED: Final = Bounds(1, MOST, "1 byte or more", whole=True)
"""The bounds of the option."""

_SMALL: Final = 16 * 1024
"""Bytes that each connection may hold in any case, so that small messages are not cut in two."""


class Buffered:
    """Bytes of messages, request bodies and responses that are unfinished, at most `most` in all.

    Code that holds some adds them to `size` and subtracts them again.
    """

    __slots__ = ("most", "refused", "size")

    def __init__(self, most: int = 256 * 1024 * 1024) -> None:
        self.most = most
        self.size = 0
        self.refused = 0
        """How often somebody held too much."""

    @property
    def is_full(self) -> bool:
        """Whether nothing new may begin."""
        return self.size >= self.most

    def refuses(self, kept: int) -> bool:
        """Whether a connection that holds `kept` bytes, which `size` includes, holds too much."""
        if self.size > self.most and kept > _SMALL:
            self.refused += 1
            return True
        return False
