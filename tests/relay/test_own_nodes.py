"""Which node an application has, and how long it lives."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import rooms
from applications import application, browser, echo, echoes, refusal, relayed, without_lifespan
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from support import Journal, client, endpoint, room, serving

from wsrelay import Node, RelayResponse, WebSocketRelay, process
from wsrelay.errors import NotAProcess
from wsrelay.values import current

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["inside", "around"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
        kept = node.spawn(room(rooms.echo))
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
        return PlainTextResponse(process.get_or_spawn("lobby", room(rooms.echo)))

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
                process.get_or_spawn("lobby", room(rooms.record), None, str(journal.path))
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
        process.spawn(room(rooms.echo))
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
