"""Applications that relay, in two frameworks, and their clients."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import httpx
import pytest
import rooms
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from support import client, received, room
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from wsrelay import Node, RelayResponse, WebSocketRelay, process
from wsrelay.values import current

Answer = Callable[[Request], Awaitable[Response]]

each_way = pytest.mark.parametrize(
    ("framework", "place"),
    [("starlette", "inside"), ("fastapi", "inside"), ("fastapi", "around")],
)


def application(framework: str, **answers: Answer) -> Starlette:
    """An application that answers `GET /name` with the function of that name."""
    if framework == "fastapi":
        app = FastAPI()
        for name, answer in answers.items():
            app.add_api_route(f"/{name}", answer, response_model=None)
        return app
    return Starlette(routes=[Route(f"/{name}", answer) for name, answer in answers.items()])


def relayed(app: Starlette, place: str, **options: Any) -> Any:
    """The application with the relay as its outermost middleware, or around it."""
    if place == "inside":
        app.add_middleware(WebSocketRelay, **options)
        return app
    return WebSocketRelay(app, **options)


async def echo(_: Request) -> Response:
    return RelayResponse(process.spawn(room(rooms.echo)))


async def echoes(websocket: ClientConnection, data: str = "hello") -> None:
    await websocket.send(data)
    assert await received(websocket) == data


@contextlib.asynccontextmanager
async def browser(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client for plain HTTP."""
    async with httpx.AsyncClient(
        base_url=url.replace("ws", "http", 1), trust_env=False, timeout=20
    ) as http:
        yield http


async def refusal(url: str, **options: Any) -> Any:
    """The response to an upgrade that does not come about."""
    with pytest.raises(InvalidStatus) as refused:
        async with client(url, **options):
            pass
    return refused.value.response


@contextlib.asynccontextmanager
async def without_lifespan() -> AsyncIterator[None]:
    """End the nodes that no lifespan ends."""
    try:
        yield
    finally:
        for node in list(current.nodes):
            await cast("Node", node).aclose()


class Stamp(BaseHTTPMiddleware):
    """Gives the request a user and the response a header."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        request.state.user = request.headers.get("x-user", "nobody")
        response = await call_next(request)
        response.headers["x-stamp"] = "stamped"
        return response


class Telling(StreamingResponse):
    """Tells of its end; the generator's own `finally` may wait for the garbage collector."""

    def __init__(self, ended: Callable[[], object], body: Any, **options: Any) -> None:
        super().__init__(body, **options)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
