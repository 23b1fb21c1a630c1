"""Requests to the control socket of one node that are for another one of its cluster."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wsrelay.errors import WsrelayError
from wsrelay.node import Node

__all__ = ["ASKER", "PATIENCE", "Forwarding", "answer"]

PATIENCE: Final = 5.0
"""Seconds that another node gets to answer, beyond what the request itself allows."""


ASKER: Final = "x-wsrelay-asker"
"""The header that says which node asks."""


class Forwarding:
    """Passes requests whose query has `at=NODE` on to that node, and all others to the application.

    What goes on without end, as `follow` does, is not passed on: it is answered as it is now.
    """

    def __init__(self, app: ASGIApp, node: Node) -> None:
        self._app = app
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        at = request.query_params.get("at", "")
        if at in {"", self._node.name}:
            await self._app(scope, receive, send)
        else:
            await (await self._forwarded(at, request))(scope, receive, send)

    async def _forwarded(self, at: str, request: Request) -> Response:
        pairs = parse_qsl(request.url.query, keep_blank_values=True)
        kept = [(key, value) for key, value in pairs if key not in {"at", "follow"}]
        path = f"{request.url.path}?{urlencode(kept)}"
        body = await request.body()
        is_order = request.method != "GET"
        asked = asyncio.ensure_future(
            self._node.engine.elsewhere.ask_control(at, request.method, path, body)
        )
        asked.add_done_callback(lambda one: one.cancelled() or one.exception())
        try:
            async with asyncio.timeout(PATIENCE + _allowed(body)):
                status, content = await (asyncio.shield(asked) if is_order else asked)
        except TimeoutError:
            problem = f"node {at} does not answer within {PATIENCE:g} s"
            if is_order:  # it waits in the link to that node
                problem += "; it obeys as soon as it gets to know"
            return _error(HTTPStatus.GATEWAY_TIMEOUT, problem)
        except (ValueError, WsrelayError) as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        return Response(content, status, media_type="application/json")


def _allowed(body: bytes) -> float:
    """Return for how many seconds a request asks to wait, as `call` does."""
    try:
        return float(msgspec.json.decode(body).get("timeout", 0.0))
    except (ValueError, TypeError, AttributeError):
        return 0.0


def _error(status: int, message: str) -> Response:
    return Response(msgspec.json.encode({"error": message}), status, media_type="application/json")


async def answer(
    app: ASGIApp, method: str, path: str, body: bytes, asker: str
) -> tuple[int, bytes]:
    """Return the status and the body with which an application answers; `path` has the query."""
    path, _, query = path.partition("?")
    scope = {
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
    status, parts, read = 500, list[bytes](), False

    async def receive() -> Message:
        nonlocal read
        if read:  # whoever asks once more waits for the end of the client
            await asyncio.get_running_loop().create_future()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
