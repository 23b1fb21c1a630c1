"""A transfer to a process of another node, from the `ws.control` until that node has answered.

What the client has sent meanwhile waits for the answer, so that it goes to the right one of the two
processes; so does a further `ws.control`. The client is not read on meanwhile.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from wsrelay.values.message import Result
from wsrelay.values.pid import PID

from .command import ControlCommand

__all__ = ["MOST_WAITING", "Order", "Transfer"]

MOST_WAITING: Final = 16
"""How many more `ws.control` may wait for the answer; each may have 256 KB of metadata."""

Order = tuple[ControlCommand, PID]
"""A `ws.control` and who has sent it."""


class Transfer:
    """`order` is the transfer; `waiting` is what has come since, messages or orders, in turn."""

    __slots__ = ("exit", "order", "target", "waiting")

    def __init__(self, order: Order, target: PID) -> None:
        self.order = order
        self.target = target
        self.waiting: deque[dict[str, Any] | Order] = deque()
        self.exit: tuple[Result, bool, tuple[int, str] | None] | None = None
        """How the old target has ended meanwhile, as in `Session.target_exited`."""

    def add(self, order: Order) -> bool:
        """Let an order wait, unless too many do; returns whether it waits."""
        if sum(isinstance(one, tuple) for one in self.waiting) >= MOST_WAITING:
            return False
        self.waiting.append(order)
        return True

    def messages(self) -> list[dict[str, Any]]:
        """Return the client's messages that wait."""
        return [one for one in self.waiting if isinstance(one, dict)]
