"""Endpoint functions of a configuration as ASGI applications."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from wsrelay.node import Node
from wsrelay.relay.asgi import RETRY_AFTER, Receive, Scope, Send
from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.relay.upgrade import deny
from wsrelay.values import current
from wsrelay.values.buffered import Buffered
from wsrelay.values.printable import printable

__all__ = ["EndpointApp"]

_refusals = RateLimitedLog(logging.getLogger(__name__))


class EndpointApp:
    """Runs a function for each request: an `async def` in the event loop, a `def` in a thread.

    It gets a Starlette `Request` and returns a Starlette `Response`, a `dict` (becomes JSON), a
    `str` (plain text) or None (204).
    """

    def __init__(self, function: Callable[..., Any], shown: str) -> None:
        self._function = function
        self._shown = shown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an upgrade that no relay has handled gets 404."""
        if scope["type"] != "http":
            await deny(scope, send, 404, b"Not Found: no WebSocket here\n")
            return
        request = _Request(scope, receive, send)
        try:
            if _is_async(self._function):
                answer = await self._function(request)
            else:
                answer = await run_in_threadpool(self._function, request)
            await self._response(answer)(scope, receive, send)
        except ClientDisconnect:
            pass  # in the middle of its body: nobody is left to answer
        finally:
            request.forget()

    def _response(self, answer: Any) -> Response:
        match answer:
            case Response():
                return answer
            case dict():
                return JSONResponse(answer)
            case str():
                return PlainTextResponse(answer)
            case None:
                return Response(status_code=204)
        raise TypeError(
            f"{self._shown} returned {answer!r:.80}; an endpoint returns a starlette Response, "
            "a dict, a str or None"
        )


class _Request(Request):
    """A request whose body counts as buffered by the node while it is collected as a whole."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        node = current.node_of_request.get(None)
        self._buffered = node.buffered if isinstance(node, Node) else Buffered()
        self._collects = False
        self._kept = 0

    async def body(self) -> bytes:
        """Return the whole body; raises `HTTPException` 503 if the node buffers too much."""
        self._collects = True
        try:
            return await super().body()
        finally:
            self._collects = False

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in chunks, as they arrive."""
        async for chunk in super().stream():
            if self._collects:
                self._kept += len(chunk)
                self._buffered.size += len(chunk)
                if self._buffered.refuses(self._kept):
                    name, value = RETRY_AFTER
                    headers = {name.decode(): value.decode()}
                    _refusals.warning(
                        asyncio.get_running_loop().time(),
                        "%s: 503: %d bytes of its body are buffered, and %d of all clients "
                        "(max_buffered)",
                        printable(self.url.path),
                        self._kept,
                        self._buffered.size,
                    )
                    raise HTTPException(503, headers=headers)
            yield chunk

    def forget(self) -> None:
        """Stop counting the body."""
        self._buffered.size -= self._kept
        self._kept = 0


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the question is its kind, not whether it exists
    )
