"""Where it was measured, and what."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from .places import ROOT

__all__ = ["Others", "describe"]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


class Others:
    """Measures which part of the machine others take: processes that live, and the hypervisor.

    What came and went meanwhile is not seen.
    """

    def __init__(self) -> None:
        self._processes, self._stolen, self._total = self._read()

    @staticmethod
    def _read() -> tuple[dict[int, float], float, float]:
        times = psutil.cpu_times()
        own = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        processes = {}
        for process in psutil.process_iter():
            if process.pid not in own:
                with contextlib.suppress(psutil.Error):
                    processes[process.pid] = sum(process.cpu_times()[:2])
        return processes, times.steal, sum(times) - times.guest - times.guest_nice

    def shares(self) -> tuple[float, float]:
        """Return both for the time since this was made."""
        processes, stolen, total = self._read()
        used = sum(
            max(seconds - self._processes.get(pid, 0.0), 0.0) for pid, seconds in processes.items()
        )
        passed = (total - self._total) or 1.0
        return used / passed, (stolen - self._stolen) / passed


def describe() -> dict[str, str]:
    """Return what the table's head says."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    commit = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    changed = " with changes" if _git("status", "--porcelain") else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {cores} cores, {memory:.0f} GiB, {platform.platform()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}, "
        f"uvloop {version('uvloop')}",
        "generator": f"picows {version('picows')}",
        "commit": f"{commit}{changed}",
    }
