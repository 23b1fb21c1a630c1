"""A worker's `logging` goes to the node's log."""

from __future__ import annotations

import logging
from typing import Final

from wsrelay import wire

from .pipe import WorkerPipe

__all__ = ["PipeHandler"]

_LONGEST: Final = 64 * 1024
"""Characters of one record; a longer one is cut."""


class PipeHandler(logging.Handler):
    """Writes each record to the pipe; the node adds the worker's PID."""

    def __init__(self, pipe: WorkerPipe) -> None:
        super().__init__()
        self._pipe = pipe
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, its traceback with it."""
        try:
            text = self.format(record)
            if len(text) > _LONGEST:
                text = f"{text[:_LONGEST]}... ({len(text)} characters)"
            text = text.encode(errors="backslashreplace").decode()
            self._pipe.write(wire.Log(record.levelno, record.name, text))
        except OSError:
            return  # the node is gone, and this process about to be
        except Exception:  # noqa: BLE001 - a wrong format string is reported by logging itself
            self.handleError(record)
