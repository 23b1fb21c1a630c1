"""What the tasks of this process's event loop wait for, for an operator who asks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from wsrelay.wire.tally import MEMORY

__all__ = ["tell_tasks"]

_MOST: Final = 200
"""Tasks that are told."""

_DEEPEST: Final = 100
"""Frames of a task that are told, the innermost first."""


def tell_tasks(descriptor: int, ref: int) -> None:
    """Write them there, as the answer to that question; called in the event loop's thread."""
    tasks = sorted(asyncio.all_tasks(), key=lambda task: task.get_name())
    told = [_told(task) for task in tasks[:_MOST]]
    if len(tasks) > _MOST:
        told.append(f"and {len(tasks) - _MOST} more tasks\n")
    text = "\n".join(told).replace("\0", "")
    try:
        # User code may have closed it, and opened a file of its own that got its number.
        if MEMORY in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            os.write(descriptor, f"\0{ref}\n{text}\0".encode(errors="replace"))
    except OSError:
        pass


def _told(task: asyncio.Task[Any]) -> str:
    frames = [_frame(frame) for frame in _frames(task.get_coro())]
    if len(frames) > _DEEPEST:
        frames = ["  ...", *frames[-_DEEPEST:]]
    return "\n".join([f"Task {task.get_name()} (most recent call first):", *reversed(frames), ""])


def _frames(awaited: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine and of what it awaits, the outermost first."""
    while awaited is not None:
        for kind in ("cr", "gi", "ag"):
            if isinstance(frame := getattr(awaited, f"{kind}_frame", None), FrameType):
                yield frame
                further = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
                awaited = getattr(awaited, further, None)
                break
        else:
            return


def _frame(frame: FrameType) -> str:
    code = frame.f_code
    return f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}'
