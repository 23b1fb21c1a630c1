"""Handlers that hang, each in its own way, when they are told to."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import functools
import mmap
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Final

from wsrelay import aio, process, wire

_LONG: Final = 600


def spin() -> None:
    """Take one message and never give the interpreter up."""
    process.inbox().receive()
    while True:
        pass


def sleep() -> None:
    """Take one message and wait in a function of the C library, holding the interpreter."""
    process.inbox().receive()
    reading, _ = os.pipe()
    ctypes.PyDLL(None).read(reading, ctypes.create_string_buffer(1), 1)


def compute_in_c(path: str) -> None:
    """Take one message and run code in C until a file is there, with another thread beside it."""
    threading.Thread(target=_pause, daemon=True).start()
    process.inbox().receive()
    _poll_in_c(path)
    process.registry.register("back")
    time.sleep(_LONG)


def _poll_in_c(path: str) -> None:
    collections.deque(iter(functools.partial(os.access, path, os.F_OK), True), maxlen=0)


def wait(path: str) -> None:
    """Take one message, and the others once a file is there."""
    for _ in process.inbox():
        while not os.path.exists(path):  # noqa: PTH110 - as short as can be
            time.sleep(0.01)


def read() -> None:
    """Take all messages."""
    for _ in process.inbox():
        pass


def compute(path: str) -> None:
    """Take nothing, and be sent nothing."""
    while not os.path.exists(path):  # noqa: PTH110 - as above
        pass


def listen() -> None:
    """Take from the inbox, and never from another channel."""
    process.listen("other")
    for _ in process.inbox():
        pass


def threads() -> None:
    """Take messages while many threads wait, all at the same place, and one elsewhere."""
    for _ in range(150):
        threading.Thread(target=_pause, daemon=True).start()
    for _ in process.inbox():
        pass


def churn(path: str) -> None:
    """Take one message, then let threads begin and end all the time until a file is there."""
    threading.Thread(target=_pause, daemon=True).start()
    process.inbox().receive()
    while not os.path.exists(path):  # noqa: PTH110 - as above
        begun = [threading.Thread(target=_end) for _ in range(20)]
        for thread in begun:
            thread.start()
        for thread in begun:
            thread.join()


def _end() -> None:
    sum(range(1000))


def several() -> None:
    """Take messages while some threads wait at one place, and one at another."""
    for where in (_pause, _pause, _pause, _rest):
        threading.Thread(target=where, daemon=True).start()
    for _ in process.inbox():
        pass


def _pause() -> None:
    time.sleep(_LONG)


def _rest() -> None:
    time.sleep(_LONG)


async def await_reply() -> None:
    """Take one message and await what never comes, in a task of its own."""
    async for _ in aio.process.inbox():
        await asyncio.create_task(_answer(), name="the answer")


async def _answer() -> None:
    await _never()


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


async def block_loop() -> None:
    """Take one message in a coroutine and hold up its event loop."""
    async for _ in aio.process.inbox():
        time.sleep(_LONG)  # noqa: ASYNC251 - that is the point


def memory() -> list[int]:
    """The descriptors of the memory in which this process notes what it takes."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the others
            if "wsrelay-tallies" in str(entry.readlink()):
                found.append(int(entry.name))
    return found


def close_all(path: str) -> None:
    """Close the descriptors of the stacks, as code that closes all does; then wait for a file."""
    process.inbox().receive()
    for descriptor in memory():
        os.close(descriptor)
    process.registry.register("closed")
    while not os.path.exists(path):  # noqa: PTH110 - as above
        time.sleep(0.01)


def own_handlers() -> None:
    """Have signal handlers of one's own in the place of those that write stacks."""
    for number in (wire.STACK, wire.STACK_AT_ONCE):
        signal.signal(number, lambda *_: None)
    process.registry.register("handles")
    for _ in process.inbox():
        pass


def execute() -> None:
    """Become another program."""
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"])  # noqa: S606


def lie() -> None:
    """Write nonsense to all lines of the host's sheet."""
    process.inbox().receive()
    descriptor = memory()[0]
    with mmap.mmap(descriptor, mmap.PAGESIZE) as lines:
        lines[:] = b"\xff\xff\xff\xff\xff\xff\xff\x7f" * (mmap.PAGESIZE // 8)
    for size in (0, 1 << 30):
        try:
            os.truncate(descriptor, size)
        except OSError:
            continue
        raise AssertionError(f"it was cut to {size}")
    process.registry.register("lied")
    time.sleep(_LONG)


def uvloop_reply() -> None:
    """Do what `await_reply` does under another event loop."""
    import uvloop  # noqa: PLC0415 - only here

    uvloop.run(await_reply())
