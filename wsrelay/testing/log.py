"""What the node and its workers log while a test runs."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from typing import Final

from wsrelay.wire.logrecord import text_of

__all__ = ["LogCapture"]

_KEPT: Final = 20
"""Records that are kept; more would hide what a failing test says."""


class LogCapture(logging.Handler):
    """The last records of one server: those logged by its thread, which runs the node."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = 0
        self._count = itertools.count(1)
        self._records: deque[tuple[int, str]] = deque(maxlen=_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        if record.thread == self.thread:
            text = f"{record.levelname} {text_of(record)}"
            self._records.append((next(self._count), text))

    def position(self) -> int:
        """Return the current end of the log."""
        return self._records[-1][0] if self._records else 0

    def since(self, position: int) -> list[str]:
        """Return the records after a position."""
        return [text for number, text in list(self._records) if number > position]
