"""What the kernel tells of processes: CPU time, memory, descendants (Linux)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
from msgspec import Struct

__all__ = ["Memory", "cpu_seconds", "descendants", "memory", "spent", "system_share"]

_CPUCLOCK_SCHED = 2


class Memory(Struct, frozen=True):
    """Bytes of some processes: their share of shared pages counted in (PSS), or left out (USS)."""

    pss: int
    uss: int


def descendants(root: int) -> list[int]:
    """Return the process ids of all that a process has started, and those started."""
    try:
        return [child.pid for child in psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """Return the CPU time of each process that lives.

    It is read from the process's CPU clock: the same account as in /proc/PID/stat, which rounds it
    to hundredths of a second.
    """
    found = {}
    for pid in pids:
        try:
            found[pid] = time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
        except OSError:  # it has ended
            continue
    return found


def system_share(pids: Iterable[int]) -> tuple[int, int]:
    """Return the ticks of processor time that the processes have spent in user and system mode.

    Hundredths of a second, sampled: good for a share over seconds, not for a time.
    """
    user = system = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ProcessLookupError):
            continue
        user, system = user + int(fields[11]), system + int(fields[12])
    return user, system


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Return the CPU time between two readings of those who lived at both."""
    return sum(seconds - before[pid] for pid, seconds in after.items() if pid in before)


def memory(pids: Iterable[int]) -> Memory:
    """Return the memory of the processes together."""
    pss = uss = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except (OSError, ProcessLookupError):
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        pss += sizes["Pss"]
        uss += sizes["Private_Clean"] + sizes["Private_Dirty"]
    return Memory(pss, uss)
