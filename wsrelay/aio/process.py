"""`wsrelay.process` for `async def` handlers: what can wait is awaitable (contract section 3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, TypeVar

from wsrelay import current
from wsrelay.errors import ChannelClosed
from wsrelay.message import Event, Message
from wsrelay.pid import PID
from wsrelay.process import cancel, pid, spawn, terminate
from wsrelay.worker.context import answer

__all__ = [
    "Channel",
    "cancel",
    "events",
    "get_or_spawn",
    "inbox",
    "pid",
    "send",
    "spawn",
    "terminate",
]

T = TypeVar("T")


class Channel(Generic[T]):
    """Where items arrive; `async for` ends once it is closed and everything has been taken."""

    def __init__(self, mailbox: Any, queue: Any) -> None:
        self._mailbox = mailbox
        self._queue = queue

    async def receive(self, timeout: float | None = None) -> T:  # noqa: ASYNC109 - as in `process`
        """Wait for the next item, up to `timeout` seconds (None: for ever).

        Raises `TimeoutError` at the deadline and `ChannelClosed` once the channel is closed and
        empty.
        """
        item: T = await self._mailbox.take_async(self._queue, timeout)
        return item

    async def __aiter__(self) -> AsyncIterator[T]:
        while True:
            try:
                item = await self.receive()
            except ChannelClosed:
                return
            yield item


def inbox() -> Channel[Message]:
    """Return the channel of this process's messages; raises `NotAProcess` outside of one."""
    mailbox = current.worker().mailbox
    return Channel(mailbox, mailbox.inbox)


def events() -> Channel[Event]:
    """Return the channel of this process's events; raises `NotAProcess` outside of one."""
    mailbox = current.worker().mailbox
    return Channel(mailbox, mailbox.events)


async def send(to: str | Iterable[str], topic: str, payload: Any = None) -> None:
    """Send a message to a PID, a registered name, or many of them; see `wsrelay.process.send`."""
    worker = current.worker()
    await worker.pipe.write_async(worker.send_frame(to, topic, payload))


async def get_or_spawn(
    name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
) -> PID:
    """Return the process registered under `name`, or start one under that name, atomically."""
    worker = current.worker()
    frame = worker.get_or_spawn_frame(name, target, host, args, kwargs)
    queue = worker.mailbox.expect(frame.ref)
    await worker.pipe.write_async(frame)
    return PID.trusted(answer(await worker.mailbox.take_async(queue)))
