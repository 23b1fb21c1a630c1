"""Requests to the control socket of one node that are for another one of its cluster."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from wsrelay.errors import WsrelayError
from wsrelay.node import Node
from wsrelay.node.info import TraceRecord

from .answers import ASKER, MORE, PORTION, STREAM, is_endless
from .finding import PATIENCE, Finder, Unknown
from .records import LogRecord

__all__ = ["Forwarding"]

_LOOKS: Final = ("/process", "/stack", "/trace")
"""What only the node of the process `of` can answer."""


class Forwarding:
    """Passes requests on to the node that they are for, and all others to the application.

    That is the node that the query names by `at`, or the one that has the process `of` whose inside
    is looked at. With `anywhere`, that process may be what only another node knows, whichever.
    """

    def __init__(self, app: ASGIApp, node: Node) -> None:
        self._app = app
        self._node = node
        self._finder = Finder(node)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive)
        query = dict(parse_qsl(request.url.query, keep_blank_values=True))
        at = query.pop("at", "") or self._node.name
        anywhere = query.pop("anywhere", "") != ""
        is_for_any = at == self._node.name or anywhere
        served: ASGIApp = self._app
        if is_for_any and request.url.path in _LOOKS and ASKER not in request.headers:
            try:
                at, query["of"] = await self._finder.place(query.get("of", ""), anywhere=anywhere)
            except Unknown as error:
                at, served = "", _error(HTTPStatus.NOT_FOUND, str(error))
        if at not in {"", self._node.name}:
            served = await self._forwarded(at, request, query)
        await served(scope, receive, send)

    async def _forwarded(self, at: str, request: Request, query: dict[str, str]) -> Response:
        method, path, body = request.method, request.url.path, await request.body()
        if is_endless(path, query):
            query[STREAM] = secrets.token_hex(8)
        try:
            status, content = await self._ask(at, method, f"{path}?{urlencode(query)}", body)
        except TimeoutError as error:
            return _error(HTTPStatus.GATEWAY_TIMEOUT, str(error))
        except (ValueError, WsrelayError) as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        if status == MORE:
            portions = self._portions(at, f"{path}?{urlencode(query)}", content)
            return StreamingResponse(portions, media_type="application/x-ndjson")
        return Response(content, status, media_type="application/json")

    async def _portions(self, at: str, path: str, content: bytes) -> AsyncIterator[bytes]:
        """Yield a stream, of which something has come; if that node goes, the last line says so."""
        status: int = MORE
        number = 0
        yield content
        while status == MORE:
            number += 1
            try:
                status, content = await self._ask(at, "GET", f"{path}&{PORTION}={number}", b"")
            except (TimeoutError, ValueError, WsrelayError) as error:
                yield _last(path, str(error))
                return
            if status in {MORE, HTTPStatus.OK}:
                yield content

    async def _ask(self, at: str, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return the other node's answer; raises `TimeoutError`, and as `ask_control` does."""
        is_order = method != "GET"
        elsewhere = self._node.engine.elsewhere
        asked = asyncio.ensure_future(elsewhere.ask_control(at, method, path, body))
        asked.add_done_callback(lambda one: one.cancelled() or one.exception())
        try:
            async with asyncio.timeout(PATIENCE + _allowed(body)):
                return await (asyncio.shield(asked) if is_order else asked)
        except TimeoutError:
            problem = f"node {at} does not answer within {PATIENCE:g} s"
            if is_order:  # it waits in the link to that node
                problem += "; it obeys as soon as it gets to know"
            raise TimeoutError(problem) from None


def _allowed(body: bytes) -> float:
    """Return for how many seconds a request asks to wait, as `call` does."""
    try:
        return float(msgspec.json.decode(body).get("timeout", 0.0))
    except (ValueError, TypeError, AttributeError):
        return 0.0


def _last(path: str, problem: str) -> bytes:
    """Return the last record of a log or trace that cannot be followed any more."""
    record: LogRecord | TraceRecord
    if path.startswith("/trace"):
        record = TraceRecord(time=time.time(), note=problem, last=True)
    else:
        record = LogRecord(time=time.time(), level="warning", pid=None, text=problem)
    return msgspec.json.encode(record) + b"\n"


def _error(status: int, message: str) -> Response:
    return Response(msgspec.json.encode({"error": message}), status, media_type="application/json")
