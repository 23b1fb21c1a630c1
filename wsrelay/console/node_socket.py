"""Requests to the control socket of a node, from coroutines.

HTTP/1.0 is enough for them: an answer ends with its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

__all__ = ["NodeAway", "NodeRefuses", "NodeSocket", "UnknownRoute"]

_PATIENCE: Final = 3.0
"""Seconds that a node gets to answer what is asked each second."""

_LONGEST_LINE: Final = 1024 * 1024
"""Bytes of a log record or of a message that is traced."""


class NodeAway(Exception):  # noqa: N818 - reads as a sentence
    """The node cannot be reached: it has ended, or it does not answer.

    `is_over` tells whether nothing listens on its socket any more.
    """

    def __init__(self, text: str, *, is_over: bool) -> None:
        super().__init__(text)
        self.is_over = is_over


class UnknownRoute(Exception):  # noqa: N818 - it is no mistake: the node is older
    """The node has no such route."""


class NodeRefuses(ValueError):  # noqa: N818 - reads as a sentence
    """The node refuses what it is asked; the message is its own."""


class NodeSocket:
    """Asks one node; all methods raise `NodeAway`, `NodeRefuses` and `UnknownRoute`.

    With `at`, it is that node of its cluster which is asked, through this one.
    """

    def __init__(self, path: str, at: str = "") -> None:
        self.path = path
        self.at = at

    async def get(self, route: str, seconds: float = _PATIENCE, /, **query: str) -> Any:
        """Return what is at a route, within so many seconds."""
        return await self._whole("GET", self._target(route, query), b"", seconds)

    async def text(self, route: str, seconds: float = _PATIENCE, /, **query: str) -> str:
        """Return the text at a route, within so many seconds."""
        async with _within(seconds), self._asked("GET", self._target(route, query), b"") as reader:
            return (await reader.read()).decode(errors="replace")

    async def post(self, route: str, order: dict[str, Any], seconds: float = _PATIENCE) -> Any:
        """Return what comes of an order, within so many seconds."""
        return await self._whole(
            "POST", self._target(route, {}), msgspec.json.encode(order), seconds
        )

    async def lines(self, route: str, **query: str) -> AsyncIterator[Any]:
        """Yield the values of a stream, one of each line, until it ends."""
        async with contextlib.AsyncExitStack() as stack:
            async with _within(_PATIENCE):
                asked = self._asked("GET", self._target(route, query), b"")
                reader = await stack.enter_async_context(asked)
            while line := await reader.readline():
                yield _decoded(line)

    def _target(self, route: str, query: dict[str, str]) -> str:
        query = {**query, "at": self.at} if self.at else query
        return f"{route}?{urlencode(query)}" if query else route

    async def _whole(self, method: str, target: str, body: bytes, seconds: float) -> Any:
        async with _within(seconds), self._asked(method, target, body) as reader:
            return _decoded(await reader.read())

    @contextlib.asynccontextmanager
    async def _asked(
        self, method: str, target: str, body: bytes
    ) -> AsyncIterator[asyncio.StreamReader]:
        """Give a reader of the body of an answer, which is good."""
        head = f"{method} {target} HTTP/1.0\r\nHost: node\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            reader, writer = await asyncio.open_unix_connection(self.path, limit=_LONGEST_LINE)
        except OSError as error:
            raise NodeAway(f"it has ended ({error.strerror or error})", is_over=True) from None
        try:
            writer.write(head.encode() + body)
            status = (await reader.readline()).split()[1:2]
            while (await reader.readline()).strip():
                pass
            if status != [b"200"]:
                raise _refusal(status, await reader.read())
            yield reader
        except OSError as error:
            raise NodeAway(f"it has ended ({error.strerror or error})", is_over=True) from None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _refusal(status: list[bytes], body: bytes) -> Exception:
    """Return what an answer means that is not good."""
    if not status:
        return NodeAway("it has ended before it answered", is_over=True)
    try:
        return NodeRefuses(str(msgspec.json.decode(body)["error"]))
    except (ValueError, KeyError, TypeError):
        if status[0] in (b"404", b"405"):
            return UnknownRoute("not known to this node")
    return NodeRefuses(f"it answers with {status[0].decode()}")


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise NodeAway("it has ended amid an answer", is_over=True) from None


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise NodeAway(f"it does not answer within {seconds:g} s", is_over=False) from None
