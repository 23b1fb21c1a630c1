"""What waits for a client that reads slowly, bounded in bytes."""

from __future__ import annotations

import enum
from collections import deque

from wsrelay.values.sizes import ITEM

from .command import SendCommand

__all__ = ["Outbox", "Overflow"]


class Overflow(enum.StrEnum):
    """What happens at the limit: to the client, to the sender, or to the newest message."""

    CLOSE = "close"
    PAUSE = "pause"
    DROP = "drop"


class Outbox(deque[SendCommand]):
    """Messages for one client in order; `limit` is in bytes, and each message adds `ITEM` bytes.

    A single message larger than the limit fits if nothing else waits: the limit is about a client
    that does not keep up, not about the size of messages.
    """

    __slots__ = ("limit", "size")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.size = 0
        """Bytes that wait, including `ITEM` for each message."""

    def put(self, message: SendCommand) -> bool:
        """Add a message; returns whether the outbox is within its limit."""
        self.append(message)
        self.size += message.size + ITEM
        return self.size <= self.limit or len(self) == 1

    def get(self) -> SendCommand:
        """Take the oldest message; raises `IndexError` if there is none."""
        message = self.popleft()
        self.size -= message.size + ITEM
        return message

    def drop_newest(self) -> None:
        """Drop the message that was added last; raises `IndexError` if there is none."""
        self.size -= self.pop().size + ITEM

    def clear(self) -> None:
        """Drop everything that waits."""
        super().clear()
        self.size = 0
