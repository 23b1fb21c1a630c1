"""Room for what workers have begun to write and not finished: one book for all of a node.

The length of a frame is known from its first bytes. A large one has all of its room from then on,
or waits for it: what is begun can always be finished, and nobody waits for what is never read.
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
"""Bytes of a frame up to which it needs no room: ordinary messages wait for nobody's large ones,
and 256 processes hold 64 MB of them at the most."""

MOST: Final = 4 * wire.MAX_FRAME
"""Bytes for all large ones; what a process returns counts until it has ended."""

_LOOK: Final = 1.0
"""Seconds between two looks at those who have room while others wait."""

_LEAST: Final = 256 * 1024
"""Bytes by which a frame gets on from look to look, or it does not get on: a loop that takes a
quarter of a second for each turn reads as much of a worker that does its best."""

_PATIENCE: Final = 10
"""Looks at which a frame did not get on until its worker is ended."""

_TELL_EVERY: Final = 60.0
"""Seconds between two lines of the log that tell of those who wait."""

_NAMED: Final = 3
"""How many it names of those who have the most."""


class Account:
    """What one worker has to do with the book.

    `who` names it in the log; `overdue` is called, with what is wrong, when it is to be ended since
    what it has begun does not get on and others wait for the room.
    """

    def __init__(self, book: Unfinished, who: str, overdue: Callable[[str], None]) -> None:
        self.book = book
        self.who = who
        self.overdue = overdue
        self._kept: Share | None = None

    def begin(
        self, size: int, progress: Callable[[], int | None], granted: Callable[[Share], None]
    ) -> Share:
        """Ask for room; `granted` is called when there is some, if there is not now.

        `progress` tells how many bytes of the frame are there; None when it is not for the worker
        to bring it on.
        """
        share = Share(self, size, progress, granted)
        self.book.enter(share)
        return share

    def keep(self, size: int) -> None:
        """Count what it returns, which is there already and stays until `close`."""
        self._kept = share = Share(self, size, lambda: size, lambda _: None)
        share.is_whole, share.seen = True, size
        self.book.keep(share)

    def close(self) -> None:
        """Count that no more."""
        if self._kept is not None:
            self._kept.give_back()
            self._kept = None


class Share:
    """Room for one frame: `is_granted`, or waited for."""

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
        """Whether all of it is there."""
        self.seen = 0
        """Bytes that were there at the last look."""
        self.looks = 0
        """How often it had not got on."""
        self.is_ended = False
        """Whether its worker was ended for that."""

    def give_back(self) -> None:
        """Have, or wait for, room no more; again is no change."""
        self.account.book.leave(self)

    def look(self) -> bool:
        """Look whether it gets on; returns whether it is overdue, since it did not too often."""
        there = self.progress()
        if there is None:
            return False
        if there - self.seen < _LEAST:
            self.looks += 1
        self.seen = there
        return self.looks >= _PATIENCE and not self.is_ended

    def end(self) -> None:
        """Have its worker ended."""
        self.is_ended = True
        self.account.overdue(self._problem())

    def _problem(self) -> str:
        what = (
            f"it has returned {self.size} bytes and does not end"
            if self.is_whole
            else f"{self.seen} bytes of its message of {self.size} came, and the rest does not"
        )
        most = show(self.account.book.most)
        # What stands before the first "of" is in the close frame of its clients.
        return f"unfinished message limit of {most} (of all processes) reached: {what}"


class Unfinished:
    """The book: `most` bytes in all, first come, first served.

    A frame that is larger than all of it has room when nothing else has.
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
        """Open one for a worker."""
        return Account(self, who, overdue)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def enter(self, share: Share) -> None:
        """Give room, or have it wait behind those who wait already."""
        if not self._waiting and self._has_room(share):
            self.keep(share)
            return
        self._waiting[share] = None
        if self._next_look is None:
            self._look_later()

    def keep(self, share: Share) -> None:
        """Give room, whether there is some or not."""
        share.is_granted = True
        self._shares[share] = None
        self.size += share.size

    def leave(self, share: Share) -> None:
        """Take room back, and give it to those who wait."""
        if share in self._shares:
            del self._shares[share]
            self.size -= share.size
        else:
            self._waiting.pop(share, None)
        if not self._closed:
            self._serve()

    def close(self) -> None:
        """Serve nobody any more: the node ends, and its event loop may have ended before."""
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
        if now - self._due < _LOOK:  # else the node was held up, and the workers with it
            self._tell(now)
            # One at a time: that may be enough for those who wait.
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
