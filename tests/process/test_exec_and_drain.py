"""`exec` and `drain`: what is waited for, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import callers
import pytest
import rooms
from exec_handlers import (
    MEGABYTES,
    drain_others,
    drain_to,
    exec_cancelled,
    exec_cancelled_behind_a_full_pipe,
    exec_error,
    exec_forever,
    exec_many,
    exec_of_terminated,
    exec_too_long,
    exec_values,
)
from exits import Exits
from monitor_handlers import watch_one
from one_node import (
    BOTH,
    NO_FUNCTION,
    connection,
    front_of,
    left_as_found,
    one_node,
    seen_by,
    starts,
)
from relating import Face, crash, give, leave
from support import endpoint, processes, received, room, serving, until

from wsrelay import PID, Node, RelayResponse, WebSocketRelay

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with one_node() as node:
        yield node


@pytest.fixture(scope="module")
async def front(shared: Node) -> AsyncIterator[str]:
    async with front_of(shared) as url:
        yield url


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


# exec


@BOTH
async def test_exec_gives_the_value_and_no_event(node: Node, face: Face) -> None:
    values = await seen_by(node, face(exec_values))
    options = {"trap_links": False, "end_when_empty": None}
    assert values == [{"a": [1, b"2"]}, 3, "a/b", None, [], options]


@BOTH
@pytest.mark.parametrize(
    ("target", "host", "args", "kind", "message"),
    [
        (crash, None, ["remote"], "error", "ZeroDivisionError: remote"),
        (leave, None, [7], "exit", "exit code 7"),
        pytest.param(
            NO_FUNCTION,
            None,
            [],
            "start_failed",
            "has no function 'no_such_function'",
            id="no such function",
        ),
        (give, "full", [], "host_full", "process host full is full"),
    ],
)
async def test_exec_raises_how_the_process_ended(
    node: Node, face: Face, target: Any, host: str | None, args: list[Any], kind: str, message: str
) -> None:
    error = await seen_by(node, face(exec_error), target, host, args)
    assert error["kind"] == kind
    assert message in error["message"]
    said = f"start failed: {error['message']}" if kind == "start_failed" else error["message"]
    assert error["text"].startswith(said), "kind and message, and neither twice"
    if kind == "error":
        assert "in crash" in error["traceback"]
        assert error["traceback"] in error["text"]
    else:
        assert not error["traceback"]


@BOTH
async def test_exec_raises_when_its_process_is_terminated_by_another(
    node: Node, face: Face
) -> None:
    told = await seen_by(node, face(exec_of_terminated), "victim")
    assert told == "ProcessError: terminated"


@BOTH
async def test_exec_refuses_what_cannot_be_started_at_all(node: Node, face: Face) -> None:
    for target, host, kind in (
        ("nonsense", None, "InvalidTarget"),
        (give, "no such host", "UnknownHost"),
    ):
        error = await seen_by(node, face(exec_error), target, host, [])
        assert error["kind"] == kind


@BOTH
@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_exec_terminates_what_takes_too_long(node: Node, face: Face, seconds: float) -> None:
    exits = Exits(node)
    pid = node.spawn(face(exec_too_long), None, seconds)
    (told,) = (await exits.of(pid)).value
    assert told.startswith("TimeoutError: ")
    assert told.endswith(f"did not end within {seconds} s and was terminated")
    await until(lambda: not node.workers, "the executed process has ended")
    (executed,) = exits.results.keys() - {pid}
    assert (await exits.error(executed)).kind == "terminated"


@BOTH
async def test_what_exec_runs_does_not_outlive_its_caller(face: Face) -> None:
    async with Node(hosts=[processes()]) as node:
        exits = Exits(node)
        collector = node.spawn(callers.collect, None, 1)
        waiting = node.spawn(face(exec_forever), None, collector)
        (executed,) = (await exits.of(collector)).value
        watcher = node.spawn(face(watch_one), None, executed)
        await until(lambda: executed in node.kernel.relations._watchers, "it is watched")
        node.terminate(waiting)
        assert (await exits.error(PID(executed))).kind == "terminated"
        event, _ = (await exits.of(watcher)).value
        assert (event["sender"], event["error"]) == (executed, "terminated")


async def test_a_cancelled_exec_terminates_its_process(node: Node) -> None:
    assert await seen_by(node, exec_cancelled) == ["cancelled", "terminated"]


async def test_a_cancelled_exec_terminates_its_process_even_behind_a_full_pipe(
    tmp_path: Path,
) -> None:
    """The order to end must not overtake the order to start, which still waits to be written."""
    cancelled = tmp_path / "cancelled"
    async with Node(hosts=[processes()]) as node:
        target = node.spawn(room(rooms.echo))
        app = WebSocketRelay(
            endpoint(lambda _: RelayResponse(target)),
            node=node,
            outbox_limit=100_000,
            outbox_overflow="pause",
        )
        async with serving(app) as url, connection(node, url, target) as (websocket, pid):
            websocket.transport.pause_reading()
            function = exec_cancelled_behind_a_full_pipe
            caller_pid = node.spawn(function, None, pid, str(cancelled))
            relay: Any = node.connection(pid)
            await until(lambda: relay._session._held, "its writes wait")
            node.send(caller_pid, "go")
            await until(cancelled.exists, "the exec is cancelled")
            websocket.transport.resume_reading()
            for _ in range(MEGABYTES):
                await received(websocket)
            await until(lambda: node.kernel.names.get("fence"), "all has been written")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await until(lambda: len(node.workers) == 2)
            assert node.workers.keys() == {target, caller_pid}


@BOTH
async def test_many_can_exec_at_once(node: Node, face: Face) -> None:
    """From the tasks of an event loop, and from the threads of a process without one."""
    assert await seen_by(node, face(exec_many), 20) == list(range(20))


# drain


@BOTH
async def test_drain_returns_when_the_client_has_taken_most(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        websocket.transport.pause_reading()
        drainer = node.spawn(face(drain_to), None, pid, 40, None)
        relay: Any = node.connection(pid)
        await until(lambda: relay._when_drained, "it drains")
        assert drainer in node.workers
        websocket.transport.resume_reading()
        for _ in range(40):
            assert len(await received(websocket)) == 1_000_000
        assert (await exits.of(drainer)).value == "no error"


@BOTH
async def test_drain_gives_up_at_its_deadline(node: Node, front: str, face: Face) -> None:
    async with connection(node, front) as (websocket, pid):
        websocket.transport.pause_reading()
        told = await seen_by(node, face(drain_to), pid, 40, 0.05)
        assert told.startswith("TimeoutError")
        relay: Any = node.connection(pid)
        assert not relay._when_drained, "nobody is told who does not wait any more"
        websocket.transport.abort()


@BOTH
async def test_drain_returns_when_the_connection_goes(node: Node, front: str, face: Face) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        websocket.transport.pause_reading()
        drainer = node.spawn(face(drain_to), None, pid, 40, None)
        relay: Any = node.connection(pid)
        await until(lambda: relay._when_drained, "it drains")
        websocket.transport.abort()
        assert (await exits.of(drainer)).value == "no error"


@BOTH
async def test_drain_of_what_is_no_connection_returns_at_once(node: Node, face: Face) -> None:
    told = await seen_by(node, face(drain_others))
    assert told[:3] == ["no error"] * 3
    starts(told[3:], *["InvalidPID: "] * 3)


@BOTH
async def test_a_worker_that_dies_while_it_drains_does_the_connection_no_harm(face: Face) -> None:
    async with Node(hosts=[processes()]) as node:
        app = WebSocketRelay(
            endpoint(lambda request: RelayResponse(request.query_params["target"])),
            node=node,
            outbox_limit=64_000_000,
        )
        async with serving(app) as url, connection(node, url) as (websocket, pid):
            exits = Exits(node)
            websocket.transport.pause_reading()
            drainer = node.spawn(face(drain_to), None, pid, 40, None)
            relay: Any = node.connection(pid)
            await until(lambda: relay._when_drained, "it drains")
            node.terminate(drainer)
            await exits.of(drainer)
            websocket.transport.resume_reading()
            for _ in range(40):
                assert len(await received(websocket)) == 1_000_000
            await websocket.send("still here")
            assert await received(websocket) == "still here"
