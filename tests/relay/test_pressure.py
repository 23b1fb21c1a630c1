"""Whoever is slow, busy or gone slows nobody else and fills nothing (architecture, decision 9)."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import psutil
import pytest
import rooms
from support import (
    Journal,
    client,
    closed,
    connected,
    not_reading,
    processes,
    reading,
    received,
    relay_to,
    room,
    say,
    send_until_blocked,
    serving,
    until,
)
from websockets.exceptions import InvalidStatus

from wsrelay import Node, WebSocketRelay, process
from wsrelay.node import describe
from wsrelay.session.outbox import Overflow
from wsrelay.values.sizes import ITEM

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000


def test_by_default_a_client_that_does_not_read_is_closed_beyond_four_megabytes() -> None:
    limits = WebSocketRelay(relay_to("{processes|x.1}"))._limits
    assert (limits.outbox, limits.overflow) == (4 * 1024 * 1024, Overflow.CLOSE)
    assert limits.linger == 2


async def test_a_busy_target_stops_its_clients_and_fills_nothing(
    node: Node, tmp_path: Path
) -> None:
    """What a client sends to a target that does not read waits at the client."""
    go = tmp_path / "go"
    busy = node.spawn(room(rooms.read_on), None, str(go))
    light = node.spawn(room(rooms.echo))
    async with (
        serving(WebSocketRelay(relay_to(busy), node=node)) as url,
        serving(WebSocketRelay(relay_to(light), node=node)) as other,
        client(url) as websocket,
        client(other) as spared,
    ):
        before = psutil.Process().memory_info().rss
        count = await send_until_blocked(websocket, bytes(100_000))
        assert node.engine.processes[busy].pipe.backlog < MEGABYTE
        assert psutil.Process().memory_info().rss - before < 30 * MEGABYTE
        await spared.send("not slowed")
        assert await received(spared) == "not slowed"
        await asyncio.to_thread(go.touch)
        for _ in range(count):
            assert len(await received(websocket)) == 100_000


async def test_a_client_of_a_busy_target_that_vanishes_is_noticed(
    node: Node, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    busy = node.spawn(room(rooms.read_on), None, str(go))
    async with (
        serving(WebSocketRelay(relay_to(busy), node=node)) as url,
        client(url) as websocket,
    ):
        await send_until_blocked(websocket, bytes(100_000))
        websocket.transport.abort()
        await asyncio.to_thread(go.touch)
        await until(lambda: not node.connections, "the connection has ended")


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_a_client_that_does_not_read_is_closed_and_its_room_goes_on(
    node: Node, journal: Journal, front_end: str
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node, outbox_limit=MEGABYTE, linger=0.2)
    async with serving(app, front_end) as url, client(url) as fast:
        slow = await connected(url)
        async with client(url, sock=slow) as websocket:
            join = await journal.line("ws.join", 2)
            not_reading(websocket)
            me = join["sender"]
            flood = {"type": "text", "data": "x" * 100_000}
            for _ in range(60):
                await say(fast, "send", me, "ws.send", flood)
            leave = await journal.line("ws.leave")
            assert leave["sender"] == me
            assert (leave["payload"]["code"], leave["payload"]["reason"]) == (1013, "slow client")
            await say(fast, "send", None, "ws.send", {"type": "text", "data": "goes on"})
            assert await received(fast) == "goes on"
            await until(lambda: me not in node.connections, "the connection has ended")
            reading(websocket)
            code, _ = await closed(websocket)
            assert code in (1006, 1013)


async def test_under_pause_the_worker_waits_for_its_client_and_nothing_is_lost(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    limit = 500_000
    app = WebSocketRelay(relay_to(pid), node=node, outbox_limit=limit, outbox_overflow="pause")
    async with serving(app) as url:
        sock = await connected(url)
        async with client(url, sock=sock, max_size=None) as websocket:
            await journal.line("ws.join")
            not_reading(websocket)
            before = psutil.Process().memory_info().rss
            await say(websocket, "flood", 300, 100_000)
            worker = node.engine.processes[pid]
            await until(lambda: worker.incarnation.pipe._holds, "the worker is held")
            assert psutil.Process().memory_info().rss - before < 20 * MEGABYTE
            reading(websocket)
            for _ in range(300):
                assert len(await received(websocket)) == 100_000
            assert await received(websocket) == "flooded"
            assert not worker.incarnation.pipe._holds


async def test_under_drop_a_slow_client_misses_the_newest_and_keeps_its_connection(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    limit = 500_000
    app = WebSocketRelay(relay_to(pid), node=node, outbox_limit=limit, outbox_overflow="drop")
    async with serving(app) as url, client(url) as fast:
        sock = await connected(url)
        async with client(url, sock=sock, max_size=None) as websocket:
            me = (await journal.line("ws.join", 2))["sender"]
            not_reading(websocket)
            flood = {"type": "text", "data": "x" * 100_000}
            for _ in range(100):
                await say(fast, "send", me, "ws.send", flood)
            connection = node.connection(me)
            assert connection is not None
            await until(lambda: connection.describe().dropped, "messages are dropped")
            assert connection.describe().outbox <= limit
            await say(fast, "send", None, "ws.send", {"type": "text", "data": "not slowed"})
            assert await received(fast) == "not slowed"
            kept = 100 - connection.describe().dropped
            reading(websocket)
            for _ in range(kept):
                assert len(await received(websocket)) == 100_000
            await say(fast, "send", me, "ws.send", {"type": "text", "data": "again"})
            assert await received(websocket) == "again"


async def test_under_pause_a_client_that_goes_frees_its_worker(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node, outbox_limit=500_000, outbox_overflow="pause")
    async with serving(app) as url:
        sock = await connected(url)
        async with client(url, sock=sock, max_size=None) as websocket:
            await journal.line("ws.join")
            not_reading(websocket)
            await say(websocket, "flood", 300, 100_000)
            worker = node.engine.processes[pid]
            await until(lambda: worker.incarnation.pipe._holds, "the worker is held")
            websocket.transport.abort()
        await journal.line("ws.leave")
        assert not worker.incarnation.pipe._holds


async def test_under_pause_what_a_held_worker_left_behind_arrives(
    node: Node, journal: Journal
) -> None:
    """It dies while it waits for its client; what the kernel has arrives all the same."""
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node, outbox_limit=100_000, outbox_overflow="pause")
    async with serving(app) as url:
        sock = await connected(url)
        async with client(url, sock=sock, max_size=None) as websocket:
            await journal.line("ws.join")
            not_reading(websocket)
            await say(websocket, "flood", 300, 100_000)
            await until(
                lambda: node.engine.processes[pid].incarnation.pipe._holds, "the worker is held"
            )
            node.terminate(pid)
            await until(lambda: pid not in node.workers, "it has ended")
            reading(websocket)
            sizes = []
            while True:
                try:
                    sizes.append(len(await received(websocket)))
                except Exception:  # noqa: BLE001 - the close frame ends it, checked below
                    break
            assert set(sizes) == {100_000}
            assert await closed(websocket) == (1011, "target process killed (SIGKILL)")


async def test_a_message_as_large_as_the_limit_allows_goes_both_ways(node: Node) -> None:
    pid = node.spawn(room(rooms.echo))
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        client(url, max_size=None) as websocket,
    ):
        data = bytes(16 * 1024 * 1024)
        await websocket.send(data)
        assert await received(websocket) == data


def read_late(go: str, journal: str) -> None:
    """Take nothing until the file exists, then write down what comes."""
    while not Path(go).exists():
        time.sleep(0.005)
    with Path(journal).open("a", buffering=1) as file:
        for message in process.inbox():
            line = {"topic": message.topic, "sender": message.sender}
            file.write(json.dumps(line) + "\n")


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_a_busy_target_with_too_many_visits_to_hear_of_gets_no_more_for_now(
    journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture, front_end: str
) -> None:
    """Of those that came about it hears each join and each leave, once."""
    go = tmp_path / "go"
    async with Node(hosts=[processes(mailbox=8 * 100_000)]) as node:
        pid = node.spawn(read_late, None, str(go), str(journal.path))
        app = WebSocketRelay(relay_to(pid, metadata={"query": "x" * 50_000}), node=node)
        async with serving(app, front_end) as url:
            visits, refused = 0, None
            while refused is None and visits < 20:
                try:
                    async with client(url):
                        visits += 1
                except InvalidStatus as error:
                    refused = error.response
            assert refused is not None
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert f"(OS pid {node.workers[pid]}) is too busy" in caplog.text
            assert "at most 100000 may; have it read them, or raise limits.mailbox" in caplog.text
            pipe = node.engine.processes[pid].pipe
            assert 100_000 < pipe.visits < 200_000
            [shown] = describe(node).processes
            assert shown.mailbox == pipe.backlog >= pipe.visits
            await asyncio.to_thread(go.touch)
            await until(lambda: not pipe.visits, "it has caught up")
            async with client(url):
                await journal.line("ws.leave", visits)
                await journal.line("ws.join", visits + 1)
            await journal.line("ws.leave", visits + 1)
    joins = [line["sender"] for line in journal.lines("ws.join")]
    assert len(joins) == len(set(joins)) == visits + 1
    assert sorted(joins) == sorted(line["sender"] for line in journal.lines("ws.leave"))


async def test_small_visits_count_for_what_they_cost(node: Node) -> None:
    """With metadata of a few bytes they are 1 KB each."""
    busy = node.spawn(room(rooms.wait))
    async with serving(WebSocketRelay(relay_to(busy), node=node)) as url:
        pipe = node.engine.processes[busy].pipe
        while not pipe.backlog:
            async with client(url):
                pass
        before = pipe.visits
        for _ in range(10):
            async with client(url):
                pass
        await until(lambda: not node.connections, "all have gone")
        assert pipe.visits - before > 10 * 4 * ITEM


async def test_transfers_to_a_busy_target_are_refused_once_too_many_wait_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And then nothing changes: the client stays where it is."""
    async with Node(hosts=[processes(mailbox=100_000)]) as node:
        one, other = node.spawn(room(rooms.wait)), node.spawn(room(rooms.wait))
        app = WebSocketRelay(relay_to(one, metadata={"query": "x" * 20_000}), node=node)
        async with serving(app) as url, client(url):
            await until(lambda: node.connections, "it is connected")
            [me] = node.connections
            for number in range(100):
                target = (other, one)[number % 2]
                node.send(me, "ws.control", {"target_pid": target})
            assert "at most 100000 may; have it read them, or raise limits.mailbox" in caplog.text
            pipes = [node.engine.processes[pid].pipe for pid in (one, other)]
            assert max(pipe.visits for pipe in pipes) < 200_000
            connection = node.connection(me)
            assert connection is not None
            assert me in node.engine.processes[connection.target].clients


async def test_metadata_sent_again_and_again_fills_nothing(node: Node, tmp_path: Path) -> None:
    """Its target is busy; with what its client says next it gets the newest."""
    go = tmp_path / "go"
    pid = node.spawn(echo_metadata, None, str(go))
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        client(url) as websocket,
    ):
        await until(lambda: node.connections, "it is connected")
        [me] = node.connections
        pipe = node.engine.processes[pid].pipe
        before = pipe.queued
        for number in range(300):
            node.send(me, "ws.control", {"metadata": {"n": number, "text": "x" * 60_000}})
        assert pipe.queued == before
        await websocket.send("which")
        await asyncio.to_thread(go.touch)
        assert await received(websocket) == "299"


def echo_metadata(go: str) -> None:
    while not Path(go).exists():
        time.sleep(0.005)
    for message in process.inbox():
        if message.topic == "ws.message":
            text = str(message.payload["metadata"]["n"])
            process.send(message.sender, "ws.send", {"type": "text", "data": text})
