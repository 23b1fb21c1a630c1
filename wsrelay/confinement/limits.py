"""What the operating system lets a worker use (`setrlimit`, niceness)."""

from __future__ import annotations

import contextlib
import os
import resource

from msgspec import Struct

from wsrelay.values import sizes

__all__ = [
    "LimitError",
    "Limits",
    "cpu_time_reached",
    "enter_template",
    "enter_worker",
    "hard_limit_reached",
    "memory_total_reached",
    "raise_priority",
    "shown",
    "shown_processes",
]


class LimitError(Exception):
    """The operating system refused a limit; the text says which."""


class Limits(Struct, frozen=True, kw_only=True):
    """What each worker of a host may use; None: as much as the node itself.

    `memory` is address space in bytes, `cpu_time` seconds of CPU time (waiting does not count),
    `open_files` a number of descriptors. `processes` is how many processes and threads the workers'
    user may have before a worker can start no more: the system counts all of that user's, and none
    of root's, so it is best used with a separate user for the host.

    The last three apply to the host as a whole, with its template and all that its processes start:
    `cpus` is how many it may keep busy (1.5: one and a half), `memory_total` bytes of memory
    (including shared memory and memfds; none of it is swapped), `processes_total` a number of
    processes and threads. They need cgroup v2, see `docs/configuration.md`.
    """

    memory: int | None = None
    cpu_time: float | None = None
    open_files: int | None = None
    processes: int | None = None
    cpus: float | None = None
    memory_total: int | None = None
    processes_total: int | None = None


def enter_template(limits: Limits) -> None:
    """Limit the memory of the template, and so of all its forks; raises `LimitError`.

    What is limited is the address space (RLIMIT_AS), since only that bounds every way to get
    memory; numpy's shared libraries take about 100 MB of it.
    """
    if limits.processes is not None and os.geteuid() == 0:
        raise LimitError(
            f"limit of {limits.processes} processes: the system does not count those of root; "
            "give the host a user"
        )
    if limits.memory is not None:
        _limit(resource.RLIMIT_AS, limits.memory, f"memory limit {sizes.show(limits.memory)}")


def raise_priority(nice: int | None) -> None:
    """Set a niceness in the template that its forks no longer have the privilege to set.

    That is, one lower than its own. If the system refuses it, `enter_worker` raises the error.
    """
    if nice is not None and nice < os.getpriority(os.PRIO_PROCESS, 0):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)


def enter_worker(limits: Limits, nice: int | None) -> None:
    """Set the limits that count per process: the template's own use adds up over its life."""
    if limits.cpu_time is not None:
        # The soft limit's SIGXCPU tells what happened; SIGKILL follows if that is ignored.
        seconds = _seconds(limits.cpu_time)
        _limit(resource.RLIMIT_CPU, seconds, f"CPU time limit {seconds}s", seconds + 1)
    if limits.open_files is not None:
        _limit(resource.RLIMIT_NOFILE, limits.open_files, f"limit of {limits.open_files} files")
    if limits.processes is not None:
        shown = f"limit of {limits.processes} processes"
        _limit(resource.RLIMIT_NPROC, limits.processes, shown)
    if nice is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        except OSError as error:
            raise LimitError(f"nice {nice} cannot be set: {error.strerror}") from None


def _limit(which: int, soft: int, shown: str, hard: int | None = None) -> None:
    hard = soft if hard is None else hard
    _, ceiling = resource.getrlimit(which)
    if ceiling != resource.RLIM_INFINITY:
        hard = min(hard, ceiling)
        soft = min(soft, hard)
    try:
        resource.setrlimit(which, (soft, hard))
    except (OSError, ValueError) as error:
        raise LimitError(f"{shown} cannot be set: {error}") from None


def hard_limit_reached(limits: Limits, used: resource.struct_rusage) -> bool:
    """Whether a worker that was killed had ignored SIGXCPU and used a second more."""
    if limits.cpu_time is None:
        return False
    # The two count differently: on a busy machine 1.75 s were reported under a limit of 2.
    return used.ru_utime + used.ru_stime > 0.8 * (_seconds(limits.cpu_time) + 1)


def _seconds(cpu_time: float) -> int:
    return max(1, round(cpu_time))


def shown(limits: Limits) -> str:
    """Say under which memory limit something failed, since that may be the reason."""
    return (
        "" if limits.memory is None else f" (under a memory limit of {sizes.show(limits.memory)})"
    )


def shown_processes(limits: Limits) -> str:
    """Say under which limit a process could not be started."""
    total = limits.processes_total
    return "" if total is None else f" (the host may have {total} processes and threads)"


def memory_total_reached(limits: Limits) -> str:
    """Say that a host reached its memory limit, at which the system kills some of its processes."""
    return f"memory limit of {sizes.show(limits.memory_total or 0)} of its host reached"


def cpu_time_reached(limits: Limits) -> str:
    """Say that a worker was ended by its CPU time limit."""
    return f"CPU time limit of {limits.cpu_time:g}s reached"
