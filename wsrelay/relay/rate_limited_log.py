"""Log lines that strangers can cause: a few of them, and how many were left out."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Any, Final

from wsrelay.values.bucket import Bucket
from wsrelay.values.netblock import netblock

__all__ = ["RateLimitedLog"]

_LINES: Final = 1.0
"""Lines a second that get into the log for each address, after a burst of five."""

_BURST: Final = 5

_ALL: Final = 10
"""So many times that for all addresses together."""

_MOST: Final = 1000
"""Addresses that are remembered, those that were heard last."""

_OTHERS: Final = "others"
"""Whom lines of addresses are about that are not remembered."""

_PATIENCE: Final = 10.0
"""Seconds after which it is told what was left out, if no other line has told it by then."""


class RateLimitedLog:
    """Writes lines into a log as long as there are not too many of them.

    An address counts by its netblock; what has none counts as one.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._all = Bucket(_LINES * _ALL, _BURST * _ALL)
        self._of: OrderedDict[str, Bucket] = OrderedDict()
        self._unsaid: OrderedDict[str, int] = OrderedDict()
        """How many lines were left out, by whom they were about."""
        self._timer: asyncio.Handle | None = None

    def warning(self, now: float, text: str, *arguments: object, client: str | None = None) -> None:
        """Tell of a refusal of that client; `now` is in seconds of any steady clock."""
        self.log(logging.WARNING, now, text, *arguments, client=client)

    def log(
        self,
        level: int,
        now: float,
        text: str,
        *arguments: object,
        client: str | None = None,
        exc_info: Any = None,
    ) -> None:
        """Tell of what such a request comes to at that level."""
        whom = netblock(client)
        bucket = self._of.pop(whom, None) or Bucket(_LINES, _BURST, now)
        self._of[whom] = bucket
        if len(self._of) > _MOST:
            self._of.popitem(last=False)
        if bucket.take(now) or self._all.take(now):
            self._unsaid[whom] = self._unsaid.pop(whom, 0) + 1
            if len(self._unsaid) > _MOST:
                _, count = self._unsaid.popitem(last=False)
                self._unsaid[_OTHERS] = self._unsaid.pop(_OTHERS, 0) + count
            self._tell_later()
            return
        if count := self._unsaid.pop(whom, 0):
            text = f"{text}; {count} more since"
        self._logger.log(level, text, *arguments, exc_info=exc_info)

    def _tell_later(self) -> None:
        """Tell of what is left out even if no such line comes any more."""
        if self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._timer = loop.call_later(_PATIENCE, self._tell)

    def _tell(self) -> None:
        self._timer = None
        unsaid, self._unsaid = self._unsaid, OrderedDict()
        if count := sum(unsaid.values()):
            whom = max(unsaid, key=unsaid.__getitem__)
            of = f", {unsaid[whom]} of them of {whom}" if whom else ""
            what = (
                "lines that clients caused were" if count > 1 else "line that a client caused was"
            )
            self._logger.warning("%d more %s left out%s", count, what, of)
