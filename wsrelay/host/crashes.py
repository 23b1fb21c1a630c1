"""The Python stacks of processes that a fatal signal ends, on their way to the node's log."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing.process
import multiprocessing.spawn
import os
import re
import signal
from pathlib import Path
from typing import Final

__all__ = ["FATAL", "Crashes", "stack"]

FATAL: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}

_BEGIN: Final = "Fatal Python error: "
_ALL: Final = 1 << 20
_STDERR: Final = 2

_PACKAGE = Path(__file__).parent.parent
_OURS: Final = (
    f'  File "{_PACKAGE}{os.sep}host{os.sep}',
    f'  File "{_PACKAGE}{os.sep}worker{os.sep}',
    f'  File "{multiprocessing.process.__file__}"',
    f'  File "{multiprocessing.spawn.__file__}"',
    '  File "<string>"',
)

_is_worker = False


class Crashes:
    """One pipe for all workers of a template, into which the dying write.

    A pipe for each would be one more descriptor of the template for each, and each fork would have
    all of them to close. None waits for room in it.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        self._text, self._taken = "", 0
        faulthandler.enable(self._writing)
        os.register_at_fork(after_in_child=_speak_for_oneself)

    def enter_worker(self) -> None:
        """Let this fork of the template be a worker."""
        global _is_worker  # noqa: PLW0603 - hooks of a fork have no arguments
        _is_worker = True
        os.close(self._reading)

    def take(self) -> str:
        """Return what a worker has written, now that it is dead.

        Of those who die at the same time each gets the words of all.
        """
        if self._taken >= self._text.count(_BEGIN):
            self._text, self._taken = "", 0
        with contextlib.suppress(BlockingIOError):
            self._text += os.read(self._reading, _ALL).decode(errors="replace")
        if not self._text:
            return ""
        self._taken += 1
        return stack(self._text)


def _speak_for_oneself() -> None:
    """Send the stack of a worker's child to standard error: the template knows nothing of it."""
    if _is_worker:
        faulthandler.enable(_STDERR)


def stack(text: str) -> str:
    """Return what `faulthandler` wrote, without what every worker's stack begins with."""
    lines = [line for line in text.splitlines() if not line.startswith(_OURS)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
