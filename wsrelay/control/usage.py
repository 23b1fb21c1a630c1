"""CPU and memory usage of the processes of this machine, from the operating system."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import psutil

__all__ = ["OSUsage", "UsageSample"]


_WORTH: Final = 5.0
"""Percent of a core from which on it is looked up whether a process waits at all."""


class UsageSample(NamedTuple):
    """CPU in percent of one core since the last sample, memory (RSS) in bytes; None: unknown.

    `waits` is False if its main thread has not waited for anything in the meantime, as in an
    endless loop, however much of a core was left for it.
    """

    cpu: float | None = None
    memory: int | None = None
    waits: bool = True


class OSUsage:
    """Samples OS processes; how much CPU one takes is known from its second sample on."""

    def __init__(self) -> None:
        self._seen: dict[int, psutil.Process] = {}
        self._used: dict[int, UsageSample] = {}
        self._switches: dict[int, int] = {}
        """How often each of the busy ones has waited."""

    def watch(self, os_pids: Iterable[int]) -> bool:
        """Watch these and no others; returns whether there are new ones, which begin here."""
        alive = set(os_pids)
        fresh = alive - self._seen.keys()
        self._seen = {pid: self._seen[pid] for pid in alive & self._seen.keys()}
        for pid in fresh:
            try:
                process = psutil.Process(pid)
                process.cpu_percent()
                self._used[pid] = UsageSample(memory=process.memory_info().rss)
            except psutil.Error:
                continue
            self._seen[pid] = process
        return bool(fresh)

    def sample(self) -> None:
        """Sample all that are watched."""
        before, self._switches = self._switches, {}
        self._used = {pid: self._sampled(pid, one, before) for pid, one in self._seen.items()}

    def _sampled(self, pid: int, process: psutil.Process, before: dict[int, int]) -> UsageSample:
        try:
            with process.oneshot():
                cpu, memory = process.cpu_percent(), process.memory_info().rss
                if cpu < _WORTH:
                    return UsageSample(cpu, memory)
                count = self._switches[pid] = process.num_ctx_switches().voluntary
        except psutil.Error:
            return UsageSample()
        return UsageSample(cpu, memory, waits=count != before.get(pid))

    def of(self, os_pid: int | None) -> UsageSample:
        """Return the last sample of a process."""
        return self._used.get(os_pid or 0, UsageSample())
