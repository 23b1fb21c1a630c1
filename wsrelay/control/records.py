"""The recent log records of one node, for clients of the control socket to read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, Final

from msgspec import Struct

from wsrelay.wire.logrecord import extra_of, fields_of, text_of

__all__ = ["LogRecord", "Records"]

_KEPT: Final = 1000
"""Records that are kept; a reader that is further behind misses some."""
_LONGEST: Final = 4096
"""Characters of one record."""


class LogRecord(Struct, frozen=True, kw_only=True):
    """One log record; `time` is in seconds since 1970.

    It has what is known of the process that it concerns, if it concerns one. `extra` has the fields
    that the record was given.
    """

    time: float
    level: str
    pid: str | None
    text: str
    logger: str = ""
    names: list[str] = []
    target: str | None = None
    os_pid: int | None = None
    host: str | None = None
    exit: str | None = None
    extra: dict[str, Any] = {}


class Records(logging.Handler):
    """Keeps the last records of a node and of its workers.

    Several nodes may log in one OS process; all PIDs of this one contain `prefix`, and what it says
    of the processes of other nodes has its name.
    """

    def __init__(self, prefix: str, node: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._node = node
        self._kept: deque[LogRecord] = deque(maxlen=_KEPT)
        self._count = 0
        self._ended = False
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; may be called from any thread."""
        about = fields_of(record)
        pid, by = about.setdefault("pid", None), about.pop("node", None)
        if pid is not None and self._prefix not in pid and by != self._node:
            return
        kept = LogRecord(
            time=record.created,
            level=record.levelname.lower(),
            text=text_of(record)[:_LONGEST],
            logger=record.name,
            extra=extra_of(record),
            **about,
        )
        with contextlib.suppress(RuntimeError):  # the loop was closed before the node
            self._loop.call_soon_threadsafe(self._keep, kept)

    def _keep(self, record: LogRecord) -> None:
        self._kept.append(record)
        self._count += 1
        self._news.set()

    def end(self) -> None:
        """End all readers that follow, because the node ends."""
        self._ended = True
        self._news.set()

    def pids(self) -> set[str]:
        """Return the PIDs of all processes that have records here."""
        return {record.pid for record in self._kept if record.pid is not None}

    async def read(
        self, wanted: Callable[[], Collection[str]] | None, *, follow: bool
    ) -> AsyncIterator[LogRecord]:
        """Yield the records of the wanted PIDs (None: all); with `follow`, wait for more."""
        seen = self._count - len(self._kept)
        while True:
            first = self._count - len(self._kept)
            if first > seen:
                text = f"{first - seen} records were lost: they came faster than they were read"
                yield LogRecord(time=self._kept[0].time, level="warning", pid=None, text=text)
            fresh = list(self._kept)[max(seen - first, 0) :]
            seen = self._count
            pids = None if wanted is None else wanted()
            for record in fresh:
                if pids is None or record.pid in pids:
                    yield record
            if not follow or self._ended:
                return
            if seen == self._count:
                self._news.clear()
                await self._news.wait()
