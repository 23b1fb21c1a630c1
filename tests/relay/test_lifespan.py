"""A node inside an application: as its lifespan, from a configuration, beside other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest
import rooms
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support import (
    Journal,
    client,
    closed,
    processes,
    received,
    relay_to,
    room,
    say,
    send_until_blocked,
    serving,
    until,
)
from websockets.asyncio.client import ClientConnection

import wsrelay
from wsrelay import HostFailed, Node, RelayResponse, WebSocketRelay, process
from wsrelay.config import ConfigError

pytestmark = pytest.mark.anyio

CONFIGURATION = """\
version: "1.0"
namespace: app
entries:
  - {name: light, kind: process.host, stop_timeout: 2s}
  - {name: heavy, kind: process.host, stop_timeout: 2s}
  - {name: echo, kind: process.python, module: rooms, method: echo, host: heavy}
  - {name: service, kind: process.service, process: echo}
"""


@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_a_node_is_the_lifespan_of_an_application(framework: type[Starlette]) -> None:
    node = Node(hosts=[processes()])
    app = framework(lifespan=node.lifespan)

    async def connect(_: Request) -> Response:
        return RelayResponse(process.spawn(room(rooms.echo)), cancel_on_leave=True)

    app.router.routes.append(Route("/ws", connect))
    app.add_middleware(WebSocketRelay, node=node)
    async with serving(app, lifespan="on") as url:
        assert node.running
        async with client(f"{url}/ws") as one:
            await one.send("hello")
            assert await received(one) == "hello"
    assert not node.running


async def test_a_node_has_what_a_configuration_says(tmp_path: Path) -> None:
    file = tmp_path / "wsrelay.yaml"
    file.write_text(CONFIGURATION)
    async with wsrelay.from_config(file, name="configured") as node:
        assert list(node.hosts) == ["app:light", "app:heavy"]
        service = node.lookup("app:service")
        pid = node.spawn("app:echo")
        assert (service.host, pid.host, pid.node) == ("app:heavy", "app:heavy", "configured")
        assert node.spawn("app:echo", "app:light").host == "app:light"
        assert await node.started(pid) is None
    file.write_text("nonsense")
    with pytest.raises(ConfigError):
        wsrelay.from_config(str(file))


def spawner(entry: str) -> list[str]:
    return [process.spawn(entry).host, process.spawn(entry, "app:light").host]


async def test_a_process_spawns_an_entry_in_the_entry_s_host(tmp_path: Path) -> None:
    file = tmp_path / "wsrelay.yaml"
    file.write_text(CONFIGURATION)
    async with wsrelay.from_config(file) as node:
        results: list[wsrelay.Result] = []
        node.when_ended(node.spawn(spawner, None, "app:echo"), results.append)
        await until(lambda: results)
        assert results == [wsrelay.Result(["app:heavy", "app:light"])]


async def test_several_nodes_live_in_one_process() -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for name in ("one", "other"):
            node = await stack.enter_async_context(Node(name=name, hosts=[processes()]))
            pid = node.spawn(room(rooms.echo))
            app = WebSocketRelay(relay_to(pid), node=node)
            url = await stack.enter_async_context(serving(app))
            clients.append(await stack.enter_async_context(client(url)))
            assert pid.node == name
        for one in clients:
            await one.send("hello")
            assert await received(one) == "hello"


# Shutdown in turns


async def test_clients_are_closed_in_turns_spread_over_a_while(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(url)) for _ in range(20)]
        await until(lambda: len(node.connections) == 20)
        loop = asyncio.get_running_loop()
        times = []

        async def ending(one: object) -> None:
            assert await closed(one) == (1012, "node shuts down")  # type: ignore[arg-type]
            times.append(loop.time())

        endings = asyncio.gather(*map(ending, clients))
        await node.aclose(spread=0.5)
        await endings
        # All in one tenth of the time has a chance of less than one to a billion.
        assert max(times) - min(times) > 0.05


async def test_a_hurry_is_every_client_s_turn(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url, client(url) as one:
        await until(lambda: node.connections)
        closing = asyncio.create_task(node.aclose(spread=3600))
        await one.send("hello")
        assert await received(one) == "hello"
        node.terminate_all()
        assert await closed(one) == (1012, "node shuts down")
        await closing


async def test_a_client_that_goes_before_its_turn_does_not_hold_the_shutdown_up(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url:
        async with client(url):
            await until(lambda: node.connections)
            closing = asyncio.create_task(node.aclose(spread=3600))
            await until(lambda: node.draining)
        await asyncio.wait_for(closing, 20)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the lot draws, in order; nothing more: a turn that does not come in this test."""
    drawn: list[float] = []

    def draw(_least: float, most: float) -> float:
        return drawn.pop(0) if drawn else most

    monkeypatch.setattr("wsrelay.node.connections.random.uniform", draw)
    return drawn


@pytest.mark.parametrize("front", ["direct", "uvicorn"])
async def test_a_room_takes_messages_until_its_last_client_has_had_its_turn(
    node: Node, journal: Journal, turns: list[float], front: str
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    idle = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with serving(app, front) as url, client(url) as one, client(url) as other:
        await until(lambda: len(node.connections) == 2)
        turns.append(0.0)
        closing = asyncio.create_task(node.aclose(spread=3600))
        first, last = [one, other] if await is_closed_first(one, other) else [other, one]
        assert await closed(first) == (1012, "node shuts down")
        await until(lambda: idle not in node.workers, "nobody was in there: cancelled at once")
        await last.send("still here")
        await journal.line("ws.leave")
        line = await journal.line("ws.message")
        assert line["payload"]["data"] == "still here"
        await last.close()
        await closing
    assert [line["payload"]["code"] for line in journal.lines("ws.leave")] == [1012, 1000]


async def is_closed_first(one: ClientConnection, other: ClientConnection) -> bool:
    ends = [asyncio.ensure_future(each.wait_closed()) for each in (one, other)]
    done, waiting = await asyncio.wait(ends, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return ends[0] in done


@pytest.mark.parametrize("front", ["direct", "uvicorn"])
async def test_what_a_client_sent_before_its_turn_reaches_its_busy_room(
    node: Node, journal: Journal, turns: list[float], front: str
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with serving(app, front, ws_ping_interval=None) as url, client(url) as one:
        await until(lambda: node.connections)
        await journal.line("ws.join")
        os.kill(await until(lambda: node.workers[pid]), signal.SIGSTOP)  # it is busy
        sent = await send_until_blocked(one, os.urandom(10_000))
        turns.append(0.0)
        closing = asyncio.create_task(node.aclose(spread=3600))
        await until(lambda: node.draining)
        os.kill(node.workers[pid] or 0, signal.SIGCONT)
        assert await closed(one) == (1012, "node shuts down")
        await closing
    assert len(journal.lines("ws.message")) >= sent
    assert journal.topics()[-1] == "ws.leave"


async def test_a_client_whose_room_ends_by_itself_is_closed_at_that_moment(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with serving(app) as url, client(url) as one:
        await journal.line("ws.join")
        closing = asyncio.create_task(node.aclose(spread=3600))
        await say(one, "raise", "on purpose")
        assert await closed(one) == (1012, "node shuts down")
        await closing


async def test_a_client_whose_room_is_cancelled_meanwhile_is_closed_at_that_moment(
    node: Node,
) -> None:
    pid = node.spawn(busy)
    app = WebSocketRelay(relay_to(pid), node=node)
    async with serving(app) as url, client(url) as one:
        await until(lambda: node.connections)
        closing = asyncio.create_task(node.aclose(spread=3600))
        await until(lambda: node.draining)
        node.cancel(pid)
        assert await closed(one) == (1012, "node shuts down")
        assert pid in node.workers, "it goes on, and takes nothing more"
        node.terminate(pid)
        await closing


def busy() -> None:
    threading.Event().wait()


async def test_a_client_that_moves_while_the_node_drains_is_heard_in_its_new_room(
    node: Node, tmp_path: Path
) -> None:
    old, new = Journal(tmp_path / "old"), Journal(tmp_path / "new")
    pids = [node.spawn(room(rooms.record), None, str(journal.path)) for journal in (old, new)]
    apps = [WebSocketRelay(relay_to(pid), node=node) for pid in pids]
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serving(app)) for app in apps]
        one, other = [await stack.enter_async_context(client(url)) for url in urls]
        await asyncio.gather(old.line("ws.join"), new.line("ws.join"))
        closing = asyncio.create_task(node.aclose(spread=3600))
        await until(lambda: node.draining)
        await say(one, "send", None, "ws.control", {"target_pid": pids[1]})
        await until(lambda: pids[0] not in node.workers, "its last client has left")
        await other.close()
        await new.line("ws.leave")
        await one.send("in the new room")
        line = await new.line("ws.message")
        assert line["payload"]["data"] == "in the new room"
        await one.close()
        await closing


async def test_a_room_that_goes_on_while_the_node_drains_is_found_by_its_name(
    node: Node, journal: Journal
) -> None:
    pid = node.get_or_spawn("blue", room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with serving(app) as url, client(url) as one:
        await journal.line("ws.join")
        closing = asyncio.create_task(node.aclose(spread=3600))
        await until(lambda: node.draining)
        assert node.get_or_spawn("blue", busy) == pid
        with pytest.raises(HostFailed, match="shuts down"):
            node.get_or_spawn("green", busy)
        await one.close()
        await closing


async def test_a_client_cannot_move_to_a_room_that_takes_no_more_messages(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    empty = node.spawn(busy)
    app = WebSocketRelay(relay_to(pid), node=node)
    async with serving(app) as url, client(url) as one:
        await journal.line("ws.join")
        closing = asyncio.create_task(node.aclose(spread=3600))
        await until(lambda: node.draining)
        await say(one, "send", None, "ws.control", {"target_pid": empty})
        assert "has been cancelled" in (await journal.line("ws.error"))["payload"]["error"]
        await one.send("still here")
        await journal.line("ws.message", 2)
        await one.close()
        node.terminate(empty)
        await closing
