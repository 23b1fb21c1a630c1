"""Endpoint functions of a configuration as ASGI applications."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from wsrelay.relay.asgi import Receive, Scope, Send
from wsrelay.relay.upgrade import deny

__all__ = ["EndpointApp"]


class EndpointApp:
    """Runs a function for each request: `async def` in the loop, `def` in a thread.

    It gets a Starlette `Request` and returns a Starlette `Response`, a `dict` (becomes JSON), a
    `str` (plain text) or None (204).
    """

    def __init__(self, function: Callable[..., Any], shown: str) -> None:
        self._function = function
        self._shown = shown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an upgrade that no relay has taken gets 404."""
        if scope["type"] != "http":
            await deny(scope, send, 404, b"Not Found: no WebSocket here\n")
            return
        request = Request(scope, receive, send)
        if _is_async(self._function):
            answer = await self._function(request)
        else:
            answer = await run_in_threadpool(self._function, request)
        await self._response(answer)(scope, receive, send)

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


def _is_async(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its kind is asked, not whether there is one
    )
