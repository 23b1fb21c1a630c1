"""What a worker and its template log goes to the node, beside whatever their user set up.

The user's code finds `logging` as in `python script.py`: no handler stands in the way of
`basicConfig`, and none can be taken away by `dictConfig` or `root.handlers = [...]`. So the node's
is no handler of the root logger: it gets its records from `Logger.callHandlers`, once the handlers
that there are have had them.
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

from wsrelay import wire
from wsrelay.wire import payload
from wsrelay.wire.logrecord import LONGEST_NAME, PLAIN, clean, extra_of, text_of

__all__ = ["NodeLog", "crashed", "enable_own_loggers", "flush", "log_to"]

logger = logging.getLogger(__name__)

_LONGEST: Final = 64 * 1024
"""Characters of a record's text; a longer one is cut. (The node bounds the whole record.)"""

_PATIENCE: Final = 2.0
"""Seconds that Sentry has for it, as at the end of `python script.py`."""

_STDOUT: Final = 1
_NOTHING: Final = Raw(payload.encode({}))
_LEVELS: Final = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}

_call_handlers: Final = logging.Logger.callHandlers


class NodeLog(logging.Handler):
    """Writes each record as a frame; the node adds who has written it."""

    def __init__(self, write: Callable[[wire.LogFrame], None], level: int) -> None:
        super().__init__(level)
        self.os_pid = os.getpid()
        self.ending: BaseException | None = None
        """What ends this worker: the node logs its traceback, so no other record has to."""
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        try:
            level, extra = record.levelname, extra_of(record)
            told = self.ending is not None and (record.exc_info or (0, 0))[1] is self.ending
            frame = wire.LogFrame(
                record.levelno,
                clean(record.name, LONGEST_NAME),
                clean(record.getMessage() if told else text_of(record), _LONGEST),
                Raw(payload.encode(extra)) if extra else _NOTHING,
                "" if level in _LEVELS else clean(level, LONGEST_NAME),
                _unread_output(),
            )
            self._write(frame)
        except BrokenPipeError:
            return  # the node is gone, and this process about to be
        except Exception:  # noqa: BLE001 - a wrong format string is reported by logging itself
            self.handleError(record)


def _unread_output() -> int:
    """Return how much that this process has printed waits for the node: it comes before."""
    try:
        return int.from_bytes(fcntl.ioctl(_STDOUT, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:  # it is something else by now
        return 0


_log: NodeLog | None = None


def log_to(log: NodeLog) -> None:
    """Send what this process logs from now on to the node, too.

    The root logger takes all that the node wants, unless the user's code has said otherwise.
    """
    global _log
    before, _log = _log, log
    if before is None:
        logging.Logger.callHandlers = _call_all  # type: ignore[assignment, method-assign]
        sys.excepthook = _excepthook
        if logging.lastResort is not None:  # where a handler's own children have no other
            logging.lastResort.setLevel(logging.NOTSET)
            logging.lastResort.setFormatter(logging.Formatter(PLAIN))
    untouched = logging.WARNING if before is None else before.level
    # Where it is right already it stays: to set it writes to each logger that there is.
    if logging.root.level == untouched != log.level:
        logging.root.setLevel(log.level)


def enable_own_loggers() -> None:
    """Undo for wsrelay's own loggers what `dictConfig` does to all that there are before it."""
    for name, known in logging.root.manager.loggerDict.items():
        if name.startswith("wsrelay.") and isinstance(known, logging.Logger):
            known.disabled = False


def crashed(error: BaseException) -> None:
    """Tell the user's own hooks and handlers what ends this worker, as far as the node does not.

    `sys.excepthook` is called, as for any uncaught exception. Where none was set the handlers of
    the root logger get a record instead: an error tracker listens to one of them, or to both, and
    is to hear of it once.
    """
    log = _log
    assert log is not None  # noqa: S101 - a worker has one from its begin
    log.ending = error
    try:
        if sys.excepthook is not _excepthook:
            sys.excepthook(type(error), error, error.__traceback__)
        elif logging.root.handlers:
            level, log.level = log.level, sys.maxsize  # the node logs it of itself
            logging.root.error("the process crashed: %s", error, exc_info=error)
            log.level = level
    except BaseException:
        logger.exception("what was to be told of the process's end has failed")


def flush() -> None:
    """Have Sentry send what it holds: the exit of the interpreter, where it would, is left out."""
    if (sentry := sys.modules.get("sentry_sdk")) is not None:
        try:
            sentry.flush(timeout=_PATIENCE)
        except Exception:
            logger.exception("Sentry's flush has failed")


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Be `sys.excepthook`, but for what ends the worker: the node logs that."""
    if _log is None or _log.os_pid != os.getpid() or error is not _log.ending:
        sys.__excepthook__(kind, error, trace)


def _call_all(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Be `Logger.callHandlers`, and give the node what reaches the root or standard error.

    A plain handler of standard error gives way: the node writes the same line there.
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
                handler.filter(record)  # which may change it: passwords are taken out so
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
