"""Log lines that strangers can cause: a few of them, and how many were left out."""

from __future__ import annotations

import logging
from typing import Final

from .bucket import Bucket

__all__ = ["Sparing"]

_LINES: Final = 1.0
"""Lines a second that get into the log, after a burst of five."""


class Sparing:
    """Writes warnings into a log as long as there are not too many of them."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._bucket = Bucket(_LINES, _LINES * 5)
        self._unsaid = 0

    def warning(self, now: float, text: str, *arguments: object) -> None:
        """Tell of a refusal; `now` is in seconds of any steady clock."""
        if self._bucket.take(now):
            self._unsaid += 1
            return
        if self._unsaid:
            text, self._unsaid = f"{text}; {self._unsaid} more since", 0
        self._logger.warning(text, *arguments)
