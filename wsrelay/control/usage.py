"""CPU and memory usage of the processes of this machine, from the operating system."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import psutil

__all__ = ["OSUsage", "UsageSample"]


class UsageSample(NamedTuple):
    """CPU in percent of one core since the last sample, memory (RSS) in bytes; None: unknown."""

    cpu: float | None = None
    memory: int | None = None


class OSUsage:
    """Samples OS processes; how much CPU one takes is known from its second sample on."""

    def __init__(self) -> None:
        self._seen: dict[int, psutil.Process] = {}
        self._used: dict[int, UsageSample] = {}

    def watch(self, os_pids: Iterable[int]) -> bool:
        """Watch these and no others; returns whether there are new ones, which begin here."""
        alive = set(os_pids)
        fresh = alive - self._seen.keys()
        self._seen = {pid: self._seen[pid] for pid in alive & self._seen.keys()}
        for pid in fresh:
            try:
                process = psutil.Process(pid)
                process.cpu_percent()
            except psutil.Error:
                continue
            self._seen[pid] = process
        return bool(fresh)

    def sample(self) -> None:
        """Sample all that are watched."""
        self._used = {pid: _used(process) for pid, process in self._seen.items()}

    def of(self, os_pid: int | None) -> UsageSample:
        """Return the last sample of a process."""
        return self._used.get(os_pid or 0, UsageSample())


def _used(process: psutil.Process) -> UsageSample:
    try:
        with process.oneshot():
            return UsageSample(process.cpu_percent(), process.memory_info().rss)
    except psutil.Error:
        return UsageSample()
