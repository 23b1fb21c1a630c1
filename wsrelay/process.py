"""What handlers import: `from wsrelay import process`.

In a worker each function speaks for that worker. In an HTTP handler the functions that do not
wait speak for the node: `spawn`, `get_or_spawn`, `send`, `cancel`, `terminate`, `registry` and
`groups`; the others raise `NotAProcess` there.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from .errors import ChannelClosed, ProcessError
from .values import current
from .values.message import Event, Message, sendable
from .values.pid import PID

if TYPE_CHECKING:  # whoever has a worker has loaded it, and nobody else needs it
    from .worker.calls import WorkerContext
    from .worker.mailbox import Mailbox, Queue

__all__ = [
    "Channel",
    "cancel",
    "drain",
    "events",
    "exec",
    "get_options",
    "get_or_spawn",
    "groups",
    "inbox",
    "link",
    "listen",
    "monitor",
    "pid",
    "registry",
    "select",
    "send",
    "set_options",
    "spawn",
    "spawn_linked",
    "spawn_linked_monitored",
    "spawn_monitored",
    "terminate",
    "unlink",
    "unlisten",
    "unmonitor",
]

T = TypeVar("T")


def _worker() -> WorkerContext:
    """Return the worker that this OS process is; raises `NotAProcess`."""
    return cast("WorkerContext", current.worker())


class Channel(Generic[T]):
    """Where items arrive; iterating ends once it is closed and everything has been taken."""

    def __init__(self, mailbox: Mailbox, queue: Queue[T]) -> None:
        self._mailbox = mailbox
        self._queue = queue

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channel) and self._queue is other._queue

    def __hash__(self) -> int:
        return id(self._queue)

    def receive(self, timeout: float | None = None) -> T:
        """Wait for the next item, up to `timeout` seconds (None: for ever).

        Raises `TimeoutError` at the deadline and `ChannelClosed` once the channel is closed and
        empty.
        """
        item: T = self._mailbox.take(self._queue, timeout=timeout)[1]
        return item

    def __iter__(self) -> Iterator[T]:
        take, queue = self._mailbox.take, self._queue
        while True:
            try:
                _, item = take(queue)
            except ChannelClosed:
                return
            yield item


def pid() -> PID:
    """Return the caller's own PID."""
    return current.caller().pid()


# Receiving


def inbox() -> Channel[Message]:
    """Return the channel of this process's messages."""
    mailbox = _worker().mailbox
    return Channel(mailbox, mailbox.inbox)


def events() -> Channel[Event]:
    """Return the channel of this process's events: `EXIT`, `LINK_DOWN` and `CANCEL`.

    Events may overtake messages.
    """
    mailbox = _worker().mailbox
    return Channel(mailbox, mailbox.events)


def listen(topic: str) -> Channel[Message]:
    """Return a channel to which messages of this topic come from now on, past the inbox.

    For the same topic it is the same channel. What is not taken from it counts as unread like
    what is in the inbox, so a channel that nobody reads holds up its senders in time.
    """
    mailbox = _worker().mailbox
    return Channel(mailbox, mailbox.listen(sendable(topic)))


def unlisten(channel: Channel[Message]) -> None:
    """Close a channel of `listen`: what it holds can be taken, later messages go to the inbox."""
    _worker().mailbox.unlisten(channel._queue)  # noqa: SLF001 - its own kind


@overload
def select(*channels: Channel[T], timeout: float | None = None) -> tuple[Channel[T], T]: ...
@overload
def select(*channels: Channel[Any], timeout: float | None = None) -> tuple[Channel[Any], Any]: ...
def select(*channels: Channel[Any], timeout: float | None = None) -> tuple[Channel[Any], Any]:
    """Wait for the first item of any of the channels; the first named wins where several have one.

    Raises `TimeoutError` after `timeout` seconds and `ChannelClosed` once all are closed and empty.
    """
    queues = [channel._queue for channel in channels]  # noqa: SLF001 - its own kind
    queue, item = _worker().mailbox.take(*queues, timeout=timeout)
    return channels[queues.index(queue)], item


# Sending


def send(to: str | Iterable[str], topic: str, payload: Any = None) -> None:
    """Send a message to a PID, a registered name, or many of them at once.

    On return the kernel has the bytes, so they survive the sender's death. Does not wait for the
    receiver, except for a connection whose outbox is at its limit under the policy `pause`. In a
    coroutine neither this nor any other call waits for that: what has no room is kept in the order
    of the calls and written by a thread. `wsrelay.aio.process.send` is awaited until it is.
    Raises `ReservedTopic`, `PayloadError` and `InvalidPID`; a receiver that is not alive is no
    error.
    """
    current.caller().send(to, topic, payload)


def drain(to: str, timeout: float | None = None) -> None:
    """Wait until most of what was sent to a connection is on its way, or the connection is gone.

    A quarter of its outbox's limit may still wait then. Raises `TimeoutError` after `timeout`
    seconds, and `InvalidPID`.
    """
    me = _worker()
    frame = me.drain_frame(to)
    try:
        me.ask(frame, timeout)
    except BaseException:
        me.give_up(frame)
        raise


# Starting processes


def spawn(target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
    """Start a process and return its PID at once.

    `target` is `path/to/script.py:function`, `module:function` or any callable; `host` names the
    process host (None: one's own, on the node its first). Raises `InvalidTarget`, `UnknownHost`,
    `PayloadError`, on the node `HostFull`, and in a walled-in host `NotAllowed`: it starts only
    entries of hosts that its `may_spawn` lists, and what it hands them is data.
    """
    return current.caller().spawn(target, host, *args, **kwargs)


def spawn_monitored(target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
    """Do `spawn` and `monitor` as one: no end of the process is missed."""
    me = _worker()
    return me.start(me.spawn_frame(target, host, args, kwargs, monitored=True))


def spawn_linked(target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
    """Do `spawn` and `link` as one."""
    me = _worker()
    return me.start(me.spawn_frame(target, host, args, kwargs, linked=True))


def spawn_linked_monitored(
    target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
) -> PID:
    """Do `spawn`, `link` and `monitor` as one."""
    me = _worker()
    return me.start(me.spawn_frame(target, host, args, kwargs, monitored=True, linked=True))


def get_or_spawn(
    name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
) -> PID:
    """Return the process registered under `name`, or start one under that name, atomically.

    Errors are those of `spawn`, `HostFull` in a worker too.
    """
    return current.caller().get_or_spawn(name, target, host, *args, **kwargs)


@overload
def exec(
    target: Callable[..., Coroutine[Any, Any, T]],
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> T: ...
@overload
def exec(
    target: Callable[..., T],
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> T: ...
@overload
def exec(
    target: str,
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> Any: ...
def exec(
    target: Any,
    host: str | None = None,
    /,
    *args: Any,
    timeout: float | None = None,
    **kwargs: Any,
) -> Any:
    """Start a process, wait for its end and return its value.

    Raises `ProcessError` if it ends with an error, with its traceback as text; `TimeoutError` after
    `timeout` seconds, and then the process is terminated. It does not outlive its caller.
    """
    me = _worker()
    frame = me.exec_frame(target, host, args, kwargs)
    try:
        return me.ask(frame, timeout)
    except TimeoutError:
        me.terminate(frame.spawn.pid)
        raise TimeoutError(f"{target} did not end within {timeout} s and was terminated") from None
    except ProcessError:
        raise
    except BaseException:
        me.terminate(frame.spawn.pid)  # nobody waits for it any more
        raise


# Relations and ends


def monitor(to: str) -> None:
    """Get one `EXIT` event when that process ends; at once if it is not alive.

    Again is no change: there is one `EXIT` for one monitor. Raises `InvalidPID`.
    """
    _worker().relate("monitor", to)


def unmonitor(to: str) -> None:
    """Undo `monitor`; an `EXIT` that is on its way already still arrives."""
    _worker().relate("unmonitor", to)


def link(to: str) -> None:
    """Tie this process's end to that one's: if either ends with an error, so does the other.

    A process that traps links gets a `LINK_DOWN` event instead. Linking to one that is not alive is
    as if it had ended with an error. Raises `InvalidPID`.
    """
    _worker().relate("link", to)


def unlink(to: str) -> None:
    """Undo `link`, from either side."""
    _worker().relate("unlink", to)


def set_options(*, trap_links: bool) -> None:
    """Choose whether a linked process's end is an event (`LINK_DOWN`) or this one's end too."""
    _worker().set_options(trap_links=trap_links)


def get_options() -> dict[str, bool]:
    """Return what `set_options` has set."""
    return {"trap_links": _worker().trap_links}


def cancel(to: str, reason: str = "") -> None:
    """Ask a process to end: its names are free at once and its inbox closes.

    A worker that goes on is killed after its host's `stop_timeout`; a connection is closed with
    code 1000 and the reason. Of a reason the first 1,000 characters are told.
    """
    current.caller().cancel(to, reason)


def terminate(to: str) -> None:
    """End a process at once: SIGKILL to a worker's process group, a dropped connection."""
    current.caller().terminate(to)


class registry:  # noqa: N801 - used like a module
    """Names of processes on this node; released when the process ends or is cancelled."""

    @staticmethod
    def register(name: str, pid: str | None = None) -> None:
        """Give a name to a living process (None: this one).

        Raises `NameTaken`, `InvalidPID`, `InvalidName` for a process that is not alive, and in a
        walled-in host `NotAllowed`, as `unregister` does.
        """
        current.caller().register(name, pid)

    @staticmethod
    def lookup(name: str) -> PID:
        """Return the process of that name; raises `NameNotFound`."""
        return current.caller().lookup(name)

    @staticmethod
    def unregister(name: str) -> None:
        """Free a name; raises `NameNotFound`, and `NotAllowed`."""
        current.caller().unregister(name)


class groups:  # noqa: N801 - used like a module
    """Named groups of processes, connections among them; the dead leave by themselves."""

    @staticmethod
    def join(group: str, pid: str | None = None) -> None:
        """Let a process (None: this one) join; the dead do not.

        Raises `InvalidPID`, `InvalidName`; a process may be in 10,000 groups.
        """
        current.caller().join_group(group, pid)

    @staticmethod
    def leave(group: str, pid: str | None = None) -> None:
        """Let a process (None: this one) leave; raises `InvalidPID`."""
        current.caller().leave_group(group, pid)

    @staticmethod
    def members(group: str) -> list[PID]:
        """Return the members in the order in which they joined; an unknown group has none."""
        return current.caller().members(group)

    @staticmethod
    def broadcast(group: str, topic: str, payload: Any = None) -> None:
        """Send a message to all members, the sender among them; it crosses the pipe once."""
        current.caller().broadcast(group, topic, payload)
