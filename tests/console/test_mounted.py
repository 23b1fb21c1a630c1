"""The console of one node, mounted in an application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import rooms
from consoles import Viewer, named
from one_node import left_as_found, running_node
from starlette.applications import Starlette
from starlette.routing import Mount
from support import client, processes, room, serving

from wsrelay import Node, WebSocketRelay, console
from wsrelay.console.pages import VIEW

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with running_node(processes(targets=(room(rooms.echo), VIEW))) as node:
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


def mounted(node: Node, *, relayed: bool = True, **options: Any) -> Any:
    app = Starlette(routes=[Mount("/admin/console", console.app(node, **options))])
    return WebSocketRelay(app, node=node) if relayed else app


@pytest.mark.parametrize("relayed", [True, False], ids=["relayed", "on_its_own"])
@pytest.mark.parametrize("server", ["direct", "uvicorn", "hypercorn"])
async def test_it_shows_the_node_below_its_path(node: Node, server: str, *, relayed: bool) -> None:
    pid = node.get_or_spawn("room:blue", room(rooms.echo))
    async with (
        Node(name="other"),  # which is not shown
        serving(mounted(node, relayed=relayed), server) as url,
        client(f"{url}/admin/console/live") as websocket,
    ):
        viewer = Viewer(websocket)
        await viewer.look("home")
        await viewer.sees(lambda state: named(state).get("room:blue", {}).get("pid") == pid)
        assert [one["name"] for one in viewer.state["nodes"].values()] == [node.name]
        refused = await viewer.ask({"type": "act", "what": "kill", "of": pid})
        assert "read-only" in refused["error"]


async def test_its_page_and_files_are_served_below_its_path(node: Node) -> None:
    async with serving(mounted(node), "uvicorn") as url:
        base = url.replace("ws", "http", 1)
        async with httpx.AsyncClient(base_url=base, trust_env=False) as browser:
            moved = await browser.get("/admin/console")
            assert moved.headers["location"].endswith("/admin/console/")
            page = await browser.get("/admin/console/")
            assert "wsrelay console" in page.text
            assert 'src="/' not in page.text
            assert 'href="/' not in page.text
            for name in ("console.js", "wsrelay.js", "wsrelay.css"):
                assert (await browser.get(f"/admin/console/{name}")).status_code == 200


async def test_with_write_it_obeys(node: Node) -> None:
    pid = node.spawn(room(rooms.echo))
    async with (
        serving(mounted(node, write=True)) as url,
        client(f"{url}/admin/console/live") as websocket,
    ):
        viewer = Viewer(websocket)
        await viewer.look("home")
        await viewer.sees(lambda state: pid in state["table"]["rows"])
        assert "error" not in await viewer.ask({"type": "act", "what": "kill", "of": pid})
        await viewer.sees(lambda state: pid not in state["table"]["rows"])


async def test_a_node_without_a_control_socket_is_told_so() -> None:
    async with Node(control=False) as node:
        transport = httpx.ASGITransport(console.app(node))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as browser:
            answer = await browser.get("/live")
        assert (answer.status_code, answer.text) == (503, "this node has no control socket\n")
