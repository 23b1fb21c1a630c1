"""`incoming`, `ticks` and `stopping`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import loop_handlers
import pytest
import room_classes
from exits import Exits
from one_node import BOTH, left_as_found, one_node, seen_by, starts
from relating import Face
from support import processes

from wsrelay import Node

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with one_node() as node:
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


@BOTH
async def test_incoming_gives_events_first_and_cancel_last(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(loop_handlers.incoming))
    assert seen[:5] == ["EXIT", 1, 2, 3, "CANCEL"]
    assert seen[5] == "enough"
    assert seen[6].startswith("ChannelClosed")
    assert seen[7:] == [[], []]


@BOTH
async def test_incoming_shares_its_items_with_inbox_and_events(node: Node, face: Face) -> None:
    assert await seen_by(node, face(loop_handlers.incoming_that_is_left)) == [0, 1, "CANCEL", 2]


@BOTH
async def test_incoming_waits_for_messages_and_events_alike(node: Node, face: Face) -> None:
    *seen, nothing = await seen_by(node, face(loop_handlers.incoming_waits))
    assert seen == ["EXIT", "said"]
    assert nothing.startswith("TimeoutError")


@BOTH
async def test_ticks_come_at_their_time_and_those_missed_are_counted(
    node: Node, face: Face
) -> None:
    seen = await seen_by(node, face(loop_handlers.tick))
    early, numbers, counted, skipped, ended, left = seen
    assert early == 0
    assert numbers == sorted(set(numbers))
    assert counted
    assert skipped >= 3
    assert ended.startswith("ChannelClosed")
    assert left == []


@BOTH
async def test_an_interval_that_is_none_is_told_at_the_caller(node: Node, face: Face) -> None:
    told = await seen_by(node, face(loop_handlers.tick_at_no_interval))
    starts(told, *["ValueError: interval: "] * 3, *["TypeError: interval: "] * 2)


@BOTH
async def test_select_wakes_for_the_first_tick(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(loop_handlers.tick_while_nothing_comes))
    assert seen[:2] == [True, True]
    assert seen[2].startswith("TimeoutError")
    assert seen[3] is False, "each call begins a clock of its own"


@BOTH
async def test_ticks_that_are_always_due_keep_nothing_from_being_read_and_end_at_cancel(
    node: Node, face: Face
) -> None:
    exits = Exits(node)
    pid = node.spawn(face(loop_handlers.tick_without_end))
    assert await node.started(pid) is None
    node.send(pid, "x", "message")
    node.cancel(pid)
    assert (await exits.of(pid)).value == ["message", True, "CANCEL"]


@BOTH
async def test_ticks_named_first_in_select_keep_no_message_in_the_pipe(
    node: Node, face: Face
) -> None:
    exits = Exits(node)
    pid = node.spawn(face(loop_handlers.serve_ticks_first))
    assert await node.started(pid) is None
    node.send(pid, "x", "message")
    assert (await exits.of(pid)).value == [True, "message"]


@BOTH
async def test_one_select_over_ticks_and_incoming_serves_all_and_ends_with_cancel(
    node: Node, face: Face
) -> None:
    exits = Exits(node)
    pid = node.spawn(face(loop_handlers.serve_ticks_and_incoming))
    assert await node.started(pid) is None
    node.send(pid, "x", "message")
    node.cancel(pid)
    assert (await exits.of(pid)).value == ["message", "CANCEL"]


async def test_other_tasks_run_between_ticks_that_are_always_due(node: Node) -> None:
    assert await seen_by(node, loop_handlers.other_tasks_run) == [5, True]


@BOTH
async def test_a_loop_that_only_computes_sees_that_it_is_to_end(node: Node, face: Face) -> None:
    """It takes nothing of what it saw on its way: neither the event nor messages."""
    exits = Exits(node)
    pid = node.spawn(face(loop_handlers.compute))
    for number in range(5000):
        node.send(pid, "x", number)
    node.cancel(pid)
    assert (await exits.of(pid)).value == ["cancel", "cancel", "CANCEL", True, 5000]


@BOTH
async def test_any_thread_may_ask_whether_the_process_is_to_end(node: Node, face: Face) -> None:
    exits = Exits(node)
    pid = node.spawn(face(loop_handlers.compute_in_a_thread))
    assert await node.started(pid) is None
    node.cancel(pid)
    assert (await exits.of(pid)).value == "cancel"


async def test_a_process_is_told_that_the_node_shuts_down() -> None:
    async with Node(hosts=[processes()]) as node:
        exits = Exits(node)
        pids = [node.spawn(getattr(loop_handlers.compute, kind)) for kind in ("sync", "aio")]
        rooms = [node.spawn(getattr(room_classes.Diary, kind)) for kind in ("sync", "aio")]
        for pid in [*pids, *rooms]:
            assert await node.started(pid) is None
    for pid in pids:
        assert exits.results[pid].value[:3] == ["drain", "drain", "CANCEL"]
    for pid in rooms:
        assert exits.results[pid].value[-1] == ["stop", "node shuts down"]
