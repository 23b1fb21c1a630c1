"""What `faulthandler` writes when a fatal signal ends a process: reason and Python stack."""

from __future__ import annotations

import multiprocessing.process
import multiprocessing.spawn
import os
import re
import signal
from pathlib import Path
from typing import Final

__all__ = ["BEGIN", "SIGNALS", "stack"]

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

_PACKAGE = Path(__file__).parent.parent
_OURS: Final = (
    f'  File "{_PACKAGE}{os.sep}template{os.sep}',
    f'  File "{_PACKAGE}{os.sep}worker{os.sep}',
    f'  File "{multiprocessing.process.__file__}"',
    f'  File "{multiprocessing.spawn.__file__}"',
    '  File "<string>"',
)


def stack(written: bytes) -> str:
    """Return a report as text, without the frames that every worker and template has in common."""
    text = written.decode(errors="replace")
    lines = [line for line in text.splitlines() if not line.startswith(_OURS)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
