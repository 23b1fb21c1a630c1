"""Servers under measurement: started, watched, and ended by their ids."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from msgspec import Struct

from wsrelay.values import linux

from .generator import MeasureError
from .places import environment
from .processes import cpu_seconds, descendants, spent, system_share

__all__ = ["Command", "Server", "Usage", "free_port"]

_START = 20.0
_STOP = 4.0
_SETTLE = 4.0
_QUIET = 0.004
_LASTING = 2
"""Processes that the first client starts and that stay: a fork server, a room."""


class Command(Struct, frozen=True):
    """A program of a server, and the port that it listens on."""

    arguments: Sequence[str]
    port: int
    environment: dict[str, str] = {}
    executable: str | None = None
    modules: Sequence[Path] = ()
    """Folders whose modules come before the installed ones."""


class Usage(Struct, frozen=True):
    """CPU seconds of a server's processes at one moment, and the ticks of user and system mode."""

    front: dict[int, float]
    workers: dict[int, float]
    front_ticks: tuple[int, int]
    worker_ticks: tuple[int, int]

    def since(self, before: Usage) -> tuple[float, float]:
        """Return what front end and workers have used since then."""
        return spent(before.front, self.front), spent(before.workers, self.workers)

    def system_since(self, before: Usage) -> tuple[float, float]:
        """Return how much of that was system time."""
        front, workers = self.since(before)
        return (
            front * _system_part(before.front_ticks, self.front_ticks),
            workers * _system_part(before.worker_ticks, self.worker_ticks),
        )


def _system_part(before: tuple[int, int], after: tuple[int, int]) -> float:
    user, system = after[0] - before[0], after[1] - before[1]
    return system / (user + system) if user + system > 0 else 0.0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Server:
    """The programs of one peer; the last of them is the front end, all others are workers.

    Entering waits until they listen; leaving ends them and all that they have started.
    """

    def __init__(self, name: str, commands: Sequence[Command]) -> None:
        self.name = name
        self.url = f"ws://127.0.0.1:{commands[-1].port}/ws"
        self._commands = commands
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        parent = os.getpid()
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsrelay-bench-")))
            self._log = folder / "log"
            stack.callback(self._stop)
            for command in self._commands:
                with self._log.open("ab") as log:
                    process = subprocess.Popen(
                        command.arguments,
                        executable=command.executable,
                        cwd=folder,
                        env=environment(
                            *command.modules, TMPDIR=str(folder), **command.environment
                        ),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        preexec_fn=lambda: linux.die_with_parent(parent),  # noqa: PLW1509 (no threads)
                    )
                self._processes.append(process)
                self._await_port(process, command.port)
            self.settle()
            self._at_rest = len(self.workers) + _LASTING
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _await_port(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + _START
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace").strip().splitlines()
                raise MeasureError(
                    f"{self.name} did not start: {said[-1] if said else 'it said nothing'}"
                )
            time.sleep(0.02)

    @property
    def front(self) -> int:
        """The front end's process id."""
        return self._processes[-1].pid

    @property
    def workers(self) -> list[int]:
        """The process ids of all its other processes."""
        helpers = [process.pid for process in self._processes[:-1]]
        return [*helpers, *(pid for root in (*helpers, self.front) for pid in descendants(root))]

    def usage(self) -> Usage:
        """Read the CPU clocks."""
        front, workers = [self.front], self.workers
        return Usage(
            cpu_seconds(front), cpu_seconds(workers), system_share(front), system_share(workers)
        )

    def settle(self, at_rest: int | None = None) -> None:
        """Wait until it rests: no more processes than at its start, and hardly any CPU used."""
        deadline = time.monotonic() + _SETTLE
        before = self.usage()
        while time.monotonic() < deadline:
            time.sleep(0.05)
            now = self.usage()
            few = at_rest is None or len(now.workers) <= at_rest
            if few and sum(now.since(before)) < _QUIET:
                return
            before = now

    def rest(self) -> None:
        """Wait until the processes of clients who left are gone."""
        self.settle(self._at_rest)

    def _stop(self) -> None:
        family: list[psutil.Process] = []
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it did not even start
                family += psutil.Process(process.pid).children(recursive=True)
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
