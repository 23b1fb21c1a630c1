"""Which method of a room takes what has arrived, and who is there; for both faces of `Room`.

A room has one attribute for all of this, so that a subclass can name its own as it likes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from wsrelay import tracing
from wsrelay.errors import InvalidMessage
from wsrelay.values import awaited
from wsrelay.values.client import Client
from wsrelay.values.declarations import HOOKS, Declaration, type_name
from wsrelay.values.message import CANCEL, ERROR, LEAVE, Called, Event, Message, Relayed
from wsrelay.values.presence import Presence
from wsrelay.values.schedule import Schedule

from .calls import WorkerContext

__all__ = ["Dispatcher", "Step", "within", "within_async"]

logger = logging.getLogger("wsrelay.room")

Step = tuple[Callable[..., Any], tuple[Any, ...]]
"""A method to call, and what with."""

_Way = Callable[[Any], Step | None]


def within(message: Message, method: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call a method in the context of a message."""
    with tracing.use(message):
        method(*arguments)


async def within_async(
    message: Message, method: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """Do what `within` does in a coroutine."""
    with tracing.use(message):
        await method(*arguments)


_UNHEARD: Final = 20
"""Topics that are logged because nothing takes them: they may be made up."""


class Dispatcher:
    """Takes what arrives at a worker for a room, and says which of its methods is next.

    `answer` calls a method and answers a call with what it returns. `here` has the room's clients.
    """

    def __init__(
        self,
        room: Any,
        found: Declaration,
        here: dict[str, Any],
        worker: WorkerContext,
        answer: Callable[..., Any],
    ) -> None:
        self._room = room
        self._found = found
        self._answer = answer
        self._name = type(room).__qualname__
        self._questions = found.questions(type(room))
        self.here = here
        self.find = here.get
        self.own = found.own
        self.hooks = {name: getattr(room, name) for name in HOOKS}
        self.kinds = {kind: getattr(room, name) for kind, name in found.kinds.items()}
        self.decode = msgspec.json.Decoder(found.union).decode if found.kinds else None
        self.clock = Schedule(found.ticks, time.monotonic()) if found.ticks else None
        """None if the room has no ticks, or is coming to its end."""
        self.ended = False
        """Whether the room has ended itself."""
        self.value: Any = None
        """What its process returns."""
        self.reason = ""
        """That of the CANCEL."""
        self._given: dict[str, Any] = {}
        """The metadata that each client came with, not converted."""
        self._refused: set[str] = set()
        """Clients whose metadata does not convert, and which are being closed."""
        self._unheard: set[str] = set()
        """Topics that were logged because nothing takes them."""
        self._takers: dict[type, Callable[[Any], Step | None]] = {
            **dict.fromkeys((Relayed, awaited.Relayed), self.relayed),
            **dict.fromkeys((Message, awaited.Message), self._posted),
            **dict.fromkeys((Called, awaited.Called), self._asked),
            **dict.fromkeys((Event, Presence), self._happened),
        }
        self.mailbox = worker.mailbox
        worker.in_room = True
        self.mailbox.merge()

    def end(self, value: Any) -> None:
        """End the room once the method that is running has returned."""
        self.ended, self.value = True, value
        self.mailbox.close_inbox()

    def watch(self, group: str) -> None:
        """Let `on_event` get who is in a group, and each change."""
        if "on_event" not in self.own:
            raise TypeError(f"{self._name} has no on_event, to which watch({group!r}) would go")
        self.mailbox.watch(group)

    # Which method is next

    def step(self, item: Any) -> Step | None:
        """Return the method that takes what has arrived; None if there is none."""
        return self._takers[type(item)](item)

    def ways(self, within: Callable[..., Any]) -> tuple[_Way, _Way, Callable[[Any], Any]]:
        """Return `step`, `relayed` and `find`, which sort out what arrives.

        Where OpenTelemetry is configured, a step that takes a message is called by `within`, with
        the message, in the context of which it runs; and `find` finds nobody, so that all messages
        are sorted out.
        """
        if not tracing.is_on():
            return self.step, self.relayed, self.find

        def step(item: Any) -> Step | None:
            todo = self.step(item)
            if todo is None or not isinstance(item, Message):
                return todo
            return within, (item, *todo)

        return step, step, lambda _: None

    def relayed(self, message: Relayed) -> Step | None:
        """Do what `step` does, of a message of the relay."""
        client: Any = message.sender
        if self.find(client) is not client:
            client = self._admit(message)
            if client is None:
                return None
        content = message.payload
        kind = content.get("type")
        if kind == "text":
            return self.text(client, content["data"])
        if kind == "binary":
            return self._binary(client, content["data"])
        hooks = self.hooks
        match message.topic:
            case "ws.join":
                return hooks["on_join"], (client,)
            case "ws.leave":
                del self.here[client], self._given[client]
                return hooks["on_leave"], (client, content["code"], content["reason"])
            case _:
                counts = content["uptime"], content["message_count"]
                return hooks["on_heartbeat"], (client, *counts)

    def _admit(self, message: Relayed) -> Any:
        """Return a client that is new here, or has new metadata; None if it is not let in."""
        client: Any = message.sender
        if message.topic == LEAVE and "type" not in message.payload:
            self._refused.discard(client)
            return self.find(client)
        if client in self._refused:
            return None
        given = message.payload["metadata"]
        if (there := self.find(client)) is not None and self._given[client] is given:
            return there  # another object of the same, as where an event loop reads for threads
        kind = self._found.metadata
        if kind is not None:
            try:
                client.metadata = msgspec.convert(client.metadata, kind)
            except msgspec.ValidationError as error:
                what = (client, type_name(kind), error, client.metadata)
                logger.error("%s is closed: metadata is no %s: %s, in %.500r", *what)  # noqa: TRY400
                client.close(1011, "unusable metadata")
                self._refused.add(client)
                return None
        self.here[client], self._given[client] = client, given
        return client

    def text(self, client: Client[Any], text: str) -> Step:
        """Return the method that takes a client's text."""
        problem = ""
        if self.decode is not None:
            try:
                value = self.decode(text)
            except (ValueError, RecursionError) as error:
                is_known, problem = self._told(text, error)
                if is_known:
                    return self._invalid(client, problem)
            else:
                return self.kinds[type(value)], (client, value)
        if "on_text" in self.own:
            return self.hooks["on_text"], (client, text)
        return self._invalid(
            client, problem or "the client sent text, which the room does not take"
        )

    def _binary(self, client: Client[Any], data: bytes) -> Step:
        if "on_binary" in self.own:
            return self.hooks["on_binary"], (client, data)
        return self._invalid(client, "the client sent binary data, which the room does not take")

    def _told(self, text: str, error: Exception) -> tuple[bool, str]:
        """Return whether the text's tag is that of an `@on`, and what is wrong with the text."""
        tags, field = self._found.tags, self._found.tag_field
        try:
            value = msgspec.json.decode(text)
        except (ValueError, RecursionError) as unreadable:
            return False, f"the client sent text that is no JSON ({unreadable})"
        among = ", ".join(map(repr, tags))
        if isinstance(value, dict):
            tag = value.get(field)
        else:
            tag = value[0] if isinstance(value, list) and value else None
        if isinstance(tag, str | int) and tag in tags:
            return True, f"the client sent a {tag!r} that does not fit: {error!s:.500}"
        return False, f"the client sent JSON whose {field!r} is {tag!r:.80}, and none of {among}"

    def _invalid(self, client: Client[Any], problem: str) -> Step:
        return self.hooks["on_invalid"], (client, InvalidMessage(problem))

    def _posted(self, message: Message) -> Step | None:
        if (name := self._found.topics.get(message.topic)) is not None:
            return getattr(self._room, name), (message,)
        if "on_message" in self.own:
            return self.hooks["on_message"], (message,)
        topic = message.topic
        if topic != ERROR and topic not in self._unheard and len(self._unheard) < _UNHEARD:
            self._unheard.add(topic)
            words = "%r of %s is dropped: there is no @on(%r) and no on_message (told once)"
            logger.warning(words, topic, message.sender, topic)
        return None

    def _asked(self, message: Called) -> Step:
        topic, content = message.topic, message.payload
        if topic not in self._questions:
            known = ", ".join(map(repr, self._questions))
            instead = f"but {known}" if known else "nor anything else"
            return message.refuse, (f"{self._name} does not answer {topic!r:.80}, {instead}",)
        takes, kind, default = self._questions[topic]
        method = getattr(self._room, topic)
        if content is None and default:
            return self._answer, (method, message)
        if not takes:
            return message.refuse, (f"{topic!r} of {self._name} takes no payload",)
        try:
            return self._answer, (method, message, msgspec.convert(content, kind))
        except (msgspec.ValidationError, RecursionError) as error:
            return message.refuse, (f"the payload of {topic!r} is no {type_name(kind)}: {error}",)

    def _happened(self, event: Event | Presence) -> Step | None:
        if event.kind != CANCEL:
            return self.hooks["on_event"], (event,)
        assert isinstance(event, Event)  # noqa: S101 - which alone has this kind
        self.reason, self.clock = event.reason, None
        return None

    # Ticks

    def left(self) -> float | None:
        """Return how many seconds are left until the next tick; None if there is none."""
        if self.clock is None:
            return None
        now = time.monotonic()
        self.clock.look(is_empty=not self.here, now=now)
        return self.clock.left(now)

    def tick(self) -> Callable[[], Any]:
        """Return the method whose tick is due."""
        assert self.clock is not None  # noqa: S101 - `left` has said so
        tick: Callable[[], Any] = getattr(self._room, self.clock.take(time.monotonic()))
        return tick
