"""Log lines that strangers can cause: a few of them, and a count of those left out."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Any, Final

from wsrelay.values.bucket import Bucket
from wsrelay.values.netblock import netblock

__all__ = ["RateLimitedLog"]

_LINES: Final = 1.0
"""Lines per second that are logged for each address, after a burst of five."""

_BURST: Final = 5

_ALL: Final = 10
"""The factor by which the rate and the burst are larger for all addresses together."""

_MOST: Final = 1000
"""Addresses that are remembered: the most recent ones."""

_OTHERS: Final = "others"
"""Stands for the addresses that are no longer remembered."""

_PATIENCE: Final = 10.0
"""Seconds after which the lines left out are reported, unless another line has done so by then."""


class RateLimitedLog:
    """Writes lines to a log as long as there are not too many of them.

    Addresses are counted by netblock; all lines without an address count as one.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._all = Bucket(_LINES * _ALL, _BURST * _ALL)
        self._of: OrderedDict[str, Bucket] = OrderedDict()
        self._left_out: OrderedDict[str, int] = OrderedDict()
        """How many lines were left out, by the netblock that they were about."""
        self._timer: asyncio.Handle | None = None

    def warning(self, now: float, text: str, *arguments: object, client: str | None = None) -> None:
        """Log that the client was refused; `now` is in seconds of any monotonic clock."""
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
        """Log the outcome of the client's request at that level."""
        block = netblock(client)
        bucket = self._of.pop(block, None) or Bucket(_LINES, _BURST, now)
        self._of[block] = bucket
        if len(self._of) > _MOST:
            self._of.popitem(last=False)
        if bucket.take(now) or self._all.take(now):
            self._left_out[block] = self._left_out.pop(block, 0) + 1
            if len(self._left_out) > _MOST:
                _, count = self._left_out.popitem(last=False)
                self._left_out[_OTHERS] = self._left_out.pop(_OTHERS, 0) + count
            self._report_later()
            return
        if count := self._left_out.pop(block, 0):
            text = f"{text}; {count} more since"
        self._logger.log(level, text, *arguments, exc_info=exc_info)

    def _report_later(self) -> None:
        """Report what was left out even if no further line comes."""
        if self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            self._timer = loop.call_later(_PATIENCE, self._report)

    def _report(self) -> None:
        self._timer = None
        left_out, self._left_out = self._left_out, OrderedDict()
        if count := sum(left_out.values()):
            block = max(left_out, key=left_out.__getitem__)
            of = f", {left_out[block]} of them of {block}" if block else ""
            what = (
                "lines that clients caused were" if count > 1 else "line that a client caused was"
            )
            self._logger.warning("%d more %s left out%s", count, what, of)
