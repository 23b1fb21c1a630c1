"""Clients of one node whose process runs on another, when a node goes or writes garbage."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rooms
from guests import front, the_client
from pair import Cluster, cluster
from support import (
    Journal,
    client,
    closed,
    not_reading,
    processes,
    received,
    room,
    say,
    until,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus

from wsrelay import PID, wire
from wsrelay.cluster.frames import (
    CreditFrame,
    GuestAttachFrame,
    GuestJoinFrame,
    GuestLeaveFrame,
    GuestMessageFrame,
    PeerFrame,
    ReleaseFrame,
    VisitFrame,
)
from wsrelay.cluster.framing import pack
from wsrelay.node import Arrival
from wsrelay.peers.processes import Processes

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing"]

GONE = "client's node is gone"


TARGETS = (room(rooms.echo), room(rooms.record))
CLUSTER = functools.partial(cluster, processes(targets=TARGETS), names=("a", "b", "c"))


def recording(nodes: Cluster, journals: dict[str, Journal], name: str) -> PID:
    return nodes[name].spawn(room(rooms.record), None, str(journals[name].path))


async def test_clients_whose_node_is_gone_leave_with_1006_each_once(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    there = recording(nodes, journals, "b")
    mine = nodes["b"].spawn(room(rooms.echo))
    async with (
        front(nodes["a"], there) as url,
        front(nodes["b"], there) as beside,
        client(url) as one,
        client(url) as two,
        client(beside) as other,
    ):
        await journals["b"].line("ws.join", 3)
        guests = set(nodes["b"].clients.guests)
        assert len(guests) == 2
        nodes.lose("a")
        await journals["b"].line("ws.leave", 2)
        for websocket in (one, two):
            await websocket.send("nobody hears this")
        await other.send("last")
        await until(lambda: journals["b"].lines("ws.message"))
    await journals["b"].line("ws.leave", 3)
    *gone, local = journals["b"].lines("ws.leave")
    assert {line["sender"] for line in gone} == guests
    assert {(line["payload"]["code"], line["payload"]["reason"]) for line in gone} == {(1006, GONE)}
    assert local["payload"]["code"] == 1000
    [message] = journals["b"].lines("ws.message")
    assert message["payload"]["data"] == "last"
    assert mine in nodes["b"].workers


async def test_clients_whose_target_s_node_is_gone_are_closed_with_1012(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    gone, stays = recording(nodes, journals, "b"), nodes["c"].spawn(room(rooms.echo))
    async with (
        front(nodes["a"], gone) as url,
        front(nodes["a"], stays) as beside,
        client(url) as one,
        client(beside) as other,
    ):
        await journals["b"].line("ws.join")
        nodes.lose("b")
        assert await closed(one) == (1012, "target's node is gone")
        await other.send("goes on")
        assert await received(other) == "goes on"


async def test_a_client_whose_join_has_not_left_for_a_lost_node_is_joined_to_the_next_process(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, way = nodes["a"], nodes.ways["a", "b"]
    targets = [nodes["b"].spawn(room(rooms.echo)), nodes["c"].spawn(room(rooms.echo))]

    async def find(_: Any) -> Arrival:
        arrival = await node.arrive(targets.pop(0))
        way.stop()
        return arrival

    monkeypatch.setattr(node, "find_target", find)
    spec: dict[str, Any] = {"target": room(rooms.echo), "name": "blue"}
    async with front(node, None, **spec) as url, client(url) as websocket:
        await websocket.send("one")
        await until(lambda: "GuestMessageFrame" in way.seen)
        nodes.lose("b")
        assert await received(websocket) == "one"


async def test_a_client_whose_lost_process_may_have_read_it_is_closed_and_read_by_no_other(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = nodes["a"]
    first = nodes["b"].spawn(rooms.return_on, None, str(tmp_path / "never"))
    targets = [first, nodes["c"].spawn(room(rooms.echo))]
    monkeypatch.setattr(node, "find_target", lambda _: node.arrive(targets.pop(0)))
    spec: dict[str, Any] = {"target": room(rooms.echo), "name": "blue"}
    async with front(node, None, **spec) as url, client(url) as websocket:
        await websocket.send("one")
        await until(lambda: nodes["b"].clients.guests)
        nodes.lose("b")
        assert await closed(websocket) == (1012, "target's node is gone")
    assert len(targets) == 1


async def test_a_node_that_is_lost_and_comes_again_serves_new_clients(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    for _ in "12":
        there = recording(nodes, journals, "b")
        async with front(nodes["a"], there) as url, client(url) as websocket:
            await websocket.send("hello")
            await until(lambda: journals["b"].lines("ws.message"))
            nodes.lose("b")
            assert (await closed(websocket))[0] == 1012
        nodes.meet_again("b")
        await until(lambda: not nodes["b"].clients.guests, "its guests have left too")


async def test_an_upgrade_and_a_transfer_end_with_the_node_that_was_asked(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    there, here = nodes["b"].spawn(room(rooms.echo)), recording(nodes, journals, "a")
    async with (
        front(nodes["a"], there) as url,
        front(nodes["a"], here) as beside,
        client(beside) as websocket,
    ):
        await journals["a"].line("ws.join")
        way = nodes.ways["a", "b"]
        way.stop()
        asking = asyncio.create_task(client(url).__aenter__())
        await say(websocket, "send", None, "ws.control", {"target_pid": there})
        await until(lambda: way.seen.count("VisitFrame") >= 2, "it is asked for both")
        await websocket.send("one")
        nodes.lose("b")
        with pytest.raises(InvalidStatus) as refused:
            await asking
        assert refused.value.response.status_code == 503
        error = await journals["a"].line("ws.error")
        assert "node b is gone" in error["payload"]["error"]
        await websocket.send("two")
        await journals["a"].line("ws.message", 3)
    told = [line["payload"]["data"] for line in journals["a"].lines("ws.message")]
    assert told[1:] == ["one", "two"]


async def test_while_a_transfer_is_asked_for_pings_are_answered_and_messages_wait(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    there, here = recording(nodes, journals, "b"), recording(nodes, journals, "a")
    config = {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1}
    async with front(nodes["a"], here, "direct", config) as url, client(url) as websocket:
        await journals["a"].line("ws.join")
        way = nodes.ways["a", "b"]
        way.stop()
        await say(websocket, "send", None, "ws.control", {"target_pid": there})
        await until(lambda: "VisitFrame" in way.seen, "it is asked")
        await websocket.send("0")
        await (await websocket.ping())
        for number in range(1, 5):
            await websocket.send(str(number))
        await asyncio.sleep(0.3)  # longer than any ping may stay unanswered
        assert len(journals["a"].lines("ws.message")) == 1
        way.go()
        await journals["b"].line("ws.message", 5)
    told = [line["payload"]["data"] for line in journals["b"].lines("ws.message")]
    assert told == list("01234")


async def test_of_more_orders_than_may_wait_for_an_answer_the_senders_are_told(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    """What waits for the answer of another node is bounded."""
    there, here = nodes["b"].spawn(room(rooms.echo)), recording(nodes, journals, "a")
    async with front(nodes["a"], here) as url, client(url):
        await journals["a"].line("ws.join")
        way, me = nodes.ways["a", "b"], the_client(nodes["a"])
        way.stop()
        for _ in range(20):
            order = [None, "ws.control", {"target_pid": there}]
            nodes["a"].send(here, "do", ["send", [me, *order[1:]]])
        await journals["a"].line("ws.error", 3)
        assert "16 of them wait already" in journals["a"].lines("ws.error")[0]["payload"]["error"]
        way.go()
        await journals["a"].line("ws.leave")
    assert len(journals["a"].lines("ws.error")) == 3


# Shutdowns


async def test_a_node_that_shuts_down_closes_its_guests_with_1012_and_hears_them_out(
    journals: dict[str, Journal],
) -> None:
    async with cluster(processes(), names=("a", "b")) as nodes:
        there = recording(nodes, journals, "b")
        async with front(nodes["a"], there) as url, client(url) as one, client(url) as two:
            await journals["b"].line("ws.join", 2)
            await one.send("last")
            closing = asyncio.create_task(nodes["b"].aclose(spread=0.1))
            for websocket in (one, two):
                assert await closed(websocket) == (1012, "node shuts down")
            await closing
            assert len(journals["b"].lines("ws.message")) == 1
            leaves = [line["payload"]["code"] for line in journals["b"].lines("ws.leave")]
            assert leaves == [1012, 1012]
            nodes.lose("b")


async def test_clients_of_a_node_that_shuts_down_leave_their_processes_elsewhere_with_1012(
    journals: dict[str, Journal],
) -> None:
    async with cluster(processes(), names=("a", "b")) as nodes:
        there = recording(nodes, journals, "b")
        async with front(nodes["a"], there) as url, client(url) as one, client(url):
            await journals["b"].line("ws.join", 2)
            await one.send("last")
            closing = asyncio.create_task(nodes["a"].aclose(spread=0.1))
            assert await closed(one) == (1012, "node shuts down")
            await closing
        nodes.lose("a")
        await journals["b"].line("ws.leave", 2)
        leaves = [line["payload"]["code"] for line in journals["b"].lines("ws.leave")]
        assert leaves == [1012, 1012]
        assert len(journals["b"].lines("ws.message")) == 1


async def test_a_node_waits_for_its_clients_to_leave_before_it_leaves_its_cluster(
    journals: dict[str, Journal],
) -> None:
    """One that does not read has the linger to do so."""
    async with cluster(processes(), names=("a", "b")) as nodes:
        there = recording(nodes, journals, "b")
        options = {"linger": 0.2, "outbox_limit": 64_000_000}
        async with front(nodes["a"], there, relay=options) as url, client(url) as slow:
            await journals["b"].line("ws.join")
            not_reading(slow)
            await say(slow, "flood", 150, 100_000)
            connection = nodes["a"].connection(the_client(nodes["a"]))
            assert connection is not None
            await until(lambda: connection.describe().outbox, "it is slow")
            await nodes["a"].aclose()
            [leave] = journals["b"].lines("ws.leave")
            assert leave["payload"]["code"] == 1012
        nodes.lose("a")


async def test_a_node_that_shuts_down_takes_no_guests(journals: dict[str, Journal]) -> None:
    async with cluster(processes(), names=("a", "b")) as nodes:
        there = recording(nodes, journals, "b")
        async with front(nodes["a"], there) as url, client(url):
            await journals["b"].line("ws.join")
            way = nodes.ways["b", "a"]
            way.stop()
            late = client(url)
            asking = asyncio.create_task(late.__aenter__())
            await until(lambda: way.seen.count("VisitedFrame") == 2, "it is allowed to come")
            nodes["b"].drain(spread=60)
            way.go()
            assert await closed(await asking) == (1012, "node shuts down")
            await late.__aexit__(None, None, None)
            with pytest.raises(InvalidStatus) as refused:
                await client(url).__aenter__()
            assert refused.value.response.status_code == 503
            assert "Retry-After" in refused.value.response.headers


# Garbage


GUEST = "{a@gateway|x}"
HELLO = wire.pack(wire.RelayFrame("ws.message", GUEST, {"type": "text", "data": "x"}))


def join(ref: int, who: str = GUEST, metadata: bytes = b"\xc0") -> PeerFrame:
    return GuestJoinFrame(ref, who, metadata, False, None, "/", None, None)


GARBAGE: dict[str, Callable[[PID], list[PeerFrame]]] = {
    "a visit to a process of a third node": lambda _: [VisitFrame(9, 9, "{c@x|1}", True)],
    "a visit to no PID": lambda _: [VisitFrame(9, 9, "nobody", True)],
    "one number for two": lambda _: [
        VisitFrame(9, 9, "{b@x|1}", True),
        VisitFrame(9, 10, "{b@x|2}", True),
    ],
    "a join without a visit": lambda _: [join(9)],
    "a join for somebody else's client": lambda _: [join(1, "{c@gateway|1}")],
    "a join before the answer": lambda pid: [VisitFrame(2, 2, pid, True), join(2)],
    "a second join": lambda _: [join(1), join(1)],
    "metadata that is a list": lambda _: [join(1, metadata=b"\x90")],
    "metadata that is nothing": lambda _: [join(1, metadata=b"\xc1")],
    "metadata that is too much": lambda _: [join(1, metadata=b"\x93" * 100_000)],
    "a message without a join": lambda _: [GuestMessageFrame(1, HELLO)],
    "a message without a visit": lambda _: [GuestMessageFrame(9, HELLO)],
    "a message that is no message": lambda _: [join(1), GuestMessageFrame(1, b"\0\0\0\1\x90")],
    "a message that is empty": lambda _: [join(1), GuestMessageFrame(1, b"")],
    "a message that is another frame": lambda _: [
        join(1),
        GuestMessageFrame(1, wire.pack(wire.DeliverFrame("x", GUEST, b"\xc0"))),
    ],
    "a message with a wrong length": lambda _: [join(1), GuestMessageFrame(1, b"\0" + HELLO)],
    "two messages in one": lambda _: [join(1), GuestMessageFrame(1, HELLO + HELLO)],
    "text that is no UTF-8": lambda _: [
        join(1),
        GuestMessageFrame(1, HELLO[:-1] + b"\xff"),
    ],
    "new metadata that is no map": lambda _: [join(1), GuestAttachFrame(1, GUEST, b"\x01")],
    "a leave of somebody else's client": lambda _: [GuestLeaveFrame(1, "{c@x|1}", 1000, "")],
    "a release with clients": lambda _: [join(1), ReleaseFrame(1)],
    "a release of nothing": lambda _: [ReleaseFrame(9)],
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_of_a_client_s_node_ends_its_link_and_harms_nobody(
    nodes: Cluster, journals: dict[str, Journal], name: str
) -> None:
    there = recording(nodes, journals, "b")
    async with front(nodes["c"], there) as url, client(url) as other:
        await journals["b"].line("ws.join")
        for frame in [VisitFrame(1, 1, there, True), *GARBAGE[name](there)]:
            nodes.ways["a", "b"].write(pack(frame))
            if isinstance(frame, VisitFrame) and frame.ref == 1:
                elsewhere = nodes["b"].engine.elsewhere
                assert isinstance(elsewhere, Processes)
                visits = elsewhere.guests._at
                await until(lambda: len(visits.get(there, ())) == 2)  # noqa: B023 - in this turn
        await until(lambda: "a" not in nodes.exchange("b").neighbours, "the link is ended")
        await other.send("goes on")
        await journals["b"].line("ws.message")
        [guest] = nodes["b"].clients.guests
        assert guest.node == "c"
    joins, leaves = (journals["b"].lines(topic) for topic in ("ws.join", "ws.leave"))
    await until(lambda: len(journals["b"].lines("ws.leave")) == len(joins))
    del leaves


async def test_garbage_of_a_target_s_node_closes_the_clients_of_that_node(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    there = recording(nodes, journals, "b")
    async with front(nodes["a"], there) as url, client(url) as websocket:
        await journals["b"].line("ws.join")
        elsewhere = nodes["a"].engine.elsewhere
        assert isinstance(elsewhere, Processes)
        [ref] = elsewhere.targets._numbered
        nodes.ways["b", "a"].write(pack(CreditFrame(ref, 2**40)))
        assert await closed(websocket) == (1012, "target's node is gone")


async def test_frames_of_random_bytes_never_harm_a_node(nodes: Cluster) -> None:
    """Each kind with fields of any type: it is refused, or has no effect."""
    choice = random.Random(1)  # noqa: S311 - it is to be the same each time
    values: list[Any] = [0, 1, -1, 2**40, "", GUEST, "{b@x|1}", b"", b"\xc0", None, True, 1.5, []]
    there = nodes["b"].spawn(room(rooms.echo))
    for tag in (*range(50, 57), *range(60, 65)):
        for _ in range(12):
            fields = [choice.choice(values) for _ in range(choice.randint(0, 9))]
            nodes.ways["a", "b"].write(msgspec.msgpack.encode([tag, *fields]))
            await nodes.quiet()
            if "a" not in nodes.exchange("b").neighbours:
                nodes.lose("a")
                nodes.meet_again("a")
    async with front(nodes["c"], there) as url, client(url) as websocket:
        await websocket.send("goes on")
        assert await received(websocket) == "goes on"


# All at once


async def test_joins_and_leaves_come_in_pairs_whatever_happens(
    nodes: Cluster, journals: dict[str, Journal]
) -> None:
    """Clients of all nodes are moved at random while they talk and come and go; a node is lost."""
    choice = random.Random(7)  # noqa: S311 - it is to be the same each time
    pids = {name: recording(nodes, journals, name) for name in nodes.nodes}
    over = False

    async def visit(url: str) -> None:
        while not over:
            with contextlib.suppress(ConnectionClosed, InvalidStatus, TimeoutError):
                async with client(url) as websocket:
                    for number in range(choice.randint(1, 20)):
                        await websocket.send(str(number))
                        await asyncio.sleep(0)

    async with contextlib.AsyncExitStack() as stack:
        urls = [
            await stack.enter_async_context(front(nodes[name], pid))
            for name in ("a", "c")
            for pid in pids.values()
        ]
        tasks = [asyncio.create_task(visit(url)) for url in urls]
        for step in range(150):
            name = choice.choice("ac")
            if connections := sorted(nodes[name].connections):
                order = {"target_pid": pids[choice.choice("abc")]}
                nodes[name].send(choice.choice(connections), "ws.control", order)
            await asyncio.sleep(0.002)
            if step == 100:
                nodes.lose("c")
        over = True
        nodes.meet_again("c")  # until then it does not know that it is lost
        await asyncio.gather(*tasks)
    await until(lambda: not any(node.connections for node in nodes.nodes.values()))
    await nodes.quiet()
    for name, journal in journals.items():
        await until(
            lambda journal=journal: len(journal.lines("ws.join")) == len(journal.lines("ws.leave")),  # type: ignore[misc]
            f"joins and leaves of {name}",
        )
        inside: set[str] = set()
        for line in journal.lines("ws.join", "ws.message", "ws.leave"):
            who = line["sender"]
            if line["topic"] == "ws.join":
                assert who not in inside
                inside.add(who)
            else:
                assert who in inside
            if line["topic"] == "ws.leave":
                inside.discard(who)
    assert sum(len(journal.lines("ws.join")) for journal in journals.values()) > 50
