"""Memory for frames that workers have begun to write and not finished: one account for the node.

The length of a frame is known from its first bytes. A large frame gets room for all of it then, or
waits: so what has begun can always be finished, and nobody waits for what is never read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from wsrelay import wire
from wsrelay.values.sizes import show

__all__ = ["LARGE", "Account", "Share", "Unfinished"]

logger = logging.getLogger(__name__)

LARGE: Final = 256 * 1024
"""Frames of up to so many bytes need no room: ordinary messages never wait for large ones, and 256
processes hold at most 64 MB of them."""

MOST: Final = 4 * wire.MAX_FRAME
"""Bytes for all large frames; a process's result counts until the process has ended."""

_LOOK: Final = 1.0
"""Seconds between two looks at the frames that have room while others wait."""

_LEAST: Final = 256 * 1024
"""Bytes that a frame must grow by between two looks to count as progressing: even a loop that takes
a quarter of a second for each iteration reads that much from a worker that does its best."""

_PATIENCE: Final = 10
"""Looks without progress after which a frame's worker is ended."""

_TELL_EVERY: Final = 60.0
"""Seconds between two log lines about the processes that wait."""

_NAMED: Final = 3
"""How many of the largest holders such a line names."""


class Account:
    """One worker's part of the account.

    `who` names the worker in the log. `overdue` is called, with a description of the problem, when
    the worker must be ended because its frame makes no progress while others wait for room.
    """

    def __init__(self, book: Unfinished, who: str, overdue: Callable[[str], None]) -> None:
        self.book = book
        self.who = who
        self.overdue = overdue
        self._kept: Share | None = None

    def begin(
        self, size: int, progress: Callable[[], int | None], granted: Callable[[Share], None]
    ) -> Share:
        """Request room; `granted` is called when there is some, if there is none now.

        `progress` returns how many bytes of the frame have arrived, or None while it is not the
        worker that keeps it from progressing.
        """
        share = Share(self, size, progress, granted)
        self.book.enter(share)
        return share

    def keep(self, size: int) -> None:
        """Count its result, which has arrived already and stays until `close`."""
        self._kept = share = Share(self, size, lambda: size, lambda _: None)
        share.is_whole, share.seen = True, size
        self.book.keep(share)

    def close(self) -> None:
        """Stop counting its result."""
        if self._kept is not None:
            self._kept.give_back()
            self._kept = None


class Share:
    """Room for one frame: `is_granted`, or being waited for."""

    def __init__(
        self,
        account: Account,
        size: int,
        progress: Callable[[], int | None],
        granted: Callable[[Share], None],
    ) -> None:
        self.account = account
        self.size = size
        self.progress = progress
        self.granted = granted
        self.is_granted = False
        self.is_whole = False
        """Whether the whole frame has arrived."""
        self.seen = 0
        """Bytes that had arrived at the last look."""
        self.looks = 0
        """How many looks found no progress."""
        self.is_ended = False
        """Whether its worker has been ended for that."""

    def give_back(self) -> None:
        """Give up the room, or stop waiting for it; a second call does nothing."""
        self.account.book.leave(self)

    def look(self) -> bool:
        """Check its progress; returns whether it is overdue because of too many looks without."""
        arrived = self.progress()
        if arrived is None:
            return False
        if arrived - self.seen < _LEAST:
            self.looks += 1
        self.seen = arrived
        return self.looks >= _PATIENCE and not self.is_ended

    def end(self) -> None:
        """Have its worker ended."""
        self.is_ended = True
        self.account.overdue(self._problem())

    def _problem(self) -> str:
        what = (
            f"it has returned {self.size} bytes and does not end"
            if self.is_whole
            else f"{self.seen} bytes of its message of {self.size} arrived, but the rest did not"
        )
        most = show(self.account.book.most)
        # The part before the first "of" goes into the close frame of its clients.
        return f"unfinished message limit of {most} (of all processes) reached: {what}"


class Unfinished:
    """The account: `most` bytes in all, first come, first served.

    A frame that is larger than `most` gets room when nothing else has any.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = MOST if most is None else most
        self.size = 0
        self._shares: dict[Share, None] = {}
        self._waiting: dict[Share, None] = {}
        self._next_look: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._told = -_TELL_EVERY
        self._closed = False

    def account(self, who: str, overdue: Callable[[str], None]) -> Account:
        """Open an `Account` for a worker."""
        return Account(self, who, overdue)

    @property
    def waiting(self) -> int:
        """How many frames wait for room."""
        return len(self._waiting)

    def enter(self, share: Share) -> None:
        """Grant room, or queue the share behind those that wait already."""
        if not self._waiting and self._has_room(share):
            self.keep(share)
            return
        self._waiting[share] = None
        if self._next_look is None:
            self._look_later()

    def keep(self, share: Share) -> None:
        """Grant room whether or not there is any left."""
        share.is_granted = True
        self._shares[share] = None
        self.size += share.size

    def leave(self, share: Share) -> None:
        """Take room back, and grant it to those that wait."""
        if share in self._shares:
            del self._shares[share]
            self.size -= share.size
        else:
            self._waiting.pop(share, None)
        if not self._closed:
            self._serve()

    def close(self) -> None:
        """Grant nothing any more: the node ends, and its event loop may have ended already."""
        self._closed = True
        self._stop_looking()

    def _has_room(self, share: Share) -> bool:
        return not self._shares or self.size + share.size <= self.most

    def _serve(self) -> None:
        while self._waiting and self._has_room(share := next(iter(self._waiting))):
            del self._waiting[share]
            self.keep(share)
            share.seen = share.progress() or 0
            share.granted(share)
        if not self._waiting:
            self._stop_looking()

    # While some wait

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + _LOOK
        self._next_look = loop.call_at(self._due, self._look)

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next_look = None
        if now - self._due < _LOOK:  # otherwise the node was held up, and the workers with it
            self._tell(now)
            # One at a time: its room may be enough for those that wait.
            for share in [share for share in self._shares if share.look()][:1]:
                share.end()
        if self._waiting and self._next_look is None:
            self._look_later()

    def _tell(self, now: float) -> None:
        if now - self._told < _TELL_EVERY:
            return
        self._told = now
        largest = sorted(self._shares, key=lambda share: share.size, reverse=True)[:_NAMED]
        named = ", ".join(f"{share.account.who} ({share.size} bytes)" for share in largest)
        logger.warning(
            "%d processes wait to write messages above %s: %d bytes of at most %s are unfinished, "
            "most of them of %s",
            len(self._waiting),
            show(LARGE),
            self.size,
            show(self.most),
            named,
        )
