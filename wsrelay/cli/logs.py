"""How a node started from the command line logs: plain lines or JSON."""

from __future__ import annotations

import atexit
import datetime as dt
import json
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec

from wsrelay.host import own_text
from wsrelay.logrecord import PLAIN, extra_of, fields_of

from .running import say

__all__ = ["log_options", "set_up_logging"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MOST_LINES: Final = 10_000
_LINGER: Final = 2.0
"""Seconds that the end waits for a reader of the log."""


class _JSONFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message.

    Where there are such: what is known of the process (`logrecord.fields`), `extra` with the fields
    that the record was given, and the traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": own_text(record),
            **fields_of(record),
        }
        if extra := extra_of(record):
            line["extra"] = msgspec.json.decode(msgspec.json.encode(extra))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Background(logging.Handler):
    """Writes to standard error from a thread of its own.

    Whoever reads it may stop reading, and the disk behind it may be full: the node goes on then.
    What waits is bounded; what finds no room is dropped and counted.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines: queue.Queue[str | None] = queue.Queue(_MOST_LINES)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="wsrelay log", daemon=True)
        self._thread.start()
        atexit.register(self._finish)

    def emit(self, record: logging.LogRecord) -> None:
        """Leave the record to the thread."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a wrong format string is reported by logging itself
            self.handleError(record)
            return
        try:
            if self._lost and not self._lines.full():
                line = f"{line}\n({self._lost} lines of the log before it found no room)"
                self._lost = 0
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            say(line)

    def _finish(self) -> None:
        """Write what waits, as long as somebody takes it."""
        try:
            self._lines.put(None, timeout=_LINGER)
        except queue.Full:
            return
        self._thread.join(_LINGER)


def log_options(command: _Command) -> _Command:
    """Add `--log-format` and `--log-level` to a command."""
    form = click.option(
        "--log-format",
        type=click.Choice(["plain", "json"]),
        default="plain",
        show_default=True,
        help="Lines to read, or a JSON object a line.",
    )
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
    )
    return form(level(command))


def set_up_logging(form: str, level: str) -> None:
    """Log everything of that level and above to standard error."""
    formatter = _JSONFormatter() if form == "json" else logging.Formatter(PLAIN)
    logging.basicConfig(handlers=[_Background(formatter)], level=level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
