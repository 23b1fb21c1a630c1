"""What workers and templates log and print, in the node's log."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from msgspec import Raw

from wsrelay import tracing, wire
from wsrelay.values.bucket import Bucket
from wsrelay.values.numbers import Numbers
from wsrelay.values.printable import indented, printable
from wsrelay.wire import payload
from wsrelay.wire.logrecord import LONGEST_NAME, MOST_EXTRA, is_extra

__all__ = ["OUTPUT", "WORKER_LOG", "Intake", "own_text", "trace_ids"]

WORKER_LOG: Final = "wsrelay.worker"
"""The logger of everything that workers log; the records carry their own loggers' names."""

OUTPUT: Final = "output"
"""The name that lines of standard output and error have in place of a logger's."""

_LARGEST: Final = 64 * 1024
"""Bytes of one record, including its fields."""

_BURST: Final = 4
"""Seconds' worth of lines that may come at once: a table is printed in one go."""

_LAST: Final = 50
"""How many of the lines left out last are logged at the end after all: they may say why."""

_LONGEST_LAST: Final = 1024
"""Bytes of each of these lines."""

_QUIET: Final = 60.0
"""Seconds between two warnings that a process waits."""

_HIGHEST_LEVEL: Final = 100
"""`logging` remembers every level that it has seen, so workers must not make up any number."""

_LINE: Final = "%s %s: %s"

_About = Callable[[], dict[str, Any]]

worker_logger = logging.getLogger(WORKER_LOG)


class _Record(logging.LogRecord):
    """A record of another process; `own_text` is the text exactly as that process wrote it."""

    __slots__ = ("own_text",)  # not a field of the record: the message has it already
    own_text: str


def own_text(record: logging.LogRecord) -> str:
    """Return the record's message, without the prefix if `Intake` put one before it.

    It may contain control characters.
    """
    return record.own_text if isinstance(record, _Record) else record.getMessage()


def trace_ids(record: logging.LogRecord) -> dict[str, str]:
    """Return `trace_id` and `span_id` of a record that is being written inside a span, or was.

    Those of a process's record were noted by that process.
    """
    given = vars(record)
    if isinstance(found := given.get("trace_id"), str):
        return {"trace_id": found, "span_id": str(given.get("span_id", ""))}
    return {} if isinstance(record, _Record) else tracing.ids()


class Intake:
    """Takes the log records and output of another, possibly hostile, process into the node's log.

    Up to `rate` records and `rate` lines a second are logged; the others are counted.
    """

    def __init__(self, source: str, rate: float, numbers: Numbers | None = None) -> None:
        self._numbers = numbers or Numbers()
        self._source = source
        self._rate = rate
        self._records = Bucket(rate, rate)
        self._lines = Bucket(rate, rate * _BURST)
        self._lost = 0
        self._lost_lines = 0
        self._last: deque[bytes] = deque(maxlen=_LAST)
        self._told = -math.inf
        self._told_of_waiting = -math.inf

    def take(self, frame: wire.LogFrame, about: _About) -> None:
        """Log the record, with the fields that `about` returns."""
        now = time.monotonic()
        if self._records.take(now):
            self._lost += 1
            self._numbers.hit["log_rate"] += 1
            return
        self._tell_at_times(now, about)
        level = min(max(frame.level, 0), _HIGHEST_LEVEL)
        if not worker_logger.isEnabledFor(level):
            return
        extra = frame.extra if len(frame.extra) <= _LARGEST // 2 else Raw(b"")
        # The record carries its own logger's name, but no logger of that name is created here:
        # `logging` never forgets one.
        name = printable(frame.logger[:LONGEST_NAME])
        record = self._record(name, level, frame.text, _LARGEST - len(extra))
        if frame.level_name:
            record.levelname = printable(frame.level_name)
        attributes = vars(record)
        for key, value in _extra(extra):
            attributes[key] = value
        attributes.update(about())
        worker_logger.handle(record)

    def line(self, line: bytes, about: _About) -> bool:
        """Log a line of its output, whatever the log's level; returns whether it was logged."""
        now = time.monotonic()
        if self._lines.take(now):
            self.leave_out((line,))
            return False
        self._tell_at_times(now, about)
        self._last.clear()
        self._log_line(line, about)
        return True

    def leave_out(self, lines: Collection[bytes]) -> None:
        """Count lines of its output that are not logged."""
        self._lost_lines += len(lines)
        self._numbers.hit["log_rate"] += len(lines)
        skipped = max(0, len(lines) - _LAST)
        self._last += (line[:_LONGEST_LAST] for line in itertools.islice(lines, skipped, None))

    def waits(self, size: float, about: _About) -> None:
        """Log at most once a minute that it waits: it writes faster than its output is read."""
        now = time.monotonic()
        if now - self._told_of_waiting >= _QUIET:
            self._told_of_waiting = now
            what = (
                "%s waits: it writes more than %d bytes a second to its standard output and error "
                "(limits.log_rate)"
            )
            worker_logger.warning(what, self._source, size, extra=about())

    def end(self, about: _About) -> None:
        """Log what is still outstanding: how much was left out, and its last lines."""
        last, self._last = self._last, deque(maxlen=_LAST)
        self._lost_lines -= len(last)
        self._tell_of_lost(about)
        for line in last:
            self._log_line(line, about)

    def _tell_at_times(self, now: float, about: _About) -> None:
        # At most once a second, or each of the hundreds that are logged would report some.
        if (self._lost or self._lost_lines) and now - self._told >= 1:
            self._told = now
            self._tell_of_lost(about)

    def _tell_of_lost(self, about: _About) -> None:
        for lost, one, more in (
            (self._lost, "log record was", "log records were"),
            (self._lost_lines, "line of its output was", "lines of its output were"),
        ):
            if lost:
                worker_logger.warning(
                    "%s: %d %s left out: it writes more than %g a second (limits.log_rate)",
                    self._source,
                    lost,
                    one if lost == 1 else more,
                    self._rate,
                    extra=about(),
                )
        self._lost = self._lost_lines = 0

    def _log_line(self, line: bytes, about: _About) -> None:
        text = line.decode(errors="backslashreplace")
        record = self._record(OUTPUT, logging.INFO, text, _LARGEST)
        vars(record).update(about())
        worker_logger.handle(record)

    def _record(self, name: str, level: int, text: str, most: int) -> _Record:
        """Make a record whose text has at most `most` bytes, escaped or not."""
        shown = indented(text[:most])
        if len(text) > most or len(shown) > most // 4:  # a character has up to 4 bytes in UTF-8
            data = shown.encode()
            if len(text) > most or len(data) > most:
                cut = data[:most].decode(errors="ignore")
                text = shown = f"{cut}... ({len(text)} characters)"
        record = _Record(name, level, "", 0, _LINE, (self._source, name, shown), None)
        record.own_text = text
        return record


def _extra(data: Raw) -> Iterable[tuple[str, Any]]:
    """Yield the fields that the record's writer gave it."""
    try:
        given = payload.decode(data)
    except (ValueError, RecursionError):
        return
    if isinstance(given, dict):
        for key, value in itertools.islice(given.items(), MOST_EXTRA):
            if is_extra(key):
                yield key, value
