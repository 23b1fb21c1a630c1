"""Response bytes that wait for a client: counted, and dropped if it does not read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from wsrelay.values.buffered import Buffered

from .progress import bytes_acknowledged

__all__ = ["Outgoing"]

_TOO_MUCH: Final = "too much waits for clients in this node (max_buffered)"
_NOTHING: Final = "it has taken nothing of its response for %g s (timeouts.response)"


class Outgoing:
    """Watches a transport that holds response bytes which the client has not read yet.

    Watching ends when the transport is empty, or with `close`. `give_up` is called with the reason
    before a client is dropped.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        buffered: Buffered,
        timeout: float,
        give_up: Callable[[str], object],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._buffered = buffered
        self._timeout = timeout
        self._give_up = give_up
        self._size = 0
        self._seen = (0, 0)
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Count the bytes that wait now, and watch them."""
        self._count()
        if self._buffered.refuses(self._size):
            # Not at once: the caller may be in the middle of a write.
            self._loop.call_soon(self._drop, _TOO_MUCH)
        elif self._size and self._timeout and self._timer is None:
            self._watch()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._buffered.size -= self._size
        self._size = 0

    def _count(self) -> None:
        size = self._transport.get_write_buffer_size()
        self._buffered.size += size - self._size
        self._size = size

    def _watch(self) -> None:
        self._seen = self._size, bytes_acknowledged(self._transport)
        self._timer = self._loop.call_later(self._timeout, self._check_progress)

    def _check_progress(self) -> None:
        self._timer = None
        self._count()
        if not self._size:
            return
        if self._seen == (self._size, bytes_acknowledged(self._transport)):
            self._drop(_NOTHING % self._timeout)
        else:
            self._watch()

    def _drop(self, why: str) -> None:
        if self._size:
            self._give_up(why)
            self.close()
            self._transport.abort()
