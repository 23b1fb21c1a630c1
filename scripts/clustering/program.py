"""A program of the cluster: started, watched, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Sequence

from wsrelay.values.linux import die_with_parent

__all__ = ["Program", "StartError"]

_LONGEST_LINE = 1024 * 1024

_PATIENCE = 20.0
"""Seconds that a program gets to end before it is killed."""

_REST = 1.0
"""Seconds for what it has said last: what it has left behind may hold its output open."""


class StartError(Exception):
    """A part of the cluster could not be started, or none is left; the text is one line."""


class Program:
    """A child process that does not outlive this one; each line of its output is passed on.

    It has a session of its own, so Ctrl-C in the terminal does not reach it: it ends when it is
    told to.
    """

    def __init__(self, name: str, command: Sequence[str], on_line: Callable[[str], None]) -> None:
        self.name = name
        self._command = command
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it; raises `StartError`."""
        me = os.getpid()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=_LONGEST_LINE,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(me),
            )
        except OSError as error:
            raise StartError(f"{self.name} cannot be started: {error}") from None
        self._reading = asyncio.create_task(self._read())

    @property
    def command(self) -> str:
        """What it is started by, for a shell in this folder."""
        return shlex.join(self._command)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._started.pid

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._started.returncode is not None

    async def ended(self) -> str:
        """Wait until it has ended, and what it has said was passed on; returns how."""
        code = await self._started.wait()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=_REST)
        return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

    async def stop(self) -> None:
        """End it in order, or kill it after 20 s; if this is cancelled, at once."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self.ended()
        finally:
            self._signal(signal.SIGKILL)
            await self.ended()

    @property
    def _started(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it has not been started"  # noqa: S101
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._started.send_signal(number)

    async def _read(self) -> None:
        assert self._started.stdout is not None  # noqa: S101 - it was asked for
        async for line in self._started.stdout:
            self._on_line(line.decode(errors="replace").rstrip())
