"""A client of one node whose process runs on another, over a real NATS."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import rooms
from guests import front
from nats_servers import NatsServer
from peers_over_nats import clustered
from support import client, closed, received, room

from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio


async def test_nothing_of_a_client_is_lost_or_doubled_while_nats_restarts(
    own_nats: NatsServer,
) -> None:
    async with clustered(own_nats, {}, "a", "b") as [a, b]:
        there = b.spawn(room(rooms.echo))
        async with front(a, there) as url, client(url) as websocket:
            await websocket.send("first")
            assert await received(websocket) == "first"

            async def talk() -> None:
                for number in range(600):
                    await websocket.send(str(number))
                    await asyncio.sleep(0.002)

            talking = asyncio.create_task(talk())
            await asyncio.to_thread(own_nats.kill)
            await asyncio.to_thread(own_nats.start)
            for number in range(600):
                assert await received(websocket) == str(number)
            await talking
            await b.aclose()
            assert await closed(websocket) == (1012, "node shuts down")


async def test_clients_of_all_nodes_who_name_a_room_meet_in_one_process(nats: NatsServer) -> None:
    entries = {"room": TargetEntry(room(rooms.record_pid))}
    async with clustered(nats, entries, "a", "b") as nodes, contextlib.AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(front(node, None, target="room", name="blue"))
            for node in nodes
        ]
        clients = [await stack.enter_async_context(client(url)) for url in urls * 3]
        assert len({await received(websocket) for websocket in clients}) == 1
        [home] = [node for node in nodes if node.workers]
        [process] = home.engine.processes.values()
        assert len(process.clients) == len(clients)
        assert len(home.clients.guests) == 3
