"""A node inside an application: as its lifespan, from a configuration, beside other nodes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support import client, closed, processes, received, relay_to, room, serving, until

import wsrelay
from wsrelay import Node, RelayResponse, WebSocketRelay, process
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
        return RelayResponse(process.spawn(room("echo")), cancel_on_leave=True)

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
            pid = node.spawn(room("echo"))
            app = WebSocketRelay(relay_to(pid), node=node)
            url = await stack.enter_async_context(serving(app))
            clients.append(await stack.enter_async_context(client(url)))
            assert pid.node == name
        for one in clients:
            await one.send("hello")
            assert await received(one) == "hello"


# Shutdown in turns


async def test_clients_are_closed_in_turns_spread_over_a_while(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
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


async def test_a_client_whose_target_ends_waits_for_its_turn_and_a_hurry_is_its_turn(
    node: Node,
) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
    async with serving(app) as url, client(url) as one:
        await until(lambda: node.connections)
        closing = asyncio.create_task(node.aclose(spread=3600))
        await until(lambda: not node.workers, "the target has ended")
        assert node.connections
        node.hurry()
        assert await closed(one) == (1012, "node shuts down")
        await closing


async def test_a_client_that_goes_before_its_turn_does_not_hold_the_shutdown_up(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
    async with serving(app) as url:
        async with client(url):
            await until(lambda: node.connections)
            closing = asyncio.create_task(node.aclose(spread=3600))
            await until(lambda: node.draining)
        await asyncio.wait_for(closing, 20)
