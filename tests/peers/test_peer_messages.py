"""Messages and calls between processes of two nodes."""

from __future__ import annotations

import functools

import peer_handlers
import pytest
import relating
import rooms
from exits import Exits
from one_node import BOTH, connection, front_of, seen_by
from pair import FULL, Cluster, cluster
from peer_handlers import (
    answer,
    ask_and_tell,
    call_it,
    collect,
    count_bytes,
    drain_it,
    error_of_call,
    send_later,
    send_numbers,
    send_odd,
    send_too_much,
    write_bytes,
    write_to_client,
    write_without_end,
)
from relating import Face, mortal
from support import (
    client,
    closed,
    connected,
    not_reading,
    processes,
    reading,
    received,
    relay_to,
    room,
    serving,
    until,
)

from wsrelay import CallError, InvalidCall, NodeBusy, PayloadError, WebSocketRelay
from wsrelay.cluster import link

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing"]

TARGETS = (room(rooms.echo), f"{relating.__file__}:mortal", f"{peer_handlers.__file__}:answer")
NOBODY = ["{b@processes|none}", "{d@processes|1}", "{a@processes|none}", "nobody"]


HOSTS = (processes(targets=TARGETS), processes(name="small", mailbox=100_000))
CLUSTER = functools.partial(cluster, *HOSTS, names=("a", "b", "c"))


@BOTH
async def test_a_message_reaches_a_process_of_another_node_and_names_its_sender(
    nodes: Cluster, face: Face
) -> None:
    there = nodes["b"].spawn(mortal)
    told = await seen_by(nodes["a"], face(ask_and_tell), there)
    assert told == ["pong", there, {"bytes": b"1"}]


@BOTH
async def test_messages_to_several_nodes_keep_their_order_and_cross_once_each(
    nodes: Cluster, face: Face
) -> None:
    exits = {name: Exits(nodes[name]) for name in "abc"}
    pids = {name: [nodes[name].spawn(collect, None, 5) for _ in range(3)] for name in "abc"}
    for way in nodes.ways.values():
        way.seen.clear()
    everybody = [*(pid for some in pids.values() for pid in some), *NOBODY]
    sender = nodes["a"].spawn(face(send_numbers), None, everybody, 5)
    for name, some in pids.items():
        for pid in some:
            result = await exits[name].of(pid)
            assert result.value == [[sender, number] for number in range(5)]
    assert nodes.ways["a", "b"].seen == ["PeerSendFrame"] * 5
    assert nodes.ways["a", "c"].seen == ["PeerSendFrame"] * 5


async def test_an_http_handler_reaches_processes_of_other_nodes(nodes: Cluster) -> None:
    exits = Exits(nodes["b"])
    there = nodes["b"].spawn(collect, None, 2)
    nodes["a"].send(there, "first", 1)
    nodes["a"].send_after(0.01, [there], "second", 2)
    assert (await exits.of(there)).value == [[nodes["a"].pid(), 1], [nodes["a"].pid(), 2]]


@pytest.mark.parametrize("to", NOBODY)
async def test_a_message_to_nobody_of_the_cluster_is_a_dead_letter(nodes: Cluster, to: str) -> None:
    before = sum(node.dead_letters for node in nodes.nodes.values())
    nodes["a"].send(to, "topic")
    await nodes.quiet()
    assert sum(node.dead_letters for node in nodes.nodes.values()) == before + 1


@BOTH
async def test_a_timer_sends_to_another_node(nodes: Cluster, face: Face) -> None:
    exits = Exits(nodes["b"])
    there = nodes["b"].spawn(collect, None, 1)
    sender = nodes["a"].spawn(face(send_later), None, there)
    assert (await exits.of(there)).value == [[sender, sender]]


# Calls


@BOTH
async def test_a_call_is_answered_from_another_node(nodes: Cluster, face: Face) -> None:
    there = nodes["b"].spawn(answer)
    assert await seen_by(nodes["a"], face(call_it), there, "double", [1, "x"]) == [1, "x", 1, "x"]
    caller = nodes["a"].spawn(face(call_it), None, there, "ask")
    assert (await Exits(nodes["a"]).of(caller)).value == caller


async def test_an_http_handler_calls_a_process_of_another_node(nodes: Cluster) -> None:
    there = nodes["b"].spawn(answer)
    assert await nodes["a"].call_async(there, "double", 21) == 42
    with pytest.raises(CallError, match="no"):
        await nodes["a"].call_async(there, "refuse")
    with pytest.raises(TimeoutError, match=r"did not answer 'nothing' within 0.01 s"):
        await nodes["a"].call_async(there, "nothing", timeout=0.01)
    await until(lambda: not nodes["b"].calls, "the callee's node has forgotten it")


@BOTH
@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("refuse", "CallError: no"),
        ("crash", "ProcessError: ZeroDivisionError: called\n\nTraceback"),
        ("return", "ProcessError: no reply: it returned without an answer"),
        ("kill", "ProcessError: terminated"),
    ],
)
async def test_a_call_ends_with_its_callee_on_another_node(
    nodes: Cluster, face: Face, topic: str, said: str
) -> None:
    there = nodes["b"].spawn(answer)
    told = await seen_by(nodes["a"], face(error_of_call), there, topic, None, 20.0)
    assert told.startswith(said)


@BOTH
@pytest.mark.parametrize("to", NOBODY)
async def test_a_call_of_nobody_elsewhere_ends_at_once(nodes: Cluster, face: Face, to: str) -> None:
    told = await seen_by(nodes["a"], face(error_of_call), to, "topic", None, 20.0)
    assert told == f"ProcessError: noproc: there is no process {to}"


@BOTH
async def test_a_call_that_nobody_waits_for_any_more_is_forgotten_on_both_nodes(
    nodes: Cluster, face: Face
) -> None:
    there = nodes["b"].spawn(answer)
    told = await seen_by(nodes["a"], face(error_of_call), there, "nothing", None, 0.01)
    assert told == f"TimeoutError: {there} did not answer 'nothing' within 0.01 s"
    caller = nodes["a"].spawn(face(call_it), None, there, "nothing")
    await until(lambda: nodes["b"].calls, "the call has arrived")
    nodes["a"].terminate(caller)
    await until(lambda: not nodes["b"].calls, "the callee's node has forgotten it")


async def test_a_call_of_a_node_elsewhere_is_refused(nodes: Cluster) -> None:
    with pytest.raises(InvalidCall, match="is a node, which answers no calls"):
        await nodes["a"].call_async(nodes["b"].pid(), "topic")


# Clients of other nodes


@BOTH
async def test_a_client_of_another_node_is_written_to_and_drained(
    nodes: Cluster, face: Face
) -> None:
    async with front_of(nodes["b"]) as front, connection(nodes["b"], front) as (websocket, pid):
        nodes["a"].send(pid, "ws.send", {"type": "text", "data": "from afar"})
        assert await received(websocket) == "from afar"
        assert await seen_by(nodes["a"], face(drain_it), pid) == "drained"
        nodes["a"].send(pid, "ws.close", {"code": 4000, "reason": "over"})
        assert await closed(websocket) == (4000, "over")
    assert await seen_by(nodes["a"], face(drain_it), pid) == "drained"


@BOTH
async def test_what_a_client_of_another_node_cannot_use_is_told(nodes: Cluster, face: Face) -> None:
    async with front_of(nodes["b"]) as front, connection(nodes["b"], front) as (_, pid):
        topic, sender, payload = await seen_by(nodes["a"], face(send_odd), pid)
    assert (topic, sender, payload["client_pid"]) == ("ws.error", pid, pid)


async def test_a_client_that_does_not_read_stops_a_writer_on_another_node_and_no_other(
    nodes: Cluster,
) -> None:
    a, b = nodes["a"], nodes["b"]
    target = b.spawn(room(rooms.echo))
    app = WebSocketRelay(relay_to(target), node=b, outbox_limit=64 * 1024, outbox_overflow="pause")
    async with serving(app) as url, client(url, sock=await connected(url)) as websocket:
        [pid] = await until(lambda: list(b.connections), "it is connected")
        not_reading(websocket)
        writer = a.spawn(write_to_client, None, pid)
        neighbour = nodes.exchange("a").neighbours["b"]
        await until(lambda: neighbour.holds, "the writer is held")
        process = a.engine.processes[writer]
        assert process.incarnation.pipe._holds == {pid}
        assert await a.call_async(b.spawn(answer), "double", 2) == 4
        reading(websocket)
        while neighbour.holds:
            assert len(await received(websocket)) == 10_000
        not_reading(websocket)
        await until(lambda: neighbour.holds, "it is held again")
        a.terminate(writer)
        await until(lambda: writer not in a.workers, "it has ended")
        assert not neighbour.holds
        websocket.transport.abort()


# A way that is full


@BOTH
async def test_a_worker_that_writes_to_a_node_whose_way_is_full_waits_and_no_other_does(
    nodes: Cluster, face: Face
) -> None:
    a, way = nodes["a"], nodes.ways["a", "b"]
    exits = Exits(nodes["b"])
    there = nodes["b"].spawn(count_bytes, None, 200 * 10_000)
    way.stop()
    writer = a.spawn(face(write_bytes), None, there, 200)
    await until(lambda: writer in nodes.exchange("a").neighbours["b"].held, "it is held")
    assert FULL <= way.backlog < FULL + 200_000
    assert await a.call_async(nodes["c"].spawn(answer), "double", 2) == 4
    assert way.tokens == [writer]
    way.go()
    assert (await exits.of(there)).value == 200 * 10_000


async def test_a_worker_that_ends_while_the_way_is_full_leaves_nothing_behind(
    nodes: Cluster,
) -> None:
    a, way = nodes["a"], nodes.ways["a", "b"]
    there = nodes["b"].spawn(mortal)
    way.stop()
    writer = a.spawn(write_without_end, None, there, 10_000)
    await until(lambda: way.tokens, "it is held")
    a.terminate(writer)
    await until(lambda: writer not in a.workers, "it has ended")
    assert not way.tokens
    way.go()


async def test_the_node_itself_is_refused_once_so_much_waits_for_another(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, way = nodes["a"], nodes.ways["a", "b"]
    monkeypatch.setattr(way, "most", 100_000)
    exits = Exits(nodes["b"])
    there, here = nodes["b"].spawn(collect, None, 1), a.spawn(collect, None, 1)
    way.stop()
    a.send(there, "large", bytes(150_000))
    for to in ([here, there], there):
        with pytest.raises(NodeBusy, match=r"150.* bytes wait for node b already: try again"):
            a.send(to, "x")
    with pytest.raises(NodeBusy):
        await a.call_async(there, "x")
    way.go()
    assert (await exits.of(there)).value == [[a.pid(), bytes(150_000)]]
    a.send(here, "first", "of all")
    assert (await Exits(a).of(here)).value == [[a.pid(), "of all"]]


@BOTH
async def test_more_than_a_mailbox_elsewhere_holds_is_refused_where_it_is_sent(
    nodes: Cluster, face: Face
) -> None:
    there = nodes["b"].spawn(answer, "small")
    why = f"100006 bytes are more than the mailbox of {there} holds, 100000"
    topic, error, called = await seen_by(nodes["a"], face(send_too_much), there, 100_001)
    assert (topic, error.startswith(why)) == ("large", True)
    assert called.startswith(f"PayloadError: {why}")
    with pytest.raises(PayloadError, match="are more than the mailbox"):
        nodes["a"].send(there, "large", bytes(100_001))
    with pytest.raises(PayloadError, match="are more than the mailbox"):
        await nodes["a"].call_async(there, "large", bytes(100_001))
    assert await nodes["a"].call_async(there, "double", 1) == 2


async def test_a_request_that_is_too_large_to_pass_is_refused_where_it_is_made(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, there = nodes["a"], nodes["b"].spawn(answer)
    monkeypatch.setattr(link, "LARGEST", 1000)
    with pytest.raises(PayloadError, match="bytes"):
        await a.call_async(there, "double", "x" * 2000)
    assert await a.call_async(there, "double", 1) == 2
    assert not nodes.exchange("a").neighbours["b"].asked
