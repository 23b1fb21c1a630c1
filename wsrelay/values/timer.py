"""Timers: messages that the node sends later, and what of them may be pending."""

from __future__ import annotations

import re
from typing import Final, Self

from . import current, sizes
from .pid import PID

__all__ = ["MOST", "MOST_BYTES", "Timer", "cost"]

MOST: Final = 10_000
"""Timers of one process that may be pending."""

MOST_BYTES: Final = 64 * 1024 * 1024
"""Bytes that their messages may have, all those of one process together: as much as one may."""

_FORM: Final = re.compile(r"\([\w.-]+@[\w.:/-]+\|[\w.-]+\)", re.ASCII)


class Timer(str):
    """A message that is to be sent later, as `process.send_after` returns it.

    It is text, so it can be kept and sent as data; `Timer(text)` makes it again. Raises
    `ValueError` for any other text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text and make a timer of it."""
        if not isinstance(text, str) or not _FORM.fullmatch(text):
            raise ValueError(
                f"{text!r:.200} is not a timer; send_after returns one, which looks like "
                "(local@app:processes|k3f9.1f-3)"
            )
        return super().__new__(cls, text)

    @classmethod
    def of(cls, pid: PID) -> Self:
        """Make a timer of an id that its owner would give to nothing else."""
        return super().__new__(cls, f"({pid[1:-1]})")

    @property
    def owner(self) -> PID:
        """The id that it was made of: a PID of no process, in its owner's host."""
        return PID.trusted(f"{{{self[1:-1]}}}")

    def cancel(self) -> None:
        """Do not send the message; has no effect once it was sent."""
        current.caller().cancel_timer(self)


def cost(to: str | list[str], topic: str, size: int) -> int:
    """Return the bytes that a timer counts with a message of `size` bytes for these receivers."""
    receivers = [to] if isinstance(to, str) else to
    texts = sum(map(len, receivers)) + len(topic)
    return size + texts + (2 + len(receivers)) * sizes.ITEM
