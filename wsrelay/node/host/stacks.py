"""The Python stacks of workers, as they write them at `STACK` (`worker/crashes.py`)."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wsrelay import wire
from wsrelay.template import crashes
from wsrelay.values import linux
from wsrelay.wire.tally import MEMORY, TallySheet

__all__ = ["Stacks"]

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

_LOOP: Final = re.compile(r'^  File ".*[/\\]asyncio[/\\]\w+\.py", line \d+ in run', re.MULTILINE)
"""A frame of a thread that runs an event loop; with uvloop, of what has started that."""

_TASKS: Final = re.compile(r"\0(\d+)\n([^\0]*)\0")


class Stacks:
    """Reads the stacks that the workers of one template write to its sheet, one worker at a time.

    A worker may write what it likes, also while it is another's turn: it is text, no more.
    """

    def __init__(self, sheet: TallySheet) -> None:
        self._sheet = sheet
        self._turn = asyncio.Lock()
        self._refs = itertools.count(1)

    async def of(
        self, os_pid: int, send: Callable[[], None], ask: Callable[[wire.TasksFrame], None]
    ) -> str:
        """Return the stacks of a worker's threads, and of the tasks of its event loop.

        `send` sends it `STACK`, `ask` asks it for its tasks. Raises `TimeoutError` if it does not
        answer, or cannot: the message says why.
        """
        async with self._turn:
            self._check(os_pid)
            self._sheet.clear_stack()
            send()
            text = await self._threads(os_pid)
            tasks = ""
            if _LOOP.search(text):
                ask(wire.TasksFrame(ref := next(self._refs)))
                tasks = f"\n{await self._tasks(ref)}"
        return f"{_told(_TASKS.sub('', text))}\n{tasks}"

    def _check(self, os_pid: int) -> None:
        """Raise `TimeoutError` if the signal would not be answered, or could do harm."""
        status = linux.status(os_pid)
        if not status:
            return  # it has ended, or /proc does not show it: the signal will tell
        if linux.stopped(os_pid):
            raise TimeoutError(f"OS process {os_pid} is stopped: {status['State']}")
        if not int(status.get("SigCgt", "0"), 16) >> (wire.STACK - 1) & 1:
            # Unless it is caught, the signal would end it.
            raise TimeoutError(f"OS process {os_pid} has no handler of {_name()} any more")
        if not _has_memory(os_pid):
            raise TimeoutError(f"OS process {os_pid} has closed the descriptor for its stacks")

    def _written(self) -> str:
        return self._sheet.stack().decode(errors="replace")

    async def _threads(self, os_pid: int) -> str:
        loop = asyncio.get_running_loop()
        text, since = "", loop.time()
        end = since + _PATIENCE
        while loop.time() < end:
            await asyncio.sleep(_STEP)
            if (now := self._written()) != text:
                text, since = now, loop.time()
            if crashes.is_whole(text) or text.endswith(_MORE):
                return text
            if text and loop.time() - since > _QUIET:
                return text
        if text:
            return text
        state = linux.status(os_pid).get("State", "gone")
        raise TimeoutError(f"OS process {os_pid} does not answer within {_PATIENCE:g} s: {state}")

    async def _tasks(self, ref: int) -> str:
        loop = asyncio.get_running_loop()
        end = loop.time() + _TASKS_PATIENCE
        while loop.time() < end:
            for told in _TASKS.finditer(self._written()):
                if told[1] == str(ref):
                    return told[2]
            await asyncio.sleep(_STEP)
        return f"Its tasks: the event loop does not tell of them within {_TASKS_PATIENCE:g} s.\n"


def _name() -> str:
    return signal.Signals(wire.STACK).name if wire.STACK < signal.SIGRTMIN else "SIGRTMAX-1"


def _has_memory(os_pid: int) -> bool:
    """Whether a process still has the sheet, as far as this process may look.

    If it had closed it, another file could have got that number by now.
    """
    folder = Path(f"/proc/{os_pid}/fd")
    try:
        return any(MEMORY in str(one.readlink()) for one in folder.iterdir())
    except OSError:
        return True


def _told(text: str) -> str:
    """Return the stacks as they are shown: those of the main thread first, equal ones once.

    The outermost frames of the main thread, which all workers have, are left out.
    """
    is_whole = crashes.is_whole(text)
    threads: dict[tuple[str, ...], int] = {}
    shown = []
    *others, last = text.strip().split("\n\n")
    for stack in others if is_whole else [*others, last]:
        frames = tuple(stack.splitlines()[1:])
        threads[frames] = threads.get(frames, 0) + 1
    if is_whole:
        shown.append("\n".join([f"Main thread {_ORDER}:", *_without_ours(last.splitlines()[1:])]))
    for frames, count in threads.items():
        who = "A thread" if count == 1 else f"{count} threads"
        shown.append("\n".join([f"{who} {_ORDER}:", *frames]))
    return "\n\n".join(shown)


def _without_ours(frames: list[str]) -> list[str]:
    while len(frames) > 1 and crashes.is_ours(frames[-1]):
        frames.pop()
    return frames
