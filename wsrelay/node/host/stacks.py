"""The Python stacks of workers, as they write them when they are asked (`worker/crashes.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from wsrelay import wire
from wsrelay.template import crashes
from wsrelay.values import linux
from wsrelay.wire.tally import ASKED, MEMORY, Tally, TallySheet

__all__ = ["Stacks"]

_STEP_PATIENCE: Final = 0.5
"""Seconds that the main thread of a worker gets to come to its next step in Python, if nobody else
waits for their turn; those who wait share it."""

_LEAST_PATIENCE: Final = 0.05

_PATIENCE: Final = 2.0
"""Seconds that a worker gets to write its stacks: the system has to let one of its threads run."""

_TASKS_PATIENCE: Final = 1.0
"""Seconds that an event loop gets to tell of its tasks."""

_STEP: Final = 0.005
"""Seconds between two looks."""

_QUIET: Final = 0.2
"""Seconds after which nothing more is written, where that cannot be told from what was written."""

_ORDER: Final = "(most recent call first)"

_MORE: Final = "\n...\n"
"""The end where there are more than a hundred threads."""

_ALONE: Final = f"{_MORE}Stack {_ORDER}:\n"
"""What follows there, if a Python function writes: the main thread alone."""

_LOOP: Final = re.compile(r'^  File ".*[/\\]asyncio[/\\]\w+\.py", line \d+ in run', re.MULTILINE)
"""A frame of a thread that runs an event loop; with uvloop, of what has started that."""

_WRITER: Final = re.compile(f"^{re.escape(crashes.WRITER)}.*\n", re.MULTILINE)

_TASKS: Final = re.compile(r"\0(\d+)\n([^\0]*)\0")


class Stacks:
    """Reads the stacks that the workers of one template write to its sheet, one worker at a time.

    A worker may write what it likes, also while it is another's turn: it is text, no more.
    """

    def __init__(self, sheet: TallySheet) -> None:
        self._sheet = sheet
        self._turn = asyncio.Lock()
        self._askers = 0
        self._refs = itertools.count(1)

    async def of(
        self,
        os_pid: int,
        tally: Tally | None,
        send: Callable[[int], None],
        ask: Callable[[wire.TasksFrame], None],
    ) -> str:
        """Return the stacks of a worker's threads, and of the tasks of its event loop.

        `send` sends it a signal, `ask` asks it for its tasks. Raises `TimeoutError` if it does not
        answer, or cannot: the message says why.
        """
        async with self._in_turn():
            text, tasks = await self._asked(os_pid, tally, send), ""
            if not text:
                state = linux.status(os_pid).get("State", "gone")
                raise TimeoutError(
                    f"OS process {os_pid} does not answer within {_PATIENCE:g} s: {state}"
                )
            if _LOOP.search(text):
                ask(wire.TasksFrame(ref := next(self._refs)))
                tasks = f"\n{await self._tasks(ref)}"
        return f"{_told(_TASKS.sub('', text))}\n{tasks}"

    @contextlib.asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        self._askers += 1
        try:
            async with self._turn:
                yield
        finally:
            self._askers -= 1

    async def _asked(self, os_pid: int, tally: Tally | None, send: Callable[[int], None]) -> str:
        """Return what a worker writes when it is asked, which is nothing if it does not answer."""
        self._sheet.clear_stack()
        begun, answered = asyncio.get_running_loop().time(), _answered(os_pid)
        if wire.STACK in answered and tally is not None:
            tally[ASKED] = 1
            try:
                send(wire.STACK)
                patience = max(_STEP_PATIENCE / self._askers, _LEAST_PATIENCE)
                if text := await self._threads(begun + patience):
                    return text
            finally:
                tally[ASKED] = 0
            answered = _answered(os_pid)
        if wire.STACK_AT_ONCE not in answered:
            return ""
        send(wire.STACK_AT_ONCE)
        return await self._threads(begun + _PATIENCE)

    def _written(self) -> str:
        return self._sheet.stack().decode(errors="replace")

    async def _threads(self, end: float) -> str:
        """Return what is written, if that begins before `end` on the event loop's clock."""
        loop = asyncio.get_running_loop()
        text, since = "", loop.time()
        while loop.time() < (min(since + _QUIET, end + _PATIENCE) if text else end):
            await asyncio.sleep(_STEP)
            if (now := self._written()) != text:
                text, since = now, loop.time()
            if crashes.is_whole(text):
                break
        return text

    async def _tasks(self, ref: int) -> str:
        loop = asyncio.get_running_loop()
        end = loop.time() + _TASKS_PATIENCE
        while loop.time() < end:
            for told in _TASKS.finditer(self._written()):
                if told[1] == str(ref):
                    return told[2]
            await asyncio.sleep(_STEP)
        return f"Its tasks: the event loop does not tell of them within {_TASKS_PATIENCE:g} s.\n"


def _answered(os_pid: int) -> set[int]:
    """Return the signals by which a worker may be asked; any other one would end it.

    Raises `TimeoutError` if it would not answer, or that could do harm.
    """
    both = {wire.STACK, wire.STACK_AT_ONCE}
    status = linux.status(os_pid)
    if not status:
        return both  # it has ended, or /proc does not show it: the signal will tell
    if linux.stopped(os_pid):
        raise TimeoutError(f"OS process {os_pid} is stopped: {status['State']}")
    caught = int(status.get("SigCgt", "0"), 16)
    if not (answered := {number for number in both if caught >> (number - 1) & 1}):
        names = "SIGRTMAX-1 and SIGRTMAX-2"
        raise TimeoutError(f"OS process {os_pid} has no handlers of {names} any more")
    if not _has_memory(os_pid):
        raise TimeoutError(f"OS process {os_pid} has closed the descriptor for its stacks")
    # `STACK` has a system call end early, which not every library is prepared for, and where there
    # is one thread `STACK_AT_ONCE` is no danger.
    if answered == both and status.get("Threads") == "1":
        answered.discard(wire.STACK)
    return answered


def _has_memory(os_pid: int) -> bool:
    """Whether a process still has the sheet, as far as this process may look.

    If it had closed it, another file could have got that number by now.
    """
    try:
        listed = [str(one.readlink()) for one in Path(f"/proc/{os_pid}/fd").iterdir()]
    except OSError:
        return True
    return not listed or any(MEMORY in one for one in listed)  # one that ends has none any more


def _told(text: str) -> str:
    """Return the stacks as they are shown: those of the main thread first, equal ones once.

    The outermost frames of the main thread, which all workers have, are left out.
    """
    is_whole = crashes.is_whole(text)
    text, _, main = _WRITER.sub("", text).partition(_ALONE)
    stacks = text.removesuffix(_MORE).strip().split("\n\n")
    if is_whole and not main:
        main = stacks.pop().partition("\n")[2]
    threads: dict[str, int] = {}
    for stack in stacks:
        frames = stack.partition("\n")[2]
        threads[frames] = threads.get(frames, 0) + 1
    shown = []
    if main:
        shown.append("\n".join([f"Main thread {_ORDER}:", *_without_ours(main.splitlines())]))
    for frames, count in threads.items():
        who = "A thread" if count == 1 else f"{count} threads"
        shown.append(f"{who} {_ORDER}:\n{frames}")
    return "\n\n".join(shown)


def _without_ours(frames: list[str]) -> list[str]:
    while len(frames) > 1 and crashes.is_ours(frames[-1]):
        frames.pop()
    return frames
