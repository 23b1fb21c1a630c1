"""How a node started from the command line logs: plain lines or JSON."""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

__all__ = ["log_options", "set_up_logging"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PLAIN: Final = "%(asctime)s %(levelname)-7s %(message)s"


class _JSONFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, pid, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        time = dt.datetime.fromtimestamp(record.created, dt.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (pid := getattr(record, "wsrelay_pid", None)) is not None:
            line["pid"] = pid
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


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
    handler = logging.StreamHandler()
    handler.setFormatter(_JSONFormatter() if form == "json" else logging.Formatter(_PLAIN))
    logging.basicConfig(handlers=[handler], level=level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
