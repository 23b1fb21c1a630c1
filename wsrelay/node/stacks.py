"""What a process does, for operators: its stacks, headed by what is known of it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from wsrelay.values import linux
from wsrelay.values.printable import printable
from wsrelay.wire.tally import TOOK

from .process import WorkerProcess

__all__ = ["progress_of", "stack_of"]


async def stack_of(process: WorkerProcess, names: Iterable[str]) -> str:
    """Return the stacks of a process's threads and tasks as text.

    Raises `TimeoutError` if it does not answer; the message says why.
    """
    if not process.launched:
        raise TimeoutError(f"{process.pid} does not run yet: it is {process.row.state.value}")
    try:
        text = await process.incarnation.stack()
    except TimeoutError as error:
        raise TimeoutError(f"{process.pid} shows no stack: {error}") from None
    os_pid = process.os_pid
    state = linux.status(os_pid or 0).get("State", "gone")
    head = [process.pid, *map(printable, names), printable(process.target)]
    return f"{' '.join(head)}, OS pid {os_pid}, {state}; {progress_of(process)}\n\n{text}"


def progress_of(process: WorkerProcess) -> str:
    """Say how many messages wait for a process, and when it took the last."""
    count = process.waiting
    waits = f"{count} message{'s wait' if count != 1 else ' waits'} for it"
    if (tally := process.tally) is None or tally[TOOK] <= 0:
        return f"{waits}, and it has taken none"
    ago = max(0, time.monotonic_ns() - tally[TOOK]) / 1e9
    return f"{waits}, and it took the last {ago:.1f} s ago"
