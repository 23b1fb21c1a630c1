"""Clients of one node whose process runs on another."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from pathlib import Path
from typing import Any

import pytest
import rooms
from guests import front, lives_for_its_clients, move_and_return, the_client
from pair import Cluster, cluster
from support import (
    Journal,
    client,
    closed,
    not_reading,
    processes,
    reading,
    received,
    room,
    say,
    send_until_blocked,
    until,
)
from websockets.exceptions import InvalidStatus

from wsrelay import PID
from wsrelay.cluster import link
from wsrelay.node import NoTarget, describe
from wsrelay.session import machine
from wsrelay.session.outbox import Overflow

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing"]

TARGETS = (room(rooms.echo), room(rooms.record))


HOSTS = (processes(targets=TARGETS), processes(name="small", mailbox=20_000))
CLUSTER = functools.partial(cluster, *HOSTS, names=("a", "b", "c"))


@pytest.fixture(params=["direct", "uvicorn"])
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def recording(nodes: Cluster, journals: dict[str, Journal], name: str, host: str = "") -> PID:
    """Start a process on that node that writes its journal."""
    return nodes[name].spawn(room(rooms.record), host or None, str(journals[name].path))


def told(journal: Journal) -> list[str]:
    """What the clients have said, but for orders."""
    data = [line["payload"]["data"] for line in journal.lines("ws.message")]
    return [one for one in data if not one.startswith("!")]


async def test_a_client_talks_with_a_process_of_another_node(
    nodes: Cluster, front_end: str
) -> None:
    there = nodes["b"].spawn(room(rooms.echo))
    async with front(nodes["a"], there, front_end) as url, client(url, max_size=None) as websocket:
        for data in ("", "text", "é" * 300, b"", b"bytes", "x" * 70_000, bytes(3_000_000)):
            await websocket.send(data)
            assert await received(websocket) == data


async def test_the_process_sees_the_same_as_of_a_client_of_its_own_node(
    nodes: Cluster, journals: dict[str, Journal], front_end: str
) -> None:
    seen = {}
    for name, journal in journals.items():
        pid = recording(nodes, journals, name)
        options: dict[str, Any] = {"metadata": {"user": "ann"}, "heartbeat_interval": "100ms"}
        async with front(nodes["a"], pid, front_end, **options) as url:
            async with client(url) as websocket:
                await websocket.send("one")
                await journal.line("ws.heartbeat", 2)
                await websocket.send(b"two")
                await journal.line("ws.message", 2)
                me = the_client(nodes["a"])
                await websocket.close(4000, "bye")
            await journal.line("ws.leave")
        lines = journal.lines("ws.join", "ws.message", "ws.leave")
        assert {line["sender"] for line in journal.lines()} == {me}
        for line in lines:
            assert line["payload"].pop("client_pid") == line.pop("sender")
        seen[name] = lines
        beats = [line["payload"]["message_count"] for line in journal.lines("ws.heartbeat")]
        assert beats[:2] == [1, 1]
    assert seen["a"] == seen["b"] == seen["c"]
    assert seen["b"][0]["payload"] == {"metadata": {"user": "ann"}}


async def test_an_operator_sees_the_client_on_both_nodes(nodes: Cluster) -> None:
    there = nodes["b"].spawn(room(rooms.echo))
    metadata = {"user": {"name": "ann"}}
    async with front(nodes["a"], there, metadata=metadata) as url, client(f"{url}/x") as websocket:
        await websocket.send("hello")
        await received(websocket)
        [here] = describe(nodes["a"]).connections
        [guest] = describe(nodes["b"]).connections
        [process] = describe(nodes["b"]).processes
    for one in (here, guest):
        assert (one.target, one.path, one.user, one.messages) == (there, "/x", "ann", 1)
    assert (guest.pid, guest.client) == (here.pid, here.client)
    assert process.connections == 1
    assert here.pid not in nodes["b"].connections


async def test_a_target_that_is_not_there_refuses_the_upgrade(nodes: Cluster) -> None:
    ended = nodes["b"].spawn(rooms.return_at_once)
    await until(lambda: not nodes["b"].workers, "it has ended")
    for pid in (ended, "{b@processes|none}", "{nowhere@processes|1}"):
        async with front(nodes["a"], pid) as url:
            with pytest.raises(InvalidStatus) as refused:
                await client(url).__aenter__()
        assert refused.value.response.status_code == 503
        assert "Retry-After" not in refused.value.response.headers


async def test_a_target_that_is_too_busy_for_more_clients_refuses_with_retry_after(
    nodes: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "read"
    busy = nodes["b"].spawn(room(rooms.read_on), "small", str(path))
    metadata = {"x": "x" * 60_000}
    async with front(nodes["a"], busy, metadata=metadata) as url, contextlib.AsyncExitStack() as on:
        process = nodes["b"].engine.processes[busy]
        while process.pipe.visits <= process.options.mailbox // 8:
            await on.enter_async_context(client(url))
            await nodes.quiet()
        with pytest.raises(InvalidStatus) as refused:
            await client(url).__aenter__()
        assert refused.value.response.status_code == 503
        assert "Retry-After" in refused.value.response.headers
        path.touch()


async def test_a_target_that_starts_is_waited_for(nodes: Cluster) -> None:
    there = nodes["b"].spawn(room(rooms.echo))
    assert nodes["b"].workers[there] is None
    async with front(nodes["a"], there) as url, client(url) as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "hello"


async def test_a_process_that_does_not_read_stops_its_clients_and_nobody_else_s(
    nodes: Cluster, tmp_path: Path, front_end: str
) -> None:
    path = tmp_path / "read"
    stuck, other = nodes["b"].spawn(room(rooms.read_on), None, str(path)), None
    other = nodes["b"].spawn(room(rooms.echo))
    data = bytes(20_000)
    config = {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.3} if front_end == "direct" else {}
    async with (
        front(nodes["a"], stuck, front_end, config) as url,
        front(nodes["a"], other, front_end) as beside,
        client(url, write_limit=100_000) as one,
        client(url, write_limit=100_000) as two,
        client(beside) as quick,
    ):
        counts = await asyncio.gather(send_until_blocked(one, data), send_until_blocked(two, data))
        process = nodes["b"].engine.processes[stuck]
        assert process.pipe.backlog < 1_000_000
        await quick.send("not slowed")
        assert await received(quick) == "not slowed"
        assert {connection.lags for connection in nodes["a"].clients.connections.values()} == {
            True,
            False,
        }
        path.touch()
        for websocket, count in ((one, counts[0]), (two, counts[1])):
            for _ in range(count):
                assert await received(websocket) == data
            await websocket.send("goes on")


async def test_heartbeats_do_not_fill_a_process_that_does_not_read(
    nodes: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "read"
    stuck = nodes["b"].spawn(room(rooms.read_on), None, str(path))
    async with (
        front(nodes["a"], stuck) as url,
        front(nodes["c"], stuck, heartbeat_interval="10ms") as beating,
        client(url, write_limit=100_000) as talker,
    ):
        count = await send_until_blocked(talker, bytes(20_000))
        async with client(beating):
            await until(lambda: len(nodes["b"].clients.guests) == 2)
            process, seen = nodes["b"].engine.processes[stuck], nodes.ways["c", "b"].seen
            queued, beats = process.pipe.queued, seen.count("GuestBeatFrame")
            await until(lambda: seen.count("GuestBeatFrame") > beats + 5, "they are sent")
            await nodes.quiet()
            assert process.pipe.queued == queued
            path.touch()
            for _ in range(count):
                await received(talker)


async def test_a_way_that_is_full_stops_the_clients_that_use_it(nodes: Cluster) -> None:
    """So what waits for a node that cannot be reached is bounded, however many rooms it has."""
    there = [nodes["b"].spawn(room(rooms.echo)) for _ in "12345678"]
    way = nodes.ways["a", "b"]
    async with contextlib.AsyncExitStack() as stack:
        websockets = []
        for pid in there:
            url = await stack.enter_async_context(front(nodes["a"], pid))
            websockets.append(await stack.enter_async_context(client(url, write_limit=100_000)))
        await nodes.quiet()
        way.stop()
        data = bytes(20_000)
        counts = await asyncio.gather(*(send_until_blocked(one, data) for one in websockets))
        assert way.backlog < 500_000
        way.go()
        for websocket, count in zip(websockets, counts, strict=True):
            for _ in range(count):
                assert await received(websocket) == data


async def test_a_client_that_pauses_its_sender_pauses_one_of_another_node(nodes: Cluster) -> None:
    there = nodes["b"].spawn(room(rooms.record), None, "/dev/null")
    options = {"outbox_limit": 1_000_000, "outbox_overflow": Overflow.PAUSE}
    async with (
        front(nodes["a"], there, relay=options) as url,
        client(url, max_size=None) as websocket,
    ):
        not_reading(websocket)
        await say(websocket, "flood", 300, 100_000)
        pipe = nodes["b"].engine.processes[there].incarnation.pipe
        await until(lambda: pipe._holds, "the process waits")
        reading(websocket)
        for _ in range(300):
            assert len(await received(websocket)) == 100_000
        assert await received(websocket) == "flooded"


# Transfers


async def test_a_transfer_moves_a_client_in_every_direction_under_traffic(
    nodes: Cluster, journals: dict[str, Journal], front_end: str
) -> None:
    """From its own node to another, to a third, back to its own, and so on."""
    pids = {name: recording(nodes, journals, name) for name in journals}
    route = "bcacbabc"
    count = 0
    async with front(nodes["a"], pids["a"], front_end) as url, client(url) as websocket:
        me = the_client(nodes["a"])

        async def send(more: int) -> None:
            nonlocal count
            for _ in range(more):
                count += 1
                await websocket.send(str(count))

        await journals["a"].line("ws.join")
        for number, name in enumerate(route):
            joins = len(journals[name].lines("ws.join"))
            await send(20)
            sender = "bca"[number % 3]  # any process may, not only the one that has the client
            order = ["send", me, "ws.control", {"target_pid": pids[name]}]
            nodes["c"].send(pids[sender], "do", [order[0], order[1:]])
            await send(20)
            await journals[name].line("ws.join", joins + 1)
        await send(20)
        await until(
            lambda: sum(len(told(journal)) for journal in journals.values()) >= count, "all is told"
        )
    await journals["c"].line("ws.leave", route.count("c"))
    visits = [visit for name in journals for visit in visits_of(journals[name])]
    assert sorted(number for visit in visits for number in visit) == list(range(1, count + 1))
    for visit in visits:
        assert visit == list(range(visit[0], visit[0] + len(visit))) if visit else True
    assert len(visits) == 1 + len(route)


def visits_of(journal: Journal) -> list[list[int]]:
    """What a client has said between each join and the leave that belongs to it."""
    visits: list[list[int]] = []
    inside = False
    for line in journal.lines("ws.join", "ws.message", "ws.leave"):
        match line["topic"]:
            case "ws.join":
                assert not inside
                inside = True
                visits.append([])
            case "ws.leave":
                assert inside
                inside = False
            case _:
                assert inside
                visits[-1].append(int(line["payload"]["data"]))
    assert not inside
    return visits


async def test_a_transfer_to_a_process_that_is_not_alive_changes_nothing(
    nodes: Cluster, journals: dict[str, Journal], front_end: str
) -> None:
    for name in ("a", "b"):
        pid = recording(nodes, journals, name)
        async with front(nodes["a"], pid, front_end) as url, client(url) as websocket:
            for number, to in enumerate(("{c@processes|none}", "{nowhere@processes|1}")):
                order = {"target_pid": to, "metadata": {"new": True}}
                await say(websocket, "send", None, "ws.control", order)
                error = await journals[name].line("ws.error", number + 1)
                assert to in error["payload"]["error"]
                assert "not alive" in error["payload"]["error"]
            await websocket.send("goes on")
            await until(lambda: told(journals[name]) == ["goes on"])  # noqa: B023 - in this turn
        await journals[name].line("ws.leave")
        assert journals[name].lines("ws.leave")[0]["payload"]["metadata"] is None


async def test_what_goes_along_with_a_transfer_takes_effect_there(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    old, new = recording(nodes, journals, "a"), recording(nodes, journals, "b")
    async with front(nodes["a"], old, cancel_on_leave=True) as url, client(url) as websocket:
        order = {
            "target_pid": new,
            "metadata": {"user": "ann"},
            "message_topic": "chat",
            "heartbeat_interval": "50ms",
            "cancel_on_leave": True,
        }
        await say(websocket, "send", None, "ws.control", order)
        await until(lambda: old not in nodes["a"].workers, "it lived for its client")
        await websocket.send("hello")
        chat = await journals["b"].line("chat")
        beat = await journals["b"].line("ws.heartbeat")
        assert chat["payload"]["metadata"] == beat["payload"]["metadata"] == {"user": "ann"}
        assert beat["payload"]["message_count"] >= 1
    await until(lambda: new not in nodes["b"].workers, "so did this one")
    assert journals["b"].topics()[0] == "ws.join"
    assert journals["b"].topics()[-1] == "ws.leave"


async def test_metadata_that_is_replaced_comes_with_the_next_message(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    pid = recording(nodes, journals, "b")
    async with front(nodes["a"], pid) as url, client(url) as websocket:
        await say(websocket, "send", None, "ws.control", {"metadata": {"new": 1}})
        me = nodes["a"].connection(the_client(nodes["a"]))
        assert me is not None
        await until(lambda: me._session.metadata == {"new": 1})  # type: ignore[attr-defined]
        await websocket.send("hello")
        assert (await journals["b"].line("ws.message", 2))["payload"]["metadata"] == {"new": 1}


@pytest.mark.parametrize(("lobby", "hall"), ["ab", "ba", "bc"])
async def test_a_process_may_return_as_soon_as_it_has_moved_its_client(
    nodes: Cluster, journals: dict[str, Journal], lobby: str, hall: str
) -> None:
    there = recording(nodes, journals, hall)
    first = nodes[lobby].spawn(move_and_return, None, there)
    way = nodes.ways.get(("a", hall))
    visits = 0
    if way is not None:  # else there is nobody to ask
        visits = way.seen.count("VisitFrame")
        way.stop()
    async with front(nodes["a"], first) as url, client(url) as websocket:
        await websocket.send("one")
        await until(lambda: first not in nodes[lobby].workers, "it has returned")
        if way is not None:
            await until(lambda: way.seen.count("VisitFrame") > visits, "it is asked for")
            way.go()
        await journals[hall].line("ws.join")
        await websocket.send("two")
        await until(lambda: told(journals[hall])[-1:] == ["two"])


# Ends


@pytest.mark.parametrize(
    ("order", "close"),
    [
        (["exit", 0], (1000, "target process exited")),
        (["raise"], (1011, "target process crashed")),
        (["kill", "SIGKILL"], (1011, "target process killed (SIGKILL)")),
    ],
)
async def test_the_end_of_a_process_closes_its_clients_elsewhere_as_those_here(
    nodes: Cluster, journals: dict[str, Journal], order: list[Any], close: tuple[int, str]
) -> None:
    pid = recording(nodes, journals, "b")
    async with front(nodes["a"], pid) as url, client(url) as websocket:
        await journals["b"].line("ws.join")
        await say(websocket, *order)
        assert await closed(websocket) == close


async def test_all_that_a_process_sent_before_its_end_arrives_before_the_close_frame(
    nodes: Cluster,
) -> None:
    pid = nodes["b"].spawn(rooms.burst_and_return)
    async with front(nodes["a"], pid) as url, client(url) as websocket:
        await websocket.send("300")
        assert [await received(websocket) for _ in range(300)] == [str(n) for n in range(300)]
        assert await closed(websocket) == (1000, "target process exited")


async def test_a_process_that_returns_without_having_read_the_join_closes_with_1013(
    nodes: Cluster, tmp_path: Path
) -> None:
    pid = nodes["b"].spawn(rooms.return_on, None, str(tmp_path / "now"))
    async with front(nodes["a"], pid) as url, client(url) as websocket:
        await until(lambda: nodes["b"].clients.guests)
        (tmp_path / "now").touch()
        assert await closed(websocket) == (1013, "target process exited")


async def test_a_process_that_an_operator_cancels_closes_with_1012(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    pid = recording(nodes, journals, "b")
    async with front(nodes["a"], pid) as url, client(url) as websocket:
        await journals["b"].line("ws.join")
        nodes["a"].cancel(pid, restarts=True)
        assert await closed(websocket) == (1012, "target process restarts")


async def test_guests_and_those_on_their_way_keep_a_process_that_lives_for_its_clients(
    nodes: Cluster,
) -> None:
    there = nodes["b"].spawn(lives_for_its_clients)
    one = await nodes["a"].arrive(there)
    two = await nodes["a"].arrive(there)
    process = nodes["b"].engine.processes[there]
    one.over()
    await nodes.quiet()
    assert process.arrivals == 1
    assert process._empty is None
    async with front(nodes["a"], there) as url, client(url) as websocket:
        await received(websocket)
        two.over()
        await nodes.quiet()
        await websocket.send("hello")
        assert await received(websocket) == "hello"
    await until(lambda: there not in nodes["b"].workers, "its last client has left")


async def test_a_client_whose_process_elsewhere_never_read_its_join_is_joined_to_the_next_one(
    nodes: Cluster, tmp_path: Path, front_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes["a"]
    first = nodes["b"].spawn(rooms.return_on, None, str(tmp_path / "now"))
    second = nodes["c"].spawn(room(rooms.echo))
    targets = [first, second]
    monkeypatch.setattr(node, "find_target", lambda _: node.arrive(targets.pop(0)))
    spec: dict[str, Any] = {"target": room(rooms.echo), "name": "blue"}
    async with front(node, None, front_end, **spec) as url, client(url) as websocket:
        await websocket.send("one")
        await websocket.send("two")
        await until(lambda: nodes["b"].clients.guests)
        (tmp_path / "now").touch()
        assert [await received(websocket) for _ in "12"] == ["one", "two"]
        assert not targets
        connection = node.clients.connections[the_client(node)]
        await websocket.send("three")
        assert await received(websocket) == "three"
        await until(lambda: connection._session._claim is None, "the receipt")  # type: ignore[attr-defined]


async def test_an_upgrade_that_is_given_up_leaves_nothing_behind(
    nodes: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        f"import time, pathlib\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists():\n"
        "    time.sleep(0.002)\ndef run():\n    pass\n"
    )
    there = nodes["b"].spawn(f"{script}:run")
    asking = asyncio.create_task(nodes["a"].arrive(there))
    await until(lambda: nodes["b"].engine.processes[there].start_awaited)
    asking.cancel()
    await until(lambda: not nodes["b"].engine.processes[there].arrivals, "it is not kept")
    (tmp_path / "go").touch()


async def test_a_process_of_another_node_cannot_be_a_target_as_a_connection(
    nodes: Cluster,
) -> None:
    echo = nodes["a"].spawn(room(rooms.echo))
    async with front(nodes["a"], echo) as url, client(url):
        await until(lambda: nodes["a"].connections)
        with pytest.raises(NoTarget, match="is a connection"):
            await nodes["b"].arrive(the_client(nodes["a"]))


async def test_an_upgrade_to_a_connection_of_any_node_is_a_mistake_of_the_application(
    nodes: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    echo = nodes["a"].spawn(room(rooms.echo))
    async with front(nodes["a"], echo) as url, client(url):
        await until(lambda: nodes["a"].connections)
        connection = the_client(nodes["a"])
        for name in "ab":
            async with front(nodes[name], connection) as there:
                with pytest.raises(InvalidStatus) as refusal:
                    async with client(there):
                        pass
            assert refusal.value.response.status_code == 500
            assert f"target_pid {connection} is a connection; a target is a worker" in caplog.text
            caplog.clear()


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
@pytest.mark.parametrize("text", ["a", "\u20ac"])
async def test_a_client_s_message_that_no_process_can_be_sent_closes_that_client_alone(
    nodes: Cluster, front_end: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (link, machine):
        monkeypatch.setattr(module, "LARGEST", 100_000)
    there = nodes["b"].spawn(room(rooms.echo))
    async with (
        front(nodes["a"], there, front_end, {"ws_max_size": 1_000_000}) as url,
        client(url) as large,
        client(url) as other,
    ):
        most = text * (99_000 // len(text.encode()))
        await large.send(most)
        assert await received(large) == most
        await large.send(text * (100_000 // len(text.encode()) + 1))
        code, reason = await closed(large)
        assert code == 1009
        assert "100000" in reason
        await other.send("goes on")
        assert await received(other) == "goes on"
        assert nodes.ways["a", "b"].ended is None
