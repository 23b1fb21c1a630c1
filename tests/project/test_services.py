"""The examples of what processes know of each other: counter.py and presence.py."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from support import TIMEOUT, client, closed, processes, received, serving
from websockets.exceptions import InvalidStatus

from wsrelay import Node
from wsrelay.gateway.script import Scope, ScriptOptions, script_app

pytestmark = pytest.mark.anyio

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"


async def test_the_counter_is_reached_under_its_name_after_its_crash() -> None:
    spec = importlib.util.spec_from_file_location("counter_example", HANDLERS / "counter.py")
    assert spec is not None
    assert spec.loader is not None
    counter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counter)

    async def count(url: str) -> str:
        async with client(url) as websocket:
            await websocket.send("up")
            return str(await received(websocket))

    async def count_if_there(url: str) -> str | None:
        try:
            return await count(url)
        except InvalidStatus:  # 503: it is starting again
            return None

    async with serving(counter.app) as url:
        assert [await count(url), await count(url)] == ["1", "2"]
        first = counter.node.lookup("counter")
        async with client(url) as websocket:
            await websocket.send("crash")
            assert await closed(websocket) == (1011, "target process crashed")
        async with asyncio.timeout(TIMEOUT):
            while (again := await count_if_there(url)) is None:
                pass
        assert again == "1"
        assert counter.node.lookup("counter") != first


async def test_presence_tells_each_client_of_all_others_and_of_their_status() -> None:
    async with Node(hosts=[processes()]) as node:
        target = f"{HANDLERS / 'presence.py'}:handler"
        app = script_app(node, ScriptOptions(target=target, scope=Scope.CONNECTION))

        async def news(websocket: Any) -> Any:
            return json.loads(await received(websocket))["data"]

        async with serving(app, lifespan="off") as url, client(f"{url}/ws?name=Ada") as ada:
            assert await news(ada) == {"kind": "joined", "name": "Ada"}
            async with client(f"{url}/ws?name=Bob") as bob:
                assert await news(ada) == {"kind": "joined", "name": "Bob"}
                for name in ("Ada", "Bob"):
                    assert await news(bob) == {"kind": "joined", "name": name}
                await bob.send("busy")
                for one in (ada, bob):
                    changed = {"kind": "changed", "name": "Bob", "status": "busy"}
                    assert await news(one) == changed
            assert await news(ada) == {"kind": "left", "name": "Bob", "status": "busy"}
            async with client(f"{url}/ws?name=Eve") as eve:
                assert await news(ada) == {"kind": "joined", "name": "Eve"}
                eve.transport.abort()
                assert await news(ada) == {"kind": "left", "name": "Eve"}
