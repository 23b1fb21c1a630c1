"""What `ps`, `top` and `htop` show of templates and workers in place of a command line.

Like command lines, the text is visible to all users of the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from setproctitle import setproctitle

from wsrelay.values.pid import PID
from wsrelay.values.printable import printable
from wsrelay.worker.title import BEGIN, shown_name

__all__ = ["enter_template", "waiting_title", "worker_title"]


def enter_template(host: str) -> None:
    """Show this process as a template; its forks can be given titles of their own.

    Must be called before the environment is changed: it lies behind the command line, which is how
    the library finds that.
    """
    # Otherwise a title may also overwrite /proc/PID/environ, which operators want to read.
    given = "SPT_NOENV" in os.environ
    os.environ.setdefault("SPT_NOENV", "1")
    setproctitle(f"wsrelay: template of {host}")
    if not given:
        del os.environ["SPT_NOENV"]


def worker_title(pid: PID, names: Iterable[str], target: str) -> str:
    """Return the title of a worker: its first name comes first, what may be cut off comes last."""
    shown = [shown_name(name) for name in sorted(names)[:1]]
    return f"{BEGIN}{' '.join([*shown, pid, printable(target)])}"


def waiting_title(host: str) -> str:
    """Return the title of a process that was forked ahead."""
    return f"wsrelay: waiting in {host}"
