"""The relay inside other people's applications and servers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import httpx
import psutil
import pytest
from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi import Response as FastAPIResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from support import (
    TIMEOUT,
    Journal,
    client,
    closed,
    endpoint,
    hypercorn_serving,
    received,
    relay_to,
    room,
    say,
    serving,
    until,
)
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from wsrelay import HostOptions, Node, RelayResponse, WebSocketRelay, process
from wsrelay.errors import HostFull, NotAProcess
from wsrelay.node.siblings import server_workers
from wsrelay.values import current

pytestmark = pytest.mark.anyio

APPS = Path(__file__).with_name("apps")
KEY = "signs the tests' sessions"
Answer = Callable[[Request], Awaitable[Response]]


@pytest.fixture(params=["inside", "around"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["starlette", "fastapi"])
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
    return RelayResponse(process.spawn(room("echo")))


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


def one_at_most() -> Node:
    return Node(hosts=[HostOptions(max_processes=1)])


@contextlib.asynccontextmanager
async def without_lifespan() -> AsyncIterator[None]:
    """End the nodes that no lifespan ends."""
    try:
        yield
    finally:
        for node in list(current.nodes):
            await cast("Node", node).aclose()


# Frameworks and their middleware


@each_way
async def test_an_application_relays_and_goes_on_answering_plain_http(
    framework: str, place: str
) -> None:
    async def page(_: Request) -> Response:
        return PlainTextResponse("a page")

    app = relayed(application(framework, ws=echo, page=page), place)
    async with serving(app) as url, client(f"{url}/ws") as websocket, browser(url) as http:
        await echoes(websocket)
        answer = await http.get("/page")
        assert (answer.status_code, answer.text) == (200, "a page")
        assert (await http.get("/ws")).status_code == 426
        await echoes(websocket)


@each_way
async def test_cors_answers_travel_with_the_101_and_preflights_are_answered(
    framework: str, place: str
) -> None:
    origin = "https://app.example.com"
    app = application(framework, ws=echo)
    app.add_middleware(CORSMiddleware, allow_origins=[origin], allow_credentials=True)
    async with serving(relayed(app, place, allowed_origins=origin)) as url:
        async with client(f"{url}/ws", origin=origin) as websocket:
            assert websocket.response is not None
            assert websocket.response.headers["access-control-allow-origin"] == origin
            await echoes(websocket)
        assert (await refusal(f"{url}/ws", origin="https://evil.example")).status_code == 403
        async with browser(url) as http:
            preflight = {"Origin": origin, "Access-Control-Request-Method": "GET"}
            answer = await http.options("/ws", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin


@each_way
async def test_gzip_neither_disturbs_a_relay_nor_a_refusal(framework: str, place: str) -> None:
    reason = "not today " * 200

    async def refused(_: Request) -> Response:
        return PlainTextResponse(reason, 402)

    async def long(_: Request) -> Response:
        headers = RelayResponse(process.spawn(room("echo"))).headers
        return PlainTextResponse(reason, headers={"x-ws-relay": headers["x-ws-relay"]})

    app = application(framework, ws=echo, long=long, refused=refused)
    app.add_middleware(GZipMiddleware)
    accepts = {"Accept-Encoding": "gzip"}
    async with serving(relayed(app, place)) as url:
        for path in ("ws", "long"):
            async with client(f"{url}/{path}", additional_headers=accepts) as websocket:
                assert websocket.response is not None
                assert "content-encoding" not in websocket.response.headers
                await echoes(websocket)
        response = await refusal(f"{url}/refused", additional_headers=accepts)
    assert response.status_code == 402
    assert gzip.decompress(response.body).decode() == reason


@each_way
async def test_a_session_is_read_and_its_new_cookie_travels_with_the_101(
    framework: str, place: str, journal: Journal
) -> None:
    async def login(request: Request) -> Response:
        request.session["user"] = "ada"
        return PlainTextResponse("hello")

    async def ws(request: Request) -> Response:
        request.session["visits"] = request.session.get("visits", 0) + 1
        pid = process.spawn(room("record"), None, str(journal.path))
        return RelayResponse(pid, metadata=dict(request.session))

    app = application(framework, login=login, ws=ws)
    app.add_middleware(SessionMiddleware, secret_key=KEY)
    async with serving(relayed(app, place)) as url, browser(url) as http:
        cookie = (await http.get("/login")).cookies["session"]
        for visits in (1, 2):
            headers = {"Cookie": f"session={cookie}"}
            async with client(f"{url}/ws", additional_headers=headers) as websocket:
                join = await journal.line("ws.join", visits)
                assert join["payload"]["metadata"] == {"user": "ada", "visits": visits}
                assert websocket.response is not None
                given = websocket.response.headers["set-cookie"]
            assert given.startswith("session=")
            cookie = given.removeprefix("session=").partition(";")[0]


class Stamp(BaseHTTPMiddleware):
    """Gives the request a user and the response a header."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        request.state.user = request.headers.get("x-user", "nobody")
        response = await call_next(request)
        response.headers["x-stamp"] = "stamped"
        return response


@each_way
async def test_a_base_http_middleware_sees_the_request_and_the_response(
    framework: str, place: str, journal: Journal
) -> None:
    async def ws(request: Request) -> Response:
        pid = process.spawn(room("record"), None, str(journal.path))
        return RelayResponse(pid, metadata={"user": request.state.user})

    app = application(framework, ws=ws)
    app.add_middleware(Stamp)
    headers = {"X-User": "ada"}
    async with (
        serving(relayed(app, place)) as url,
        client(f"{url}/ws", additional_headers=headers) as websocket,
    ):
        assert (await journal.line("ws.join"))["payload"]["metadata"] == {"user": "ada"}
        assert websocket.response is not None
        assert websocket.response.headers["x-stamp"] == "stamped"
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "hi"})
        assert await received(websocket) == "hi"


async def test_middleware_around_the_relay_leaves_the_upgrade_alone(framework: str) -> None:
    app = application(framework, ws=echo)
    app.add_middleware(WebSocketRelay)
    app.add_middleware(Stamp)
    app.add_middleware(GZipMiddleware)
    app.add_middleware(SessionMiddleware, secret_key=KEY)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    async with serving(app) as url, client(f"{url}/ws") as websocket, browser(url) as http:
        await echoes(websocket)
        assert (await http.get("/ws")).status_code == 426


# FastAPI


# FastAPI looks names in annotations up in the module, so what they name stands here.


async def database(request: Request) -> AsyncIterator[str]:
    request.app.state.steps.append("opened")
    yield "db"
    request.app.state.steps.append("closed")


def known_user(token: str) -> str:
    if token == "wrong":  # noqa: S105 - it is the test's own
        raise HTTPException(401, "who are you?", {"WWW-Authenticate": "Bearer"})
    return "ada"


def echo_process() -> str:
    return process.spawn(room("echo"))


async def test_dependencies_are_resolved_and_closed_beside_the_relay(
    place: str, journal: Journal
) -> None:
    app = FastAPI()
    steps: list[str] = []
    app.state.steps = steps

    @app.get("/rooms/{name}")
    async def connect(
        name: str,
        user: Annotated[str, Depends(known_user)],
        database: Annotated[str, Depends(database)],
        limit: int = 10,
    ) -> Response:
        pid = process.spawn(room("record"), None, str(journal.path))
        metadata = {"room": name, "user": user, "database": database, "limit": limit}
        return RelayResponse(pid, metadata=metadata)

    async with serving(relayed(app, place)) as url:
        response = await refusal(f"{url}/rooms/blue?token=wrong")
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert json.loads(response.body) == {"detail": "who are you?"}
        assert (await refusal(f"{url}/rooms/blue?token=right&limit=x")).status_code == 422
        steps.clear()
        async with client(f"{url}/rooms/blue?token=right&limit=3"):
            join = await journal.line("ws.join")
            await until(lambda: steps == ["opened", "closed"], "the dependency is closed")
    assert join["payload"]["metadata"] == {
        "room": "blue",
        "user": "ada",
        "database": "db",
        "limit": 3,
    }


async def test_the_header_can_be_set_on_fastapi_s_own_response_parameter() -> None:
    app = FastAPI()

    @app.get("/ws")
    def connect(response: FastAPIResponse) -> dict[str, str]:
        relay = {"target_pid": process.spawn(room("echo"))}
        response.headers["X-WS-Relay"] = json.dumps(relay)
        return {"the": "body is dropped"}

    async with serving(relayed(app, "inside")) as url, client(f"{url}/ws") as websocket:
        await echoes(websocket)


async def test_url_for_and_the_request_are_those_of_a_get_at_the_same_address(
    place: str, journal: Journal
) -> None:
    sub = FastAPI()
    app = FastAPI()
    app.mount("/sub", sub)

    @app.get("/items/{item}", name="item")
    def item(item: str) -> str:
        return item

    @sub.get("/leaf/{leaf}", name="leaf")
    def leaf(leaf: str) -> str:
        return leaf

    def relay(request: Request, url: Any) -> Response:
        pid = process.spawn(room("record"), None, str(journal.path))
        seen = [request.method, str(request.url), str(url), request.client is not None]
        return RelayResponse(pid, metadata={"seen": seen})

    @app.get("/ws")
    def connect(request: Request) -> Response:
        return relay(request, request.url_for("item", item="7"))

    @sub.get("/ws")
    def connect_to_sub(request: Request) -> Response:
        return relay(request, request.url_for("leaf", leaf="8"))

    async with serving(relayed(app, place)) as url:
        base = url.replace("ws", "http", 1)
        async with client(f"{url}/ws?a=1"):
            join = await journal.line("ws.join")
            expected = ["GET", f"{base}/ws?a=1", f"{base}/items/7", True]
            assert join["payload"]["metadata"]["seen"] == expected
        async with client(f"{url}/sub/ws"):
            join = await journal.line("ws.join", 2)
            expected = ["GET", f"{base}/sub/ws", f"{base}/sub/leaf/8", True]
            assert join["payload"]["metadata"]["seen"] == expected


async def test_a_root_path_and_the_lifespan_s_state_reach_the_endpoint(
    place: str, journal: Journal
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        yield {"greeting": "hi"}

    app = FastAPI(lifespan=lifespan)

    @app.get("/ws")
    async def connect(request: Request) -> Response:
        pid = process.spawn(room("record"), None, str(journal.path))
        seen = [request.state.greeting, request.scope["root_path"], request.url_for("connect").path]
        return RelayResponse(pid, metadata={"seen": seen})

    async with serving(relayed(app, place), root_path="/api") as url, client(f"{url}/ws"):
        join = await journal.line("ws.join")
    assert join["payload"]["metadata"]["seen"] == ["hi", "/api", "/api/ws"]


# What goes on beside the relay


@pytest.mark.parametrize("middleware", ["plain", "stamped"])
async def test_the_client_talks_while_a_background_task_still_runs(
    place: str, middleware: str
) -> None:
    talked = asyncio.Event()
    ran = []

    async def background() -> None:
        await talked.wait()
        ran.append("to its end")

    async def ws(_: Request) -> Response:
        response = RelayResponse(process.spawn(room("echo")))
        response.background = BackgroundTask(background)
        return response

    app = application("fastapi", ws=ws)
    if middleware == "stamped":
        app.add_middleware(Stamp)
    async with serving(relayed(app, place)) as url, client(f"{url}/ws") as websocket:
        await echoes(websocket)
        assert not ran
        talked.set()
        await until(lambda: ran, "the background task has ended")
        await echoes(websocket)


@pytest.mark.parametrize("middleware", ["plain", "stamped"])
async def test_a_background_task_runs_to_its_end_after_its_client_has_gone(middleware: str) -> None:
    left = asyncio.Event()
    ran = []
    node = Node()

    async def background() -> None:
        await left.wait()
        ran.append("to its end")

    async def ws(_: Request) -> Response:
        response = RelayResponse(process.spawn(room("echo")), cancel_on_leave=True)
        response.background = BackgroundTask(background)
        return response

    app = application("starlette", ws=ws)
    if middleware == "stamped":
        app.add_middleware(Stamp)
    async with serving(relayed(app, "inside", node=node)) as url:
        async with client(f"{url}/ws") as websocket:
            await echoes(websocket)
        await until(lambda: not node.workers, "the target has ended")
        assert not ran
        left.set()
        await until(lambda: ran, "the background task has ended")


async def test_a_background_task_that_fails_costs_the_client_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = asyncio.Event()

    async def background() -> None:
        failed.set()
        raise ZeroDivisionError

    async def ws(_: Request) -> Response:
        response = RelayResponse(process.spawn(room("echo")))
        response.background = BackgroundTask(background)
        return response

    async with serving(relayed(application("starlette", ws=ws), "around")) as url:
        async with client(f"{url}/ws") as websocket:
            await failed.wait()
            await echoes(websocket)
        await until(lambda: "ZeroDivisionError" in caplog.text, "the failure is in the log")


@each_way
async def test_a_streaming_response_relays_and_its_body_goes_nowhere(
    framework: str, place: str
) -> None:
    produced = []

    async def body() -> AsyncIterator[str]:
        for number in range(3):
            produced.append(number)
            yield f"chunk {number}"

    async def ws(_: Request) -> Response:
        relay = RelayResponse(process.spawn(room("echo"))).headers["x-ws-relay"]
        return StreamingResponse(body(), headers={"X-WS-Relay": relay})

    app = application(framework, ws=ws)
    async with serving(relayed(app, place)) as url, client(f"{url}/ws") as websocket:
        await until(lambda: produced == [0, 1, 2], "the whole body was produced")
        await echoes(websocket)


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


async def test_an_endless_streaming_response_ends_with_its_client() -> None:
    ended = asyncio.Event()
    too_late = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        while not too_late.is_set():
            yield b"tick"
            await asyncio.sleep(0.005)

    async def ws(_: Request) -> Response:
        relay = RelayResponse(process.spawn(room("echo"))).headers["x-ws-relay"]
        return Telling(ended.set, body(), headers={"X-WS-Relay": relay})

    async with serving(relayed(application("starlette", ws=ws), "inside")) as url:
        async with client(f"{url}/ws") as websocket:
            await echoes(websocket)
            assert not ended.is_set()
        try:
            async with asyncio.timeout(TIMEOUT):
                await ended.wait()
        finally:
            too_late.set()


async def test_a_response_that_streams_without_pause_does_not_starve_the_relay() -> None:
    talked = asyncio.Event()
    starved = []

    async def body() -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 3
        while not talked.is_set():
            if loop.time() > deadline:
                starved.append("for 3 s")
                return
            yield b"chunk"

    async def ws(_: Request) -> Response:
        relay = RelayResponse(process.spawn(room("echo"))).headers["x-ws-relay"]
        return StreamingResponse(body(), headers={"X-WS-Relay": relay})

    app = WebSocketRelay(application("starlette", ws=ws))
    async with serving(app) as url, client(f"{url}/ws") as websocket:
        await echoes(websocket)
        talked.set()
    assert not starved


async def test_receive_blocks_until_the_client_is_gone() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        relay = RelayResponse(process.spawn(room("echo"))).raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": relay})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        seen.extend([await receive(), await receive(), await receive()])

    async with (
        without_lifespan(),
        serving(WebSocketRelay(app)) as url,
    ):
        async with client(url) as websocket:
            await echoes(websocket)
            assert not seen
        await until(lambda: seen, "receive has returned")
    request = {"type": "http.request", "body": b"", "more_body": False}
    assert seen == [request, {"type": "http.disconnect"}, {"type": "http.disconnect"}]


async def test_is_disconnected_tells_when_the_client_is_gone() -> None:
    answers: list[bool] = []

    async def watch(request: Request) -> None:
        while not (answers and answers[-1]):
            answers.append(await request.is_disconnected())
            await asyncio.sleep(0.005)

    async def ws(request: Request) -> Response:
        assert not await request.is_disconnected()
        response = RelayResponse(process.spawn(room("echo")))
        response.background = BackgroundTask(watch, request)
        return response

    async with serving(relayed(application("fastapi", ws=ws), "inside")) as url:
        async with client(f"{url}/ws") as websocket:
            await echoes(websocket)
            asked = len(answers)
            await until(lambda: len(answers) > asked + 2 or any(answers), "it has been asked again")
            assert not any(answers)
        await until(lambda: answers[-1], "the client is gone")


async def test_an_endpoint_learns_that_its_client_went_before_it_answered() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def ws(request: Request) -> Response:
        asked.set()
        while not await request.is_disconnected():  # noqa: ASYNC110 - it is what is tested
            await asyncio.sleep(0.005)
        gone.set()
        return PlainTextResponse("nobody reads this")

    async with serving(relayed(application("starlette", ws=ws), "around")) as url:
        connecting = asyncio.create_task(refusal(f"{url}/ws"))
        await asked.wait()
        connecting.cancel()
        async with asyncio.timeout(5):
            await gone.wait()


# Native WebSocket routes and mounted applications


async def native(websocket: WebSocket) -> None:
    await websocket.accept(headers=[(b"x-native", b"yes")])
    async for text in websocket.iter_text():
        await websocket.send_text(f"native {text}")
    await asyncio.sleep(0)


@each_way
async def test_native_websocket_routes_stand_beside_relayed_ones(
    framework: str, place: str
) -> None:
    async def post(_: Request) -> Response:
        return PlainTextResponse("posted")

    app = application(framework, ws=echo)
    if isinstance(app, FastAPI):
        app.websocket("/native")(native)
        app.websocket("/both")(native)
        app.post("/both", response_model=None)(post)
    else:
        app.router.routes += [
            WebSocketRoute("/native", native),
            WebSocketRoute("/both", native),
            Route("/both", post, methods=["POST"]),
        ]
    async with serving(relayed(app, place)) as url, browser(url) as http:
        async with client(f"{url}/ws") as one:
            for path in ("native", "both"):  # a 404 and a 405 for the HTTP side of it
                async with client(f"{url}/{path}") as two:
                    assert two.response is not None
                    assert two.response.headers["x-native"] == "yes"
                    await two.send("hello")
                    assert await received(two) == "native hello"
                    await echoes(one)
        assert (await http.post("/both")).text == "posted"
        assert (await refusal(f"{url}/nowhere")).status_code == 404


async def test_a_native_route_closes_with_its_own_code_and_sees_the_client_s() -> None:
    codes = []

    async def closing(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(4003, "no")

    async def listening(websocket: WebSocket) -> None:
        await websocket.accept(websocket.scope["subprotocols"][0])
        event = await websocket.receive()
        codes.append((event["code"], event["reason"]))

    routes = [WebSocketRoute("/closing", closing), WebSocketRoute("/listening", listening)]
    async with serving(relayed(Starlette(routes=routes), "inside")) as url:
        async with client(f"{url}/closing") as websocket:
            assert await closed(websocket) == (4003, "no")
        async with client(f"{url}/listening", subprotocols=["v1"]) as websocket:
            assert websocket.subprotocol == "v1"
            await websocket.close(4004, "bye")
        await until(lambda: codes == [(4004, "bye")], "the route has seen the close")


async def test_mounted_applications_relay_and_keep_their_native_routes(place: str) -> None:
    sub = Starlette(routes=[Route("/ws", echo), WebSocketRoute("/native", native)])
    deep = Starlette(routes=[Mount("/deep", sub)])
    fast = FastAPI()
    fast.add_api_route("/ws", echo, response_model=None)
    fast.websocket("/native")(native)
    app = Starlette(routes=[Mount("/sub", deep), Mount("/fast", fast)])
    async with serving(relayed(app, place)) as url:
        for path in ("/sub/deep", "/fast"):
            async with client(f"{url}{path}/ws") as websocket:
                await echoes(websocket)
            async with client(f"{url}{path}/native") as websocket:
                await websocket.send("hello")
                assert await received(websocket) == "native hello"


async def test_a_relay_in_a_mounted_application_alone_starts_with_its_first_request() -> None:
    """Frameworks do not pass the lifespan on to what is mounted."""
    sub = WebSocketRelay(Starlette(routes=[Route("/ws", echo)]))
    app = Starlette(routes=[Mount("/sub", sub), WebSocketRoute("/native", native)])
    async with without_lifespan(), serving(app) as url:
        assert not current.nodes
        async with client(f"{url}/native") as websocket:
            await websocket.send("hello")
            assert await received(websocket) == "native hello"
        async with client(f"{url}/sub/ws") as websocket:
            await echoes(websocket)
        assert len(current.nodes) == 1


# The node's functions in endpoints


def switchboard(kind: str) -> FastAPI:
    """`POST /call/NAME` with a list calls that function of `wsrelay.process` with it."""
    app = FastAPI()

    def call(name: str, args: Annotated[list[Any], Body()]) -> Any:
        try:
            return getattr(process, name)(*args)
        except NotAProcess as error:
            raise HTTPException(409, str(error)) from None

    async def acall(name: str, args: Annotated[list[Any], Body()]) -> Any:
        return call(name, args)

    app.post("/call/{name}")(acall if kind == "async def" else call)
    return app


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_endpoints_spawn_send_cancel_and_terminate(kind: str, tmp_path: Path) -> None:
    node = Node()
    app = relayed(switchboard(kind), "inside", node=node)
    async with serving(app) as url, browser(url) as http:

        async def call(name: str, *args: Any, status: int = 200) -> Any:
            response = await http.post(f"/call/{name}", json=args)
            assert response.status_code == status, response.text
            return response.json()

        one, two = Journal(tmp_path / "one"), Journal(tmp_path / "two")
        assert await call("pid") == node.pid()
        first = await call("spawn", room("record"), None, str(one.path))
        await call("send", first, "note", {"n": 1})
        note = await one.line("note")
        assert (note["sender"], note["payload"]) == (node.pid(), {"n": 1})

        desk = await call("get_or_spawn", "desk", room("record"), None, str(two.path))
        assert await call("get_or_spawn", "desk", room("record"), None, str(two.path)) == desk
        await call("send", "desk", "note", "by its name")
        assert (await two.line("note"))["payload"] == "by its name"
        await call("send", [first, "desk"], "all", None)
        await one.line("all")
        await two.line("all")

        await call("cancel", first, "enough")
        await until(lambda: list(node.workers) == [desk], "the cancelled one has ended")
        await call("terminate", "desk")
        await until(lambda: not node.workers, "the terminated one has ended")

        for name in ("inbox", "events"):
            answer = await call(name, status=409)
            assert "only a process can do this" in answer["detail"]
            assert "process.spawn" in answer["detail"]


async def test_many_threads_that_get_or_spawn_one_name_get_one_process() -> None:
    node = Node()
    app = WebSocketRelay(switchboard("def"), node=node)
    async with serving(app) as url, browser(url) as http:
        answers = await asyncio.gather(
            *(http.post("/call/get_or_spawn", json=["lobby", room("echo")]) for _ in range(20))
        )
        pids = {answer.json() for answer in answers}
        assert len(pids) == 1
        assert set(node.workers) == pids


async def test_without_a_node_the_error_says_where_one_comes_from() -> None:
    for call in (process.pid, lambda: process.spawn(room("echo")), lambda: process.send("x", "y")):
        with pytest.raises(NotAProcess, match=r"wrapped by WebSocketRelay.*async with Node\(\)"):
            call()


async def test_outside_of_a_request_the_only_node_answers_and_of_several_none() -> None:
    async with Node() as one:
        assert process.pid() == one.pid()
        async with Node(name="other") as two:
            with pytest.raises(NotAProcess, match="2 nodes run in this OS process") as error:
                process.pid()
            assert one.pid() in str(error.value)
            assert two.pid() in str(error.value)
        assert process.pid() == one.pid()


# A full host


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_full_host_is_raised_at_the_endpoint_that_spawns(kind: str) -> None:
    app = FastAPI()

    def sync() -> Response:
        try:
            return RelayResponse(process.spawn(room("echo")))
        except HostFull as error:
            return PlainTextResponse(str(error), 429)

    async def asynchronous() -> Response:
        return sync()

    app.get("/ws", response_model=None)(sync if kind == "def" else asynchronous)
    async with (
        serving(relayed(app, "inside", node=one_at_most())) as url,
        client(f"{url}/ws") as websocket,
        browser(url) as http,
    ):
        refused = await refusal(f"{url}/ws")
        assert (refused.status_code, b"is full" in refused.body) == (429, True)
        assert (await http.get("/ws")).status_code == 429
        await echoes(websocket)


@pytest.mark.parametrize(
    ("framework", "kind"),
    [
        ("starlette", "async def"),
        ("starlette", "def"),
        ("starlette", "stamped"),
        ("fastapi", "async def"),
        ("fastapi", "dependency"),
    ],
)
async def test_a_full_host_that_nobody_catches_becomes_503_with_retry_after(
    framework: str, place: str, kind: str
) -> None:
    def sync(_: Request) -> Response:
        return RelayResponse(process.spawn(room("echo")))

    def depending(pid: Annotated[str, Depends(echo_process)]) -> Response:
        return RelayResponse(pid)

    answer: Any = {"def": sync, "dependency": depending}.get(kind, echo)
    app = application(framework, ws=answer)
    if kind == "stamped":
        app.add_middleware(Stamp)
    async with (
        serving(relayed(app, place, node=one_at_most())) as url,
        client(f"{url}/ws") as websocket,
        browser(url) as http,
    ):
        refused = await refusal(f"{url}/ws")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert b"Traceback" not in refused.body
        plain = await http.get("/ws")
        assert plain.status_code == 503
        assert int(plain.headers["retry-after"]) > 0
        await echoes(websocket)


@each_way
async def test_an_application_s_own_handler_for_a_full_host_has_the_last_word(
    framework: str, place: str
) -> None:
    async def full(_: Request, error: Exception) -> Response:
        return JSONResponse({"full": type(error).__name__}, 429)

    app = application(framework, ws=echo)
    app.add_exception_handler(HostFull, full)
    async with (
        serving(relayed(app, place, node=one_at_most())) as url,
        client(f"{url}/ws"),
        browser(url) as http,
    ):
        refused = await refusal(f"{url}/ws")
        assert (refused.status_code, json.loads(refused.body)) == (429, {"full": "HostFull"})
        assert (await http.get("/ws")).status_code == 429


# Lifespans and nodes


async def test_building_the_middleware_starts_nothing() -> None:
    before = set(psutil.Process().children(recursive=True))
    WebSocketRelay(endpoint(lambda _: Response()))
    assert not current.nodes
    assert set(psutil.Process().children(recursive=True)) == before


async def test_the_own_node_lives_from_the_lifespan_s_start_to_its_end(place: str) -> None:
    async with serving(relayed(application("fastapi", ws=echo), place)) as url:
        (node,) = current.nodes
        async with client(f"{url}/ws") as websocket:
            await echoes(websocket)
            assert len(cast("Node", node).workers) == 1
    assert not current.nodes
    assert not cast("Node", node).running
    assert not cast("Node", node).workers


async def test_a_given_node_that_runs_already_outlives_the_application(place: str) -> None:
    async with Node() as node:
        kept = node.spawn(room("echo"))
        app = relayed(application("starlette", ws=echo), place, node=node)
        for _ in range(2):
            async with serving(app) as url, client(f"{url}/ws") as websocket:
                await echoes(websocket)
            assert node.running
            assert kept in node.workers
        assert current.nodes == [node]


async def test_a_given_node_that_does_not_run_is_started_and_closed() -> None:
    node = Node(name="mine")
    async with serving(relayed(application("starlette", ws=echo), "inside", node=node)) as url:
        assert node.running
        async with client(f"{url}/ws") as websocket:
            await echoes(websocket)
    assert not node.running


async def test_a_node_that_the_application_s_lifespan_enters_is_closed_there(place: str) -> None:
    node = Node()
    running = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with node:
            yield
        running.append(node.running)

    app = Starlette(routes=[Route("/ws", echo)], lifespan=lifespan)
    async with (
        serving(relayed(app, place, node=node)) as url,
        client(f"{url}/ws") as websocket,
    ):
        await echoes(websocket)
    assert running == [False]
    assert not current.nodes


def chatting(place: str) -> Any:
    """An application that answers with the PID of its process `lobby`, and relays to any PID."""

    async def lobby(_: Request) -> Response:
        return PlainTextResponse(process.get_or_spawn("lobby", room("echo")))

    async def ws(request: Request) -> Response:
        return RelayResponse(request.query_params["to"])

    return relayed(application("starlette", lobby=lobby, ws=ws), place)


async def test_two_applications_with_two_nodes_do_not_see_each_other_s_names(place: str) -> None:
    async with serving(chatting(place)) as one, serving(chatting(place)) as two:
        assert len(current.nodes) == 2
        async with browser(one) as http_one, browser(two) as http_two:
            lobby_one = (await http_one.get("/lobby")).text
            lobby_two = (await http_two.get("/lobby")).text
            assert lobby_one != lobby_two
            assert (await http_one.get("/lobby")).text == lobby_one
        async with (
            client(f"{one}/ws?to={lobby_one}") as client_one,
            client(f"{two}/ws?to={lobby_two}") as client_two,
        ):
            await echoes(client_one)
            await echoes(client_two)
        assert (await refusal(f"{one}/ws?to={lobby_two}")).status_code == 503


def who_calls() -> str:
    try:
        return process.pid()
    except NotAProcess as error:
        return str(error)


async def test_each_application_s_lifespan_finds_its_own_node(place: str, tmp_path: Path) -> None:
    """At startup and at shutdown, also where several applications run in one OS process."""
    journals = [Journal(tmp_path / "one"), Journal(tmp_path / "two")]
    callers: list[list[str]] = []

    def lively(journal: Journal) -> Any:
        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
            mine = [who_calls()]
            callers.append(mine)
            with contextlib.suppress(NotAProcess):
                process.get_or_spawn("lobby", room("record"), None, str(journal.path))
            yield {}
            mine.append(who_calls())
            with contextlib.suppress(NotAProcess):
                process.send("lobby", "goodbye")

        async def hello(_: Request) -> Response:
            process.send("lobby", "hello")
            return PlainTextResponse(process.pid())

        return relayed(Starlette(routes=[Route("/hello", hello)], lifespan=lifespan), place)

    nodes = []
    apps = [lively(journal) for journal in journals]
    async with serving(apps[0]) as one, serving(apps[1]) as two:
        for url in (one, two):
            async with browser(url) as http:
                nodes.append((await http.get("/hello")).text)
    assert callers == [[node, node] for node in nodes]
    assert nodes[0] != nodes[1]
    assert [journal.topics() for journal in journals] == [["hello", "goodbye"]] * 2


async def test_a_relay_inside_a_relay_uses_the_same_node() -> None:
    app = application("fastapi", ws=echo)
    app.add_middleware(WebSocketRelay)
    async with serving(WebSocketRelay(app)) as url, client(f"{url}/ws") as websocket:
        await echoes(websocket)
        assert len(current.nodes) == 1
    assert not current.nodes


async def test_a_startup_that_fails_leaves_no_node_behind(place: str) -> None:
    sent = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        process.spawn(room("echo"))
        raise ZeroDivisionError
        yield  # type: ignore[unreachable]

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(event: Any) -> None:
        sent.append(event["type"])

    app = relayed(Starlette(lifespan=lifespan), place)
    with pytest.raises(ZeroDivisionError):
        await app({"type": "lifespan", "asgi": {}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.failed"]
    assert not current.nodes


@pytest.mark.parametrize("how", ["turned off", "unsupported"])
async def test_without_a_lifespan_the_node_starts_with_the_first_request(how: str) -> None:
    inner = application("starlette", ws=echo)

    async def unsupporting(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] in ("http", "websocket")
        await inner(scope, receive, send)

    app = WebSocketRelay(inner if how == "turned off" else unsupporting)
    lifespan = "off" if how == "turned off" else "auto"
    async with without_lifespan(), serving(app, lifespan=lifespan) as url:
        assert not any(cast("Node", node).workers for node in current.nodes)
        for _ in range(2):
            async with client(f"{url}/ws") as websocket:
                await echoes(websocket)
        assert len(current.nodes) == 1


# Other servers, in this process


@pytest.mark.parametrize(
    "protocol",
    [
        "websockets-sansio",
        pytest.param(
            "websockets",
            marks=[
                pytest.mark.filterwarnings("ignore:The `websockets` implementation is deprecated"),
                pytest.mark.filterwarnings("ignore:remove second argument of ws_handler"),
                pytest.mark.filterwarnings("ignore:websockets.legacy:DeprecationWarning"),
                pytest.mark.filterwarnings("ignore:websockets.server:DeprecationWarning"),
            ],
        ),
    ],
)
async def test_the_relay_works_with_uvicorn_s_other_protocols(
    protocol: str, journal: Journal
) -> None:
    async def ws(_: Request) -> Response:
        return RelayResponse(process.spawn(room("record"), None, str(journal.path)))

    app = WebSocketRelay(application("starlette", ws=ws, echo=echo))
    async with serving(app, "uvicorn", ws=protocol) as url:
        async with client(f"{url}/echo", compression="deflate") as websocket:
            for data in ("héllo", "", "x" * 300_000):
                await echoes(websocket, data)
            await websocket.send(b"\x00\xff")
            assert await received(websocket) == b"\x00\xff"
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
            assert await closed(websocket) == (4321, "enough")
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "kill", "SIGKILL")
            assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
        async with client(f"{url}/ws") as websocket:
            await websocket.close(4001, "bye")
        leave = (await journal.line("ws.leave", 2))["payload"]
        assert (leave["code"], leave["reason"]) == (4001, "bye")
        async with client(f"{url}/ws") as websocket:
            await journal.line("ws.join", 4)
            websocket.transport.abort()
        assert (await journal.line("ws.leave", 3))["payload"]["code"] in (1005, 1006)
        assert (await refusal(f"{url}/ws", origin="https://evil.example")).status_code == 403


async def test_the_relay_works_with_hypercorn(journal: Journal) -> None:
    async def ws(_: Request) -> Response:
        return RelayResponse(process.spawn(room("record"), None, str(journal.path)))

    app = WebSocketRelay(application("starlette", ws=ws, echo=echo))
    async with hypercorn_serving(app) as url:
        async with client(f"{url}/echo") as websocket:
            for data in ("héllo", "", "x" * 300_000):
                await echoes(websocket, data)
            await websocket.send(b"\x00\xff")
            assert await received(websocket) == b"\x00\xff"
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
            assert await closed(websocket) == (4321, "enough")
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "kill", "SIGKILL")
            assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
        async with client(f"{url}/ws") as websocket:
            await journal.line("ws.join", 3)
            await websocket.close(4001, "bye")
        await journal.line("ws.leave", 2)
        async with client(f"{url}/ws") as websocket:
            await journal.line("ws.join", 4)
            websocket.transport.abort()
        assert (await journal.line("ws.leave", 3))["payload"]["code"] == 1006
        assert journal.topics().count("ws.leave") == 3
        assert (await refusal(f"{url}/ws", origin="https://evil.example")).status_code == 403
        assert (await refusal(f"{url}/nowhere")).status_code == 404


async def test_an_endless_streaming_response_ends_with_its_client_on_hypercorn_too() -> None:
    ticks: list[int] = []
    ended: list[str] = []

    async def body() -> AsyncIterator[bytes]:
        while True:
            ticks.append(1)
            yield b"tick"
            await asyncio.sleep(0.005)

    async def ws(_: Request) -> Response:
        relay = RelayResponse(process.spawn(room("echo"))).headers["x-ws-relay"]
        return Telling(lambda: ended.append("streaming"), body(), headers={"X-WS-Relay": relay})

    async with hypercorn_serving(WebSocketRelay(application("starlette", ws=ws))) as url:
        async with client(f"{url}/ws") as websocket:
            await echoes(websocket)
            count = len(ticks)
            await until(lambda: len(ticks) > count + 2 or ended, "it goes on streaming")
            assert not ended
        await until(lambda: ended, "the stream has ended")


# Servers in OS processes of their own


class Program:
    """A server program; all that it and its processes print is in `output`."""

    def __init__(self, started: subprocess.Popen[bytes], output: Path) -> None:
        self.started = started
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    async def printed(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until the pattern is in the output so many times; gives what it captures."""

        def found() -> list[str]:
            matches = re.findall(pattern, self.output)
            assert len(matches) >= count or self.started.poll() is None, self.output
            return matches if len(matches) >= count else []

        return cast("list[str]", await until(found, f"{count} x {pattern} in the output"))

    async def url(self) -> str:
        """Wait until it listens; gives `ws://host:port`."""
        return f"ws://{(await self.printed(r'unning on http://(127.0.0.1:[0-9]+)'))[0]}"

    async def ended(self) -> int:
        """Wait for its end; gives its exit code."""
        await until(lambda: self.started.poll() is not None, "the server has ended")
        return self.started.returncode

    async def ends_alone(self, number: signal.Signals, *, processes: int) -> int:
        """Send the signal; gives the exit code once nothing that it started is left.

        `processes`: how many there are at least before.
        """
        family = psutil.Process(self.started.pid).children(recursive=True)
        assert len(family) >= processes
        self.started.send_signal(number)
        code = await self.ended()
        await until(lambda: not [one for one in family if runs(one)], "its processes are gone")
        return code


def runs(one: psutil.Process) -> bool:
    try:
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start `python ARGUMENTS` among the test applications."""
    programs: list[Program] = []

    def start(*arguments: str) -> Program:
        output = tmp_path / f"output {len(programs)}"
        with output.open("wb") as file:
            started = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=APPS,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        programs.append(Program(started, output))
        return programs[-1]

    try:
        yield start
    finally:
        for program in programs:
            if program.started.poll() is None:
                for one in psutil.Process(program.started.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                program.started.kill()
            program.started.wait()


UVICORN = ("-m", "uvicorn", "--port", "0", "--ws", "wsproto", "--http", "h11")


async def test_ten_lines_of_fastapi_run_under_uvicorn_and_end_with_it(
    run: Callable[..., Program],
) -> None:
    server = run(*UVICORN, "ten_lines:app")
    url = await server.url()
    async with client(f"{url}/ws") as one, client(f"{url}/ws") as two:
        await echoes(one, "hello")
        await echoes(two, "world")
        # Two workers and their template, whatever multiprocessing brings along.
        code = await server.ends_alone(signal.SIGTERM, processes=3)
        assert (await closed(one))[0] == 1012
        assert (await closed(two))[0] == 1012
    assert code == -signal.SIGTERM, server.output
    assert "Traceback" not in server.output
    assert "share no names" not in server.output  # there is one server process only


async def test_the_page_s_commands_serve_clients_with_their_default_options(
    run: Callable[..., Program],
) -> None:
    """What a browser offers, and uvicorn would negotiate: permessage-deflate."""
    page = (Path(__file__).parent.parent / "docs" / "embedding.md").read_text()
    commands = re.findall(r"^uvicorn app:app (.+?)(?: #.*)?$", page, re.MULTILINE)
    assert len(commands) == 2
    direct = {}
    for command in commands:
        server = run("-m", "uvicorn", *command.split(), "--port", "0", "native:app")
        url = await server.url()
        extensions = {}
        for path in ("/ws", "/native"):
            async with connect(f"{url}{path}", proxy=None) as websocket:
                extensions[path] = [extension.name for extension in websocket.protocol.extensions]
                for data in ("héllo", "", "x" * 300_000):
                    await echoes(websocket, data)
                await websocket.close()
            assert (websocket.close_code, server.started.poll()) == (1000, None)
        direct["RelayProtocol" in command] = extensions
        assert "Traceback" not in server.output
    deflate = ["permessage-deflate"]
    assert direct == {
        False: {"/ws": deflate, "/native": deflate},
        True: {"/ws": [], "/native": deflate},
    }


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
@pytest.mark.parametrize("set_up", [False, True])
async def test_what_rooms_log_is_written_once_whether_the_application_sets_up_logging_or_not(
    run: Callable[..., Program], monkeypatch: pytest.MonkeyPatch, server: str, set_up: bool
) -> None:
    monkeypatch.setenv("SET_UP", "yes" if set_up else "no")
    command = UVICORN if server == "uvicorn" else ("-m", "hypercorn", "--bind", "127.0.0.1:0")
    program = run(*command, "logging_room:app")
    async with client(f"{await program.url()}/ws") as websocket:
        await websocket.send("x")
        assert await received(websocket) == "done"
        for level in ("info", "warning"):
            await program.printed(f"room: at {level}")
        assert await program.ends_alone(signal.SIGTERM, processes=2) in (0, -signal.SIGTERM)
    lines = [line for line in program.output.splitlines() if "room: at" in line]
    assert len(lines) == 2, program.output
    for line in lines:
        expected = r"mine: {local@" if set_up else r"[\d-]+ [\d:,]+ (INFO   |WARNING) {local@"
        assert re.match(expected, line), line


async def test_an_answer_to_the_node_is_told_once_for_each_process(
    run: Callable[..., Program],
) -> None:
    program = run(*UVICORN, "logging_room:app")
    url = await program.url()
    for count in (1, 2):
        async with client(f"{url}/ws") as websocket:
            await websocket.send("x")
            assert await received(websocket) == "done"
        told = await program.printed("(?m)^.*sent answer to the node, which has no inbox.*$", count)
        assert len(told) == count
        assert all("WARNING" in line and "Put the PID" in line for line in told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_script_that_serves_without_a_guard_is_never_run_again(
    run: Callable[..., Program], number: signal.Signals
) -> None:
    server = run("script.py")
    url = await server.url()
    async with client(f"{url}/ws") as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "you said hello"
        code = await server.ends_alone(number, processes=2)
    assert code == (-signal.SIGTERM if number == signal.SIGTERM else 0), server.output
    main = re.findall(r"main module runs as (\S+) in (\d+)", server.output)
    assert main == [("__main__", str(server.started.pid))]
    assert "Traceback" not in server.output


async def test_a_server_without_lifespan_leaves_nothing_behind_either(
    run: Callable[..., Program],
) -> None:
    server = run(*UVICORN, "--lifespan", "off", "ten_lines:app")
    async with client(f"{await server.url()}/ws") as websocket:
        await echoes(websocket)
        assert await server.ends_alone(signal.SIGTERM, processes=2) == -signal.SIGTERM


async def test_a_server_that_is_killed_leaves_nothing_behind(run: Callable[..., Program]) -> None:
    server = run(*UVICORN, "ten_lines:app")
    async with client(f"{await server.url()}/ws") as websocket:
        await echoes(websocket)
        assert await server.ends_alone(signal.SIGKILL, processes=2) == -signal.SIGKILL
        assert (await closed(websocket))[0] == 1006


@pytest.mark.parametrize(
    "command",
    [
        (*UVICORN, "--workers", "2", "ten_lines:app"),
        (*UVICORN, "--workers", "2", "own_node:app"),
        ("own_node.py",),
        ("-m", "hypercorn", "--workers", "2", "--bind", "127.0.0.1:0", "own_node:app"),
    ],
    ids=["uvicorn", "with a node of its own", "uvicorn.run", "hypercorn"],
)
async def test_a_server_with_two_worker_processes_warns_that_they_share_no_names(
    run: Callable[..., Program], command: tuple[str, ...]
) -> None:
    server = run(*command)
    url = await server.url()
    warnings = await server.printed("this server runs 2 worker processes.*share no names", 2)
    assert len(warnings) == 2
    async with client(f"{url}/ws") as websocket:
        await echoes(websocket)
        assert await server.ends_alone(signal.SIGTERM, processes=4) == 0, server.output


@pytest.mark.parametrize(
    ("arguments", "environment", "workers"),
    [
        (["-w", "3", "app:app"], {}, 3),
        (["-w3", "app:app"], {}, 3),
        (["--workers=4", "app:app"], {"WEB_CONCURRENCY": "2"}, 4),
        (["app:app"], {"WEB_CONCURRENCY": "2"}, 2),
        (["app:app"], {"GUNICORN_CMD_ARGS": "--bind :80 --workers 5"}, 5),
        (["app:app"], {}, 1),
        (["-w", "3", "app:app"], {"SERVER_SOFTWARE": ""}, 1),
    ],
)
def test_gunicorn_s_worker_processes_are_known_from_how_it_was_called(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    workers: int,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gunicorn", *arguments])
    for name, value in {"SERVER_SOFTWARE": "gunicorn/23.0.0", **environment}.items():
        monkeypatch.setenv(name, value)
    assert server_workers() == workers


async def test_the_hypercorn_command_serves_and_leaves_nothing_behind(
    run: Callable[..., Program], journal: Journal
) -> None:
    server = run("-m", "hypercorn", "--bind", "127.0.0.1:0", "orders:app")
    url = f"{await server.url()}/ws?journal={journal.path}"
    async with client(url) as websocket:
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "hello"})
        assert await received(websocket) == "hello"
        await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
        assert await closed(websocket) == (4321, "enough")
    async with client(url) as websocket:
        await say(websocket, "kill", "SIGKILL")
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
    assert (await refusal(url, origin="https://evil.example")).status_code == 403
    async with client(url):
        await journal.line("ws.join", 3)
    assert (await journal.line("ws.leave", 2))["payload"]["code"] == 1006
    assert await server.ends_alone(signal.SIGTERM, processes=2) == 0, server.output
    assert "Traceback" not in server.output


async def test_the_hypercorn_command_ends_also_if_the_application_has_no_lifespan(
    run: Callable[..., Program], journal: Journal
) -> None:
    server = run("-m", "hypercorn", "--bind", "127.0.0.1:0", "orders:without_lifespan")
    async with client(f"{await server.url()}/ws?journal={journal.path}") as websocket:
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "hello"})
        assert await received(websocket) == "hello"
    assert await server.ends_alone(signal.SIGTERM, processes=2) == 0, server.output


async def test_how_a_client_went_is_no_error_where_the_server_does_not_know(node: Node) -> None:
    """Hypercorn reports 1006 for every client: a process linked to one must not die of it."""

    def watch() -> list[Any]:
        process.set_options(trap_links=True)
        client_pid = process.inbox().receive(timeout=20).sender
        process.link(client_pid)
        process.monitor(client_pid)
        process.send(client_pid, "ws.send", {"type": "text", "data": "watched"})
        event = process.events().receive(timeout=20)
        assert event.result is not None
        return [event.kind, event.result.value, event.result.error]

    results: list[Any] = []
    pid = node.spawn(watch)
    node.when_ended(pid, lambda result: results.append(result.value))
    async with hypercorn_serving(WebSocketRelay(relay_to(pid), node=node)) as url:
        async with client(url) as websocket:
            assert await received(websocket) == "watched"
        await until(lambda: results, "the process has ended")
    assert results == [["EXIT", {"code": 1006, "reason": ""}, None]]
