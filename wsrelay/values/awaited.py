"""`Message` and `Client` as coroutines get them: what may wait is awaited."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from . import client, current, message
from .client import M, content_of
from .json_text import json_text
from .message import SEND

__all__ = ["COROUTINES", "FUNCTIONS", "Called", "Client", "Face", "Message", "Relayed"]


class Client(client.Client[M]):
    """`wsrelay.Client` for `async def` handlers: `send`, `send_json` and `drain` are awaited.

    `close` and `transfer` are called as they are there, and take effect in the order of the calls.
    """

    __slots__ = ()

    async def send(self, data: str | bytes) -> None:  # type: ignore[override]
        """Send the client a message: text if it is `str`, else binary."""
        worker, content = current.here, content_of(data)
        if worker is None:
            current.caller().send(self, SEND, content)  # a node never waits
        elif not worker.pipe.send_short(self, SEND, content):
            await worker.send_async(self, SEND, content)

    async def send_json(self, value: object) -> None:  # type: ignore[override]
        """Send the client a value as JSON text; raises `PayloadError`."""
        await Client.send(self, json_text(value))

    async def drain(  # type: ignore[override]
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as in the other face
    ) -> None:
        """Wait until most of what was sent to the client is on its way."""
        await current.worker().drain_async(self, timeout)


class Message(message.Message, frozen=True):
    """`wsrelay.Message` for `async def` handlers: its `client` is a `wsrelay.aio.Client`."""

    @property
    def client(self) -> Client | None:
        """The client that the relay sent this for; see `wsrelay.Message`."""
        return None

    async def reply(self, value: Any = None) -> None:  # type: ignore[override]
        """Answer a `call` with a value, which is data; see `wsrelay.Message.reply`."""
        message.Message.reply(self, value)

    async def refuse(self, text: str) -> None:  # type: ignore[override]
        """Answer a `call` with an error; see `wsrelay.Message.refuse`."""
        message.Message.reply(self, text)


class Called(message.Called, Message, frozen=True, dict=True):
    """A message that `call` has sent; see `wsrelay.values.message`."""

    async def reply(self, value: Any = None) -> None:  # type: ignore[override]
        """Answer it with a value."""
        with self._answering() as call:
            await current.worker().answer_async(call, value)

    async def refuse(self, text: str) -> None:  # type: ignore[override]
        """Answer it with an error."""
        with self._answering(text) as call:
            await current.worker().answer_async(call, None, text)


class Relayed(message.Relayed, Message, frozen=True):
    """A message that the relay sent for a connection; see `wsrelay.values.message`."""


class Face(NamedTuple):
    """The classes of what is received in functions, or of what is received in coroutines."""

    client: type[client.Client[Any]]
    message: type[message.Message]
    relayed: type[message.Relayed]
    called: type[message.Called]

    def of(self, item: Any) -> Any:
        """Return a message or client of the other face as one of this; else what is given."""
        if isinstance(item, client.Client):
            return self.client.known(item, item.metadata, item.trace)
        if isinstance(item, message.Relayed):
            sender = self.of(item.sender)
            return self.relayed(item.topic, {**item.payload, "client_pid": sender}, sender)
        if isinstance(item, message.Called):
            called = self.called(item.topic, item.payload, item.sender)
            called.__dict__.update(item.__dict__)
            return called
        if isinstance(item, message.Message):
            return self.message(item.topic, item.payload, item.sender)
        return item


FUNCTIONS: Final = Face(client.Client, message.Message, message.Relayed, message.Called)
COROUTINES: Final = Face(Client, Message, Relayed, Called)
