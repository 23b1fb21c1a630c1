"""What the tests share: servers in this event loop, clients, and waiting for conditions."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from pathlib import Path
from typing import Any, cast

import hypercorn
import hypercorn.asyncio
import rooms
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from wsrelay import HostOptions, Node, RelayResponse, Result
from wsrelay.gateway import address
from wsrelay.gateway.protocol import RelayProtocol
from wsrelay.gateway.server import Server, ServerOptions

ROOMS = rooms.__file__
TIMEOUT = 60.0


def room(handler: Callable[..., Any]) -> str:
    """The target of one of the handlers in rooms.py, which is preloaded as a script."""
    assert handler.__module__ == rooms.__name__
    return f"{ROOMS}:{handler.__name__}"


def processes(**options: Any) -> HostOptions:
    """A process host with the tests' handlers preloaded."""
    return HostOptions(**{"targets": (room(rooms.echo),), "stop_timeout": 2.0, **options})


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until the condition gives something true, and return that."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while not (result := condition()):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"still not so after {TIMEOUT} s: {what or condition}")
        await asyncio.sleep(0.005)
    return result


async def end_of(node: Node, target: Any, *args: Any) -> Result:
    ended: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    node.when_ended(node.spawn(target, None, *args), ended.set_result)
    async with asyncio.timeout(TIMEOUT):
        return await ended


async def value_of(node: Node, target: Any, *args: Any) -> Any:
    result = await end_of(node, target, *args)
    assert result.error is None, result.error.traceback or result.error
    return result.value


class _PlainServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.asynccontextmanager
async def serving(app: Any, front_end: str = "direct", **config: Any) -> AsyncIterator[str]:
    """Serve the application in this event loop; gives `ws://host:port`.

    `front_end` is our protocol in uvicorn (`direct`), `uvicorn` alone, or `hypercorn`, which takes
    no option but `ws_max_size`.
    """
    if front_end == "hypercorn":
        names = {"ws_max_size": "websocket_max_message_size"}
        async with hypercorn_serving(app, **{names[k]: v for k, v in config.items()}) as url:
            yield url
        return
    sock = socket.create_server(("127.0.0.1", 0))
    settings: dict[str, Any] = {
        "http": "h11",
        "ws": RelayProtocol if front_end == "direct" else "wsproto",
        "log_config": None,
        "timeout_graceful_shutdown": 3,
    }
    server = _PlainServer(uvicorn.Config(app, **{**settings, **config}))
    task = asyncio.create_task(server.serve([sock]))
    await until(lambda: server.started or task.done(), "the server has started")
    assert server.started, "the server did not start"
    try:
        yield f"ws://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def hypercorn_serving(app: Any, **settings: Any) -> AsyncIterator[str]:
    """Serve the application with hypercorn in this event loop; gives `ws://host:port`."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    config = hypercorn.Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.errorlog = None
    config.graceful_timeout = 2
    for name, value in settings.items():
        setattr(config, name, value)
    stop = asyncio.Event()
    server = asyncio.create_task(
        hypercorn.asyncio.serve(app, config, shutdown_trigger=cast("Any", stop.wait))
    )
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        stop.set()
        await server


@contextlib.asynccontextmanager
async def fronted(app: Any, **options: Any) -> AsyncIterator[tuple[Server, str]]:
    """Our own server in this event loop, as `run` and `serve` have it; gives it and its URL."""
    listener = address.bind("127.0.0.1", 0)
    server = Server(app, listener, ServerOptions(**options))
    await server.start()
    try:
        yield server, address.url(listener).replace("http", "ws", 1)
    finally:
        server.stop_accepting()
        await server.aclose()


def endpoint(answer: Callable[[Request], Response | Awaitable[Response]]) -> Starlette:
    """An application that answers every path with this function."""

    async def handle(request: Request) -> Response:
        response = answer(request)
        return response if isinstance(response, Response) else await response

    return Starlette(routes=[Route("/{path:path}", handle)])


def relay_to(pid: str, **options: Any) -> Starlette:
    """An application that relays every upgrade to one process."""
    return endpoint(lambda _: RelayResponse(pid, **options))


@contextlib.asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[ClientConnection]:
    """A WebSocket client that sends no pings of its own and, as sizes count, compresses nothing."""
    settings = {"compression": None, "ping_interval": None, "proxy": None, "close_timeout": 2}
    async with connect(url, **{**settings, **options}) as websocket:
        yield websocket


async def say(websocket: ClientConnection, *order: Any) -> None:
    """Give `rooms.record` an order."""
    await websocket.send("!" + json.dumps(order))


async def closed(websocket: ClientConnection) -> tuple[int, str]:
    """Read until the close frame; gives its code and reason."""
    try:
        async with asyncio.timeout(TIMEOUT):
            while True:
                await websocket.recv()
    except ConnectionClosed as error:
        frame = error.rcvd
        return (frame.code, frame.reason) if frame else (1006, "")


def not_reading(websocket: ClientConnection) -> None:
    """Stop the client from reading its socket."""
    websocket.transport.pause_reading()


def reading(websocket: ClientConnection) -> None:
    websocket.transport.resume_reading()


def small_buffers() -> socket.socket:
    """A client's socket that holds little, so that the server feels a slow client soon."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    sock.setblocking(False)
    return sock


async def connected(url: str) -> socket.socket:
    sock = small_buffers()
    host, port = url.removeprefix("ws://").split(":")
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    return sock


async def send_until_blocked(websocket: ClientConnection, data: bytes) -> int:
    """Send until the other side takes no more for a while; gives how many messages went."""
    count = 0
    try:
        while True:
            async with asyncio.timeout(0.5):
                await websocket.send(data)
            count += 1
    except TimeoutError:
        return count


def drop_all(sock: socket.socket) -> None:
    """Let the kernel drop whatever arrives for the socket, as if its machine had lost power."""
    attach_filter = 26
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0
    described = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, attach_filter, described)


async def received(websocket: ClientConnection) -> str | bytes:
    async with asyncio.timeout(TIMEOUT):
        return await websocket.recv()


class Journal:
    """What `rooms.record` has written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, *topics: str) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_text().rpartition("\n")  # it may be in the middle of a line
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if not topics or line["topic"] in topics]

    def topics(self) -> list[str]:
        return [line["topic"] for line in self.lines()]

    async def line(self, topic: str, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`th message of the topic."""
        await until(lambda: len(self.lines(topic)) >= count, f"{count} x {topic} in the journal")
        return self.lines(topic)[count - 1]


def os_pids(node: Node) -> Iterable[int]:
    return [pid for pid in node.workers.values() if pid is not None]
