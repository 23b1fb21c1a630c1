"""The functions that handlers call: `from wsrelay import process`.

In a worker, each function acts for that worker. In an HTTP handler, the functions that do not wait
act for the node: `pid`, `spawn`, `get_or_spawn`, `send`, `send_after`, `send_json`, `cancel`,
`terminate`, `fence`, `registry` and `groups` (without `watch`), and in a thread also `call`. The
others raise `NotAProcess`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

import msgspec
from msgspec import UNSET, UnsetType

from .errors import ChannelClosed, ProcessError, RoomReceives
from .values import current, durations
from .values.json_text import json_text
from .values.message import SEND, Event, Message, Tick, sendable
from .values.pid import PID, nameable
from .values.presence import Member, Presence
from .values.timer import Timer

if TYPE_CHECKING:  # a worker has loaded these already, and nothing else needs them
    from .worker.calls import WorkerContext
    from .worker.mailbox import Mailbox
    from .worker.queues import ItemSource

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


_worker = cast("Callable[[], WorkerContext]", current.worker)
"""Returns the worker that this OS process is; raises `NotAProcess`."""


_INSTEAD: Final = {
    "inbox": "on_join, on_text, on_message and the other hooks",
    "events": "on_event(event)",
    "incoming": "on_message(message), on_event(event) and the other hooks",
    "listen": 'a method with @on("topic")',
    "select": "the hooks",
    "ticks": "a method with @every(seconds)",
    "groups.watch": "self.watch(group), which goes to on_event(event)",
}
"""What a room has instead of the calls that take what arrives."""


def _receiving(call: str) -> Mailbox:
    """Return the mailbox for a call that takes from it; raises `RoomReceives` inside a room."""
    me = _worker()
    if me.in_room:
        raise RoomReceives(f"process.{call}", _INSTEAD[call])
    return me.mailbox


class Channel(Generic[T]):
    """A stream of arriving items; iteration ends once it is closed and all have been taken."""

    def __init__(self, mailbox: Mailbox, queue: ItemSource[T]) -> None:
        self._mailbox = mailbox
        self._queue: ItemSource[Any] = queue

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channel) and self._queue is other._queue

    def __hash__(self) -> int:
        return id(self._queue)

    def receive(self, timeout: float | None = None) -> T:
        """Wait for the next item, up to `timeout` seconds (None: forever).

        Raises `TimeoutError` at the deadline and `ChannelClosed` once the channel is closed and
        empty.
        """
        if timeout is None and self._queue is self._mailbox.inbox:
            for message in self._mailbox.pipe:
                return message  # type: ignore[return-value]
        item: T = self._mailbox.take(self._queue, timeout=timeout)[1]
        return item

    def __iter__(self) -> Iterator[T]:
        mailbox, queue = self._mailbox, self._queue
        by_short_way: Any = mailbox.by_short_way(queue)
        while True:
            yield from by_short_way
            try:
                _, item = mailbox.take(queue)
            except ChannelClosed:
                return
            yield item


def pid() -> PID:
    """Return the caller's own PID."""
    return current.caller().pid()


# Receiving


def inbox() -> Channel[Message]:
    """Return the channel of this process's messages."""
    mailbox = _receiving("inbox")
    return Channel(mailbox, mailbox.inbox)


def events() -> Channel[Event]:
    """Return the channel of this process's events: `EXIT`, `LINK_DOWN` and `CANCEL`.

    Events may overtake messages.
    """
    mailbox = _receiving("events")
    return Channel(mailbox, mailbox.events)


def incoming() -> Channel[Message | Event]:
    """Return messages and events as one channel, for a loop with `match`.

    An event goes before the messages that wait; `CANCEL` alone comes after all of them, and last.
    What is taken here is not there for `inbox` and `events`, and the other way round.
    """
    mailbox = _receiving("incoming")
    return Channel(mailbox, mailbox.incoming())


def ticks(interval: float) -> Channel[Tick]:
    """Return a channel that has a tick every `interval` seconds, without drift.

    Tick n is due n intervals after this call. Ticks that nobody took in time are skipped: the next
    one says by its `number` how many, and by `late` how many seconds it comes after its own time.
    It ends when this process is cancelled, and with `unlisten`. Raises `ValueError`.
    """
    mailbox = _receiving("ticks")
    return Channel(mailbox, mailbox.ticks(durations.seconds_of(interval, "interval", least=0.001)))


def listen(topic: str) -> Channel[Message]:
    """Return a channel that from now on receives the messages of this topic instead of the inbox.

    Listening to the same topic again gives the same channel. Messages that are not taken from it
    count as unread, like those in the inbox, so a channel that nobody reads eventually holds up its
    senders.
    """
    mailbox = _receiving("listen")
    return Channel(mailbox, mailbox.listen(sendable(topic)))


def unlisten(channel: Channel[Any]) -> None:
    """Close a channel of `listen`, `ticks` or `groups.watch`.

    What it holds can still be taken, except for a tick; later messages of a topic go to the inbox
    again.
    """
    _worker().mailbox.unlisten(channel._queue)  # noqa: SLF001 - a class of this module


@overload
def select(*channels: Channel[T], timeout: float | None = None) -> tuple[Channel[T], T]: ...
@overload
def select(*channels: Channel[Any], timeout: float | None = None) -> tuple[Channel[Any], Any]: ...
def select(*channels: Channel[Any], timeout: float | None = None) -> tuple[Channel[Any], Any]:
    """Wait for the next item of any of the channels and return the channel and the item.

    If several channels have an item, the first of them in the order of the arguments is chosen.
    Raises `TimeoutError` after `timeout` seconds and `ChannelClosed` once all are closed and empty.
    """
    queues = [channel._queue for channel in channels]  # noqa: SLF001 - a class of this module
    queue, item = _receiving("select").take(*queues, timeout=timeout)
    return channels[queues.index(queue)], item


def stopping() -> str:
    """Return whether this process is asked to come to its end, and why; never waits.

    "cancel", "drain" if the node shuts down, else "". For loops that compute: it looks at what has
    arrived, so it is true as soon as `CANCEL` is there, which stays in `events`.
    """
    return _worker().mailbox.stopping()


# Sending


def send(to: str | Iterable[str], topic: str, payload: Any = None) -> None:
    """Send a message to a PID, a registered name, or many of them at once.

    On return, the operating system has the bytes, so they survive the sender's death. Does not wait
    for the receiver, unless it is a connection whose outbox is at its limit under the policy
    `pause`. In a coroutine, neither this nor any other call waits for that: what there is no room
    for is kept in the order of the calls and written by a thread, up to 16 MB. Awaiting
    `wsrelay.aio.process.send` waits until it has been written. Raises `ReservedTopic`,
    `PayloadError` and `InvalidPID`, and on the node `NodeBusy` if too much waits for the
    receiver's node; it is not an error if the receiver is not alive.
    """
    worker: WorkerContext | None = current.here  # type: ignore[assignment]
    if worker is None or not worker.pipe.send_short(to, topic, payload):
        current.caller().send(to, topic, payload)


def send_json(clients: str | Iterable[str], value: Any) -> None:
    """Send a client, or many at once, a value as JSON text, which is encoded once.

    It may be whatever a payload may; what JSON has no form for becomes what a browser expects: a
    datetime ISO 8601, bytes base64, not-a-number and the infinities null, a UUID or Decimal text.
    Raises `PayloadError`, which names the offending type and its place, and what `send` raises.
    """
    send(clients, SEND, {"type": "text", "data": json_text(value)})


def send_after(seconds: float, to: str | Iterable[str], topic: str, payload: Any = None) -> Timer:
    """Have the node send a message in `seconds` seconds; returns a timer, which can `cancel` it.

    It is sent by the PID of the caller, even if that has ended by then; a name is looked up when
    the message is sent. Timers end with the node. Raises what `send` raises, `TypeError` and
    `ValueError` for the seconds, and `TooMany` if 10,000 of this process's timers are pending or
    their messages have 64 MB. Does not wait for an answer.
    """
    return current.caller().send_after(seconds, to, topic, payload)


def drain(to: str, timeout: float | None = None) -> None:
    """Wait until most of what was sent to a connection is on its way, or the connection is gone.

    Up to a quarter of its outbox's limit may still be waiting on return. Raises `TimeoutError`
    after `timeout` seconds, and `InvalidPID`.
    """
    _worker().drain(to, timeout)


@overload
def call(
    to: str, topic: str, payload: Any = None, *, timeout: float | None = 5.0, as_: type[T]
) -> T: ...
@overload
def call(
    to: str, topic: str, payload: Any = None, *, timeout: float | None = 5.0, as_: Any = None
) -> Any: ...
def call(
    to: str, topic: str, payload: Any = None, *, timeout: float | None = 5.0, as_: Any = None
) -> Any:
    """Send a message to a PID or a name, and return what the receiver answers.

    The receiver answers by `message.reply(value)`. The value is data, as payloads are; `as_` is the
    type to which it is converted, as `msgspec.convert` does. The message keeps its order with
    others that this process sends to the receiver. Messages that arrive here meanwhile wait.

    Raises `TimeoutError` after `timeout` seconds (None: never), whereupon a later answer is
    dropped; `CallError` if the receiver refuses by `message.refuse(text)`; `ProcessError` with the
    kind `noproc` if there is no such process or it has been cancelled, `no_reply` if it returns
    without an answer, or otherwise the kind of its end; `ValueError` if the answer is not of the
    type `as_`; `InvalidCall` for a call of oneself, of one's own successor or of a connection;
    `TooMany` if 10,000 calls of this process wait; and what `send` raises. In an HTTP handler that
    is a coroutine it raises `NotAProcess`: await `wsrelay.aio.process.call` there.
    """
    convert = _converter(to, topic, timeout, as_)
    return convert(current.caller().call(to, topic, payload, timeout))


def _converter(to: str, topic: str, timeout: float | None, as_: Any) -> Callable[[Any], Any]:
    """Return what converts the answer of a call; raises for wrong arguments of the call."""
    if timeout is not None:
        durations.seconds_of(timeout, "timeout")
    if as_ is None:
        return lambda answer: answer
    msgspec.msgpack.Decoder(as_)  # raises TypeError for what is no type, before anything is sent

    def convert(answer: Any) -> Any:
        try:
            return msgspec.convert(answer, as_)
        except msgspec.ValidationError as error:
            raise ValueError(
                f"{to} answered {topic!r} with {answer!r:.200}, which is not {_name(as_)}: {error}"
            ) from None

    return convert


def _name(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


# Starting processes


def spawn(target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
    """Start a process and return its PID at once.

    `target` is the id of an entry of the configuration, `path/to/script.py:function`,
    `module:function` or any callable, and a `Room` class wherever a function is; `host` names the
    process host (None: the entry's, else the caller's own; on the node, its first host). In a
    cluster it may be `host@node`, or `host@*` for the node where such a host has most room; other
    nodes start only entries, and the arguments must be data. Raises `InvalidTarget`, `UnknownHost`,
    `PayloadError`, on the node also `HostFull`, and in a walled-in host also `NotAllowed`: in other
    hosts it can start only entries of those that its `may_spawn` lists, and the arguments must be
    data.
    """
    return current.caller().spawn(target, host, *args, **kwargs)


def spawn_monitored(target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
    """Do `spawn` and `monitor` in one step, so that the end of the process cannot be missed."""
    me = _worker()
    return me.start(me.spawn_frame(target, host, args, kwargs, monitored=True))


def spawn_linked(target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
    """Do `spawn` and `link` in one step."""
    me = _worker()
    return me.start(me.spawn_frame(target, host, args, kwargs, linked=True))


def spawn_linked_monitored(
    target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
) -> PID:
    """Do `spawn`, `link` and `monitor` in one step."""
    me = _worker()
    return me.start(me.spawn_frame(target, host, args, kwargs, monitored=True, linked=True))


def get_or_spawn(
    name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
) -> PID:
    """Return the process registered under `name`, or start one under that name, atomically.

    One process at a time: if the former process of that name has been cancelled and has not ended,
    the new one is its successor. Its PID is known and takes messages at once, and it starts when
    the former process has ended; if its host is full by then, it ends with kind `host_full`.
    Raises the same errors as `spawn`, and `HostFull` in a worker too.

    In a cluster the process may run on another node, and other nodes may have to be asked: then it
    raises `NotAProcess` in an `async def` endpoint, where `await
    wsrelay.aio.process.get_or_spawn(...)` is right, or the header's `target` and `name`, which also
    start nothing for a plain request. `NoQuorum` is raised if it cannot be decided in time who has
    the name.
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
    """Start a process, wait for it to end and return its value.

    Raises `ProcessError`, with the traceback as text, if it ends with an error. After `timeout`
    seconds, terminates the process and raises `TimeoutError`. It does not outlive its caller.
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
        me.terminate(frame.spawn.pid)  # nothing waits for it any more
        raise


# Relations and ends


def monitor(to: str) -> None:
    """Get one `EXIT` event when that process ends, or at once if it is not alive.

    Monitoring it again changes nothing: there is still only one `EXIT`. Raises `InvalidPID`.
    """
    _worker().relate("monitor", to)


def unmonitor(to: str) -> None:
    """Undo `monitor`; an `EXIT` that is already on its way still arrives."""
    _worker().relate("unmonitor", to)


def link(to: str) -> None:
    """Link this process and that one: if either ends with an error, so does the other.

    A process that traps links gets a `LINK_DOWN` event instead. Linking to a process that is not
    alive has the same effect as if it had ended with an error. Raises `InvalidPID`.
    """
    _worker().relate("link", to)


def unlink(to: str) -> None:
    """Undo `link`, from either side."""
    _worker().relate("unlink", to)


def set_options(
    *,
    trap_links: bool | UnsetType = UNSET,
    end_when_empty: str | float | UnsetType | None = UNSET,
) -> None:
    """Change those options of this process that are given; raises `TypeError`, `ValueError`.

    `trap_links`: the end of a linked process is an event (`LINK_DOWN`) instead of ending this one
    too. `end_when_empty` (a duration such as `30s`, or seconds): this process is cancelled so long
    after its last client has left, or, if it has none now, after this call; None turns it off. A
    client whose upgrade is under way counts.
    """
    given = {"trap_links": trap_links, "end_when_empty": end_when_empty}
    _worker().set_options(**{name: value for name, value in given.items() if value is not UNSET})


def get_options() -> dict[str, Any]:
    """Return the options of this process: `trap_links`, and `end_when_empty` (seconds or None).

    The latter is what `set_options` has set, else what the relay's header said that started it.
    """
    return dict(_worker().options)


def cancel(to: str, reason: str = "") -> None:
    """Ask a process to end: it is no longer found by its names, and its inbox closes.

    Names of `registry.register` are free at once. Under its name of `get_or_spawn` another process
    starts only when it has ended; one that itself still waits for that ends at once. A worker that
    keeps running is killed after its host's `stop_timeout`; a connection is closed with code 1000
    and the reason. A reason is cut to 1,000 characters.
    """
    current.caller().cancel(to, reason)


def terminate(to: str) -> None:
    """End a process at once: SIGKILL a worker's process group, or drop a connection."""
    current.caller().terminate(to)


def fence(name: str | None = None) -> int:
    """Return a number that grows with each process that has the name: that of this process.

    None is the name that it was started under by `get_or_spawn`, a relay or a service; that number
    stays the same until it has ended. For a database that remembers the greatest number that has
    written and refuses smaller ones: then nobody writes who is not the owner any more. Without a
    cluster the numbers begin anew with each start of the node.

    Raises `InvalidName` (a `ValueError`) if it was started under no name, and `NameNotFound` for a
    name that it does not have. A node (in an HTTP handler) is told of anybody's name.
    """
    return current.caller().fence(name)


class registry:  # noqa: N801 - used like a module
    """Names of processes, the cluster's; released when the process ends or is cancelled.

    The name of `get_or_spawn` is exclusive: a cancelled process holds it until it has ended.
    """

    @staticmethod
    def register(name: str, pid: str | None = None) -> None:
        """Give a name to a living process (None: this one).

        Raises `NameTaken` (also while a cancelled process holds the name of its `get_or_spawn`),
        `InvalidPID`, `InvalidName` (also if the process is not alive), and in a walled-in host
        `NotAllowed`, as `unregister` does.
        """
        current.caller().register(name, pid)

    @staticmethod
    def lookup(name: str) -> PID:
        """Return the process with that name; raises `NameNotFound`."""
        return current.caller().lookup(name)

    @staticmethod
    def unregister(name: str) -> None:
        """Free a name; raises `NameNotFound`, and `NotAllowed`.

        This gives up the exclusivity of a name of `get_or_spawn`: a cancelled process that calls it
        for the name that it holds lets its successor start before it has ended itself.
        """
        current.caller().unregister(name)


class groups:  # noqa: N801 - used like a module
    """Named groups of processes, including connections; a process that ends leaves its groups."""

    @staticmethod
    def join(group: str, pid: str | None = None, *, meta: Any = None) -> None:
        """Add a process (None: this one) to the group, unless it is not alive.

        `meta` says something of the member to all who look at the group: data as in a message, of
        at most 64 KB. Joining again replaces it; without it (None), joining again changes nothing.
        Raises `InvalidPID`, `InvalidName`, `PayloadError`; a process may be in 10,000 groups.
        """
        current.caller().join_group(group, pid, meta)

    @staticmethod
    def leave(group: str, pid: str | None = None) -> None:
        """Remove a process (None: this one) from the group; raises `InvalidPID`."""
        current.caller().leave_group(group, pid)

    @staticmethod
    def members(group: str) -> list[PID]:
        """Return the members in the order in which they joined; an unknown group has none."""
        return current.caller().members(group)

    @staticmethod
    def roster(group: str) -> list[Member]:
        """Return the members with their `meta`, in the order in which they joined.

        In a worker, raises `TooMany` if their metadata is more than 8 MB together.
        """
        return current.caller().roster(group)

    @staticmethod
    def watch(group: str) -> Channel[Presence]:
        """Return a channel of who is in the group and of each change, in order.

        It begins with the members that there are, as `joined`, and misses and doubles nothing from
        then on. A process that ends or is cancelled has `left`. Watching a group again gives the
        same channel. `unlisten` ends a watch, and so does `CANCEL`, behind what is queued. What is
        not taken counts as unread, like messages in the inbox. Raises `InvalidName`; a process may
        watch 10,000 groups.
        """
        mailbox = _receiving("groups.watch")
        return Channel(mailbox, mailbox.watch(nameable(group)))

    @staticmethod
    def broadcast(group: str, topic: str, payload: Any = None) -> None:
        """Send a message to all members, including the sender; it crosses the pipe once."""
        current.caller().broadcast(group, topic, payload)
