"""Rooms as classes: `Room`, and what it has in common with `wsrelay.aio.Room`.

A subclass is a target like a function, which runs a loop over what arrives and calls a method for
each. Nothing in it cannot be written with the calls of `wsrelay.process`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar, cast, overload

from . import process
from .errors import CallError, ChannelClosed, InvalidMessage
from .values import current, declarations
from .values.client import Client, M, content_of
from .values.declarations import Answers, Declaration, Every, On
from .values.json_text import json_text
from .values.message import SEND, Event, Message
from .values.pid import nameable
from .values.presence import Presence
from .worker.dispatch import Dispatcher, within

if TYPE_CHECKING:
    from .worker.calls import WorkerContext
    from .worker.mailbox import Mailbox

__all__ = ["BaseRoom", "Clients", "Room", "answers", "every", "on"]

C = TypeVar("C", bound=Client[Any])
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
S = TypeVar("S", bound=Message)
T = TypeVar("T")
V = TypeVar("V")

# What stands before methods


@overload
def on(what: str) -> Callable[[Callable[[R, S], V]], Callable[[R, S], V]]: ...
@overload
def on(what: type[T]) -> Callable[[Callable[[R, C, T], V]], Callable[[R, C, T], V]]: ...
def on(what: Any) -> Any:
    """Let a method take what clients send as JSON of this Struct, or messages of this topic.

    The Struct has a tag, which is in the JSON: `class Say(msgspec.Struct, tag="say")` is
    `{"type": "say", ...}`. The method is called with the client and the Struct; for a topic, with
    the message of the process that has sent it. Raises `TypeError` for anything else.
    """
    right = On(what)
    return lambda method: declarations.mark(method, right)


def every(
    seconds: float, *, when_empty: bool = False
) -> Callable[[Callable[[R], V]], Callable[[R], V]]:
    """Call a method every so many seconds while clients are there; `when_empty`: always.

    The clock does not drift, and ticks that were missed are skipped. Raises `TypeError`, and
    `ValueError` for less than a millisecond.
    """
    right = Every(seconds, when_empty)
    return lambda method: declarations.mark(method, right)


def answers(method: F) -> F:
    """Let a method answer the calls whose topic is its name: `process.call(room, "members")`.

    It may have one argument: the call's payload, converted to its annotation. What it returns is
    the answer. What does not convert is refused, and so is the call if it raises `CallError`.
    """
    return declarations.mark(method, Answers())


# What both faces have in common


class Clients(Collection[C]):
    """The clients of a room, in order of joining; `in` and `get` take any PID."""

    def __init__(self) -> None:
        self.by_pid: dict[str, C] = {}

    def __contains__(self, pid: object) -> bool:
        return pid in self.by_pid

    def __iter__(self) -> Iterator[C]:
        return iter(tuple(self.by_pid.values()))

    def __len__(self) -> int:
        return len(self.by_pid)

    def all_but(self, pid: str | None) -> list[C]:
        """Return all but one."""
        return [client for client in self.by_pid.values() if pid is None or client != pid]

    def get(self, pid: str) -> C | None:
        """Return the client with that PID, or None."""
        return self.by_pid.get(pid)


class BaseRoom(Generic[M]):
    """What `wsrelay.Room` and `wsrelay.aio.Room` have in common."""

    clients: Clients[Any]
    _wsrelay: Dispatcher
    _wsrelay_is_async: ClassVar[bool]
    _wsrelay_face: ClassVar[type[BaseRoom[Any]]]
    _wsrelay_declaration: ClassVar[Declaration]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "_wsrelay_is_async" in vars(cls):
            cls._wsrelay_face = cls
        face, is_async = cls._wsrelay_face, cls._wsrelay_is_async
        cls._wsrelay_declaration = declarations.declared(cls, face, is_async=is_async)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make a room that nobody has joined; a subclass may have an `__init__` of its own."""
        room = super().__new__(cls)
        room.clients = Clients()
        return room

    def end(self, value: Any = None) -> None:
        """End the room once the hook that calls this has returned; a process returns the value.

        Its clients see 1000. `on_stop` is not called.
        """
        self._wsrelay.end(value)

    def watch(self, group: str) -> None:
        """Let `on_event` get a `Presence` for each member of the group, and for each change.

        Raises `InvalidName`, and `TypeError` for a room without `on_event`.
        """
        self._wsrelay.watch(nameable(group))

    @classmethod
    def __wsrelay_run__(cls, *args: Any, **kwargs: Any) -> Any:
        """Run a room in this worker, to its end: what is called where the class is a target."""
        room = cls()
        worker = cast("WorkerContext", current.worker())
        found, here = cls._wsrelay_declaration, room.clients.by_pid
        room._wsrelay = Dispatcher(room, found, here, worker, cls._wsrelay_answer)
        return room._wsrelay_live(args, kwargs)

    @staticmethod
    def _wsrelay_answer(method: Any, message: Any, *payload: Any) -> Any:
        raise NotImplementedError

    def _wsrelay_live(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


class Room(BaseRoom[M]):
    """A room: a subclass is a target like a function, and its methods take what arrives.

    `Room[User]` converts each client's metadata to `User` when it joins; a client whose metadata
    does not convert is closed with 1011, and the log says why. One method runs at a time. In
    `wsrelay.aio.Room` all of them are `async def`.
    """

    clients: Clients[Client[M]]
    """The clients that have joined and not left, in order of joining."""

    _wsrelay_is_async = False

    def on_start(self, *args: Any, **kwargs: Any) -> None:
        """Begin, with what the room was started with."""

    def on_join(self, client: Client[M]) -> None:
        """Welcome a client, which is in `clients` already."""

    def on_leave(self, client: Client[M], code: int, reason: str) -> None:
        """Take note that a client has gone, which is in `clients` no longer."""

    def on_text(self, client: Client[M], text: str) -> None:
        """Take text of a client that no `@on` takes."""

    def on_binary(self, client: Client[M], data: bytes) -> None:
        """Take bytes of a client."""

    def on_invalid(self, client: Client[M], error: InvalidMessage) -> None:
        """Tell a client that nothing takes what it has sent, or that it does not convert."""
        client.send_json({"type": "error", "error": str(error)})

    def on_message(self, message: Message) -> None:
        """Take a message of a process whose topic no `@on` takes."""

    def on_event(self, event: Event | Presence) -> None:
        """Take note of the end of a process that is monitored or linked, or of a watched group."""

    def on_heartbeat(self, client: Client[M], uptime: float, count: int) -> None:
        """Do what is to be done for a client at each `heartbeat_interval`."""

    def on_stop(self, reason: str) -> None:
        """End in order: the room is cancelled, and all that was queued has been taken.

        Half of the host's `stop_timeout` after the CANCEL, it is interrupted.
        """

    def broadcast(self, data: str | bytes, *, but: str | None = None) -> None:
        """Send all clients, but for one, a message: text if it is `str`, else binary."""
        content = content_of(data)
        if clients := self.clients.all_but(but):
            process.send(clients, SEND, content)

    def broadcast_json(self, value: object, *, but: str | None = None) -> None:
        """Send all clients, but for one, a value as JSON, which is encoded once."""
        self.broadcast(json_text(value), but=but)

    def _wsrelay_live(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dispatcher = self._wsrelay
        self.on_start(*args, **kwargs)
        _serve(dispatcher)
        if not dispatcher.ended:
            self.on_stop(dispatcher.reason)
        return dispatcher.value

    @staticmethod
    def _wsrelay_answer(method: Any, message: Any, *payload: Any) -> None:
        try:
            value = method(*payload)
        except CallError as error:
            message.refuse(str(error))
        else:
            message.reply(value)


def _serve(room: Dispatcher) -> None:
    """Take what arrives until the room is at its end."""
    (step, relayed, find), pipe = room.ways(within), room.mailbox.pipe
    text = _text_taker(room)
    is_turn = True  # of a tick: a message has passed since the last one, or there was none
    while True:
        if room.clock is None:
            for message in pipe:
                # What most messages are goes through no more calls than it must.
                client, content = message.sender, message.payload
                if find(client) is client and content.get("type") == "text":
                    text(client, content["data"])
                elif (todo := relayed(message)) is not None:
                    todo[0](*todo[1])
        if room.ended:
            return
        left = room.left()
        if left == 0 and is_turn:
            is_turn = False
            room.tick()()
            continue
        is_turn = True
        try:
            item = _next(room.mailbox, left)
        except ChannelClosed:
            return
        if item is not None and (todo := step(item)) is not None:
            todo[0](*todo[1])


def _text_taker(room: Dispatcher) -> Callable[[Client[Any], str], object]:
    """Return what a client's text goes to, with as few calls as possible."""
    decode, kinds = room.decode, room.kinds
    if decode is None and "on_text" in room.own:
        on_text: Callable[[Client[Any], str], object] = room.hooks["on_text"]
        return on_text

    def take(client: Client[Any], text: str) -> None:
        if decode is not None:
            try:
                value = decode(text)
            except (ValueError, RecursionError):
                pass  # what is wrong with it comes out below
            else:
                kinds[type(value)](client, value)
                return
        hook, arguments = room.text(client, text)
        hook(*arguments)

    return take


def _next(mailbox: Mailbox, left: float | None) -> Any:
    """Return what arrives next within the time that is left, None if nothing does."""
    if left is not None and (found := mailbox.pipe.awaits(left)) is not None:
        if not found:
            return None
        for message in mailbox.pipe:
            return message
        left = 0
    try:
        return mailbox.take(mailbox.inbox, timeout=left)[1]
    except TimeoutError:
        return None
