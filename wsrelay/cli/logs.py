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

from wsrelay.node.host import own_text, trace_ids
from wsrelay.values.printable import escaped_in_json, indented
from wsrelay.wire.logrecord import PLAIN, extra_of, fields_of

from .running import write_line

__all__ = ["log_options", "set_up_logging"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MOST_LINES: Final = 10_000
_MOST_BYTES: Final = 16 * 1024 * 1024
_LINGER: Final = 2.0
"""Seconds that the exit waits for the rest of the log to be written."""


class _JSONFormatter(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, logger, message.

    Where they apply: what is known of the process (`logrecord.fields_of`), `trace_id` and `span_id`
    of the span in which it was written, `extra` with the fields that the record was given, and the
    traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": own_text(record),
            **fields_of(record),
            **(ids := trace_ids(record)),
        }
        if extra := {k: v for k, v in extra_of(record).items() if k not in ids}:
            line["extra"] = msgspec.json.decode(msgspec.json.encode(extra))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return escaped_in_json(json.dumps(line, ensure_ascii=False))


class _PlainFormatter(logging.Formatter):
    """Lines for people: control characters are escaped, and lines after the first are indented."""

    def __init__(self) -> None:
        super().__init__(PLAIN)

    def format(self, record: logging.LogRecord) -> str:
        return indented(super().format(record))


class _Background(logging.Handler):
    """Writes to standard error from a thread of its own.

    Its reader may stop reading, and the disk behind it may be full; the node carries on. The queue
    is bounded, in lines and in bytes; records that find it full are left out and counted.
    """

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        """Bytes that are queued; both threads change it, under the lock."""
        self._room = threading.Lock()
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="wsrelay log", daemon=True)
        self._thread.start()
        atexit.register(self._finish)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record for the thread."""
        try:
            line = self.format(record).encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001 - a wrong format string is reported by logging itself
            self.handleError(record)
            return
        if self._lines.qsize() >= _MOST_LINES or self._waiting + len(line) > _MOST_BYTES:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            what = "%d log record%s before this one left out: nobody reads the log fast enough"
            notice = logging.LogRecord(
                __name__, logging.WARNING, "", 0, what, (lost, "s" if lost > 1 else ""), None
            )
            self._put(self.format(notice).encode())
        self._put(line)

    def _put(self, line: bytes) -> None:
        with self._room:
            self._waiting += len(line)
        self._lines.put(line)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            write_line(line)
            with self._room:
                self._waiting -= len(line)

    def _finish(self) -> None:
        """Write what is queued, unless its reader takes too long."""
        self._lines.put(None)
        self._thread.join(_LINGER)


def log_options(command: _Command) -> _Command:
    """Add `--log-format` and `--log-level` to a command."""
    form = click.option(
        "--log-format",
        type=click.Choice(["plain", "json"]),
        default="plain",
        show_default=True,
        help="Lines for people, or one JSON object per line.",
    )
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
    )
    return form(level(command))


def set_up_logging(form: str, level: str) -> None:
    """Log everything at this level and above to standard error."""
    formatter = _JSONFormatter() if form == "json" else _PlainFormatter()
    logging.basicConfig(handlers=[_Background(formatter)], level=level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
