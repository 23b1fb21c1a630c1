"""Where it was measured, and what."""

from __future__ import annotations

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
    """Measures which part of the machine processes other than the bench's take."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        own = os.times()
        mine = own.user + own.system + own.children_user + own.children_system
        total = sum(times) - times.guest - times.guest_nice
        return total, total - times.idle - times.iowait, mine

    def share(self) -> float:
        """Return it for the time since this was made; all that was started has ended by now."""
        total, busy, own = (
            after - before for after, before in zip(self._read(), self._before, strict=True)
        )
        return max(busy - own, 0) / total if total else 0.0


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
