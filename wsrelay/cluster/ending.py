"""The end of a link before that of its nodes: both sides come to know of it, whatever is lost.

A node that gets what no node of ours writes ends the link, and takes the other one for gone. It
says so until the other node has done the same: one that went on by itself would wait for ever for
what never comes. Such publishes are not numbered, and stand beside those of `link`:

    END    and why: I have ended the link; end it too
    ENDED  I have

Until one of the two nodes is another incarnation, the link stays ended.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["END", "Ending", "why_ended"]

END: Final = b"\x10"
_ENDED: Final = b"\x11"
"""What such publishes begin with: no kind of `link` does."""

_EVERY: Final = 1.0
"""Seconds from one time that it is said to the next."""

_LONGEST: Final = 400
"""Bytes of the reason."""


def why_ended(publish: bytes) -> str:
    """Return the reason in a publish that begins with `END`."""
    return publish[1 : 1 + _LONGEST].decode(errors="replace")


class Ending:
    """One side of a link that has ended; `is_told` if the other side has said so first.

    It has no part in connections: call `flush` only while the bus is connected.
    """

    def __init__(self, why: str, *, is_told: bool) -> None:
        self._end = END + why.encode(errors="replace")[:_LONGEST]
        self._says_at = math.inf if is_told else -math.inf
        self._confirms = is_told

    def received(self, publish: bytes) -> None:
        """Take a publish of the other node."""
        if publish[:1] in (END, _ENDED):
            self._says_at = math.inf
            self._confirms |= publish[:1] == END

    def flush(self, now: float) -> list[bytes]:
        """Return what to publish now."""
        publishes = [_ENDED] if self._confirms else []
        self._confirms = False
        if now >= self._says_at:
            publishes.append(self._end)
            self._says_at = now + _EVERY
        return publishes

    def due(self) -> float | None:
        """Return when `flush` has something to publish: a time that may be over, or None."""
        due = -math.inf if self._confirms else self._says_at
        return due if due < math.inf else None
