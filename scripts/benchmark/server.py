"""A server under measurement: started, its CPU time and memory read, ended (Linux)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import json
import math
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

__all__ = ["SCRIPTS", "Command", "MeasureError", "Server", "free_port", "memory", "running"]

SCRIPTS = Path(__file__).resolve().parent.parent
"""The folder of this package, for the programs that run modules of `served`."""

_START = 20.0
_STOP = 4.0
_SETTLE = 4.0
_QUIET = 0.004
_LASTING = 2
"""Processes that the first client starts and that stay: a fork server, a room."""

_CPUCLOCK_SCHED = 2
_PR_SET_PDEATHSIG = 1
_die_with_the_bench = functools.partial(
    ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, int(signal.SIGKILL)
)


_Clocks = Mapping[int, tuple[float, float, float]]


class MeasureError(Exception):
    """A measure could not be taken; the text says why."""


class Command(NamedTuple):
    """A program of a server, and the port that it listens on."""

    arguments: Sequence[str]
    port: int
    environment: Mapping[str, str] = {}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def memory(processes: Iterable[psutil.Process]) -> dict[str, int]:
    """Return the bytes of some processes, with their share of shared pages (`pss`) and without."""
    total = {"pss": 0, "uss": 0}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            total["pss"] += info.pss
            total["uss"] += info.uss
    return total


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _popen(command: Command, log: Path) -> psutil.Popen:
    """Start a program in the folder of its log."""
    own = {"TMPDIR": str(log.parent), "PYTHONPATH": str(SCRIPTS), **command.environment}
    with log.open("ab") as output:
        return psutil.Popen(
            command.arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=log.parent,
            env=os.environ | own,
            start_new_session=True,
            preexec_fn=_die_with_the_bench,
        )


class Server:
    """The programs of one peer: the last is the front end, all other processes are workers."""

    def __init__(
        self, url: str, folder: Path, *, monitor: int | None = None, times_itself: bool = False
    ) -> None:
        self.url = url
        self.times_itself = times_itself
        """Whether it is asked for times; see `served/timing.py`."""
        self._monitor = monitor
        self.at_rest = 0
        """The most workers that it has without clients."""
        self._folder = folder
        self._programs: list[psutil.Popen] = []

    async def start(self, command: Command) -> None:
        """Start a program and wait until it listens; raises `MeasureError` after 20 s."""
        log, deadline = self._folder / "log", time.monotonic() + _START
        self._programs.append(_popen(command, log))
        while not _listens(command.port):
            if self._programs[-1].poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise MeasureError(f"it did not start: {said[-1]}")
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Terminate the programs, kill them after 4 s, and kill whatever they leave behind."""
        family = [*self._programs, *self.workers]
        for program in reversed(self._programs):
            with contextlib.suppress(psutil.NoSuchProcess):
                program.terminate()
        psutil.wait_procs(self._programs, _STOP)
        for process in family:
            # It is raised, too, if the PID belongs to another process now.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(self._programs)

    @property
    def programs(self) -> list[psutil.Process]:
        """The processes that were started, in this order; the front end is the last."""
        return [*self._programs]

    def carried(self) -> int | None:
        """Return how many messages its NATS has taken so far; None if it has none."""
        if self._monitor is None:
            return None
        url = f"http://127.0.0.1:{self._monitor}/varz"
        with urllib.request.urlopen(url, timeout=_START) as answer:
            messages: int = json.load(answer)["in_msgs"]
        return messages

    @property
    def front(self) -> psutil.Process:
        """The front end's process."""
        return self._programs[-1]

    @property
    def workers(self) -> list[psutil.Process]:
        """All its other processes."""
        found: list[psutil.Process] = [*self._programs[:-1]]
        for program in self._programs:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += program.children(recursive=True)
        return found

    def clocks(self) -> _Clocks:
        """Read the CPU time of each process in seconds, by its ID: in all, in user, in system mode.

        The first is from its CPU clock. The kernel rounds the others to hundredths and samples how
        they are divided: good for a share over seconds, not for a time.
        """
        clocks = {}
        for process in (self.front, *self.workers):
            with contextlib.suppress(OSError, psutil.Error):  # it has ended
                total = time.clock_gettime((~process.pid << 3) | _CPUCLOCK_SCHED)
                clocks[process.pid] = (total, *process.cpu_times()[:2])
        return clocks

    def used(self, before: _Clocks) -> dict[str, float]:
        """Return the CPU seconds that front end and workers used since, also those in system mode.

        Processes that were not alive at both times are left out.
        """
        now, figures = self.clocks(), {}
        lasting, front = before.keys() & now.keys(), {self.front.pid}
        for name, pids in ("front", lasting & front), ("worker", lasting - front):
            total, user, system = (sum(now[p][i] - before[p][i] for p in pids) for i in range(3))
            figures[f"{name}_cpu"] = total
            figures[f"{name}_system"] = total * system / (user + system) if user + system else 0.0
        return figures

    async def settle(self, workers: float = math.inf) -> None:
        """Wait up to 4 s until hardly any CPU time is used and at most so many workers are left."""
        deadline, now = time.monotonic() + _SETTLE, self.clocks()
        while time.monotonic() < deadline:
            before = now
            await asyncio.sleep(0.05)
            now = self.clocks()
            used = sum(now[pid][0] - before[pid][0] for pid in before.keys() & now.keys())
            if used < _QUIET and len(now) <= 1 + workers:
                return

    async def rest(self) -> None:
        """Wait until the processes of clients that left are gone."""
        await self.settle(self.at_rest)


@contextlib.asynccontextmanager
async def running(
    *commands: Command, monitor: int | None = None, times_itself: bool = False
) -> AsyncIterator[Server]:
    """Start the programs of one peer, one after the other; leaving ends all that they started.

    The last of them is the front end. `monitor` is the port at which NATS tells its counts, if one
    of them is NATS; with `times_itself` it is asked for times. Raises `MeasureError` if one does
    not start.
    """
    with tempfile.TemporaryDirectory(prefix="wsrelay-bench-") as folder:
        server = Server(
            f"ws://127.0.0.1:{commands[-1].port}/ws",
            Path(folder),
            monitor=monitor,
            times_itself=times_itself,
        )
        try:
            for command in commands:
                await server.start(command)
            await server.settle()
            server.at_rest = len(server.workers) + _LASTING
            yield server
        finally:
            server.stop()
