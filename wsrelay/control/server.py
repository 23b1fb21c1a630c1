"""The node's side of the control socket: HTTP over a Unix socket, so that curl can use it too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
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

from wsrelay.errors import CallError, ProcessError, WsrelayError, phrase
from wsrelay.node import Node, describe
from wsrelay.values.pid import address

from .records import Records
from .runtime import bind, runtime_directory

__all__ = ["ControlServer"]


class _Order(Struct, forbid_unknown_fields=True):
    """The request body of `send`, `call`, `cancel` and `kill`."""

    to: str
    topic: str = ""
    payload: Any = None
    reason: str = ""
    timeout: float = 5.0


class _Unknown(Exception):  # noqa: N818 - it becomes a 404
    """There is no such process; the message says so."""


class _Server(uvicorn.Server):
    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave the signals to the node's own front end."""
        return contextlib.nullcontext()


class ControlServer:
    """Serves `/node`, `/logs`, `/send`, `/call`, `/cancel` and `/kill` while it is entered.

    `application` and `addresses` tell a user of several nodes which one this is: what it serves,
    and at which URLs. Entering it raises `ControlError` if no safe socket can be made.
    """

    def __init__(
        self,
        node: Node,
        directory: Path | None = None,
        *,
        application: str = "",
        addresses: Callable[[], list[str]] = list,
    ) -> None:
        self._node = node
        self._directory = directory or runtime_directory()
        self._application = application
        self._addresses = addresses
        self.path: Path | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        self._started = time.monotonic()
        listener, self.path = bind(self._directory, f"{self._node.name}-{os.getpid()}")
        self._records = Records(self._node.pid_prefix, self._node.name)
        logging.getLogger("wsrelay").addHandler(self._records)
        routes = [
            Route("/node", self._describe),
            Route("/logs", self._logs),
            Route("/send", self._acting(self._send), methods=["POST"]),
            Route("/call", self._acting(self._call), methods=["POST"]),
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
        """Stop, and end the clients that follow the log."""
        logging.getLogger("wsrelay").removeHandler(self._records)
        self._records.end()
        self._server.should_exit = True
        await self._serving
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    async def _describe(self, _: Request) -> Response:
        info = msgspec.structs.replace(
            describe(self._node),
            application=self._application,
            addresses=self._addresses(),
            uptime=round(time.monotonic() - self._started, 3),
        )
        return _json(info)

    async def _logs(self, request: Request) -> Response:
        of, follow = request.query_params.get("of"), "follow" in request.query_params
        try:
            wanted = None if of is None else self._logged(of)
        except WsrelayError as error:
            return _error(400, str(error))
        except _Unknown as error:
            return _error(404, str(error))

        async def lines() -> AsyncIterator[bytes]:
            async for record in self._records.read(wanted, follow=follow):
                yield msgspec.json.encode(record) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    def _acting(self, act: Callable[[_Order], Any]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that does what an order says and returns what comes of it."""

        async def answer(request: Request) -> Response:
            try:
                order = msgspec.json.decode(await request.body(), type=_Order)
                order.to = self._alive(order.to)
                value = act(order)
                return _json(await value if isinstance(value, Awaitable) else value)
            except (ValueError, WsrelayError) as error:
                return _error(400, str(error))
            except _Unknown as error:
                return _error(404, str(error))
            except TimeoutError as error:
                return _error(504, str(error))

        return answer

    # Finding a process: by a PID, with or without its braces, the part after its |, or a name

    def _alive(self, text: str) -> str:
        """Return the PID or name of a living process or connection; raises `_Unknown`."""
        known = self._node.workers.keys() | self._node.connections
        full = _full(text, known) or address(text)
        if self._node.kernel.find(full, self._node.name) is None:
            raise _Unknown(f"node {self._node.name} has no process {text!r}")
        return full

    def _logged(self, text: str) -> Callable[[], Collection[str]]:
        """Return a function that gives the PIDs that are meant, including those that have ended.

        A name means all processes that have it or are known to have had it, such as the successive
        processes of a service that is restarted. Raises `_Unknown`.
        """
        known = self._node.workers.keys() | self._node.connections | self._records.pids()
        if (pid := _full(text, known)) is not None:
            return lambda: {pid}
        names, elsewhere = self._node.kernel.names, self._node.engine.elsewhere
        there = elsewhere.find(address(text))
        if there is None and not names.owners(text):
            raise _Unknown(
                f"node {self._node.name} has no process {text!r}, and no log records of one"
            )
        return lambda: {*names.owners(text), *filter(None, [elsewhere.find(text)])}

    def _send(self, order: _Order) -> None:
        self._node.send(order.to, order.topic, order.payload)

    async def _call(self, order: _Order) -> Any:
        try:
            answer = await self._node.call_async(
                order.to, order.topic, order.payload, order.timeout
            )
        except CallError as error:
            raise ValueError(f"{order.to} refuses: {error}") from None
        except ProcessError as error:
            why = phrase(error.kind, error.message)
            raise ValueError(f"{order.to} does not answer: {why}") from None
        try:
            msgspec.json.encode(answer)
        except TypeError as error:
            raise ValueError(f"the answer of {order.to} is no JSON: {error}") from None
        return answer

    def _cancel(self, order: _Order) -> None:
        self._node.cancel(order.to, order.reason, restarts=True)

    def _kill(self, order: _Order) -> None:
        self._node.terminate(order.to)


def _full(text: str, known: Iterable[str]) -> str | None:
    """Return the known PID that is meant, or None: it is a name, or the PID of none of them."""
    inner = text.removeprefix("{").removesuffix("}")
    for pid in known:
        whole = pid[1:-1]
        if inner in (whole, whole.partition("@")[2], whole.rpartition("|")[2]):
            return pid
    return None


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json({"error": message}, status)
