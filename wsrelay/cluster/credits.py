"""Credits for what the clients of a node send to one process of another node.

What is under way is bounded by stopping the clients, and only those of that process. Both sides
count bytes in running totals, so that a total that comes late, twice or never does no harm.

    sender                         receiver
    sent(size)  ── messages ──>    received(size)
    granted(total) <── total ──    due(), when the process has room
"""

from __future__ import annotations

from typing import Final

from wsrelay.errors import WireError
from wsrelay.values.sizes import ITEM

__all__ = ["CREDIT", "Credit", "Receipts"]

CREDIT: Final = 64 * 1024
"""Bytes on their way from one node to one process, from which on its clients there are not read."""

_PART: Final = CREDIT // 4
"""Bytes that are passed on before that is told; what is not told yet waits for nobody."""


class Credit:
    """The sender's side; a message may be larger than the credit, and is sent if there is any."""

    __slots__ = ("_granted", "_sent")

    def __init__(self) -> None:
        self._sent = self._granted = 0

    @property
    def is_used(self) -> bool:
        """Whether nothing more should be sent."""
        return self._sent - self._granted >= CREDIT

    @property
    def waiting(self) -> int:
        """Bytes that are known not to have been passed on yet."""
        return max(self._sent - self._granted - _PART, 0)

    def sent(self, size: int) -> None:
        """Count a message of so many bytes."""
        self._sent += size + ITEM

    def granted(self, total: int) -> None:
        """Handle a total of the receiver; raises `WireError` for more than was sent."""
        if total > self._sent:
            raise WireError(f"a credit for {total} bytes came, but {self._sent} were sent")
        self._granted = max(self._granted, total)


class Receipts:
    """The receiver's side."""

    __slots__ = ("_received", "_told")

    def __init__(self) -> None:
        self._received = self._told = 0

    def received(self, size: int) -> None:
        """Count a message of so many bytes."""
        self._received += size + ITEM

    def due(self) -> int | None:
        """Return the total to tell the sender, None for nothing yet; called while there is room."""
        if self._received - self._told < _PART:
            return None
        self._told = self._received
        return self._told
