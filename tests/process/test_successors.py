"""One process at a time under a name that was given by `get_or_spawn`, with real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import rooms
from exits import Exits
from one_node import BOTH, connection, front_of, left_as_found, one_node, seen_by, starts
from relating import Face, deaf, give, mortal
from starlette.requests import Request
from successor_handlers import (
    be_replaced_by_itself,
    end_waiting,
    give_up,
    hear,
    keep_count,
    replace,
    touch,
)
from support import client, endpoint, received, room, serving, until
from websockets.exceptions import InvalidStatus

from wsrelay import PID, HostFull, NameTaken, Node, RelayResponse, WebSocketRelay
from wsrelay.kernel import Signal
from wsrelay.node import WorkerProcess, describe

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


async def closing(node: Node, target: Any = deaf, *args: Any, host: str | None = None) -> PID:
    """A running process `room` that has been cancelled."""
    pid = node.get_or_spawn("room", target, host, *args)
    assert await node.started(pid) is None
    node.cancel(pid)
    return pid


@BOTH
async def test_what_is_saved_at_the_end_is_loaded_at_the_next_start(
    node: Node, face: Face, tmp_path: Path
) -> None:
    """Two of one name never run at once: each makes a lock that must not be there."""
    exits, path = Exits(node), tmp_path / "count"
    target = face(keep_count)
    first = await closing(node, target, str(path))
    for number in range(3):
        second = node.get_or_spawn("room", target, None, str(path))
        node.send("room", "count", number)
    assert second != first
    assert await seen_by(node, give, "others start meanwhile") == "others start meanwhile"
    state = {one.pid: (one.state, one.os_pid is None) for one in describe(node).processes}
    assert state == {first: ("cancelling", False), second: ("waiting", True)}
    (tmp_path / "count.save").touch()
    assert (await exits.of(first)).value == [0, 0]
    assert await node.started(second) is None
    node.cancel("room")
    third = node.get_or_spawn("room", target, None, str(path))
    assert (await exits.of(second)).value == [0, 3]
    assert await node.started(third) is None
    node.cancel("room")
    assert (await exits.of(third)).value == [3, 3]


@BOTH
async def test_a_successor_is_the_name_at_once_and_starts_after_the_end_was_told(
    node: Node, face: Face
) -> None:
    seen = await seen_by(node, face(replace))
    starts(
        [*seen[:3], seen[6]],
        "NameNotFound: no process is registered as 'room'",
        "NameTaken: the name 'room' belongs to {local@hasty|",
        "NameNotFound: no process is registered as 'room'",
        "NameTaken: the name 'room' belongs to {local@processes|",
    )
    assert "which has been cancelled, until it has ended" in seen[1]
    assert seen[3:6] == [True] * 3
    assert seen[7:] == [True, "by name", "by PID", True, "cancelled"]


async def test_the_time_that_a_successor_has_to_start_counts_from_the_end_before_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits, begun = Exits(node), []
    begin = WorkerProcess.signal_after

    def signal_after(self: WorkerProcess, seconds: float, signal: Signal) -> None:
        begun.append((self.pid, seconds, signal, first in exits.results))
        begin(self, seconds, signal)

    first = await closing(node)
    monkeypatch.setattr(WorkerProcess, "signal_after", signal_after)
    second = node.get_or_spawn("room", mortal)
    node.terminate(first)
    assert await node.started(second) is None
    timeout = node.engine.processes[second].options.start_timeout
    assert [one for one in begun if one[0] == second] == [
        (second, timeout, Signal.START_TIMEOUT, True)
    ]


@BOTH
async def test_a_process_that_waits_ends_as_it_is_told_to(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(end_waiting))
    ends, names = seen[:8:2], seen[1:8:2]
    assert ends == [
        [True, None],
        [True, "terminated"],
        [True, "link_down"],
        [True, "mailbox_overflow"],
    ]
    starts(names, *["NameNotFound"] * 4)
    assert seen[8:] == [[True, "terminated"], [True, "host_full"]]


@BOTH
async def test_mail_for_a_process_that_waits_is_kept_in_its_order(node: Node, face: Face) -> None:
    exits = Exits(node)
    first = await closing(node)
    second = node.get_or_spawn("room", face(hear))
    sent: list[list[Any]] = [["number", number] for number in range(100)]
    sent += [["bytes", bytes(50_000)] for _ in range(10)]  # more than is in flight at once
    sent += [["number", number] for number in range(100)]
    for topic, content in sent:
        node.send(second, topic, content)
    assert node.engine.processes[second].pipe.mailbox > 300_000
    node.terminate(first)
    assert await node.started(second) is None
    await until(lambda: not node.engine.processes[second].pipe.backlog, "all has been sent to it")
    node.cancel(second)
    assert (await exits.of(second)).value == sent


@BOTH
async def test_a_cancelled_process_can_ask_for_its_own_successor(node: Node, face: Face) -> None:
    exits = Exits(node)
    first = await closing(node, face(be_replaced_by_itself), "room")
    successor = (await exits.of(first)).value
    assert successor != first
    assert (await exits.of(PID(successor))).value is True


@BOTH
async def test_a_cancelled_process_that_unregisters_its_name_lets_its_successor_run(
    node: Node, face: Face, tmp_path: Path
) -> None:
    exits, path = Exits(node), str(tmp_path / "runs")
    first = node.get_or_spawn("room", face(give_up), None, "room", path)
    node.cancel(first)
    second = node.get_or_spawn("room", touch, None, path)
    starts([(await exits.of(first)).value], "NameNotFound")
    assert node.lookup("room") == second


async def test_a_client_may_be_moved_to_a_process_that_waits(node: Node, front: str) -> None:
    first = await closing(node)
    second = node.get_or_spawn("room", room(rooms.echo))
    async with connection(node, front) as (websocket, pid):
        node.send(pid, "ws.control", {"target_pid": second})
        for number in range(20):
            await websocket.send(f"{number} " + "x" * 20_000)
        process = node.engine.processes[second]
        await until(lambda: process.pipe.full, "the client's messages wait")
        assert not process.launched
        node.terminate(first)
        for number in range(20):
            assert str(await received(websocket)).startswith(f"{number} ")


async def test_a_client_of_a_process_that_never_ran_is_to_come_again(
    node: Node, front: str
) -> None:
    await closing(node)
    second = node.get_or_spawn("room", room(rooms.echo))
    async with connection(node, front) as (websocket, pid):
        node.send(pid, "ws.control", {"target_pid": second})
        assert node.engine.processes[second].clients
        node.cancel(second)
        await websocket.wait_closed()
        assert websocket.close_code == 1013


# Upgrades


def joining(node: Node, host: str | None = None) -> WebSocketRelay:
    def answer(_: Request) -> RelayResponse:
        return RelayResponse(node.get_or_spawn("room", room(rooms.echo), host))

    return WebSocketRelay(endpoint(answer), node=node)


async def test_an_upgrade_to_a_process_that_waits_is_answered_when_that_has_started(
    node: Node,
) -> None:
    await closing(node, host="hasty")
    async with serving(joining(node)) as url, client(url) as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "hello"


async def test_an_upgrade_that_waited_for_a_place_in_vain_gets_503_with_retry_after(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await closing(node, host="hasty")
    async with serving(joining(node, "full")) as url:
        with pytest.raises(InvalidStatus) as refused:
            await client(url).__aenter__()
    response = refused.value.response
    assert (response.status_code, "retry-after" in response.headers) == (503, True)
    assert "503: process host full is full: 0 of 0 processes run" in caplog.text


async def test_why_a_process_that_waited_never_started_is_told(node: Node) -> None:
    first = await closing(node)
    second = node.get_or_spawn("room", mortal, "full")
    assert node.why_no_target(second) is None
    start = node.engine.processes[second].wait_for_start()
    node.cancel(second)
    assert await start == f"target_pid {second} is not alive: it was cancelled while it waited"
    third = node.get_or_spawn("room", mortal, "full")
    start = node.engine.processes[third].wait_for_start()
    node.terminate(first)
    assert isinstance(await start, HostFull)
    assert "is not alive" in str(await node.started(third))


# What others see


async def test_a_name_that_is_held_is_not_registered_and_its_successor_not_found_yet(
    node: Node,
) -> None:
    """So a walled-in process needs the right to the name, and an unused successor is cancelled."""
    await closing(node)
    assert not node._requests.is_registered("room")
    with pytest.raises(NameTaken):
        node.register("room", node.spawn(mortal))
    second = node.get_or_spawn("room", mortal)
    assert node._requests.is_registered("room")
    assert node.is_unused(second)
    assert node.get_or_spawn("room", mortal) == second
    assert not node.is_unused(second)


async def test_of_many_that_end_while_they_wait_few_are_logged(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await closing(node)
    for _ in range(500):
        second = node.get_or_spawn("room", mortal)
        node.terminate(second)
    told = [text for text in caplog.messages if "was not started" in text]
    assert 5 <= len(told) < 100
    assert told[0].endswith(" room was not started: terminated")
    assert "ended: terminated" not in caplog.text
