"""The lines of the log that say how processes have ended."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.pid import PID
from wsrelay.values.printable import printable, shortened
from wsrelay.wire.logrecord import fields

from .mistake_log import MistakeLog

__all__ = ["EndLog"]

logger = logging.getLogger(__name__)

_LONGEST_TRACEBACK: Final = 64 * 1024
"""Characters of a traceback that are logged; that of an endless recursion has 80,000."""

_LEVELS: Final = {ExitKind.CANCELLED: logging.WARNING, ExitKind.TERMINATED: logging.WARNING}
"""Others are errors. Somebody asked for these: a client left in the middle of its process's work,
for example, or an `exec` timed out, which its caller is told."""


class EndLog:
    """Logs ends; of what comes too often, some lines are left out and counted.

    `about` is what is known of the process, as fields of a record; `error` is None if it returned.
    """

    def __init__(self, mistakes: MistakeLog) -> None:
        self._mistakes = mistakes

    def ended(self, pid: PID, error: ExitError | None, about: dict[str, Any]) -> None:
        """Log how a process ended, with the traceback of a crash unless there are too many crashes.

        Any client may cause one: 20 clients caused 1,600 lines a second.
        """
        who = _who(pid, about)
        if error is None:
            logger.debug("%s exited", who, extra=about)
            return
        about = {**about, **fields(exit=error.kind.value)}
        if error.traceback:
            text = f"{shortened(error.message)}\n{self._traceback(pid, error.traceback)}"
            text = shortened(text, _LONGEST_TRACEBACK)
            how = "ended" if error.kind is ExitKind.STALLED else "crashed"
            logger.error("%s %s: %s", who, how, text, extra=about)
        else:
            target, os_pid = about.get("wsrelay_target"), about.get("wsrelay_os_pid", "none yet")
            level = _LEVELS.get(error.kind, logging.ERROR)
            what = "%s ended: %s (%s, OS pid %s)"
            logger.log(level, what, who, shortened(str(error)), target, os_pid, extra=about)

    def never_started(self, pid: PID, error: ExitError | None, about: dict[str, Any]) -> None:
        """Log that a process that waited will not start, unless many have just been logged.

        Such an end costs no OS process, so a worker can cause many thousands in a second.
        """
        if error is None:
            self.ended(pid, None, about)
            return
        unlogged = self._again(f"ends while waiting in {pid.host}")
        if unlogged is None:
            return
        more = f" (nor were {unlogged} others of {pid.host})" if unlogged else ""
        level, why = _LEVELS.get(error.kind, logging.ERROR), shortened(str(error))
        about = {**about, **fields(exit=error.kind.value)}
        logger.log(level, "%s was not started: %s%s", _who(pid, about), why, more, extra=about)

    def _traceback(self, pid: PID, traceback: str) -> str:
        skipped = self._again(f"crashes in {pid.host}")
        if skipped is None:
            return "(too many crashes: the traceback is left out)"
        before = f"({skipped} crashes before it: no traceback)\n" if skipped else ""
        return before + traceback.rstrip()

    def _again(self, kind: str) -> int | None:
        return self._mistakes.again(kind, asyncio.get_running_loop().time())


def _who(pid: PID, about: dict[str, Any]) -> str:
    return " ".join([pid, *map(printable, about.get("wsrelay_names", ()))])
