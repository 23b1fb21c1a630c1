"""What a node keeps for its clients while they have not finished: the one book of it."""

from __future__ import annotations

from typing import Final

from .bounds import MOST, Bounds

__all__ = ["MAX_BUFFERED", "Buffered"]

MAX_BUFFERED: Final = Bounds(1, MOST, "1 byte or more", whole=True)
"""What the bound may be."""

_SMALL: Final = 16 * 1024
"""Bytes that each connection may keep all the same: a full book cuts no small message in two."""


class Buffered:
    """Bytes of messages, request bodies and responses that clients have begun, `most` in all.

    Whoever keeps some adds them to `size` and takes them off again.
    """

    __slots__ = ("most", "size")

    def __init__(self, most: int = 256 * 1024 * 1024) -> None:
        self.most = most
        self.size = 0

    @property
    def is_full(self) -> bool:
        """Whether nobody else is to begin."""
        return self.size >= self.most

    def refuses(self, kept: int) -> bool:
        """Whether a connection that keeps so much, which is counted already, keeps too much."""
        return self.size > self.most and kept > _SMALL
