"""CPU and memory usage of a node's processes, and how figures are written."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from wsrelay.control.usage import OSUsage, UsageSample
from wsrelay.node import NodeInfo, ProcessInfo

__all__ = ["UsageSampler", "duration", "size", "with_usage"]

_WINDOW: Final = 0.1
"""Seconds between the first two samples of the CPU time."""


class UsageSampler:
    """Samples the processes of a node; new ones twice, a short while apart."""

    def __init__(self) -> None:
        self._usage = OSUsage()
        self._os_pids: dict[str, int | None] = {}

    def sample(self, info: NodeInfo) -> None:
        """Sample every process that the node has now."""
        self._os_pids = {process.pid: process.os_pid for process in info.processes}
        if self._usage.watch(filter(None, self._os_pids.values())):
            time.sleep(_WINDOW)
        self._usage.sample()

    def of(self, process: ProcessInfo) -> UsageSample:
        """Return the last sample of a process, which nobody has of those of other machines."""
        return self._usage.of(self._os_pids.get(process.pid))


def with_usage(process: ProcessInfo, usage: UsageSampler) -> dict[str, Any]:
    """Return a process as JSON has it, with its usage."""
    plain: dict[str, Any] = msgspec.to_builtins(process)
    used = usage.of(process)
    return {**plain, "cpu_percent": used.cpu, "memory": used.memory}


def duration(seconds: float) -> str:
    """Write a duration as people read it."""
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def size(amount: float) -> str:
    """Write bytes as people read them."""
    for unit in ("B", "KB", "MB"):
        if amount < 1024:  # noqa: PLR2004
            return f"{amount:.0f}{unit}" if unit == "B" else f"{amount:.1f}{unit}"
        amount /= 1024
    return f"{amount:.1f}GB"
