"""Log output where nobody has set up logging, as under a plain `uvicorn app:app`.

uvicorn and hypercorn set up only their own loggers: what processes log at INFO would be lost, and
warnings would have no time and level.
"""

from __future__ import annotations

import logging
from typing import Final, TextIO

from wsrelay import worker
from wsrelay.wire.logrecord import PLAIN

__all__ = ["log_visibly"]

_logger: Final = logging.getLogger("wsrelay")


class _Fallback(logging.StreamHandler[TextIO]):
    """Writes to standard error until somebody has set up logging."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(PLAIN))
        self.set_level = _logger.level == logging.NOTSET
        if self.set_level:
            _logger.setLevel(logging.INFO)

    def handle(self, record: logging.LogRecord) -> bool:
        """Write the record, or leave it to the handlers that have been added since."""
        if not _is_set_up():
            return super().handle(record)
        if self.set_level:
            self.set_level = False
            _logger.setLevel(logging.NOTSET)
        return False


def _is_set_up() -> bool:
    """Whether there is a handler for wsrelay's records that is not wsrelay's own."""
    return bool(logging.root.handlers) or any(
        not type(handler).__module__.startswith("wsrelay.") for handler in _logger.handlers
    )


def log_visibly() -> None:
    """Write what wsrelay and its processes log to standard error, until logging is set up.

    Unless told not to, `dictConfig` disables all existing loggers, wsrelay's among them, and what
    processes print would appear nowhere: those are enabled again.
    """
    worker.enable_own_loggers()
    if not _is_set_up() and not any(isinstance(one, _Fallback) for one in _logger.handlers):
        _logger.addHandler(_Fallback())
