"""A node that is gone, or writes what no node does: that is told once, and nothing is left."""

from __future__ import annotations

import asyncio
import functools
import logging
import typing
from typing import Any

import peer_handlers
import pytest
import relating
import rooms
from exits import Exits
from hypothesis import given, settings
from hypothesis import strategies as st
from monitor_handlers import watch_one
from one_node import BOTH, seen_by
from pair import Cluster, InMemory, cluster
from peer_handlers import (
    answer,
    error_of_call,
    error_of_exec,
    trap_until_told,
    write_to_client,
    write_without_end,
)
from relating import Face, mortal
from support import (
    client,
    connected,
    not_reading,
    processes,
    relay_to,
    room,
    serving,
    until,
)

from wsrelay import Node, WebSocketRelay
from wsrelay.cluster import frames
from wsrelay.cluster.frames import (
    HoldFrame,
    LinkFrame,
    PeerCallFrame,
    PeerExitedFrame,
    PeerForgetFrame,
    PeerFrame,
    PeerReplyFrame,
    PeerSendFrame,
    PeerSignalFrame,
    PeerSpawnFrame,
    PeerWatchFrame,
    StartedFrame,
    UnlinkedFrame,
)
from wsrelay.cluster.framing import pack
from wsrelay.errors import WireError
from wsrelay.node import engine as engine_module
from wsrelay.peers import exchange as exchange_module
from wsrelay.peers import lives
from wsrelay.peers import processes as processes_module
from wsrelay.values.targets import TargetEntry
from wsrelay.wire.code import pack_plain

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing"]

TARGETS = (
    room(rooms.echo),
    f"{relating.__file__}:mortal",
    f"{relating.__file__}:deaf",
    f"{peer_handlers.__file__}:answer",
)
ENTRIES = {"deaf": TargetEntry(f"{relating.__file__}:deaf")}
NIL = b"\xc0"


CLUSTER = functools.partial(cluster, processes(targets=TARGETS), entries=ENTRIES)


# Gone


@BOTH
async def test_a_node_that_is_gone_ends_all_its_processes_once(
    nodes: Cluster, a: Node, b: Node, face: Face
) -> None:
    exits, pid = Exits(a), b.spawn(mortal)
    watcher = a.spawn(face(watch_one), None, pid)
    trapper = a.spawn(face(trap_until_told), None, pid)
    caller = a.spawn(face(error_of_call), None, b.spawn(answer), "nothing", None, 20.0)
    runner = a.spawn(face(error_of_exec), None, "deaf", "processes@b")
    await until(lambda: len(b.workers) == 3, "what is run by exec runs")
    await until(lambda: b.calls, "it is called")
    await until(lambda: trapper in b.kernel.relations._links, "they are linked")
    nodes.ways["b", "a"].stop()
    starting = asyncio.create_task(a.started(pid))
    await until(lambda: len(nodes.exchange("a").neighbours["b"].asked) == 2, "it is asked")
    nodes.lose("b")
    nodes.ways["b", "a"].go()
    event, more = (await exits.of(watcher)).value
    assert (event["kind"], event["error"], event["message"], more) == (
        "EXIT",
        "node_down",
        "node b is gone",
        [],
    )
    a.send(trapper, "enough")
    [event] = (await exits.of(trapper)).value
    assert (event["kind"], event["sender"], event["error"]) == ("LINK_DOWN", pid, "node_down")
    for process in (caller, runner):
        said = (await exits.of(process)).value
        assert said == "ProcessError: node down: node b is gone"
    assert await starting == f"target_pid {pid} is not alive: node b is gone"
    assert not a.kernel.relations
    nodes.exchange("b").down(nodes.peer("a"))


@BOTH
async def test_after_its_end_a_node_is_nobody_and_its_later_frames_are_dropped(
    nodes: Cluster, a: Node, b: Node, face: Face
) -> None:
    pid, here = b.spawn(mortal), a.spawn(mortal)
    peer = nodes.peer("b")
    nodes.lose("b")
    event, more = await seen_by(a, face(watch_one), pid)
    assert (event["error"], more) == ("noproc", [])
    for frame in (
        PeerSendFrame([here], pid, "return", NIL),
        PeerSignalFrame(here, pid, "terminate"),
        PeerWatchFrame(here, watched=True),
        LinkFrame(here, pid, linked=True),
        PeerExitedFrame(pid, NIL),
    ):
        assert nodes.exchange("a").receive(peer, frame) is None
    assert here in a.workers
    assert not a.kernel.relations
    before = a.dead_letters
    a.send(pid, "topic")
    assert a.dead_letters == before + 1
    nodes.exchange("b").down(nodes.peer("a"))


async def test_a_node_that_joins_again_has_none_of_its_former_processes(
    nodes: Cluster, a: Node, b: Node
) -> None:
    pid = b.spawn(mortal)
    exits = Exits(a)
    watcher = a.spawn(watch_one.sync, None, pid)
    await until(lambda: b.kernel.relations, "it is watched")
    nodes.meet_again("b")
    event, more = (await exits.of(watcher)).value
    assert (event["error"], more) == ("node_down", [])
    assert not b.kernel.relations
    assert await a.call_async(b.spawn(answer), "double", 2) == 4


async def test_a_node_that_is_gone_holds_up_nobody(nodes: Cluster, a: Node, b: Node) -> None:
    way, there = nodes.ways["a", "b"], b.spawn(mortal)
    way.stop()
    writer = a.spawn(write_without_end, None, there, 10_000)
    await until(lambda: way.tokens, "it is held")
    process = a.engine.processes[writer]
    nodes.lose("b")
    assert not process.incarnation.pipe._holds
    assert not way.tokens
    a.terminate(writer)
    nodes.exchange("b").down(nodes.peer("a"))


async def test_a_node_that_is_gone_with_a_slow_client_holds_up_nobody(
    nodes: Cluster, a: Node, b: Node
) -> None:
    app = WebSocketRelay(
        relay_to(b.spawn(room(rooms.echo))), node=b, outbox_limit=64 * 1024, outbox_overflow="pause"
    )
    async with serving(app) as url, client(url, sock=await connected(url)) as websocket:
        [pid] = await until(lambda: list(b.connections), "it is connected")
        not_reading(websocket)
        writer = a.spawn(write_to_client, None, pid)
        await until(lambda: nodes.exchange("a").neighbours["b"].holds, "the writer is held")
        process = a.engine.processes[writer]
        nodes.lose("b")
        assert pid not in process.incarnation.pipe._holds
        a.terminate(writer)
        websocket.transport.abort()
        nodes.exchange("b").down(nodes.peer("a"))


async def test_calls_of_a_node_that_is_gone_are_forgotten(nodes: Cluster, a: Node, b: Node) -> None:
    there = b.spawn(answer)
    caller = a.spawn(error_of_call.sync, None, there, "nothing", None, 20.0)
    await until(lambda: b.calls, "it is called")
    nodes.exchange("b").down(nodes.peer("a"))
    await until(lambda: not b.calls, "it is forgotten")
    a.terminate(caller)
    nodes.lose("b")


# Garbage


def of_b(pid: str) -> str:
    return f"{{b@processes|{pid}}}"


GARBAGE: list[Any] = [
    b"",
    b"\xc1",
    b"\x93\xcc\xff\x01",
    PeerSendFrame(["{b@processes|1}"], of_b("1"), "topic", NIL),
    PeerSendFrame(["room"], of_b("1"), "topic", NIL),
    PeerSendFrame(["{a@processes|1}"], "{a@processes|1}", "topic", NIL),
    PeerSendFrame(["{a@processes|1}"], "nobody", "topic", NIL),
    PeerSignalFrame("{b@processes|1}", of_b("1"), "cancel"),
    PeerWatchFrame("{b@processes|1}", watched=True),
    PeerWatchFrame("{a@", watched=True),
    LinkFrame("{a@processes|1}", "{a@processes|2}", linked=True),
    UnlinkedFrame("{a@processes|1}", of_b("1")),
    PeerExitedFrame("{a@processes|1}", NIL),
    PeerSpawnFrame("{b@processes|1}", of_b("1"), "deaf", NIL, watched=True, linked=False),
    PeerCallFrame(1, "{b@processes|1}", of_b("1"), "topic", NIL),
    StartedFrame(1, "{b@processes|1}"),
    HoldFrame("{a@processes|1}", "{a@gateway|1}", held=True),
]


@pytest.mark.parametrize("frame", GARBAGE, ids=lambda frame: type(frame).__name__)
async def test_what_no_node_writes_ends_the_link_and_harms_nobody(
    nodes: Cluster, a: Node, frame: Any
) -> None:
    exits, pid = Exits(a), nodes["b"].spawn(mortal)
    watcher = a.spawn(watch_one.sync, None, pid)
    await until(lambda: nodes["b"].kernel.relations, "it is watched")
    nodes.ways["b", "a"].write(frame if isinstance(frame, bytes) else pack(frame))
    event, more = (await exits.of(watcher)).value
    assert (event["error"], more) == ("node_down", [])
    assert nodes.ways["b", "a"].ended
    assert await a.call_async(a.spawn(answer), "double", 2) == 4
    nodes.exchange("b").down(nodes.peer("a"))


async def test_a_second_request_of_one_number_ends_the_link(nodes: Cluster, b: Node) -> None:
    to = b.spawn(answer)
    for _ in range(2):
        nodes.ways["a", "b"].send(PeerCallFrame(7, to, "{a@processes|1}", "nothing", NIL))
    await until(lambda: nodes.ways["a", "b"].ended, "it has ended")
    await until(lambda: not b.calls, "nothing is left of it")
    nodes.exchange("a").down(nodes.peer("b"))


async def test_answers_and_cancellations_that_cross_are_no_garbage(nodes: Cluster) -> None:
    way = nodes.ways["a", "b"]
    way.send(PeerReplyFrame(99, NIL))
    way.send(PeerForgetFrame(99))
    way.send(HoldFrame(of_b("none"), "{a@gateway|1}", held=False))
    way.send(PeerExitedFrame("{a@processes|none}", NIL))
    await nodes.quiet()
    assert way.ended is None


PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 3),
    bool: st.booleans(),
    bytes: st.sampled_from([NIL, b"\xc1"]),
    str: st.sampled_from(
        [
            *("{a@processes|1}", "{b@processes|1}", "{b@processes|2}", "{a@gateway|2}"),
            *("{c@processes|1}", "{processes|1}", "{a@", "{", "room", "deaf", ""),
        ]
    ),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field of a frame."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return values(arguments[0])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values, arguments))
    if arguments:
        return st.one_of(*map(values, arguments))
    return PLAIN.get(kind, st.none())


PROCESS_KINDS = [
    kind
    for kind in vars(frames).values()
    if isinstance(kind, type)
    and issubclass(kind, PeerFrame)
    and 10 <= (kind.__struct_config__.tag or 0) < 30  # type: ignore[operator]
]


def a_frame(kind: type[PeerFrame]) -> st.SearchStrategy[PeerFrame]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, *[values(hints[name]) for name in kind.__struct_fields__])


async def test_any_frames_leave_the_node_as_it_was(nodes: Cluster, a: Node) -> None:
    """Whatever another node writes, at most its link ends."""
    logging.getLogger("wsrelay").setLevel(logging.CRITICAL)

    @settings(deadline=None, max_examples=300, database=None)
    @given(st.lists(st.one_of(*map(a_frame, PROCESS_KINDS)), max_size=8))
    def write(written: list[PeerFrame]) -> None:
        exchange, peer = nodes.exchange("a"), nodes.peer("b")
        exchange.up(peer, nodes.ways["a", "b"])
        try:
            for frame in written:
                for _ in exchange.receive(peer, frame) or ():
                    pass
        except WireError:
            exchange.down(peer)
        for pid in list(a.workers):
            a.terminate(pid)

    try:
        write()
    finally:
        logging.getLogger("wsrelay").setLevel(logging.NOTSET)
    nodes.exchange("a").down(nodes.peer("b"))
    assert not a.kernel.relations
    assert await a.call_async(a.spawn(answer), "double", 2) == 4
    nodes.exchange("b").down(nodes.peer("a"))


# What another node can make this one keep


async def test_requests_of_another_node_are_bounded(
    nodes: Cluster, a: Node, b: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "MOST_REQUESTS", 2)
    there = b.spawn(answer)
    waiting = [asyncio.create_task(a.call_async(there, "nothing")) for _ in range(2)]
    await until(lambda: len(nodes.exchange("b").neighbours["a"].serving) == 2, "both wait")
    with pytest.raises(Exception, match="request limit of 2 reached"):
        await a.call_async(there, "double", 2)
    for task in waiting:
        task.cancel()
    await until(lambda: not b.calls, "they are forgotten")


async def test_arguments_of_what_another_node_starts_are_bounded_whoever_its_parents_are(
    nodes: Cluster, b: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_MOST_CODE", 250_000)
    host, seen = b._templates["processes"], nodes.ways["b", "a"].seen
    code, told = pack_plain((bytes(100_000),), {}), seen.count("PeerExitedFrame")
    with monkeypatch.context() as waiting:  # for their turn, as if too many were started
        waiting.setattr(host, "_launch_pending", lambda: None)
        for number in "123":
            pid, parent = f"{{b@processes|x.0-{number}}}", f"{{a@processes|x.0-{number}}}"
            frame = PeerSpawnFrame(pid, parent, "deaf", code, watched=True, linked=False)
            nodes.ways["a", "b"].send(frame)
        await until(lambda: seen.count("PeerExitedFrame") > told, "one is refused")
        assert {pid.id for pid in b.workers} == {"x.0-1", "x.0-2"}
    host._launch_pending()


async def test_what_is_called_is_kept_by_who_is_called_and_not_until_the_answer(
    nodes: Cluster, a: Node, b: Node
) -> None:
    there = b.spawn(answer)
    calling = asyncio.create_task(a.call_async(there, "nothing", "x" * 1000))
    serving: dict[int, Any] = nodes.exchange("b").neighbours["a"].serving
    await until(lambda: serving, "it waits")
    [future] = serving.values()
    kept = [argument for callback, _ in future._callbacks for argument in callback.args]
    [frame] = [argument for argument in kept if isinstance(argument, PeerCallFrame)]
    assert not frame.payload
    calling.cancel()
    await until(lambda: not b.calls, "it is forgotten")


async def test_slow_clients_of_another_node_are_bounded(
    nodes: Cluster, a: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes_module, "_MOST_HOLDS", 2)
    pid = a.spawn(mortal)
    await a.started(pid)
    way = nodes.ways["b", "a"]
    for number in range(2):
        way.send(HoldFrame(pid, f"{{b@gateway|{number}}}", held=True))
    await nodes.quiet()
    assert len(a.engine.processes[pid].incarnation.pipe._holds) == 2
    way.send(HoldFrame(pid, "{b@gateway|3}", held=True))
    await until(lambda: way.ended, "the link has ended")
    assert not a.engine.processes[pid].incarnation.pipe._holds
    nodes.exchange("b").down(nodes.peer("a"))


async def test_links_from_another_node_are_bounded(
    nodes: Cluster, a: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "_MOST_LINKS", 2)
    pid, way = a.spawn(mortal), nodes.ways["b", "a"]
    for number in range(3):
        way.send(LinkFrame(pid, of_b(str(number)), linked=True))
    await until(lambda: way.ended, "the link has ended")
    assert not a.kernel.relations
    nodes.exchange("b").down(nodes.peer("a"))


async def test_what_is_watched_and_linked_from_elsewhere_ends_with_what_it_is_about(
    nodes: Cluster, a: Node
) -> None:
    pid, way = a.spawn(mortal), nodes.ways["b", "a"]
    for number in range(3):
        way.send(PeerWatchFrame(pid, watched=True))
        way.send(LinkFrame(pid, of_b(str(number)), linked=True))
    await nodes.quiet()
    nodes.ways["a", "b"].seen.clear()
    a.terminate(pid)
    await until(lambda: pid not in a.workers, "it has ended")
    assert not a.kernel.relations
    assert nodes.ways["a", "b"].seen == ["PeerExitedFrame"]


# A life of a node


async def test_a_node_asks_its_cluster_from_the_start_of_each_life_to_its_end() -> None:
    calls: list[str] = []

    class Member:
        def start(self) -> None:
            calls.append("start")

        async def joined(self) -> None:
            calls.append("joined")

        def draining(self) -> None:
            calls.append("draining")

        async def stop(self) -> None:
            calls.append(f"stop, {len(node.workers)} run")

        async def aclose(self) -> None:
            calls.append("aclose")

    class Joining(InMemory):
        def attach(self, node: Node) -> Any:
            calls.append("attach")
            elsewhere: Any = super().attach(node)
            elsewhere._member = Member()
            return elsewhere

    node = Node(name="a", hosts=[processes()], cluster=Joining())
    for _ in range(2):
        async with node:
            node.spawn(mortal)
    life = ["start", "joined", "draining", "stop, 0 run", "aclose", "attach"]
    assert calls == ["attach", *life * 2]
