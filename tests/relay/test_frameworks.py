"""The relay inside applications of Starlette and FastAPI, among their middleware."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
import rooms
from applications import (
    Stamp,
    application,
    browser,
    each_way,
    echo,
    echoes,
    refusal,
    relayed,
    without_lifespan,
)
from fastapi import Depends, FastAPI, HTTPException
from fastapi import Response as FastAPIResponse
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from support import Journal, client, closed, received, room, say, serving, until

from wsrelay import RelayResponse, WebSocketRelay, process
from wsrelay.values import current

pytestmark = pytest.mark.anyio

KEY = "signs the tests' sessions"


@pytest.fixture(params=["inside", "around"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["starlette", "fastapi"])
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
        headers = RelayResponse(process.spawn(room(rooms.echo))).headers
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
        pid = process.spawn(room(rooms.record), None, str(journal.path))
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


@each_way
async def test_a_base_http_middleware_sees_the_request_and_the_response(
    framework: str, place: str, journal: Journal
) -> None:
    async def ws(request: Request) -> Response:
        pid = process.spawn(room(rooms.record), None, str(journal.path))
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
        pid = process.spawn(room(rooms.record), None, str(journal.path))
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
        relay = {"target_pid": process.spawn(room(rooms.echo))}
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
        pid = process.spawn(room(rooms.record), None, str(journal.path))
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
        pid = process.spawn(room(rooms.record), None, str(journal.path))
        seen = [request.state.greeting, request.scope["root_path"], request.url_for("connect").path]
        return RelayResponse(pid, metadata={"seen": seen})

    async with serving(relayed(app, place), root_path="/api") as url, client(f"{url}/ws"):
        join = await journal.line("ws.join")
    assert join["payload"]["metadata"]["seen"] == ["hi", "/api", "/api/ws"]


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
