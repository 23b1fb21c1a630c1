"""A server under measurement: started, its CPU time and memory read, ended (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import psutil

__all__ = ["Command", "MeasureError", "Server", "Usage", "free_port"]

SCRIPTS = Path(__file__).resolve().parent.parent
"""The folder of this package, for those who run modules of `served`."""

_START = 20.0
_STOP = 4.0
_SETTLE = 4.0
_QUIET = 0.004
_LASTING = 2
"""Processes that the first client starts and that stay: a fork server, a room."""

_CPUCLOCK_SCHED = 2
_PR_SET_PDEATHSIG = 1


class MeasureError(Exception):
    """A measure could not be taken; the text says why."""


class _Clock(NamedTuple):
    """CPU time of a process in seconds, in all, in user and in system mode.

    The first is from its CPU clock. The kernel rounds the others to hundredths and samples how they
    are divided: good for a share over seconds, not for a time.
    """

    total: float
    user: float
    system: float


def _clocks(pids: Iterable[int]) -> dict[int, _Clock]:
    clocks = {}
    for pid in pids:
        with contextlib.suppress(OSError, psutil.Error):  # it has ended
            total = time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
            clocks[pid] = _Clock(total, *psutil.Process(pid).cpu_times()[:2])
    return clocks


def _spent(before: Mapping[int, _Clock], after: Mapping[int, _Clock]) -> tuple[float, float]:
    """Return the CPU seconds of those who lived at both readings, and how many in system mode."""
    pairs = [(before[pid], clock) for pid, clock in after.items() if pid in before]
    total, user, system = (sum(new[i] - old[i] for old, new in pairs) for i in range(3))
    return total, total * system / (user + system) if user + system else 0.0


class Usage(NamedTuple):
    """CPU time of a server's processes at one moment, by process id."""

    front: Mapping[int, _Clock]
    workers: Mapping[int, _Clock]

    def since(self, before: Usage) -> dict[str, float]:
        """Return what front end and workers have used since then, and how much in system mode."""
        front, front_system = _spent(before.front, self.front)
        workers, worker_system = _spent(before.workers, self.workers)
        return {
            "front_cpu": front,
            "worker_cpu": workers,
            "front_system": front_system,
            "worker_system": worker_system,
        }


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _descendants(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Command(NamedTuple):
    """A program of a server, and the port that it listens on."""

    arguments: Sequence[str]
    port: int
    environment: Mapping[str, str] = {}
    executable: str | None = None


class Server:
    """The programs of one peer; the last of them is the front end, all others are workers.

    Entering waits until they listen; leaving ends them and all that they have started.
    """

    def __init__(self, *commands: Command) -> None:
        self.url = f"ws://127.0.0.1:{commands[-1].port}/ws"
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsrelay-bench-")))
            stack.callback(self._stop)
            for command in self._commands:
                self._start(command, folder)
            self.settle()
            self._at_rest = len(self.workers) + _LASTING
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, command: Command, folder: Path) -> None:
        parent = os.getpid()

        def die_with_the_bench() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it has ended before
                os._exit(1)

        log, environment = folder / "log", {"PYTHONPATH": str(SCRIPTS), **command.environment}
        with log.open("ab") as output:
            process = subprocess.Popen(
                command.arguments,
                executable=command.executable,
                cwd=folder,
                env={**os.environ, "TMPDIR": str(folder), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_the_bench,  # noqa: PLW1509 (the bench has no threads)
            )
        self._processes.append(process)
        deadline = time.monotonic() + _START
        while not _listens(command.port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise MeasureError(f"it did not start: {said[-1]}")
            time.sleep(0.02)

    def _stop(self) -> None:
        family = [child for process in self._processes for child in _descendants(process.pid)]
        for process in reversed(self._processes):
            process.terminate()
        deadline = time.monotonic() + _STOP
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # psutil knows it from a later one
                child.kill()

    @property
    def front(self) -> int:
        """The front end's process id."""
        return self._processes[-1].pid

    @property
    def workers(self) -> list[int]:
        """The process ids of all its other processes."""
        pids = [process.pid for process in self._processes]
        return [*pids[:-1], *(child.pid for pid in pids for child in _descendants(pid))]

    def usage(self) -> Usage:
        """Read the CPU clocks."""
        return Usage(_clocks([self.front]), _clocks(self.workers))

    def settle(self, at_rest: int | None = None) -> None:
        """Wait until hardly any CPU time is used, and there are no more workers than `at_rest`."""
        deadline = time.monotonic() + _SETTLE
        before = self.usage()
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = self.usage()
            used = now.since(before)
            few = at_rest is None or len(now.workers) <= at_rest
            if few and used["front_cpu"] + used["worker_cpu"] < _QUIET:
                return
            before = now

    def rest(self) -> None:
        """Wait until the processes of clients who left are gone."""
        self.settle(self._at_rest)
