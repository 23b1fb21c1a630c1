"""`wsrelay.process` for `async def` handlers: whatever can wait is awaitable.

These are awaited: `send`, `send_after`, `send_json`, `call`, `drain`, `exec`, `select`,
`get_or_spawn`, `Channel.receive`, all of `registry`, `groups.members`, `groups.roster` and
`groups.broadcast`; channels are asynchronous iterators. Everything else is called as in
`wsrelay.process`.

In an HTTP handler, what works there in `wsrelay.process` works here too, and `call` in coroutines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from wsrelay import process as _process
from wsrelay import wire
from wsrelay.errors import ChannelClosed, ProcessError
from wsrelay.process import (
    _converter,
    _receiving,
    _worker,
    cancel,
    get_options,
    link,
    monitor,
    pid,
    set_options,
    spawn,
    spawn_linked,
    spawn_linked_monitored,
    spawn_monitored,
    stopping,
    terminate,
    unlink,
    unmonitor,
)
from wsrelay.values import current, durations
from wsrelay.values.awaited import Message
from wsrelay.values.json_text import json_text
from wsrelay.values.message import SEND, Event, Tick, sendable
from wsrelay.values.pid import PID, nameable
from wsrelay.values.presence import Member, Presence
from wsrelay.values.timer import Timer

if TYPE_CHECKING:
    from wsrelay.worker.calls import WorkerContext
    from wsrelay.worker.mailbox import Mailbox
    from wsrelay.worker.queues import ItemSource, Queue

__all__ = [
    "Channel",
    "call",
    "cancel",
    "drain",
    "events",
    "exec",
    "fence",
    "get_options",
    "get_or_spawn",
    "groups",
    "inbox",
    "incoming",
    "link",
    "listen",
    "monitor",
    "pid",
    "registry",
    "select",
    "send",
    "send_after",
    "send_json",
    "set_options",
    "spawn",
    "spawn_linked",
    "spawn_linked_monitored",
    "spawn_monitored",
    "stopping",
    "terminate",
    "ticks",
    "unlink",
    "unlisten",
    "unmonitor",
]

T = TypeVar("T")


def _here() -> WorkerContext | None:
    """Return the worker that this OS process is.

    If it is None, the plain functions are called: they act for a node, whose calls never wait.
    """
    return current.here  # type: ignore[return-value]


class Channel(Generic[T]):
    """A stream of arriving items; `async for` ends once it is closed and all have been taken."""

    def __init__(self, mailbox: Mailbox, queue: ItemSource[T]) -> None:
        self._mailbox = mailbox
        self._queue: ItemSource[Any] = queue

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channel) and self._queue is other._queue

    def __hash__(self) -> int:
        return id(self._queue)

    async def receive(self, timeout: float | None = None) -> T:
        """Wait for the next item, up to `timeout` seconds (None: forever).

        Raises `TimeoutError` at the deadline and `ChannelClosed` once the channel is closed and
        empty.
        """
        item: T = (await self._mailbox.take_async(self._queue, timeout=timeout))[1]
        return item

    async def __aiter__(self) -> AsyncIterator[T]:
        next_async, queue = self._mailbox.next_async, self._queue
        while True:
            try:
                _, item = await next_async(queue)
            except ChannelClosed:
                return
            yield item


def inbox() -> Channel[Message]:
    """Return the channel of this process's messages."""
    mailbox = _receiving("inbox")
    return Channel(mailbox, cast("Queue[Message]", mailbox.inbox))


def events() -> Channel[Event]:
    """Return the channel of this process's events; see `wsrelay.process.events`."""
    mailbox = _receiving("events")
    return Channel(mailbox, mailbox.events)


def incoming() -> Channel[Message | Event]:
    """Return messages and events as one channel; see `wsrelay.process.incoming`."""
    mailbox = _receiving("incoming")
    return Channel(mailbox, cast("ItemSource[Message | Event]", mailbox.incoming()))


def ticks(interval: float) -> Channel[Tick]:
    """Return a channel that has a tick every `interval` seconds; see `wsrelay.process.ticks`.

    Other tasks run before each tick, even if the next one is always due.
    """
    mailbox = _receiving("ticks")
    return Channel(mailbox, mailbox.ticks(durations.seconds_of(interval, "interval", least=0.001)))


def listen(topic: str) -> Channel[Message]:
    """Return a channel of this topic's messages; see `wsrelay.process.listen`."""
    mailbox = _receiving("listen")
    return Channel(mailbox, cast("Queue[Message]", mailbox.listen(sendable(topic))))


def unlisten(channel: Channel[Any]) -> None:
    """Close a channel of `listen`, `ticks` or `groups.watch`; see `wsrelay.process.unlisten`."""
    _worker().mailbox.unlisten(channel._queue)  # noqa: SLF001 - a class of this module


@overload
async def select(*channels: Channel[T], timeout: float | None = None) -> tuple[Channel[T], T]: ...
@overload
async def select(
    *channels: Channel[Any], timeout: float | None = None
) -> tuple[Channel[Any], Any]: ...
async def select(
    *channels: Channel[Any],
    timeout: float | None = None,
) -> tuple[Channel[Any], Any]:
    """Wait for the next item of any of the channels; see `wsrelay.process.select`."""
    queues = [channel._queue for channel in channels]  # noqa: SLF001 - a class of this module
    queue, item = await _receiving("select").take_async(*queues, timeout=timeout)
    return channels[queues.index(queue)], item


async def send(to: str | Iterable[str], topic: str, payload: Any = None) -> None:
    """Send a message to a PID, a registered name, or many of them; see `wsrelay.process.send`."""
    worker = current.here
    if worker is None:
        current.caller().send(to, topic, payload)  # a node never waits
    elif not worker.pipe.send_short(to, topic, payload):
        await worker.send_async(to, topic, payload)


async def send_after(
    seconds: float, to: str | Iterable[str], topic: str, payload: Any = None
) -> Timer:
    """Have the node send a message in `seconds` seconds; see `wsrelay.process.send_after`."""
    worker = current.here
    if worker is None:
        return current.caller().send_after(seconds, to, topic, payload)
    return await worker.send_after_async(seconds, to, topic, payload)


async def send_json(clients: str | Iterable[str], value: Any) -> None:
    """Send a client, or many, a value as JSON text; see `wsrelay.process.send_json`."""
    await send(clients, SEND, {"type": "text", "data": json_text(value)})


async def drain(to: str, timeout: float | None = None) -> None:
    """Wait until most of what was sent to a connection is on its way."""
    await _worker().drain_async(to, timeout)


@overload
async def call(
    to: str, topic: str, payload: Any = None, *, timeout: float | None = 5.0, as_: type[T]
) -> T: ...
@overload
async def call(
    to: str, topic: str, payload: Any = None, *, timeout: float | None = 5.0, as_: Any = None
) -> Any: ...
async def call(
    to: str,
    topic: str,
    payload: Any = None,
    *,
    timeout: float | None = 5.0,
    as_: Any = None,
) -> Any:
    """Send a message and return what the receiver answers; see `wsrelay.process.call`.

    If the task is cancelled, the answer is dropped.
    """
    convert = _converter(to, topic, timeout, as_)
    return convert(await current.caller().call_async(to, topic, payload, timeout))


async def get_or_spawn(
    name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
) -> PID:
    """Return the process registered under `name`, or start one under that name, atomically."""
    return await current.caller().get_or_spawn_async(name, target, host, *args, **kwargs)


@overload
async def exec(
    target: Callable[..., Coroutine[Any, Any, T]],
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> T: ...
@overload
async def exec(
    target: Callable[..., T],
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> T: ...
@overload
async def exec(
    target: str,
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> Any: ...
async def exec(
    target: Any,
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> Any:
    """Start a process, wait for it to end and return its value; see `wsrelay.process.exec`.

    Cancelling the task terminates the process too.
    """
    me = _worker()
    frame = me.exec_frame(target, host, args, kwargs)
    try:
        return await me.ask_async(frame, timeout)
    except TimeoutError:
        me.terminate(frame.spawn.pid)
        raise TimeoutError(f"{target} did not end within {timeout} s and was terminated") from None
    except ProcessError:
        raise
    except BaseException:
        # Nothing waits for it any more. This is queued after the request, which may still be
        # waiting for room.
        me.terminate(frame.spawn.pid)
        raise


async def fence(name: str | None = None) -> int:
    """Return this process's number as the owner of a name; see `wsrelay.process.fence`."""
    if (me := _here()) is None:
        return _process.fence(name)
    number: int = await me.ask_async(me.fence_frame(name))
    return number


class registry:  # noqa: N801 - used like a module
    """Names of processes on this node; see `wsrelay.process.registry`."""

    @staticmethod
    async def register(name: str, pid: str | None = None) -> None:
        """Give a name to a living process (None: this one)."""
        await current.caller().register_async(name, pid)

    @staticmethod
    async def lookup(name: str) -> PID:
        """Return the process with that name; raises `NameNotFound`."""
        if (me := _here()) is None:
            return _process.registry.lookup(name)
        return PID.trusted(await me.ask_async(wire.LookupFrame(me.ref(), name)))

    @staticmethod
    async def unregister(name: str) -> None:
        """Free a name; raises `NameNotFound`."""
        await current.caller().unregister_async(name)


class groups:  # noqa: N801 - used like a module
    """Named groups of processes; see `wsrelay.process.groups`."""

    join = staticmethod(_process.groups.join)
    leave = staticmethod(_process.groups.leave)

    @staticmethod
    async def members(group: str) -> list[PID]:
        """Return the members in the order in which they joined."""
        if (me := _here()) is None:
            return _process.groups.members(group)
        pids = await me.ask_async(wire.MembersFrame(me.ref(), group))
        return [PID.trusted(pid) for pid in pids]

    @staticmethod
    async def roster(group: str) -> list[Member]:
        """Return the members with their `meta`, in the order in which they joined."""
        if (me := _here()) is None:
            return _process.groups.roster(group)
        return me.roster_of(await me.ask_async(wire.RosterFrame(me.ref(), group)))

    @staticmethod
    def watch(group: str) -> Channel[Presence]:
        """Return a channel of who is in the group and of each change, in order."""
        mailbox = _receiving("groups.watch")
        return Channel(mailbox, mailbox.watch(nameable(group)))

    @staticmethod
    async def broadcast(group: str, topic: str, payload: Any = None) -> None:
        """Send a message to all members; it crosses the pipe once."""
        if (me := _here()) is None:
            _process.groups.broadcast(group, topic, payload)
        else:
            await me.pipe.write_async(me.broadcast_frame(group, topic, payload))
