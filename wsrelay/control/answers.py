"""What a node's control socket answers to other nodes of the cluster: at once, or in portions.

What goes on without end, such as a log that is followed, cannot be one answer. The node that asks
gives it a key (`STREAM`) and asks with it again and again, as long as the status is `MORE`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.types import ASGIApp, Message, Scope

__all__ = ["ASKER", "MORE", "PORTION", "STREAM", "PeerAnswers", "is_endless"]

ASKER: Final = "x-wsrelay-asker"
"""The header that says which node asks."""

STREAM: Final = "stream"
PORTION: Final = "portion"
"""The parameters of a query that name a stream, and number the portions of it that are asked for,
from 0 on."""

MORE: Final = HTTPStatus.PARTIAL_CONTENT

_WAIT: Final = 1.0
"""Seconds that a portion waits for something to tell."""

_FULL: Final = 256 * 1024
"""Bytes of a stream that wait to be asked for; what makes it stands still meanwhile."""

_PATIENCE: Final = 10.0
"""Seconds until a stream ends that nobody asks for any more."""

_MOST: Final = 100
"""Streams that all other nodes may read at the same time."""


def is_endless(path: str, query: Mapping[str, str]) -> bool:
    """Whether the answer to a request goes on without end."""
    return path == "/trace" or "follow" in query


class PeerAnswers:
    """Answers with what an application answers to the same request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._streams: dict[tuple[str, str], _Stream] = {}

    async def answer(self, method: str, path: str, body: bytes, asker: str) -> tuple[int, bytes]:
        """Return the status and the body; `path` has the query.

        Raises `ValueError` for a portion of a stream that has ended, for too many streams, and for
        one without a key.
        """
        path, _, query = path.partition("?")
        wanted = dict(parse_qsl(query, keep_blank_values=True))
        key, portion = wanted.pop(STREAM, None), wanted.pop(PORTION, "0")
        scope = _scope(method, path, urlencode(wanted), asker)
        if key is None and is_endless(path, wanted):
            raise ValueError(f"{path} goes on without end: it is asked for in portions")
        if key is None:
            answer = _Answer(body)
            await self._app(scope, answer.receive, answer.send)
            return answer.status, answer.taken()
        stream = self._streams.get((asker, key))
        if stream is None:
            if portion != "0":
                raise ValueError("it has ended, as nobody has asked for it for a while")
            if len(self._streams) >= _MOST:
                raise ValueError(f"other nodes follow {_MOST} logs and traces already")
            over = partial(self._streams.pop, (asker, key), None)
            stream = self._streams[asker, key] = _Stream(self._app, scope, over)
        return await stream.portion()

    def end(self) -> None:
        """End all streams, because the node ends."""
        for stream in [*self._streams.values()]:
            stream.end()


def _scope(method: str, path: str, query: str, asker: str) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(ASKER.encode(), asker.encode())],
    }


class _Answer:
    """What an application answers, as far as it has come and was not taken."""

    def __init__(self, body: bytes = b"") -> None:
        self.status = 500
        self._body = body
        self._read = False
        self._content = bytearray()

    def taken(self) -> bytes:
        """Take what has come."""
        content = bytes(self._content)
        self._content.clear()
        return content

    async def receive(self) -> Message:
        """Give the application the request's body."""
        if self._read:  # whoever asks once more waits for the end of the client
            await asyncio.get_running_loop().create_future()
        self._read = True
        return {"type": "http.request", "body": self._body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Take a message of the application."""
        self.status = message.get("status", self.status)
        self._content += message.get("body", b"")


class _Stream(_Answer):
    """An answer that goes on, and waits for those who ask for it; `over` is called at its end."""

    def __init__(self, app: ASGIApp, scope: Scope, over: Callable[[], object]) -> None:
        super().__init__()
        self._over = over
        self._came, self._room = asyncio.Event(), asyncio.Event()
        self._task = asyncio.ensure_future(app(scope, self.receive, self.send))
        self._task.add_done_callback(lambda _: self._came.set())
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self.end)

    async def send(self, message: Message) -> None:
        """Take a message of the application, which waits while there is no room."""
        await super().send(message)
        self._came.set()
        while len(self._content) >= _FULL:
            self._room.clear()
            await self._room.wait()

    async def portion(self) -> tuple[int, bytes]:
        """Return what has come, with `MORE` if something may follow."""
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self.end)
        if not self._content and not self._task.done():
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WAIT):
                    await self._came.wait()
        if self._task.done():
            self.end()
            return self.status, self.taken()
        self._room.set()
        return MORE, self.taken()

    def end(self) -> None:
        """End it."""
        self._timer.cancel()
        self._task.cancel()
        self._over()
