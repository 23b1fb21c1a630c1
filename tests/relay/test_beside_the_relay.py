"""What an application does while its client talks to a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import rooms
from applications import (
    Stamp,
    Telling,
    application,
    each_way,
    echoes,
    refusal,
    relayed,
    without_lifespan,
)
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from support import TIMEOUT, client, room, serving, until

from wsrelay import Node, RelayResponse, WebSocketRelay, process

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["inside", "around"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
        response = RelayResponse(process.spawn(room(rooms.echo)))
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
        response = RelayResponse(process.spawn(room(rooms.echo)), cancel_on_leave=True)
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
        response = RelayResponse(process.spawn(room(rooms.echo)))
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
        relay = RelayResponse(process.spawn(room(rooms.echo))).headers["x-ws-relay"]
        return StreamingResponse(body(), headers={"X-WS-Relay": relay})

    app = application(framework, ws=ws)
    async with serving(relayed(app, place)) as url, client(f"{url}/ws") as websocket:
        await until(lambda: produced == [0, 1, 2], "the whole body was produced")
        await echoes(websocket)


async def test_an_endless_streaming_response_ends_with_its_client() -> None:
    ended = asyncio.Event()
    too_late = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        while not too_late.is_set():
            yield b"tick"
            await asyncio.sleep(0.005)

    async def ws(_: Request) -> Response:
        relay = RelayResponse(process.spawn(room(rooms.echo))).headers["x-ws-relay"]
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
        relay = RelayResponse(process.spawn(room(rooms.echo))).headers["x-ws-relay"]
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
        relay = RelayResponse(process.spawn(room(rooms.echo))).raw_headers
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
        response = RelayResponse(process.spawn(room(rooms.echo)))
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
