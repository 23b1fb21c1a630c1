"""The node's functions in the endpoints of an application, and a host that is full."""

from __future__ import annotations

import asyncio
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import rooms
from applications import Stamp, application, browser, each_way, echo, echoes, refusal, relayed
from fastapi import Body, Depends, FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from support import Journal, client, room, serving, until

from wsrelay import HostOptions, Node, RelayResponse, WebSocketRelay, process
from wsrelay.aio import process as aio_process
from wsrelay.errors import HostFull, NotAProcess

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["inside", "around"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def one_at_most() -> Node:
    return Node(hosts=[HostOptions(max_processes=1)])


def echo_process() -> str:
    return process.spawn(room(rooms.echo))


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

    async def aio_call(name: str, args: Annotated[list[Any], Body()]) -> Any:
        try:
            result = getattr(aio_process, name)(*args)
            return await result if inspect.isawaitable(result) else result
        except NotAProcess as error:
            raise HTTPException(409, str(error)) from None

    calls: dict[str, Any] = {"def": call, "async def": acall, "await": aio_call}
    app.post("/call/{name}")(calls[kind])
    return app


KINDS = pytest.mark.parametrize("kind", ["async def", "def", "await"])
"""Endpoints in the event loop and in threads, and those that await `wsrelay.aio.process`."""


@KINDS
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
        first = await call("spawn", room(rooms.record), None, str(one.path))
        await call("send", first, "note", {"n": 1})
        note = await one.line("note")
        assert (note["sender"], note["payload"]) == (node.pid(), {"n": 1})

        desk = await call("get_or_spawn", "desk", room(rooms.record), None, str(two.path))
        assert await call("get_or_spawn", "desk", room(rooms.record), None, str(two.path)) == desk
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


@KINDS
async def test_endpoints_call_a_process_and_the_plain_call_refuses_to_hold_up_the_loop(
    kind: str,
) -> None:
    app = WebSocketRelay(switchboard(kind), node=(node := Node()))
    async with serving(app) as url, browser(url) as http:
        node.register("desk", node.spawn(room(rooms.answer)))
        response = await http.post("/call/call", json=["desk", "who", {"name": "Ada"}])
        if kind == "async def":
            assert response.status_code == 409
            assert "await wsrelay.aio.process.call" in response.json()["detail"]
        else:
            assert response.json() == {"name": "Ada"}


async def test_many_threads_that_get_or_spawn_one_name_get_one_process() -> None:
    node = Node()
    app = WebSocketRelay(switchboard("def"), node=node)
    async with serving(app) as url, browser(url) as http:
        answers = await asyncio.gather(
            *(http.post("/call/get_or_spawn", json=["lobby", room(rooms.echo)]) for _ in range(20))
        )
        pids = {answer.json() for answer in answers}
        assert len(pids) == 1
        assert set(node.workers) == pids


async def test_without_a_node_the_error_says_where_one_comes_from() -> None:
    for call in (
        process.pid,
        lambda: process.spawn(room(rooms.echo)),
        lambda: process.send("x", "y"),
    ):
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
            return RelayResponse(process.spawn(room(rooms.echo)))
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
        return RelayResponse(process.spawn(room(rooms.echo)))

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
