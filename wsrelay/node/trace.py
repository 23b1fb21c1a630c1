"""A trace: the messages of one process for one reader, bounded in number, rate, memory and time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final, cast

import msgspec

from wsrelay.values import trace_context
from wsrelay.values.bucket import Bucket
from wsrelay.values.pid import PID
from wsrelay.wire import payload

from .info import TraceRecord
from .node import Node
from .taps import Passing, Taps

__all__ = ["MOST_SECONDS", "MOST_TRACED", "Trace"]

MOST_TRACED: Final = 1_000_000
"""Messages that one trace may show."""

MOST_SECONDS: Final = 86_400.0

_RATE: Final = 200
_BURST: Final = 1_000
"""Messages that are shown in a second for long, and at once; a record takes the node 20 µs."""

_WAITING: Final = 1_000
"""Records that may wait for a slow reader."""

_SHOWN: Final = 1024
"""Characters of a payload that are shown."""

_DECODED: Final = 16 * 1024
"""Bytes of a payload beyond which it is not decoded."""

_NAMES: Final = 3


class Trace:
    """What passes a living process or connection, from `records` on, until a bound is reached.

    It shows at most `count` messages and takes at most so many `seconds`, even if nobody reads.
    With `contents` it shows payloads.
    """

    def __init__(
        self, node: Node, taps: Taps, pid: PID, *, contents: bool, count: int, seconds: float
    ) -> None:
        self._node = node
        self._taps = taps
        self._pid = pid
        self._contents = contents
        self._left = count
        self._count = count
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._bucket = Bucket(_RATE, _BURST, self._loop.time())
        self._waiting: deque[TraceRecord] = deque()
        self._missed = 0
        self._news = asyncio.Event()
        self._over = ""
        """Why nothing follows any more."""

    async def records(self) -> AsyncGenerator[TraceRecord, None]:
        """Yield what passes; the first record and the last are notes."""
        if self._node.kernel.processes.get(self._pid) is None:
            yield _note(f"{self._pid} has ended", last=True)
            return
        timer = self._loop.call_later(self._seconds, self.end, f"{self._seconds:g} s are over")
        self._taps.listen(self._pid, self._passes, self._ended)
        try:
            names = ", ".join(self._names(self._pid))
            yield _note(" ".join(filter(None, [f"messages of {self._pid}", names])))
            while True:
                while self._waiting:
                    yield self._waiting.popleft()
                if self._over:
                    break
                self._news.clear()
                await self._news.wait()
        finally:
            timer.cancel()
            self.end("nobody reads it")
        if self._missed:
            yield _missed(self._missed)
        yield _note(self._over, last=True)

    def end(self, why: str) -> None:
        """Look at nothing any more; the reader gets what waits, and then why."""
        if not self._over:
            self._over = why
            self._taps.leave(self._pid, self._passes)
            self._news.set()

    def _ended(self) -> None:
        self.end(f"{self._pid} has ended; `wsrelay ends {self._pid.id}` says how")

    def _passes(self, seen: Callable[[], Passing]) -> None:
        if len(self._waiting) >= _WAITING or self._bucket.take(self._loop.time()):
            self._missed += 1
            return
        if self._missed:
            self._waiting.append(_missed(self._missed))
            self._missed = 0
        passing = seen()
        self._waiting.append(
            TraceRecord(
                time=time.time(),
                direction=passing.direction,
                topic=passing.topic,
                peer=str(passing.peer),
                others=passing.others,
                names=self._names(passing.peer),
                size=passing.size,
                payload=_shown(passing.content) if self._contents else None,
            )
        )
        self._news.set()
        self._left -= 1
        if not self._left:
            self.end(f"{self._count} messages were shown")

    def _names(self, pid: str) -> list[str]:
        return sorted(self._node.kernel.names.of(cast("PID", pid)))[:_NAMES]


def _note(text: str, *, last: bool = False) -> TraceRecord:
    return TraceRecord(time=time.time(), note=text, last=last)


def _missed(count: int) -> TraceRecord:
    return _note(f"{count} message{'s' * (count > 1)} not shown")


def _shown(content: bytes | memoryview) -> str:
    """Return a payload as JSON, as far as it has that form, without its end if it is long."""
    if len(content) > _DECODED:
        return f"(more than {_DECODED} bytes)"
    _, content = trace_context.split(bytes(content))
    try:
        value = payload.decode_bounded(content)
    except (ValueError, RecursionError):
        return "(no data)"
    try:
        text = msgspec.json.encode(value).decode()
    except TypeError:  # a key that JSON cannot represent
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
