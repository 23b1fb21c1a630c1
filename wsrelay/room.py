"""Rooms as classes: `Room`, and what it has in common with `wsrelay.aio.Room`.

A subclass is a target like a function, which runs a loop over what arrives and calls a method for
each. Nothing in it cannot be written with the calls of `wsrelay.process`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Self, TypeVar, cast, overload

import msgspec

from . import process
from .errors import CallError, ChannelClosed, InvalidMessage
from .values import awaited, current, declarations
from .values.client import Client, M, content_of
from .values.declarations import Answers, Declaration, Every, On, type_name
from .values.json_text import json_text
from .values.message import CANCEL, ERROR, LEAVE, SEND, Called, Event, Message, Relayed
from .values.pid import nameable
from .values.presence import Presence
from .values.schedule import Schedule

if TYPE_CHECKING:
    from .worker.calls import WorkerContext
    from .worker.mailbox import Mailbox

__all__ = ["END", "BaseRoom", "Clients", "Room", "answers", "every", "on"]

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Client[Any])
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
S = TypeVar("S", bound=Message)
T = TypeVar("T")
V = TypeVar("V")

Step = tuple[Callable[..., Any], tuple[Any, ...]]
"""A method to call, and what with."""


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

    def get(self, pid: str) -> C | None:
        """Return the client with that PID, or None."""
        return self.by_pid.get(pid)


class _End:
    """What is put before all that is queued when a room ends itself."""


END: Final = _End()


_UNHEARD: Final = 20
"""Topics that are logged because nothing takes them: they may be made up."""


class BaseRoom(Generic[M]):
    """What `wsrelay.Room` and `wsrelay.aio.Room` share: who is there, and which method is next."""

    clients: Clients[Any]
    _is_async: ClassVar[bool]
    _face: ClassVar[type[BaseRoom[Any]]]
    _declaration: ClassVar[Declaration]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "_is_async" in vars(cls):
            cls._face = cls
        cls._declaration = declarations.declared(cls, cls._face, is_async=cls._is_async)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make a room that nobody has joined, which does nothing yet.

        All that it needs is made here, as a subclass may have an `__init__` (without arguments).
        """
        room = super().__new__(cls)
        room.clients = Clients()
        room._here = room.clients.by_pid
        room._find = room._here.get
        room._refused = set()
        room._unheard = set()
        room._ended = False
        room._value = None
        room._reason = ""
        room._clock = None
        return room

    _here: dict[str, Any]
    _find: Callable[[str], Any]
    _refused: set[str]
    """Clients whose metadata does not convert, and which are being closed."""
    _unheard: set[str]
    """Topics that were logged because nothing takes them."""
    _ended: bool
    _value: Any
    """What the process returns."""
    _reason: str
    """That of the CANCEL."""
    _clock: Schedule | None
    """None if the room has no ticks, or is coming to its end."""
    _mailbox: Mailbox
    _takers: dict[type, Callable[[Any], Step | None]]
    _hooks: dict[str, Callable[..., Any]]
    _name: str
    _questions: dict[str, tuple[bool, Any, bool]]
    """What it answers; see `Declaration.questions`."""
    _own: frozenset[str]
    """The hooks that the subclass has itself."""
    _kinds: dict[type, Callable[..., Any]]
    _decode: Callable[[str], Any] | None

    def end(self, value: Any = None) -> None:
        """End the room once the hook that calls this has returned; a process returns the value.

        Its clients see 1000. `on_stop` is not called.
        """
        self._ended, self._value = True, value
        self._mailbox.put_first(END)

    def watch(self, group: str) -> None:
        """Let `on_event` get a `Presence` for each member of the group, and for each change.

        Raises `InvalidName`, and `TypeError` for a room without `on_event`.
        """
        if "on_event" not in self._own:
            raise TypeError(f"{self._name} has no on_event, to which watch({group!r}) would go")
        self._mailbox.watch(nameable(group))

    def _all(self, but: str | None) -> list[str]:
        """Return the clients but for one."""
        return [client for client in self._here.values() if but is None or client != but]

    @classmethod
    def _prepared(cls) -> Self:
        """Make a room of this worker: from now on, what arrives goes to its hooks."""
        room, found = cls(), cls._declaration
        worker = cast("WorkerContext", current.worker())
        worker.in_room = True
        room._mailbox = worker.mailbox
        room._mailbox.merge()
        room._takers = {
            **dict.fromkeys((Relayed, awaited.Relayed), room._relayed),
            **dict.fromkeys((Message, awaited.Message), room._posted),
            **dict.fromkeys((Called, awaited.Called), room._asked),
            **dict.fromkeys((Event, Presence), room._happened),
        }
        room._hooks = {name: getattr(room, name) for name in declarations.HOOKS}
        room._own = found.own
        room._name = cls.__qualname__
        room._questions = found.questions(cls)
        room._kinds = {kind: getattr(room, name) for kind, name in found.kinds.items()}
        room._decode = msgspec.json.Decoder(found.union).decode if found.kinds else None
        if found.ticks:
            room._clock = Schedule(found.ticks, time.monotonic())
        return room

    @classmethod
    def __wsrelay_run__(cls, *args: Any, **kwargs: Any) -> Any:
        """Run a room in this worker, to its end: what is called where the class is a target."""
        return cls._prepared()._live(args, kwargs)  # noqa: SLF001 - one of this class

    def _live(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError

    # Which method is next

    def _step(self, item: Any) -> Step | None:
        """Return the method that takes what has arrived; None if there is none."""
        return self._takers[type(item)](item)

    def _relayed(self, message: Relayed) -> Step | None:
        client: Any = message.sender
        if self._find(client) is not client and (client := self._admit(message)) is None:
            return None
        content = message.payload
        kind = content.get("type")
        if kind == "text":
            return self._text(client, content["data"])
        if kind == "binary":
            return self._binary(client, content["data"])
        hooks = self._hooks
        match message.topic:
            case "ws.join":
                return hooks["on_join"], (client,)
            case "ws.leave":
                del self._here[client]
                return hooks["on_leave"], (client, content["code"], content["reason"])
            case _:
                counts = content["uptime"], content["message_count"]
                return hooks["on_heartbeat"], (client, *counts)

    def _admit(self, message: Relayed) -> Any:
        """Return a client that is new here, or has new metadata; None if it is not let in."""
        client: Any = message.sender
        if message.topic == LEAVE and "type" not in message.payload:
            self._refused.discard(client)
            return self._find(client)
        if client in self._refused:
            return None
        kind = self._declaration.metadata
        if kind is not None:
            try:
                client.metadata = msgspec.convert(client.metadata, kind)
            except msgspec.ValidationError as error:
                what = (client, type_name(kind), error, client.metadata)
                logger.error("%s is closed: metadata is no %s: %s, in %.500r", *what)  # noqa: TRY400
                client.close(1011, "unusable metadata")
                self._refused.add(client)
                return None
        self._here[client] = client
        return client

    def _text(self, client: Client[Any], text: str) -> Step:
        problem = ""
        if self._decode is not None:
            try:
                value = self._decode(text)
            except (ValueError, RecursionError) as error:
                is_known, problem = self._told(text, error)
                if is_known:
                    return self._invalid(client, problem)
            else:
                return self._kinds[type(value)], (client, value)
        if "on_text" in self._own:
            return self._hooks["on_text"], (client, text)
        return self._invalid(
            client, problem or "the client sent text, which the room does not take"
        )

    def _binary(self, client: Client[Any], data: bytes) -> Step:
        if "on_binary" in self._own:
            return self._hooks["on_binary"], (client, data)
        return self._invalid(client, "the client sent binary data, which the room does not take")

    def _told(self, text: str, error: Exception) -> tuple[bool, str]:
        """Return whether the text's tag is that of an `@on`, and what is wrong with the text."""
        tags, field = self._declaration.tags, self._declaration.tag_field
        try:
            value = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            return False, f"the client sent text that is no JSON ({error})"
        among = ", ".join(map(repr, tags))
        if isinstance(value, dict):
            tag = value.get(field)
        else:
            tag = value[0] if isinstance(value, list) and value else None
        if isinstance(tag, str | int) and tag in tags:
            return True, f"the client sent a {tag!r} that does not fit: {error}"
        return False, f"the client sent JSON whose {field!r} is {tag!r:.80}, and none of {among}"

    def _invalid(self, client: Client[Any], problem: str) -> Step:
        return self._hooks["on_invalid"], (client, InvalidMessage(problem))

    def _posted(self, message: Message) -> Step | None:
        if (name := self._declaration.topics.get(message.topic)) is not None:
            return getattr(self, name), (message,)
        if "on_message" in self._own:
            return self._hooks["on_message"], (message,)
        topic = message.topic
        if topic != ERROR and topic not in self._unheard and len(self._unheard) < _UNHEARD:
            self._unheard.add(topic)
            words = "%r of %s is dropped: there is no @on(%r) and no on_message (told once)"
            logger.warning(words, topic, message.sender, topic)
        return None

    def _asked(self, message: Called) -> Step:
        topic, content = message.topic, message.payload
        if topic not in self._questions:
            among = ", ".join(map(repr, self._questions)) or "nothing"
            return message.refuse, (f"{self._name} does not answer {topic!r:.80}, but {among}",)
        takes, kind, default = self._questions[topic]
        if content is None and default:
            return self._answer, (message,)
        if not takes:
            return message.refuse, (f"{topic!r} of {self._name} takes no payload",)
        try:
            return self._answer, (message, msgspec.convert(content, kind))
        except (msgspec.ValidationError, RecursionError) as error:
            return message.refuse, (f"the payload of {topic!r} is no {type_name(kind)}: {error}",)

    def _answer(self, message: Any, *payload: Any) -> Any:
        raise NotImplementedError

    def _happened(self, event: Event | Presence) -> Step | None:
        if event.kind != CANCEL:
            return self._hooks["on_event"], (event,)
        assert isinstance(event, Event)  # noqa: S101 - which alone has this kind
        self._reason, self._clock = event.reason, None
        return None

    # Ticks

    def _left(self) -> float | None:
        """Return how many seconds are left until the next tick; None if there is none."""
        if self._clock is None:
            return None
        now = time.monotonic()
        self._clock.look(is_empty=not self._here, now=now)
        return self._clock.left(now)

    def _tick(self) -> Callable[[], Any]:
        """Return the method whose tick is due."""
        assert self._clock is not None  # noqa: S101 - `_left` has said so
        tick: Callable[[], Any] = getattr(self, self._clock.take(time.monotonic()))
        return tick


class Room(BaseRoom[M]):
    """A room: a subclass is a target like a function, and its methods take what arrives.

    `Room[User]` converts each client's metadata to `User` when it joins; a client whose metadata
    does not convert is closed with 1011, and the log says why. One method runs at a time. In
    `wsrelay.aio.Room` all of them are `async def`.
    """

    clients: Clients[Client[M]]
    """The clients that have joined and not left, in order of joining."""

    _is_async = False

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
        if clients := self._all(but):
            process.send(clients, SEND, content_of(data))

    def broadcast_json(self, value: object, *, but: str | None = None) -> None:
        """Send all clients, but for one, a value as JSON, which is encoded once."""
        self.broadcast(json_text(value), but=but)

    def _live(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.on_start(*args, **kwargs)
        self._serve()
        if not self._ended:
            self.on_stop(self._reason)
        return self._value

    def _answer(self, message: Any, *payload: Any) -> None:
        try:
            value = getattr(self, message.topic)(*payload)
        except CallError as error:
            message.refuse(str(error))
        else:
            message.reply(value)

    def _serve(self) -> None:
        """Take what arrives until the room is at its end."""
        step, relayed, pipe = self._step, self._relayed, self._mailbox.pipe
        find, is_plain = self._find, self._decode is None and "on_text" in self._own
        text = self._hooks["on_text"] if is_plain else self._take_text
        is_turn = True  # of a tick: a message has passed since the last one, or there was none
        while True:
            if self._clock is None:
                for message in pipe:
                    # What most messages are goes through no more calls than it must.
                    client, content = message.sender, message.payload
                    if find(client) is client and content.get("type") == "text":
                        text(client, content["data"])
                    elif (todo := relayed(message)) is not None:
                        todo[0](*todo[1])
            left = self._left()
            if left == 0 and is_turn and not self._ended:
                is_turn = False
                self._tick()()
                continue
            item = self._next(left)
            if item is END:
                return
            is_turn = True
            if item is not None and (todo := step(item)) is not None:
                todo[0](*todo[1])

    def _take_text(self, client: Client[Any], text: str) -> None:
        if self._decode is not None:
            try:
                value = self._decode(text)
            except (ValueError, RecursionError):
                pass  # what is wrong with it comes out below
            else:
                self._kinds[type(value)](client, value)
                return
        hook, arguments = self._text(client, text)
        hook(*arguments)

    def _next(self, left: float | None) -> Any:
        """Return what arrives next within the time that is left, None if nothing does."""
        mailbox = self._mailbox
        if left is None or mailbox.pipe.awaits(left):
            for message in mailbox.pipe:
                return message
        try:
            return mailbox.take(mailbox.inbox, timeout=None if left is None else 0)[1]
        except TimeoutError:
            return None
        except ChannelClosed:
            return END
