"""What processes exchange, and what remains of them when they end (`docs/semantics.md`)."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import msgspec
from msgspec import Struct

from wsrelay.errors import InvalidMessage, InvalidReply, PayloadError, ReservedTopic, phrase

from . import current
from .pid import LONGEST, PID
from .printable import printable

if TYPE_CHECKING:
    from .client import Client

__all__ = [
    "CANCEL",
    "JOIN",
    "LEAVE",
    "MESSAGE",
    "Called",
    "Event",
    "ExitError",
    "ExitKind",
    "Message",
    "Relayed",
    "Result",
    "Tick",
    "late",
    "reason_of",
    "sendable",
]

JOIN = "ws.join"
MESSAGE = "ws.message"
HEARTBEAT = "ws.heartbeat"
LEAVE = "ws.leave"
ERROR = "ws.error"
SEND = "ws.send"
CLOSE = "ws.close"
CONTROL = "ws.control"

EMPTY = "end_when_empty"
"""The reason of the CANCEL of a process that has had no client for that long."""

CANCEL = "CANCEL"
"""The kind of the event that asks a process to come to its end."""


def sendable(topic: Any) -> str:
    """Return the topic if user code may send it; raises `ReservedTopic`, `PayloadError`."""
    if not isinstance(topic, str) or topic.startswith("@"):
        raise ReservedTopic(topic)
    if len(topic) > LONGEST:
        raise PayloadError(
            f"topic: {topic[:40]!r}... has {len(topic)} characters, at most {LONGEST} are allowed"
        )
    return topic


def reason_of(reason: str) -> str:
    """Return a reason cut to 1,000 characters, since nobody reads more.

    An error's text is often passed as one, and a `cancel` must not fail because of its length.
    """
    if not isinstance(reason, str) or len(reason) <= LONGEST:
        return reason
    more = f"... ({len(reason)} characters)"
    return reason[: LONGEST - len(more)] + more


T = TypeVar("T")


class Message(Struct, frozen=True):
    """One message in an inbox: `payload` is data, `sender` is the PID of the sender.

    What a client has sent, under whatever topic, also has `data`, `text` and `json`; of all other
    messages these raise `InvalidMessage`.
    """

    topic: str
    payload: Any
    sender: PID

    @property
    def client(self) -> Client | None:
        """The client that the relay sent this for; None for all other messages.

        It depends on how the message came and not on its content: a process that sends a `ws.join`
        with a made-up `client_pid` sends a message whose `client` is None. It is None as well for
        `ws.error`, which answers a process and does not come from a client.
        """
        return None

    @property
    def data(self) -> str | bytes:
        """What the client has sent: `str` if it is text, else `bytes`."""
        raise InvalidMessage(
            f"{printable(self.topic)} of {self.sender} is no message of a client; see `payload`"
        )

    @property
    def text(self) -> str:
        """The text that the client has sent; raises `InvalidMessage` for bytes."""
        data = self.data
        if isinstance(data, str):
            return data
        raise InvalidMessage(f"the client sent {len(data)} bytes of binary data, not text")

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    @overload
    def json(self, type: Any) -> Any: ...
    def json(self, type: Any = Any) -> Any:  # noqa: A002 - as msgspec names it
        """Return what the client's text is as JSON, converted to `type`, as msgspec does it.

        Raises `InvalidMessage` for bytes, for text that is no JSON, and for JSON that does not
        convert.
        """
        text = self.text
        try:
            return msgspec.json.decode(text, type=type)
        except msgspec.ValidationError as error:
            raise InvalidMessage(f"the client sent JSON that does not fit: {error}") from None
        except (ValueError, RecursionError) as error:
            raise InvalidMessage(
                f"the client sent text that is no JSON ({error}): {text!r:.80}"
            ) from None

    @property
    def wants_reply(self) -> bool:
        """Whether a `call` waits for the answer to this message."""
        return False

    def reply(self, value: Any = None) -> None:
        """Answer a `call` with a value, which is data; once.

        Raises `InvalidReply` if the message wants no answer, or has had it, and `PayloadError`.
        """
        del value
        raise InvalidReply(
            f"{self.topic!r} of {self.sender} wants no answer: only what process.call has sent does"
        )

    def refuse(self, text: str) -> None:
        """Answer a `call` with an error: there, `CallError` is raised with this text.

        It is cut to 1,000 characters. Raises `InvalidReply` as `reply` does.
        """
        self.reply(text)

    def __reduce__(self) -> tuple[type[Message], tuple[str, Any, PID]]:
        """Pickle as an ordinary message: whoever unpickles it got it from this process."""
        return Message, (self.topic, self.payload, self.sender)


class Relayed(Message, frozen=True):
    """A message that the relay sent for a connection: a `Message` whose `client` is its sender.

    The sender is a `Client`.

    The mailbox makes it from a frame that only the node writes, which is why it can be trusted. It
    is a class and not a field, so that data that is converted or sent on cannot carry it along.
    """

    @property
    def data(self) -> str | bytes:
        """What the client has sent."""
        try:
            return self.payload["data"]  # type: ignore[no-any-return]
        except KeyError:
            raise InvalidMessage(
                f"{printable(self.topic)} tells of the client, which has sent nothing with it"
            ) from None


# The field itself, since a property of Python would be called for each message.
Relayed.client = Message.__dict__["sender"]  # type: ignore[method-assign]


class Called(Message, frozen=True, dict=True):
    """A message that `call` has sent: a `Message` that wants an answer, until it has had it.

    The mailbox makes it from a frame that only the node writes. The node's number for the call is
    in the object's `__dict__` and in no field, so that data that is converted or sent on cannot
    carry it along.
    """

    @classmethod
    def known(cls, topic: str, payload: Any, sender: PID, call: int) -> Self:
        """Make one for the call with that number."""
        self = cls(topic, payload, sender)
        self.__dict__["call"] = call
        return self

    @property
    def wants_reply(self) -> bool:
        """Whether a `call` waits for the answer to this message."""
        return "call" in self.__dict__

    def reply(self, value: Any = None) -> None:
        """Answer it with a value; see `Message.reply`."""
        with self._answering() as call:
            current.worker().answer(call, value)

    def refuse(self, text: str) -> None:
        """Answer it with an error; see `Message.refuse`."""
        with self._answering(text) as call:
            current.worker().answer(call, None, text)

    @contextlib.contextmanager
    def _answering(self, refused: str | None = None) -> Iterator[int]:
        """Give out the number of the call; only once, unless the answer could not be sent.

        If its handling is traced, `answered` is told.
        """
        if (call := self.__dict__.pop("call", None)) is None:
            raise InvalidReply(f"{self.topic!r} of {self.sender} has been answered already")
        try:
            yield call
        except BaseException:
            self.__dict__["call"] = call
            raise
        if (answered := self.__dict__.pop("answered", None)) is not None:
            answered(refused)


def late(to: str, topic: str, seconds: float | None) -> TimeoutError:
    """Return the error of a call that was not answered in time."""
    return TimeoutError(f"{to} did not answer {topic!r} within {seconds} s")


class ExitKind(enum.StrEnum):
    """Why a process ended other than by returning."""

    ERROR = "error"
    EXIT = "exit"
    KILLED = "killed"
    LIMIT = "limit"
    START_FAILED = "start_failed"
    HOST_FULL = "host_full"
    NOPROC = "noproc"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    LINK_DOWN = "link_down"
    MAILBOX_OVERFLOW = "mailbox_overflow"
    STALLED = "stalled"
    DISCONNECTED = "disconnected"
    TEMPLATE_LOST = "template_lost"
    NO_REPLY = "no_reply"
    NODE_DOWN = "node_down"


class ExitError(Struct, frozen=True):
    """`message` is one line; `traceback` is the text of the worker's traceback, if it had one."""

    kind: ExitKind
    message: str
    traceback: str | None = None

    def __str__(self) -> str:
        """Return kind and message as one phrase."""
        return phrase(self.kind, self.message)


class Result(Struct, frozen=True):
    """How a process ended: what it returned, or the error that ended it."""

    value: Any = None
    error: ExitError | None = None


class Event(Struct, frozen=True):
    """What arrives on the events channel: kind `EXIT`, `LINK_DOWN` or `CANCEL`."""

    kind: str
    sender: PID
    result: Result | None = None
    reason: str = ""


class Tick(Struct, frozen=True):
    """A tick of `process.ticks`: `number` counts all since its start, those missed included.

    `late` is how many seconds after its time it was given out.
    """

    number: int
    late: float
