"""The application's own WebSocket routes beside the relay, and requests that are no upgrade."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import httpx
import pytest
import quart
import rooms
import socketio
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from support import client, closed, hypercorn_serving, received, room, serving, until
from websockets.exceptions import InvalidStatus

from wsrelay import Node, RelayResponse, WebSocketRelay, process

pytestmark = pytest.mark.anyio


async def native(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(f"native {text}")


async def refusal(url: str, **options: Any) -> Any:
    """The response to an upgrade that does not come about."""
    with pytest.raises(InvalidStatus) as refused:
        async with client(url, **options):
            pass
    return refused.value.response


async def says_native(url: str, **options: Any) -> bool:
    async with client(url, **options) as websocket:
        await websocket.send("hello")
        return await received(websocket) == "native hello"


# Answers that leave the upgrade to the application


@pytest.mark.parametrize("front_end", ["direct", "uvicorn", "hypercorn"])
async def test_a_native_route_is_found_behind_a_page_that_answers_every_path(
    front_end: str,
) -> None:
    app = FastAPI()
    app.websocket("/ws")(native)

    @app.get("/{path:path}")
    def page(path: str) -> Response:
        return PlainTextResponse(f"the page at {path}")

    async with serving(WebSocketRelay(app), front_end) as url:
        assert await says_native(f"{url}/ws")
        answer = await refusal(f"{url}/elsewhere")
        assert answer.status_code == 200
        assert answer.body == b"the page at elsewhere"


async def test_who_is_refused_by_all_routes_gets_the_first_answer() -> None:
    async def refuse(websocket: WebSocket) -> None:
        await websocket.close(4000, "before it was accepted")

    app = Starlette(routes=[WebSocketRoute("/refuses", refuse)])
    async with serving(WebSocketRelay(app)) as url:
        assert (await refusal(f"{url}/refuses")).status_code == 404
        assert (await refusal(f"{url}/nowhere")).body == b"Not Found"
    async with serving(WebSocketRelay(app, native=False)) as url:
        assert (await refusal(f"{url}/refuses")).status_code == 404


async def test_a_native_route_that_closes_and_reads_on_leaves_nobody_waiting() -> None:
    codes = []

    async def refuse(websocket: WebSocket) -> None:
        await websocket.close(4000)
        codes.extend([(await websocket._receive())["type"] for _ in range(2)])

    app = Starlette(routes=[WebSocketRoute("/ws", refuse)])
    async with serving(WebSocketRelay(app)) as url:
        assert (await refusal(f"{url}/ws")).status_code == 404
        await until(
            lambda: codes == ["websocket.connect", "websocket.disconnect"],
            "it has seen the client go",
        )


async def test_a_denial_that_a_native_route_writes_itself_reaches_the_client() -> None:
    async def deny(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("who are you?", 401))

    app = Starlette(routes=[WebSocketRoute("/ws", deny)])
    async with serving(WebSocketRelay(app)) as url:
        answer = await refusal(f"{url}/ws")
        assert (answer.status_code, answer.body) == (401, b"who are you?")


async def test_a_native_route_that_fails_before_it_accepts_gives_the_first_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_: WebSocket) -> None:
        raise ZeroDivisionError("in the route")

    app = Starlette(routes=[WebSocketRoute("/ws", fail)])
    async with serving(WebSocketRelay(app)) as url:
        assert (await refusal(f"{url}/ws")).status_code == 404
        await until(lambda: "in the route" in caplog.text, "the server has logged it")


async def test_an_answer_that_streams_without_end_does_not_keep_a_native_route_waiting() -> None:
    ended = asyncio.Event()

    class Telling(StreamingResponse):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().__call__(scope, receive, send)
            ended.set()

    async def news(_: Request) -> Response:
        async def stream() -> Any:
            while True:
                yield b"news\n"

        return Telling(stream())

    app = Starlette(routes=[Route("/ws", news), WebSocketRoute("/ws", native)])
    async with serving(WebSocketRelay(app)) as url:
        async with asyncio.timeout(20):
            assert await says_native(f"{url}/ws")
            await ended.wait()


async def test_which_answers_mean_native_can_be_told() -> None:
    async def teapot(_: Request) -> Response:
        return PlainTextResponse("no", 418)

    app = Starlette(routes=[Route("/ws", teapot), WebSocketRoute("/ws", native)])
    async with serving(WebSocketRelay(app)) as url:
        assert (await refusal(f"{url}/ws")).status_code == 418
    async with serving(WebSocketRelay(app, native_statuses=[418])) as url:
        assert await says_native(f"{url}/ws")
        assert (await refusal(f"{url}/nowhere")).status_code == 404


async def test_a_path_that_is_never_asked_goes_to_the_application_at_once() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["type"], scope["path"]))
        await native(WebSocket(scope, receive, send))

    relay = WebSocketRelay(app, never_ask=["/own/"], native_statuses=[])
    async with serving(relay, root_path="/api") as url:
        seen.clear()
        assert await says_native(f"{url}/own/way", origin="https://elsewhere.example")
        assert [kind for kind, _ in seen] == ["websocket"]
        assert (
            await refusal(f"{url}/owner", origin="https://elsewhere.example")
        ).status_code == 403


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"native_statuses": [101]}, r"native_statuses \[101\]: a final HTTP status is 200 to 599"),
        ({"never_ask": ["socket.io"]}, r"never_ask \['socket.io'\]: a path starts with /"),
        ({"never_ask": "/socket.io"}, "never_ask is '/socket.io' and must be a list of paths"),
    ],
)
def test_wrong_options_are_told_when_the_middleware_is_made(
    options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        WebSocketRelay(Starlette(), **options)


# Frameworks that answer the question in their own way


def quart_app() -> quart.Quart:
    app = quart.Quart("app")

    @app.route("/relay")
    async def relay() -> quart.Response:
        header = RelayResponse(process.spawn(room(rooms.echo)), cancel_on_leave=True).headers
        return quart.Response("", headers={"X-WS-Relay": header["x-ws-relay"]})

    @app.websocket("/ws")
    async def ws() -> None:
        while True:
            await quart.websocket.send("native " + str(await quart.websocket.receive()))

    return app


async def test_quart_relays_and_keeps_its_own_websockets() -> None:
    app = quart_app()
    relay: Any = WebSocketRelay(cast("Any", app.asgi_app), native_statuses=[400, 404, 405])
    app.asgi_app = relay  # type: ignore[method-assign]
    async with hypercorn_serving(app) as url:
        assert await says_native(f"{url}/ws")
        async with client(f"{url}/relay") as websocket:
            await websocket.send("hello")
            assert await received(websocket) == "hello"


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_socket_io_beside_the_relay_gets_its_upgrades(front_end: str) -> None:
    heard = []
    server = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")

    server.on("connect", lambda _sid, _environ: heard.append("connect"))

    async def echo(_: Request) -> Response:
        return RelayResponse(process.spawn(room(rooms.echo)), cancel_on_leave=True)

    app = socketio.ASGIApp(server, Starlette(routes=[Route("/relay", echo)]))
    async with serving(WebSocketRelay(app), front_end) as url:
        async with client(f"{url}/socket.io/?EIO=4&transport=websocket") as websocket:
            assert str(await received(websocket)).startswith('0{"sid"')
            await websocket.send("40")
            assert str(await received(websocket)).startswith('40{"sid"')
        async with client(f"{url}/relay") as websocket:
            await websocket.send("hello")
            assert await received(websocket) == "hello"
    assert heard == ["connect"]


@pytest.mark.parametrize("how", ["raises", "returns"])
async def test_an_application_that_knows_no_http_gets_its_upgrades(how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await native(WebSocket(scope, receive, send))
        elif how == "raises":
            raise ValueError(f"no application for {scope['type']}")

    async with without_lifespan(WebSocketRelay(app)) as url:
        assert await says_native(url)
    async with without_lifespan(WebSocketRelay(app, native=False)) as url:
        assert (await refusal(url)).status_code == 500


@contextlib.asynccontextmanager
async def without_lifespan(relay: WebSocketRelay) -> AsyncIterator[str]:
    async with serving(relay, lifespan="off") as url:
        yield url
        if relay._own is not None:
            await relay._own.aclose()


# Shapes that ASGI allows


async def test_headers_may_be_any_iterable() -> None:
    """ASGI: "iterable of two-item iterables"; one of them may be read once only."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert isinstance(scope["headers"], list)
        if scope["type"] == "websocket":
            await native(WebSocket(scope, receive, send))
            return
        headers: Iterator[Any] = iter([[b"x-one", b"1"], (b"X-WS-Relay-Not", b"2")])
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": b"body"})

    async def around(scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope = {**scope, "headers": iter(scope["headers"])}
        await relay(scope, receive, send)

    relay = WebSocketRelay(app)
    async with serving(around, lifespan="off") as url:
        async with httpx.AsyncClient(trust_env=False) as http:
            response = await http.get(url.replace("ws", "http", 1))
        assert (response.headers["x-one"], response.headers["x-ws-relay-not"]) == ("1", "2")
        assert await says_native(url, origin=url.replace("ws", "http", 1))
        for node in {relay._own}:
            assert node is not None
            await node.aclose()


async def test_a_native_route_that_never_receives_leaves_no_task_behind() -> None:
    async def talks(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("bye")
        await websocket.close(4001)

    app = Starlette(routes=[WebSocketRoute("/ws", talks)])
    async with serving(WebSocketRelay(app)) as url:
        async with client(f"{url}/ws") as websocket:
            assert await closed(websocket) == (4001, "")
        await until(lambda: not _upgrades(), "nothing of the upgrade runs any more")


def _upgrades() -> list[Any]:
    gc.collect()
    return [task for task in asyncio.all_tasks() if "Upgrade" in repr(task.get_coro())]


# What a request spawns without an upgrade


class Spawning:
    """An application whose endpoint spawns first and looks at the request later."""

    def __init__(self, node: Node, **options: Any) -> None:
        self.node = node
        self.pids: list[str] = []
        routes = [
            Route("/each", self.each),
            Route("/thread", self.thread),
            Route("/room", self.room),
            Route("/fails", self.fails),
            Route("/refuses", self.refuses),
            Route("/later", self.later),
            WebSocketRoute("/refuses", native),
        ]
        self.app = WebSocketRelay(Starlette(routes=routes), node=node, **options)

    def spawn(self) -> str:
        self.pids.append(process.spawn(room(rooms.echo)))
        return self.pids[-1]

    async def each(self, _: Request) -> Response:
        return RelayResponse(self.spawn())

    def thread(self, _: Request) -> Response:
        return RelayResponse(self.spawn())

    async def room(self, _: Request) -> Response:
        return RelayResponse(process.get_or_spawn("room", room(rooms.echo)))

    async def fails(self, _: Request) -> Response:
        self.spawn()
        raise ZeroDivisionError

    async def refuses(self, _: Request) -> Response:
        self.spawn()
        return PlainTextResponse("no", 403)

    async def later(self, _: Request) -> Response:
        return PlainTextResponse("yes", 202, background=BackgroundTask(self.spawn))


@pytest.mark.parametrize("path", ["each", "thread", "room", "fails", "refuses"])
async def test_what_a_plain_request_has_spawned_is_cancelled(node: Node, path: str) -> None:
    app = Spawning(node, cancel_unused=True)
    async with serving(app.app) as url, httpx.AsyncClient(trust_env=False) as http:
        for _ in range(3):
            await http.get(f"{url.replace('ws', 'http', 1)}/{path}")
        await until(lambda: not node.workers, "none is left")


@pytest.mark.parametrize("path", ["fails", "refuses"])
async def test_what_a_refused_upgrade_has_spawned_is_cancelled(node: Node, path: str) -> None:
    app = Spawning(node, cancel_unused=True)
    async with serving(app.app) as url:
        await refusal(f"{url}/{path}")
        await until(lambda: not node.workers, "none is left")


async def test_what_an_upgrade_or_a_background_task_has_spawned_stays(node: Node) -> None:
    app = Spawning(node, cancel_unused=True)
    async with (
        serving(app.app) as url,
        httpx.AsyncClient(trust_env=False) as http,
        client(f"{url}/each") as websocket,
    ):
        await http.get(f"{url.replace('ws', 'http', 1)}/later")
        await until(lambda: len(app.pids) == 2, "the background task has run")
        await http.get(f"{url.replace('ws', 'http', 1)}/each")  # a cancel behind both
        await until(lambda: len(node.workers) == 2, "the third is gone")
        await websocket.send("hello")
        assert await received(websocket) == "hello"
        assert set(node.workers) == set(app.pids[:2])


async def test_a_room_that_others_have_found_is_not_cancelled(node: Node) -> None:
    app = Spawning(node, cancel_unused=True)
    async with (
        serving(app.app) as url,
        httpx.AsyncClient(trust_env=False) as http,
        client(f"{url}/room") as websocket,
    ):
        await http.get(f"{url.replace('ws', 'http', 1)}/room")
        await http.get(f"{url.replace('ws', 'http', 1)}/each")  # a cancel behind it
        await until(lambda: len(node.workers) == 1, "the other is gone")
        await websocket.send("hello")
        assert await received(websocket) == "hello"


async def test_without_the_option_nothing_is_cancelled(node: Node) -> None:
    app = Spawning(node)
    async with serving(app.app) as url, httpx.AsyncClient(trust_env=False) as http:
        await http.get(f"{url.replace('ws', 'http', 1)}/each")
        await refusal(f"{url}/refuses")
        assert set(node.workers) == set(app.pids)
        assert len(app.pids) == 2
