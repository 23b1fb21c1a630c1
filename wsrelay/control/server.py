"""The node's side of the control socket: HTTP over a Unix socket, so that curl can use it too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from socket import socket
from typing import Any, Literal, TypeVar

import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from wsrelay.errors import CallError, MissingExtra, ProcessError, WsrelayError, phrase
from wsrelay.metrics import numbers_of, text_of
from wsrelay.node import Node, describe
from wsrelay.node.snapshot import connections_after, full, locate, processes_after
from wsrelay.values.pid import PID, address

from . import looking
from .answers import ASKER, PeerAnswers
from .finding import Finder, Unknown, unknown
from .forwarding import Forwarding
from .listening import Listening
from .records import Records

__all__ = ["ControlServer"]

T = TypeVar("T")


class _Order(Struct, forbid_unknown_fields=True):
    """The request body of `send`, `call`, `cancel`, `kill` and `close`.

    `anywhere`: `to` may be what only another node knows, such as a part of a PID. `by` is who is
    said to have ended it.
    """

    to: str
    anywhere: bool = False
    topic: str = ""
    payload: Any = None
    reason: str = ""
    timeout: float = 5.0
    code: int = 1000
    by: Literal["shell", "console"] = "shell"


class _Server(uvicorn.Server):
    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave the signals to the node's own front end."""
        return contextlib.nullcontext()


class ControlServer:
    """Answers what is asked of a node; `started` is when that was, in the event loop's time."""

    def __init__(self, node: Node, records: Records, started: float) -> None:
        self._node = node
        self._records = records
        self._started = started
        self._listening = Listening()
        self._traces = looking.Traces(node)
        self._finder = Finder(node)
        routes = [
            Route("/node", self._describe),
            Route("/connections", self._connections),
            Route("/logs", self._logs),
            Route("/send", self._acting(self._send), methods=["POST"]),
            Route("/call", self._acting(self._call), methods=["POST"]),
            Route("/cancel", self._acting(self._cancel), methods=["POST"]),
            Route("/kill", self._acting(self._kill), methods=["POST"]),
            Route("/stack", self._stack),
            Route("/cluster", self._members),
            Route("/processes", self._processes),
            Route("/process", self._telling(looking.process)),
            Route("/ends", self._telling(looking.ends)),
            Route("/trace", self._trace),
            Route("/close", self._acting(self._close), methods=["POST"]),
            Route("/drain", self._drain, methods=["POST"]),
            Route("/numbers", self._numbers),
            Route("/metrics", self._metrics),
        ]
        app = Starlette(routes=routes)
        self._answers = PeerAnswers(app)
        config = uvicorn.Config(
            Forwarding(app, node),
            http="h11",
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)

    async def serve(self, listener: socket) -> None:
        """Serve until `end` is called."""
        await self._server.serve([listener])

    async def answer(self, method: str, path: str, body: bytes, asker: str) -> tuple[int, bytes]:
        """Return the status and the body of the answer to a request; `path` has its query, too."""
        return await self._answers.answer(method, path, body, asker)

    def end(self) -> None:
        """Answer what has been asked, and then no more."""
        self._traces.end()
        self._answers.end()
        self._server.should_exit = True

    async def _describe(self, request: Request) -> Response:
        info = msgspec.structs.replace(
            describe(self._node, brief="brief" in request.query_params),
            application=self._node.application,
            addresses=self._node.addresses() or await self._listening.addresses(),
            uptime=round(time.monotonic() - self._started, 3),
        )
        return _json(info)

    async def _logs(self, request: Request) -> Response:
        of, follow = request.query_params.get("of"), "follow" in request.query_params
        try:
            wanted = None if of is None else self._logged(of)
        except WsrelayError as error:
            return _error(400, str(error))
        except Unknown as error:
            return _error(404, str(error))

        async def lines() -> AsyncIterator[bytes]:
            async for record in self._records.read(wanted, follow=follow):
                yield msgspec.json.encode(record) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    def _telling(
        self, tell: Callable[[Node, looking.Query], Any]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that answers a query about this node."""

        async def answer(request: Request) -> Response:
            try:
                return _json(tell(self._node, request.query_params))
            except (ValueError, WsrelayError, Unknown) as error:
                return _refused(error)

        return answer

    async def _trace(self, request: Request) -> Response:
        try:
            records = self._traces.begin(request.query_params)
        except (ValueError, WsrelayError, Unknown) as error:
            return _refused(error)

        async def lines() -> AsyncIterator[bytes]:
            async for record in records:
                yield msgspec.json.encode(record) + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    def _acting(self, act: Callable[[_Order], Any]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that does what an order says and returns what comes of it."""

        async def answer(request: Request) -> Response:
            try:
                order = msgspec.json.decode(await request.body(), type=_Order)
                order.to = await self._finder.alive(order.to, anywhere=order.anywhere)
                value = act(order)
                return _json(await value if isinstance(value, Awaitable) else value)
            except (ValueError, WsrelayError, Unknown, TimeoutError) as error:
                return _refused(error)

        return answer

    async def _stack(self, request: Request) -> Response:
        """Answer with the stacks of a process as text."""
        try:
            pid = self._worker(request.query_params.get("of", ""))
            return PlainTextResponse(await self._node.engine.stack(pid))
        except (WsrelayError, Unknown, TimeoutError) as error:
            return _refused(error)

    # The cluster

    async def _members(self, _: Request) -> Response:
        return _json(self._node.engine.elsewhere.members())

    async def _processes(self, request: Request) -> Response:
        """Answer with a portion of the processes, see `processes_after`."""
        found = processes_after(self._node, request.query_params.get("after", ""))
        return _json([msgspec.msgpack.decode(one) for one in found])

    async def _connections(self, request: Request) -> Response:
        """Answer with a portion of the connections, see `connections_after`."""
        return _json(connections_after(self._node, request.query_params.get("after", "")))

    async def _drain(self, request: Request) -> Response:
        """Have this node drain and end."""
        self._node.retire(request.headers.get(ASKER, "its control socket"))
        return _json(self._node.name)

    # Metrics

    async def _numbers(self, _: Request) -> Response:
        return _json(numbers_of(self._node))

    async def _metrics(self, _: Request) -> Response:
        try:
            text, kind = text_of(self._node)
        except MissingExtra as error:
            return _error(501, str(error))
        return Response(text, media_type=kind)

    def _worker(self, text: str) -> PID:
        """Return the PID of a process that this node runs; raises `Unknown`."""
        node = self._node
        pid = locate(node, text)
        if pid in node.engine.processes:
            return pid
        if pid is not None:
            raise Unknown(f"{pid} is a client's connection, which its node runs: it has no stack")
        raise unknown(node, text)

    def _logged(self, text: str) -> Callable[[], Collection[str]]:
        """Return a function that gives the PIDs that are meant, including those that have ended.

        A name means all processes that have it or are known to have had it, such as the successive
        processes of a service that is restarted. Raises `Unknown`.
        """
        known = self._node.workers.keys() | self._node.connections | self._records.pids()
        if (pid := full(text, known)) is not None:
            return lambda: {pid}
        names, elsewhere = self._node.kernel.names, self._node.engine.elsewhere
        there = elsewhere.find(address(text))
        if there is None and not names.owners(text):
            raise Unknown(
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
        self._node.cancel(order.to, order.reason, restarts=True, by=order.by)

    def _kill(self, order: _Order) -> None:
        self._node.terminate(order.to, by=order.by)

    def _close(self, order: _Order) -> None:
        looking.close(self._node, order.to, order.code, order.reason, order.by)


def _refused(error: Exception) -> Response:
    status = 404 if isinstance(error, Unknown) else 504 if isinstance(error, TimeoutError) else 400
    return _error(status, str(error))


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json({"error": message}, status)
