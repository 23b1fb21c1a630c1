"""Where it was measured, and what else ran there."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

__all__ = ["ROOT", "Others", "describe", "git"]

ROOT = Path(__file__).resolve().parent.parent.parent
"""The tree of which the bench is a part."""


def git(*arguments: str) -> bytes:
    """Run git on this tree; raises `subprocess.CalledProcessError` or `OSError`."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def describe() -> dict[str, str]:
    """Return what the table's head says."""
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = model[1] if model else platform.machine()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    commit = "unknown"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        changes = " with changes" if git("status", "--porcelain") else ""
        commit = git("rev-parse", "--short=10", "HEAD").decode().strip() + changes
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{processor}, {cores} cores, {memory:.0f} GiB, {platform.platform()}",
        "python": f"{python}, uvloop {version('uvloop')}",
        "generator": f"picows {version('picows')}",
        "commit": commit,
    }


class Others:
    """Measures how much of the machine others take: processes that live on, and the hypervisor.

    Processes that came and went in between are not seen.
    """

    def __init__(self) -> None:
        self._processes, self._stolen, self._total = self._read()

    @staticmethod
    def _read() -> tuple[dict[int, float], float, float]:
        """Return CPU seconds: of each other process by its ID, stolen, and in all."""
        times = psutil.cpu_times()
        own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        processes = {}
        for process in psutil.process_iter():
            if process.pid not in own:
                with contextlib.suppress(psutil.Error):
                    processes[process.pid] = sum(process.cpu_times()[:2])
        return processes, times.steal, sum(times) - times.guest - times.guest_nice

    def text(self) -> str:
        """Describe the time since this object was made."""
        processes, stolen, total = self._read()
        used = sum(max(cpu - self._processes.get(pid, 0.0), 0.0) for pid, cpu in processes.items())
        passed = (total - self._total) or 1.0
        return (
            f"processes took {used / passed:.0%} of the machine, "
            f"the hypervisor {(stolen - self._stolen) / passed:.0%}"
        )
