"""`send_after`, from processes and from the node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import timer_handlers
from exits import Exits
from one_node import BOTH, connection, front_of, left_as_found, one_node, seen_by, starts
from relating import Face, mortal
from support import received, until

from wsrelay import ExitKind, Node, Result, Timer, process
from wsrelay.aio import process as aio_process
from wsrelay.node import timers

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with one_node() as node:
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared
    await until(lambda: not shared._requests.timers, "no timer is left")


@BOTH
async def test_a_message_is_sent_when_its_time_has_come(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(timer_handlers.send_after))
    assert seen == [True, "first", "later", {"a": 1}, True, None, True]


@BOTH
async def test_a_cancelled_timer_sends_nothing_and_one_that_has_sent_is_harmless(
    node: Node, face: Face
) -> None:
    assert await seen_by(node, face(timer_handlers.cancel)) == [2, "fence"]


@BOTH
async def test_a_name_is_looked_up_when_the_message_is_sent(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(timer_handlers.send_by_name))
    assert seen == ["by name", "to many", "to many"]


@BOTH
async def test_a_timer_outlives_its_sender(node: Node, face: Face) -> None:
    assert await seen_by(node, face(timer_handlers.outlive)) == ["EXIT", True, "left", True]


@BOTH
async def test_misuse_of_timers_is_told_at_the_caller(node: Node, face: Face) -> None:
    *told, left = await seen_by(node, face(timer_handlers.misuse))
    starts(
        told,
        *["ValueError: seconds: "] * 4,
        *["TypeError: seconds: "] * 3,
        "InvalidPID: '{nonsense' is not a PID",
        "InvalidName: ",
        "ReservedTopic: topic '@x' is refused",
        "PayloadError: payload: builtins.complex is not data",
        "PayloadError: SendAfter cannot be sent to the node: ",
        "PayloadError: 67108870 bytes are more than a message may hold",
        "TooMany: timer's receivers limit of 10000 reached",
    )
    assert left == "0", "none of them counts"


@BOTH
async def test_one_timer_too_many_is_told_at_the_caller(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(timer_handlers.set_too_many))
    assert seen == ["TooMany: timer limit of 5 reached", "there was room", "again"]


@BOTH
async def test_who_sets_timers_as_fast_as_they_are_due_is_refused_none(
    node: Node, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "MOST", 20)
    assert await seen_by(node, face(timer_handlers.set_and_set_again), 20, 20) == 400


async def test_a_worker_that_sets_more_timers_than_it_may_is_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not count them itself; and what it has left ends with the node."""
    monkeypatch.setattr(timers, "MOST", 5)
    error = await Exits(node).error(node.spawn(timer_handlers.set_more_than_counted, None, 6))
    assert (error.kind, error.message) == (ExitKind.LIMIT, "timer limit of 5 reached")
    assert len(node._requests.timers) == 5
    for timer in list(node._requests.timers._pending):
        node.cancel_timer(Timer(timer))


@pytest.mark.parametrize("timer", ["(local@processes|other.1-1)", "(local@hasty|{ids}-9)", "it"])
async def test_a_worker_makes_no_timers_of_others(node: Node, timer: str) -> None:
    error = await Exits(node).error(node.spawn(timer_handlers.set_another_s, None, timer))
    assert error.kind is ExitKind.ERROR
    assert error.message.startswith("killed: it wrote garbage on its pipe: ")


# On the node


async def in_loop(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


async def awaited(function: Callable[..., Any], *args: Any) -> Any:
    assert function is process.send_after
    return await aio_process.send_after(*args)


PLACES = pytest.mark.parametrize(
    "place", [in_loop, asyncio.to_thread, awaited], ids=["loop", "thread", "aio"]
)


@PLACES
async def test_the_node_sends_later_and_is_the_sender(node: Node, place: Any) -> None:
    exits = Exits(node)
    pid, before = node.spawn(mortal), time.monotonic()
    timer = await place(process.send_after, 600, pid, "return", "too early")
    assert type(timer) is Timer
    await asyncio.to_thread(Timer(str(timer)).cancel)
    await place(process.send_after, 0.02, pid, "return", "told")
    assert await exits.of(pid) == Result("told")
    assert time.monotonic() - before >= 0.02
    with pytest.raises(ValueError, match="seconds: -1 seconds; it is from 0"):
        await place(process.send_after, -1, pid, "x")


async def test_a_client_is_told_later(node: Node) -> None:
    async with front_of(node) as front, connection(node, front) as (websocket, pid):
        before = node.dead_letters
        process.send_after(0.01, [pid, pid], "ws.send", {"type": "text", "data": "later"})
        assert [await received(websocket) for _ in range(2)] == ["later", "later"]
        process.send_after(0, "nobody", "x")
        await until(lambda: node.dead_letters == before + 1, "one for nobody is a dead letter")


async def test_timers_end_with_the_node() -> None:
    node = Node()
    async with node:
        node.send_after(600, "somebody", "x")
        timers_ = node._requests.timers
        assert len(timers_) == 1
    assert len(timers_) == 0
    assert timers_._alarm is None
    async with node:
        assert len(node._requests.timers) == 0
