"""What `faulthandler` writes, when a fatal signal ends a process or a stack is asked for."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.spawn
import os
import re
import signal
from pathlib import Path
from typing import Final

__all__ = ["BEGIN", "SIGNALS", "WRITER", "is_ours", "is_whole", "stack"]

BEGIN: Final = b"Fatal Python error: "
"""What a report begins with; written in one piece."""

SIGNALS: Final = {
    signal.SIGSEGV,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGILL,
}
"""The signals that it reports."""

_OUTERMOST: Final = '  File "<string>", line 1 in <module>\n'
"""The first frame of the main thread, which is written last: that of multiprocessing's `-c`."""

_PACKAGE = Path(__file__).parent.parent
_OURS: Final = (
    f'  File "{_PACKAGE}{os.sep}template{os.sep}',
    f'  File "{_PACKAGE}{os.sep}worker{os.sep}',
    f'  File "{multiprocessing.process.__file__}"',
    f'  File "{multiprocessing.spawn.__file__}"',
    '  File "<string>"',
)

WRITER: Final = f'  File "{_PACKAGE}{os.sep}worker{os.sep}crashes.py"'
"""How the frame begins that has written the stacks, where a Python function has done so."""


def stack(written: bytes) -> str:
    """Return a report as text, without the frames that every worker and template has in common."""
    text = written.decode(errors="replace")
    lines = [line for line in text.splitlines() if not is_ours(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def is_ours(line: str) -> bool:
    """Whether a line is one of the frames that every worker and template has."""
    return line.startswith(_OURS)


def is_whole(text: str) -> bool:
    """Whether these are the stacks of all threads; the deepest ones do not show it."""
    return text.endswith(_OUTERMOST)
