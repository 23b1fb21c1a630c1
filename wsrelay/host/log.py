"""What workers and templates log, in the node's log."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec import Raw

from wsrelay import payload, wire
from wsrelay.bucket import Bucket
from wsrelay.logrecord import LONGEST_NAME, MOST_EXTRA, is_extra
from wsrelay.printable import printable

__all__ = ["WORKER_LOG", "Intake", "own_text"]

WORKER_LOG: Final = "wsrelay.worker"
"""The logger of all that workers log; the records bear their own loggers' names."""

_LONGEST: Final = 128 * 1024
"""Characters of a record's text; what a worker writes by itself is cut at half."""

_LONGEST_EXTRA: Final = 64 * 1024
"""Bytes of the fields of one record; what a worker writes by itself is less."""

_HIGHEST_LEVEL: Final = 100
"""`logging` remembers each level that it has met: no worker is to make up any number of them."""

_LINE: Final = "%s %s: %s"

worker_logger = logging.getLogger(WORKER_LOG)


def own_text(record: logging.LogRecord) -> str:
    """Return the record's message without what `Intake` has put before it."""
    if record.msg is _LINE and isinstance(record.args, tuple):
        return str(record.args[-1])
    return record.getMessage()


class Intake:
    """Takes the log records of one other process, which may be hostile, into the node's log.

    `rate` a second pass, the others are counted.
    """

    def __init__(self, source: str, rate: float) -> None:
        self._source = source
        self._rate = rate
        self._lines = Bucket(rate, rate)
        self._lost = 0
        self._told = -math.inf

    def take(self, frame: wire.Log, about: Callable[[], dict[str, Any]]) -> None:
        """Log the record, with the fields that `about` gives."""
        now = time.monotonic()
        if self._lines.take(now):
            self._lost += 1
            return
        if self._lost and now - self._told >= 1:  # each of hundreds that pass would tell of some
            self._told = now
            self.tell_of_lost(about)
        level = min(max(frame.level, 0), _HIGHEST_LEVEL)
        if not worker_logger.isEnabledFor(level):
            return
        # Its own logger's name is the record's, and there is no logger of that name here: `logging`
        # never forgets one.
        name = frame.logger[:LONGEST_NAME]
        args = self._source, name, frame.text[:_LONGEST]
        record = logging.LogRecord(name, level, "", 0, _LINE, args, None)
        if frame.level_name:
            record.levelname = printable(frame.level_name)
        there = vars(record)
        for key, value in _extra(frame.extra):
            there[key] = value
        there.update(about())
        worker_logger.handle(record)

    def tell_of_lost(self, about: Callable[[], dict[str, Any]]) -> None:
        """Log how many records did not pass, if there were any since it was last told."""
        if lost := self._lost:
            self._lost = 0
            what = "%s: %d log records were dropped: it writes more than %g a second"
            worker_logger.warning(what, self._source, lost, self._rate, extra=about())


def _extra(data: Raw) -> Iterable[tuple[str, Any]]:
    """Give the fields that a record was given by its writer."""
    if len(data) > _LONGEST_EXTRA:
        return
    try:
        given = payload.decode(data)
    except (ValueError, RecursionError):
        return
    if isinstance(given, dict):
        for key, value in itertools.islice(given.items(), MOST_EXTRA):
            if is_extra(key):
                yield key, value
