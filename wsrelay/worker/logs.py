"""Sends what a worker and its template log to the node, in addition to whatever the user set up.

User code finds `logging` as in `python script.py`: no handler gets in the way of `basicConfig`, and
none can be removed by `dictConfig` or `root.handlers = [...]`. So the node's handler is not one of
the root logger: it gets its records from `Logger.callHandlers`, once the existing handlers have had
them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import termios
from collections.abc import Callable
from types import TracebackType
from typing import Final

from msgspec import Raw

from wsrelay import tracing, wire
from wsrelay.wire import payload
from wsrelay.wire.logrecord import LONGEST_NAME, PLAIN, clean, extra_of, text_of

__all__ = ["NodeLog", "crashed", "enable_own_loggers", "flush", "log_to"]

logger = logging.getLogger(__name__)

_LONGEST: Final = 64 * 1024
"""Characters of a record's text; a longer one is cut. (The node bounds the whole record.)"""

_PATIENCE: Final = 2.0
"""Seconds that Sentry has to send what it holds, as at the end of `python script.py`."""

_STDOUT: Final = 1
_NOTHING: Final = Raw(payload.encode({}))
_LEVELS: Final = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}

_call_handlers: Final = logging.Logger.callHandlers


class NodeLog(logging.Handler):
    """Writes each record as a frame; the node adds which process wrote it."""

    def __init__(self, write: Callable[[wire.LogFrame], None], level: int) -> None:
        super().__init__(level)
        self.os_pid = os.getpid()
        self.ending: BaseException | None = None
        """The error that ends this worker: the node logs its traceback, so no record has to."""
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            level, extra = record.levelname, tracing.ids() | extra_of(record)
            is_ending = self.ending is not None and (record.exc_info or (0, 0))[1] is self.ending
            frame = wire.LogFrame(
                record.levelno,
                clean(record.name, LONGEST_NAME),
                clean(record.getMessage() if is_ending else text_of(record), _LONGEST),
                Raw(payload.encode(extra)) if extra else _NOTHING,
                "" if level in _LEVELS else clean(level, LONGEST_NAME),
                _unread_output(),
            )
            self._write(frame)
        except BrokenPipeError:
            return  # the node is gone, and this process soon will be
        except Exception:  # noqa: BLE001 - a wrong format string is reported by logging itself
            self.handleError(record)


def _unread_output() -> int:
    """Return how many printed bytes the node has not yet read: they come before the record."""
    try:
        return int.from_bytes(fcntl.ioctl(_STDOUT, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # it is no longer that pipe
        return 0


_log: NodeLog | None = None


def log_to(log: NodeLog) -> None:
    """Send what this process logs from now on to the node as well.

    The root logger accepts all that the node wants, unless user code has set its level.
    """
    global _log
    before, _log = _log, log
    if before is None:
        logging.Logger.callHandlers = _call_all  # type: ignore[assignment, method-assign]
        sys.excepthook = _excepthook
        if logging.lastResort is not None:  # for a handler's own children that have no other
            logging.lastResort.setLevel(logging.NOTSET)
            logging.lastResort.setFormatter(logging.Formatter(PLAIN))
    untouched = logging.WARNING if before is None else before.level
    # It is left alone if it is right already: setting it writes to every existing logger.
    if logging.root.level == untouched != log.level:
        logging.root.setLevel(log.level)


def enable_own_loggers() -> None:
    """Enable wsrelay's own loggers again: `dictConfig` disables all that exist before it."""
    for name, known in logging.root.manager.loggerDict.items():
        if name.startswith("wsrelay.") and isinstance(known, logging.Logger):
            known.disabled = False


def crashed(error: BaseException) -> None:
    """Report what ends this worker to the user's own hooks and handlers; the node logs it anyway.

    `sys.excepthook` is called, as for any uncaught exception. If none was set, the handlers of the
    root logger get a record instead: an error tracker listens to one of the two, or to both, and
    must hear of it once.
    """
    log = _log
    assert log is not None  # noqa: S101 - a worker has one from the start
    log.ending = error
    try:
        if sys.excepthook is not _excepthook:
            sys.excepthook(type(error), error, error.__traceback__)
        elif logging.root.handlers:
            level, log.level = log.level, sys.maxsize  # the node logs it by itself
            logging.root.error("the process crashed: %s", error, exc_info=error)
            log.level = level
    except BaseException:
        logger.exception("reporting what ended the process has failed")


def flush() -> None:
    """Have Sentry and OpenTelemetry send what they hold.

    They would at the interpreter's exit, which a worker skips.
    """
    tracing.flush()
    if (sentry := sys.modules.get("sentry_sdk")) is not None:
        try:
            sentry.flush(timeout=_PATIENCE)
        except Exception:
            logger.exception("flushing Sentry has failed")


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Act as `sys.excepthook`, except for the error that ends the worker: the node logs that."""
    if _log is None or _log.os_pid != os.getpid() or error is not _log.ending:
        sys.__excepthook__(kind, error, trace)


def _call_all(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Act as `Logger.callHandlers`, and send the node what reaches the root or standard error.

    A plain handler of standard error is skipped: the node writes the same line there.
    """
    log = _log
    if log is None or log.os_pid != os.getpid():  # a child of the handler's own
        _call_handlers(logger, record)
        return
    wanted = False
    where: logging.Logger | None = logger
    while where is not None:
        for handler in where.handlers:
            if record.levelno < handler.level:
                continue
            if _is_standard_error(handler):
                handler.filter(record)  # which may change it: passwords are removed this way
                wanted = True
            else:
                handler.handle(record)
        if not where.propagate:
            break
        where = where.parent
    else:
        wanted = True
    if wanted and record.levelno >= log.level:
        log.handle(record)


def _is_standard_error(handler: logging.Handler) -> bool:
    return type(handler) is logging.StreamHandler and handler.stream is sys.__stderr__
