"""Clients whose named process comes to its end without having read their join."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from rooms import echo
from support import (
    client,
    closed,
    endpoint,
    processes,
    received,
    send_until_blocked,
    serving,
    until,
)
from target_rooms import (
    aio_in_vain,
    cancelled_in_vain,
    closes_itself,
    crashes_in_vain,
    in_vain,
    introduce,
    reads_messages_alone,
    reads_when_told,
)
from websockets.asyncio.client import ClientConnection

from wsrelay import Node, RelayResponse, WebSocketRelay

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    # The first stream of uvloop opens a descriptor that the loop keeps: here, and not in a test.
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()
    async with Node(hosts=[processes()]) as node:
        await node.loaded()
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    yield shared
    shared.terminate_all()
    await until(lambda: not shared.workers and not shared.connections, "all are gone")


@pytest.fixture(params=["direct", "uvicorn"])
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def room(
    node: Node,
    target: str | Callable[..., Any],
    *args: Any,
    front_end: str = "direct",
    **options: Any,
) -> AsyncIterator[str]:
    def answer(_: Any) -> RelayResponse:
        return RelayResponse(target=target, name="blue", args=args, **options)

    async with serving(WebSocketRelay(endpoint(answer), node=node), front_end) as url:
        yield url


async def told(node: Node, websocket: ClientConnection, *texts: str) -> None:
    """Send them, and wait until the node has them."""
    [connection] = node.clients.connections.values()
    count = connection.message_count
    for text in texts:
        await websocket.send(text)
    await until(lambda: connection.message_count == count + len(texts), "they have arrived")


async def introduced(websocket: ClientConnection) -> int:
    """Wait until a process has read the join; gives its process id."""
    return int(str(await received(websocket)).split(" ")[0])


@pytest.mark.parametrize("target", [in_vain, aio_in_vain])
async def test_what_a_client_has_sent_to_a_process_that_returns_goes_to_the_next_one(
    node: Node, tmp_path: Path, front_end: str, target: Callable[..., Any]
) -> None:
    async with (
        room(node, target, str(tmp_path), 1, front_end=front_end) as url,
        client(url) as websocket,
    ):
        await told(node, websocket, "one", "two")
        [first] = node.workers
        (tmp_path / "end-0").touch()
        os_pid = await introduced(websocket)
        assert [await received(websocket) for _ in "12"] == ["one", "two"]
        await websocket.send("three")
        assert await received(websocket) == "three"
        assert node.workers == {node.lookup("blue"): os_pid}
        assert first not in node.workers


@pytest.mark.parametrize("restarts", [True, False])
async def test_a_client_of_a_process_that_is_cancelled_is_joined_to_the_next_one(
    node: Node, tmp_path: Path, front_end: str, restarts: bool
) -> None:
    """`restarts`: by an operator."""
    async with (
        room(node, cancelled_in_vain, str(tmp_path), front_end=front_end) as url,
        client(url) as websocket,
    ):
        await told(node, websocket, "one")
        node.cancel("blue", restarts=restarts)
        await until((tmp_path / "cancelled").exists)
        await told(node, websocket, "two")
        (tmp_path / "end-0").touch()
        await introduced(websocket)
        assert [await received(websocket) for _ in "12"] == ["one", "two"]


async def test_a_client_of_a_process_that_crashes_is_told_so(node: Node, tmp_path: Path) -> None:
    async with room(node, crashes_in_vain, str(tmp_path)) as url, client(url) as websocket:
        await told(node, websocket, "one")
        (tmp_path / "end-0").touch()
        assert await closed(websocket) == (1011, "target process crashed")


async def test_after_three_more_in_vain_a_client_is_told_to_come_again(
    node: Node, tmp_path: Path
) -> None:
    async with room(node, in_vain, str(tmp_path), 100) as url, client(url) as websocket:
        for number in range(4):
            await until((tmp_path / f"start-{number}").exists)
            await until(lambda: all(process.clients for process in node.engine.processes.values()))
            (tmp_path / f"end-{number}").touch()
        assert await closed(websocket) == (1013, "target process exited")
    assert not (tmp_path / "start-4").exists()


async def test_a_host_that_is_full_by_then_is_a_reason_to_come_again(
    node: Node, tmp_path: Path
) -> None:
    async with room(node, in_vain, str(tmp_path), 1) as url, client(url) as websocket:
        await until(lambda: node.connections)
        node.kernel.set_hosts({"processes": 0})
        (tmp_path / "end-0").touch()
        try:
            assert await closed(websocket) == (1013, "process host is full")
        finally:
            node.kernel.set_hosts({"processes": 256})


SCRIPT = """
import time
from pathlib import Path
from target_rooms import in_vain

FOLDER = Path({folder!r})
while (FOLDER / "block").exists():
    time.sleep(0.002)

def handler():
    in_vain(FOLDER, 1)
"""


@contextlib.asynccontextmanager
async def scripted(
    node: Node, folder: Path, front_end: str = "direct"
) -> AsyncIterator[tuple[Path, ClientConnection]]:
    """A client of a script whose first process returns in vain; the next starts once it may."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(folder=str(folder)))
    async with room(node, str(script), front_end=front_end) as url, client(url) as websocket:
        yield script, websocket


async def test_a_next_process_that_cannot_be_started_closes_with_1011(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with scripted(node, tmp_path) as (script, websocket):
        await until(lambda: node.connections)
        script.unlink()
        (tmp_path / "end-0").touch()
        assert await closed(websocket) == (1011, "target process failed to start")
    assert "finds no next process of the name of" in caplog.text
    assert "does not exist" in caplog.text


async def test_while_the_next_process_starts_pings_are_answered_and_messages_wait(
    node: Node, tmp_path: Path, front_end: str
) -> None:
    async with scripted(node, tmp_path, front_end) as (_, websocket):
        await told(node, websocket, "one")
        [first] = node.workers
        (tmp_path / "block").touch()
        (tmp_path / "end-0").touch()
        await until(lambda: first not in node.workers and node.workers, "the next one starts")
        async with asyncio.timeout(60):
            await (await websocket.ping())
        await told(node, websocket, "two")
        (tmp_path / "block").unlink()
        await introduced(websocket)
        assert [await received(websocket) for _ in "12"] == ["one", "two"]


@pytest.mark.parametrize("how", ["the client goes", "the node drains", "another process closes"])
async def test_the_wait_for_the_next_process_ends_with_the_connection(
    tmp_path: Path, how: str
) -> None:
    async with Node(hosts=[processes()]) as node, scripted(node, tmp_path) as (_, websocket):
        await until(lambda: node.connections)
        [first] = node.workers
        [connection] = node.connections
        (tmp_path / "block").touch()
        (tmp_path / "end-0").touch()
        await until(lambda: first not in node.workers and node.workers, "the next one starts")
        match how:
            case "the client goes":
                await websocket.close()
            case "the node drains":
                node.drain()
                assert await closed(websocket) == (1012, "node shuts down")
            case _:
                node.send(connection, "ws.close", {"code": 4000})
                assert await closed(websocket) == (4000, "")
        await until(lambda: not node.connections, "the connection has ended")
        (tmp_path / "block").unlink()


@pytest.mark.parametrize("target", [in_vain, reads_when_told])
async def test_what_a_client_sends_is_bounded_and_held_until_its_join_is_read(
    node: Node, tmp_path: Path, front_end: str, target: Callable[..., Any]
) -> None:
    """None is lost and none doubled, whether the first process or the next one reads them."""
    async with (
        room(node, target, str(tmp_path), 1, front_end=front_end) as url,
        client(url, max_queue=None) as websocket,
    ):
        count = await send_until_blocked(websocket, b"x" * 60_000)
        [connection] = node.clients.connections.values()
        assert connection.message_count < 10
        (tmp_path / "end-0").touch()
        await introduced(websocket)
        for _ in range(count):
            assert len(await received(websocket)) == 60_000


async def test_a_process_that_never_reads_a_join_is_told_the_messages_all_the_same(
    node: Node, front_end: str
) -> None:
    async with (
        room(node, reads_messages_alone, front_end=front_end) as url,
        client(url) as websocket,
    ):
        for number in range(12):
            await websocket.send(f"{number:030000}")
            assert await received(websocket) == f"{number:030000}"


async def test_once_its_join_is_read_a_client_takes_the_short_way(node: Node) -> None:
    async with room(node, introduce) as url, client(url) as websocket:
        await introduced(websocket)
        await websocket.send("one")
        await received(websocket)
        [connection] = node.clients.connections.values()
        assert connection._session.head  # type: ignore[attr-defined]
        assert connection._session._claim is None  # type: ignore[attr-defined]


# Many at once


async def visit(url: str, name: str) -> None:
    """Come, be heard, and go."""
    async with client(url) as websocket:
        await websocket.send(name)
        assert await received(websocket) == name


async def test_300_visits_at_the_edge_of_a_room_s_end_are_all_heard(node: Node) -> None:
    """Five rooms end by themselves with their last client, five are cancelled then."""

    def answer(request: Any) -> RelayResponse:
        number = int(request.url.path[1:])
        if number % 2:
            return RelayResponse(target=closes_itself, name=f"{number}")
        return RelayResponse(target=echo, name=f"{number}", end_when_empty=0)

    async def visits(url: str, number: int) -> None:
        for count in range(10):
            await visit(f"{url}/{(number + count) % 10}", f"{number} {count}")

    app = WebSocketRelay(endpoint(answer), node=node)
    async with serving(app) as url, asyncio.timeout(60):
        await asyncio.gather(*(visits(url, number) for number in range(30)))


async def test_150_clients_who_come_again_as_their_room_closes_all_get_in(node: Node) -> None:
    async def comes_again(url: str) -> None:
        async with client(url) as websocket:
            inside.append(websocket)
            assert await closed(websocket) == (1000, "target process exited")
        await visit(url, "again")

    inside: list[ClientConnection] = []
    async with (
        room(node, closes_itself) as url,
        asyncio.timeout(60),
        asyncio.TaskGroup() as clients,
    ):
        for _ in range(150):
            clients.create_task(comes_again(url))
        await until(lambda: len(inside) == 150)
        await inside[0].send("close")
