"""Questions to JetStream and its answers, over a connection that may be lost at any time."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg

from wsrelay.cluster.ports import Unavailable

from .connection import NatsConnection

__all__ = ["Answer", "JetStreamError", "NoJetStream", "Questions", "Refused", "Stored"]


class JetStreamError(Struct):
    """What JetStream says has gone wrong; `err_code` tells what exactly."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Stored(Struct):
    """One message of a stream."""

    subject: str
    seq: int
    time: datetime
    data: bytes = b""
    hdrs: bytes = b""


class Config(Struct):
    """The settings of a stream that matter here."""

    storage: str
    subjects: list[str] = []
    retention: str = "limits"
    max_msgs_per_subject: int = -1
    max_age: int = 0
    max_msgs: int = -1
    max_bytes: int = -1
    max_msg_size: int = -1
    num_replicas: int = 1


class State(Struct):
    """What a stream holds."""

    last_seq: int = 0
    subjects: dict[str, int] = {}


class Answer(Struct):
    """Whatever JetStream answers: each kind of answer has some of these."""

    error: JetStreamError | None = None
    seq: int = 0
    message: Stored | None = None
    config: Config | None = None
    state: State | None = None
    cluster: dict[str, Any] | None = None
    total: int = 0


class Refused(Unavailable):
    """This node's user must not ask that."""


class NoJetStream(Unavailable):
    """Nobody answers such questions: there is no JetStream, or no stream that takes the subject."""


class _Lost(Unavailable):
    """The connection was lost before the answer came."""


_PREPARING: Final = 1.0
"""Seconds that an answer may take at most while a connection is being prepared."""

_NO_RESPONDERS: Final = "503"

_decode = msgspec.json.Decoder(Answer).decode


class Questions:
    """Asks over a connection; each question gets its answer, or `Unavailable` after `seconds`.

    What waits for an answer when the connection is lost gets `Unavailable` at once: its outcome is
    not known. What is asked without a connection waits for one, in the same time.
    """

    def __init__(self, connection: NatsConnection, inbox: str, seconds: float) -> None:
        self._connection = connection
        self._inbox = f"{inbox}.{secrets.token_hex(6)}"
        self._seconds = seconds
        self._numbers = itertools.count()
        self._asked: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        """By the subject of the answer: the subject of the question, and who waits for it."""
        self._usable = asyncio.Event()
        connection.on_connected.append(self._usable.set)
        connection.on_disconnected.append(self._usable.clear)
        connection.on_lost.append(self._fail_all)
        connection.on_refused.append(self._refused)

    async def open(self) -> None:
        """Take answers, from each connection to come."""
        await self._connection.subscribe(f"{self._inbox}.*", self._take)

    async def ask(
        self,
        subject: str,
        data: bytes,
        headers: bytes = b"",
        *,
        at_once: bool = False,
        again: bool = False,
    ) -> Answer:
        """Return the answer; with `at_once` it is asked of a connection that is being prepared.

        With `again` it is asked once more if the connection is lost, which changes nothing for what
        only reads. Raises `Unavailable`, and of its kinds `Refused` and `NoJetStream`.
        """
        seconds = min(self._seconds, _PREPARING) if at_once else self._seconds
        try:
            async with asyncio.timeout(seconds):
                while True:
                    if not at_once:
                        await self._usable.wait()
                    try:
                        message = await self._ask(subject, data, headers)
                        break
                    except _Lost:
                        if not again:
                            raise
        except TimeoutError:
            raise Unavailable(f"NATS did not answer within {seconds:g} s") from None
        if not message.data and (message.headers or {}).get("Status") == _NO_RESPONDERS:
            raise NoJetStream("nobody answers there")
        try:
            return _decode(message.data)
        except msgspec.DecodeError as error:
            raise Unavailable(f"the answer is not JetStream's: {error}") from None

    async def _ask(self, subject: str, data: bytes, headers: bytes) -> Msg:
        reply = f"{self._inbox}.{next(self._numbers)}"
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._asked[reply] = subject, answer
        try:
            if not self._connection.ask(subject, reply, headers, data):
                raise Unavailable("there is no connection to NATS")
            return await answer
        finally:
            del self._asked[reply]

    def _take(self, message: Msg) -> None:
        asked = self._asked.get(message.subject)
        if asked is not None and not asked[1].done():
            asked[1].set_result(message)

    def _fail_all(self, reason: str) -> None:
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_Lost(f"the connection to NATS was lost: {reason}"))

    def _refused(self, text: str) -> None:
        """Fail the questions that the server's words, in small letters, are about."""
        for subject, answer in self._asked.values():
            if f'"{subject.lower()}"' in text and not answer.done():
                answer.set_exception(Refused(f"NATS refuses: {text}"))
