"""Starts, relations and ends of processes between two nodes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import peer_handlers
import pytest
import relating
from exits import Exits
from monitor_handlers import watch_one
from one_node import BOTH, connection, front_of, seen_by
from pair import Cluster, cluster
from peer_handlers import (
    answer,
    cancel_it,
    errors_of_spawns,
    exec_and_wait,
    exec_there,
    link_and_crash,
    link_and_wait,
    spawn_there,
    spawn_when_told,
    terminate_it,
    trap_and_end,
    unlink_and_crash,
    unwatch_and_end,
    wait_for_cancel,
    watch_and_end,
)
from relating import Face, deaf, mortal
from support import processes, until

from wsrelay import PID, HostFull, InvalidTarget, Node, PayloadError, UnknownHost
from wsrelay.peers import lives
from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing"]

ENTRIES = {
    **{
        name: TargetEntry(f"{relating.__file__}:{name}")
        for name in ("give", "crash", "mortal", "deaf")
    },
    "answer": TargetEntry(f"{peer_handlers.__file__}:answer"),
    "broken": TargetEntry(f"{relating.__file__}:no_such_function"),
}
LIMITS = {"processes": 1000, "full": 0}
HERE = ENTRIES | {"only here": TargetEntry("os:getpid")}


TARGETS = tuple(entry.target for name, entry in ENTRIES.items() if name != "broken")
HOSTS = (processes(targets=TARGETS), processes(name="full"))


@contextlib.asynccontextmanager
async def CLUSTER() -> AsyncIterator[Cluster]:  # noqa: N802 - as in other modules
    async with cluster(*HOSTS, entries=ENTRIES) as made:
        made["b"].kernel.set_hosts(LIMITS)
        made["a"].engine.reconfigure(HERE)
        yield made


# Monitors


@BOTH
@pytest.mark.parametrize(
    ("way", "argument", "value", "kind"),
    [
        ("return", {"a": [1, b"2"]}, {"a": [1, b"2"]}, None),
        ("raise", "on purpose", None, "error"),
        ("kill", "SIGKILL", None, "killed"),
        ("terminate", None, None, "terminated"),
        ("cancel", None, "closed", None),
    ],
)
async def test_a_monitor_tells_once_how_a_process_elsewhere_ended(
    a: Node, b: Node, face: Face, way: str, argument: Any, value: Any, kind: str | None
) -> None:
    pid = b.spawn(mortal)
    first, again, more = await seen_by(a, face(watch_and_end), pid, way, argument)
    assert (first["kind"], first["sender"], first["reason"]) == ("EXIT", pid, "")
    assert (first["value"], first["error"]) == (value, kind)
    assert ("relating.py" in (first["traceback"] or "")) is (way == "raise")
    assert (again, more) == ("noproc", [])


@BOTH
@pytest.mark.parametrize("pid", ["{b@processes|none}", "{c@processes|1}", "{b@gateway|none}"])
async def test_monitoring_nobody_elsewhere_reports_at_once(a: Node, face: Face, pid: str) -> None:
    event, more = await seen_by(a, face(watch_one), pid)
    assert (event["kind"], event["sender"], event["error"], more) == ("EXIT", pid, "noproc", [])


@BOTH
async def test_after_unmonitor_nothing_is_told_of_a_process_elsewhere(
    a: Node, b: Node, face: Face
) -> None:
    pid, other = b.spawn(mortal), b.spawn(mortal)
    seen = await seen_by(a, face(unwatch_and_end), pid, other)
    assert seen in ([pid, "error", other, []], [pid, "noproc", other, []])


@BOTH
async def test_many_watchers_cost_one_frame_and_each_is_told(
    nodes: Cluster, a: Node, b: Node, face: Face
) -> None:
    exits, pid = Exits(a), b.spawn(mortal)
    for way in nodes.ways.values():
        way.seen.clear()
    watchers = [a.spawn(face(watch_one), None, pid) for _ in range(4)]
    await until(lambda: len(a.kernel.relations._watchers.get(pid, ())) == 4, "all watch")
    a.send(pid, "return", 5)
    for watcher in watchers:
        event, more = (await exits.of(watcher)).value
        assert (event["value"], more) == (5, [])
    assert nodes.ways["a", "b"].seen == ["PeerWatchFrame", "PeerSendFrame"]
    assert nodes.ways["b", "a"].seen == ["PeerExitedFrame"]


async def test_the_last_watcher_takes_the_interest_with_it(a: Node, b: Node) -> None:
    pid = b.spawn(mortal)
    watchers = [a.spawn(watch_one.sync, None, pid) for _ in range(2)]
    await until(lambda: b.kernel.relations, "it is watched")
    await until(lambda: len(a.kernel.relations._watchers[pid]) == 2, "twice")
    a.terminate(watchers[0])
    await until(lambda: watchers[0] not in a.workers, "one has ended")
    assert b.kernel.relations
    a.terminate(watchers[1])
    await until(lambda: not b.kernel.relations, "nobody watches any more")


@BOTH
async def test_the_end_of_a_client_elsewhere_is_told_with_its_code(
    a: Node, b: Node, face: Face
) -> None:
    exits = Exits(a)
    async with front_of(b) as front, connection(b, front) as (websocket, pid):
        watcher = a.spawn(face(watch_one), None, pid)
        await until(lambda: b.kernel.relations, "it is watched")
        await websocket.close(4000, "bye")
    event, more = (await exits.of(watcher)).value
    assert (event["sender"], event["value"], event["error"], more) == (
        pid,
        {"code": 4000, "reason": "bye"},
        None,
        [],
    )


# Links


@BOTH
@pytest.mark.parametrize(
    ("way", "argument", "kind"),
    [("raise", "x", "error"), ("kill", "SIGKILL", "killed"), ("terminate", None, "terminated")],
)
async def test_who_traps_links_gets_one_link_down_of_an_end_elsewhere(
    a: Node, b: Node, face: Face, way: str, argument: Any, kind: str
) -> None:
    pid = b.spawn(mortal)
    *seen, more = await seen_by(a, face(trap_and_end), pid, way, argument)
    assert sorted(seen) == [["EXIT", pid, kind], ["LINK_DOWN", pid, kind]]
    assert more == []


@BOTH
async def test_a_normal_end_elsewhere_is_no_link_down(a: Node, b: Node, face: Face) -> None:
    pid = b.spawn(mortal)
    assert await seen_by(a, face(trap_and_end), pid, "return", 1) == [["EXIT", pid, None], []]


@BOTH
async def test_links_end_processes_on_both_nodes(a: Node, b: Node, face: Face) -> None:
    here, there = Exits(a), Exits(b)
    other = b.spawn(mortal)
    linker = a.spawn(face(link_and_crash), None, other)
    error = await there.error(other)
    assert (error.kind, error.message) == ("link_down", f"linked process {linker} ended (error)")
    other = b.spawn(mortal)
    linker = a.spawn(face(link_and_wait), None, other)
    await until(lambda: b.kernel.relations, "they are linked")
    b.send(other, "raise", "x")
    error = await here.error(linker)
    assert (error.kind, error.message) == ("link_down", f"linked process {other} ended (error)")


@BOTH
async def test_unlink_unties_on_both_nodes(a: Node, b: Node, face: Face) -> None:
    here, there = Exits(a), Exits(b)
    other = b.spawn(answer)
    linker = a.spawn(face(unlink_and_crash), None, other)
    assert (await here.error(linker)).kind == "error"
    b.cancel(other)
    assert (await there.of(other)).error is None


@BOTH
async def test_linking_to_nobody_elsewhere_is_as_if_it_had_ended(a: Node, face: Face) -> None:
    linker = a.spawn(face(link_and_wait), None, "{b@processes|none}")
    assert (await Exits(a).error(linker)).kind == "link_down"


async def test_links_that_cross_an_unlink_are_gone_on_both_nodes(nodes: Cluster) -> None:
    a, b = nodes["a"], nodes["b"]
    here, there = a.spawn(mortal), b.spawn(mortal)
    effects = a.kernel.link(here, there, elsewhere=True)
    a.engine.execute(effects)
    await nodes.quiet()
    nodes.ways["a", "b"].stop()
    nodes.ways["b", "a"].stop()
    a.engine.execute(a.kernel.unlink(here, there))
    b.engine.execute(b.kernel.unlink(there, here))
    b.engine.execute(b.kernel.link(there, here, elsewhere=True))
    nodes.ways["a", "b"].go()
    nodes.ways["b", "a"].go()
    await nodes.quiet()
    assert not a.kernel.relations
    assert not b.kernel.relations


# Starts


@BOTH
@pytest.mark.parametrize(
    ("how", "kinds"),
    [
        ("spawn", ["EXIT"]),
        ("spawn_monitored", ["EXIT"]),
        ("spawn_linked", ["LINK_DOWN"]),
        ("spawn_linked_monitored", ["EXIT", "LINK_DOWN"]),
    ],
)
async def test_an_entry_is_started_on_another_node(
    a: Node, face: Face, how: str, kinds: list[str]
) -> None:
    pid, events, more = await seen_by(a, face(spawn_there), how, "crash", "processes@b", ["far"])
    pid = PID(pid)
    assert (pid.node, pid.host) == ("b", "processes")
    assert sorted(event["kind"] for event in events) == kinds
    for event in events:
        assert (event["sender"], more) == (pid, [])
        if how != "spawn":
            assert (event["error"], event["message"]) == ("error", "ZeroDivisionError: far")


@BOTH
@pytest.mark.parametrize(
    ("target", "host", "args", "kind", "message"),
    [
        ("give", "full@b", [], "host_full", "process host full is full: 0 of 0 processes run"),
        ("give", "none@b", [], "start_failed", "no process host 'none'"),
        ("give", "processes@c", [], "start_failed", "node 'c' is not in the cluster"),
        ("only here", "processes@b", [], "start_failed", "node b has no entry 'only here'"),
        ("broken", "processes@b", [], "start_failed", "has no function 'no_such_function'"),
    ],
)
async def test_what_another_node_cannot_start_ends_with_the_reason(
    a: Node, face: Face, target: str, host: str, args: list[Any], kind: str, message: str
) -> None:
    for how in ("spawn_linked_monitored", "spawn_monitored"):
        pid, events, more = await seen_by(a, face(spawn_there), how, target, host, args)
        assert {(event["sender"], event["error"]) for event in events} == {(pid, kind)}
        assert all(message in event["message"] for event in events), events
        assert more == []


CANNOT = "InvalidTarget: target {} cannot be started on node 'b': other nodes start only entries"
REFUSED = {
    "os:getpid": CANNOT.format("'os:getpid'"),
    "/path/to/script.py": CANNOT.format("'/path/to/script.py'"),
}


@BOTH
async def test_code_for_another_node_is_refused_at_the_caller(a: Node, face: Face) -> None:
    spawns: list[list[Any]] = [[target, "processes@b"] for target in REFUSED]
    *said, code, odd, what = await seen_by(
        a,
        face(errors_of_spawns),
        [
            *spawns,
            ["give", "processes@b", peer_handlers.wait_for_cancel],
            ["give", "a b@c"],
            [3, "processes@b"],
        ],
    )
    assert [text.startswith(start) for text, start in zip(said, REFUSED.values(), strict=True)]
    assert code.startswith("PayloadError: only data can be passed to what is started on another")
    assert odd.startswith("UnknownHost: no process host 'a b@c': write host@node")
    assert what.startswith("InvalidTarget: target 3 cannot be started on node 'b'")


async def test_an_http_handler_starts_entries_on_other_nodes_and_is_refused_code(
    a: Node, b: Node
) -> None:
    pid = a.spawn("answer", "processes@b")
    assert await a.call_async(pid, "double", 2) == 4
    assert pid in b.workers
    assert await a.started(pid) is None
    with pytest.raises(InvalidTarget, match="cannot be started on node 'b'"):
        a.spawn(mortal, "processes@b")
    with pytest.raises(PayloadError, match="only data can be passed"):
        a.spawn("give", "processes@b", mortal)
    with pytest.raises(UnknownHost, match="write host@node"):
        a.spawn("give", "pro cesses@b")
    assert PID(a.spawn("mortal", "processes@a")).node == "a"


async def test_started_waits_for_a_process_of_another_node(a: Node) -> None:
    assert await a.started(a.spawn("mortal", "processes@b")) is None
    gone = await a.started(PID("{b@processes|none}"))
    assert gone == "target_pid {b@processes|none} is not alive"


async def test_a_host_elsewhere_that_is_full_when_a_process_is_due_is_told_to_who_waits(
    nodes: Cluster, a: Node, b: Node
) -> None:
    first = b.spawn_as("one", deaf)
    await b.started(first)
    b.cancel(first)
    second = b.spawn_as("one", mortal)
    b.kernel.set_hosts({"processes": 0})
    waiting = asyncio.create_task(a.started(second))
    await until(lambda: nodes.exchange("b").neighbours["a"].serving, "it is asked")
    b.terminate(first)
    with pytest.raises(HostFull, match="process host processes is full"):
        await waiting
    b.kernel.set_hosts(LIMITS)


@BOTH
async def test_any_node_means_the_one_with_most_room_and_this_one_if_none_has_more(
    a: Node, face: Face
) -> None:
    a.engine.prefer({"processes": "b"})
    pid, _, _ = await seen_by(a, face(spawn_there), "spawn", "give", "processes@*", [])
    assert PID(pid).node == "b"
    assert PID(a.spawn("give", "processes@*")).node == "b"
    a.engine.prefer({})
    pid, _, _ = await seen_by(a, face(spawn_there), "spawn", "give", "processes@*", [])
    assert PID(pid).node == "a"
    assert PID(a.spawn("give", "processes@*")).node == "a"


async def test_running_workers_learn_where_there_is_room(a: Node) -> None:
    exits = Exits(a)
    pid = a.spawn(spawn_when_told, None, "give", "processes@*")
    await a.started(pid)
    a.engine.prefer({"processes": "b"})
    a.send(pid, "go")
    assert PID((await exits.of(pid)).value).node == "b"
    a.engine.prefer({})


# exec


@BOTH
async def test_exec_runs_an_entry_on_another_node(a: Node, face: Face) -> None:
    for target, args, result in (
        ("give", [[1, b"2"]], [1, b"2"]),
        ("only here", [], "ProcessError: start failed: node b has no entry 'only here'"),
    ):
        assert await seen_by(a, face(exec_there), target, "processes@b", args, 20.0) == result
    told = await seen_by(a, face(exec_there), "crash", "processes@b", ["far"], 20.0)
    assert told.startswith("ProcessError: ZeroDivisionError: far\n\nTraceback")
    told = await seen_by(a, face(exec_there), "give", "full@b", [], 20.0)
    assert told.startswith("ProcessError: process host full is full")


@BOTH
async def test_what_exec_runs_elsewhere_is_terminated_at_its_timeout(
    a: Node, b: Node, face: Face
) -> None:
    told = await seen_by(a, face(exec_there), "mortal", "processes@b", [], 0.1)
    assert told == "TimeoutError: mortal did not end within 0.1 s and was terminated"
    await until(lambda: not b.workers, "it is terminated")


@BOTH
async def test_what_exec_runs_elsewhere_does_not_outlive_its_caller(
    a: Node, b: Node, face: Face
) -> None:
    caller = a.spawn(face(exec_and_wait), None, "deaf", "processes@b")
    await until(lambda: b.workers, "it runs")
    a.terminate(caller)
    await until(lambda: not b.workers, "it is terminated")


async def test_a_monitor_that_is_taken_back_does_not_lose_an_exec_its_answer(
    nodes: Cluster, a: Node, b: Node
) -> None:
    exits = Exits(a)
    caller = a.spawn(exec_and_wait.sync, None, "mortal", "processes@b")
    await until(lambda: b.workers, "it runs")
    [pid] = b.workers
    me = a.spawn(mortal)
    a.engine.execute(a.kernel.monitor(me, pid, elsewhere=True))
    a.engine.execute(a.kernel.unmonitor(me, pid))
    await nodes.quiet()
    b.send(pid, "return", "answered")
    assert (await exits.of(caller)).value == "answered"


# Signals


@BOTH
async def test_a_process_elsewhere_is_cancelled_with_the_reason_and_terminated(
    a: Node, b: Node, face: Face
) -> None:
    exits = Exits(b)
    pid = b.spawn(wait_for_cancel)
    await seen_by(a, face(cancel_it), pid, "from afar")
    assert (await exits.of(pid)).value == "from afar"
    pid = b.spawn(mortal)
    await seen_by(a, face(terminate_it), pid)
    assert (await exits.error(pid)).kind == "terminated"


async def test_the_node_cancels_elsewhere_too_and_says_that_it_restarts(a: Node, b: Node) -> None:
    exits, pid = Exits(b), b.spawn(wait_for_cancel)
    process = b.engine.processes[pid]
    await b.started(pid)
    a.cancel(pid, "by hand", restarts=True)
    assert (await exits.of(pid)).value == "by hand"
    assert process.restarts
    before = a.dead_letters
    a.cancel("{c@processes|1}")
    assert a.dead_letters == before + 1


# What is kept


async def test_an_end_for_which_there_is_no_room_is_told_without_its_result(
    a: Node, b: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lives, "_RESULTS", 100_000)
    exits, pid = Exits(a), b.spawn(mortal)
    watcher = a.spawn(watch_one.sync, None, pid)
    await until(lambda: b.kernel.relations, "it is watched")
    b.send(pid, "return", bytes(200_000))
    event, more = (await exits.of(watcher)).value
    assert (event["value"], event["error"], more) == (None, "limit", [])
    assert event["message"].startswith("its result of 200005 bytes is left out")
