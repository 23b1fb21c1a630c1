"""The node's side: HTTP over a Unix socket, so that curl can read it too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from wsrelay.errors import WsrelayError
from wsrelay.node import Node, describe
from wsrelay.pid import address

from .records import Records
from .runtime import bind, runtime_directory

__all__ = ["Control"]


class _Order(Struct, forbid_unknown_fields=True):
    """What `send`, `cancel` and `kill` are told."""

    to: str
    topic: str = ""
    payload: Any = None
    reason: str = ""


class _Server(uvicorn.Server):
    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave the signals to the node's own front end."""
        return contextlib.nullcontext()


class Control:
    """Serves `/node`, `/logs`, `/send`, `/cancel` and `/kill` while it is entered.

    Raises `ControlError` at its begin where no safe socket can be made.
    """

    def __init__(self, node: Node, directory: Path | None = None) -> None:
        self._node = node
        self._directory = directory or runtime_directory()
        self.path: Path | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        listener, self.path = bind(self._directory, f"{self._node.name}-{os.getpid()}")
        self._records = Records(self._node.pid_prefix)
        logging.getLogger("wsrelay").addHandler(self._records)
        routes = [
            Route("/node", self._describe),
            Route("/logs", self._logs),
            Route("/send", self._acting(self._send), methods=["POST"]),
            Route("/cancel", self._acting(self._cancel), methods=["POST"]),
            Route("/kill", self._acting(self._kill), methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            http="h11",
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]))
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Stop, those who follow the log included."""
        logging.getLogger("wsrelay").removeHandler(self._records)
        self._records.end()
        self._server.should_exit = True
        await self._serving
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    async def _describe(self, _: Request) -> Response:
        return _json(describe(self._node))

    async def _logs(self, request: Request) -> Response:
        pid, follow = request.query_params.get("pid"), "follow" in request.query_params

        async def lines() -> AsyncIterator[bytes]:
            async for record in self._records.read(pid, follow=follow):
                yield msgspec.json.encode(record) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    def _acting(self, act: Callable[[_Order], None]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                order = msgspec.json.decode(await request.body(), type=_Order)
                order.to = address(order.to)
            except (msgspec.MsgspecError, WsrelayError) as error:
                return _error(400, str(error))
            if self._node.kernel.find(order.to, self._node.name) is None:
                return _error(404, f"node {self._node.name} has no process {order.to!r}")
            try:
                act(order)
            except WsrelayError as error:
                return _error(400, str(error))
            return _json(None)

        return answer

    def _send(self, order: _Order) -> None:
        self._node.send(order.to, order.topic, order.payload)

    def _cancel(self, order: _Order) -> None:
        self._node.cancel(order.to, order.reason)

    def _kill(self, order: _Order) -> None:
        self._node.terminate(order.to)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json({"error": message}, status)
