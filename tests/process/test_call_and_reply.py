"""Calls: messages that want an answer, and what comes instead of one."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import pytest
from call_handlers import (
    answering,
    call_and_wait,
    call_between,
    call_in_vain,
    call_once,
    call_successor,
    call_wrong_ones,
    cancelled_call,
    collecting,
    convert,
    hear_last_words,
    listen_for_calls,
    misuse,
)
from exits import Exits
from one_node import BOTH, NOBODY, connection, front_of, left_as_found, one_node, seen_by, starts
from relating import Face, deaf, mortal
from support import TIMEOUT, until

from wsrelay import CallError, InvalidCall, Node, NotAProcess, ProcessError, process
from wsrelay.aio import process as aio_process

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


# Between processes

NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
VALUES = ["none", "zero", "data", "large"]


@BOTH
@pytest.mark.parametrize("value", [None, 0, {"a": [1.5, b"x", NOW]}, "x" * 200_000], ids=VALUES)
async def test_a_call_returns_what_is_replied(node: Node, face: Face, value: Any) -> None:
    to = node.spawn(face(answering))
    assert await seen_by(node, face(call_once), to, "echo", value, TIMEOUT) == value


@BOTH
async def test_an_answer_is_converted_and_a_call_that_raises_has_sent_nothing(
    node: Node, face: Face
) -> None:
    to = node.spawn(face(answering))
    *told, held = await seen_by(node, face(convert), to)
    starts(
        told,
        f"ValueError: {to} answered 'echo' with {{'x': 'one'}}, which is not Point: "
        "Expected `int`, got `str` - at `$.x`",
        f"ValueError: {to} answered 'echo' with [1, '2'], which is not list[int]: "
        "Expected `int`, got `str` - at `$[1]`",
        "TypeError: Type ''no type'' is not supported",
        "TypeError: timeout: 'soon' is not a number of seconds",
        "ReservedTopic: topic '@hold'",
        "PayloadError: payload: builtins.complex is not data",
        f"InvalidPID: [{to!r}] is not a PID",
        "InvalidPID: '{nonsense' is not a PID",
    )
    assert held == 0


@BOTH
async def test_a_call_that_is_not_answered_in_time_says_so_and_a_late_answer_is_dropped(
    node: Node, face: Face
) -> None:
    to = node.spawn(face(answering))
    first, second, held, echo, left = await seen_by(node, face(call_in_vain), to)
    assert first == f"TimeoutError: {to} did not answer 'hold' within 0.05 s"
    assert second == f"TimeoutError: {to} did not answer 'hold' within 0 s"
    assert (held, echo, left.rstrip(": ")) == (2, "right", "TimeoutError")


ENDS = [
    ("raise", "error", "ZeroDivisionError: on purpose"),
    ("exit", "exit", "exit code 3"),
    ("terminate", "terminated", "terminated"),
    ("return", "no_reply", "it returned without an answer"),
]


@BOTH
@pytest.mark.parametrize(("way", "kind", "message"), ENDS)
async def test_a_call_tells_how_the_process_ended_that_did_not_answer(
    node: Node, face: Face, way: str, kind: str, message: str
) -> None:
    to = node.spawn(face(answering))
    told = await seen_by(node, face(call_once), to, way, None, TIMEOUT)
    assert told[:2] == [kind, message]
    assert ("call_handlers.py" in (told[2] or "")) is (way == "raise")


@BOTH
async def test_a_call_of_a_process_that_does_not_start_tells_why(node: Node, face: Face) -> None:
    to = node.spawn("no_such_module:f")
    kind, message, _ = await seen_by(node, face(call_once), to, "x", None, TIMEOUT)
    assert kind in ("start_failed", "noproc")
    assert "no_such_module" in message or "there is no process" in message


@BOTH
@pytest.mark.parametrize("to", [*NOBODY, "no such name"])
async def test_a_call_of_nobody_is_noproc(node: Node, face: Face, to: str) -> None:
    dead = node.dead_letters
    told = await seen_by(node, face(call_once), to, "x", None, TIMEOUT)
    assert told == ["noproc", f"there is no process {to}", None]
    assert node.dead_letters == dead


@BOTH
async def test_a_call_of_a_cancelled_process_is_noproc_at_once_and_its_name_is_another_s(
    node: Node, face: Face
) -> None:
    former = node.spawn(deaf)
    node.register("room", former)
    await node.started(former)
    node.cancel(former)
    told = await seen_by(node, face(call_once), former, "x", None, TIMEOUT)
    assert told == ["noproc", f"{former} has been cancelled and takes no calls", None]
    node.register("room", node.spawn(face(answering)))
    assert await seen_by(node, face(call_once), "room", "echo", "new", TIMEOUT) == "new"
    assert former in node.workers


@BOTH
async def test_a_call_of_oneself_a_connection_or_a_node_raises_at_once(
    node: Node, face: Face, front: str
) -> None:
    async with connection(node, front) as (_, client):
        told = await seen_by(node, face(call_wrong_ones), [client, str(node.pid())])
        *oneself, to_client, to_node, left = told
        for one in oneself:
            assert one.startswith("InvalidCall: ")
            assert "is the caller itself, which would wait for its own answer" in one
        assert to_client == f"InvalidCall: {client} is a connection, which answers no calls"
        assert to_node == f"InvalidCall: {node.pid()} is a node, which answers no calls"
        assert left.rstrip(": ") == "TimeoutError", "it has sent nothing to itself"


@BOTH
async def test_a_call_of_a_successor_that_waits_is_answered_once_it_runs(
    node: Node, face: Face
) -> None:
    former = node.get_or_spawn("place", deaf, "hasty")
    await node.started(former)
    node.cancel(former)
    successor = node.get_or_spawn("place", face(answering))
    for to in ("place", successor):
        assert await seen_by(node, face(call_once), to, "echo", to, TIMEOUT) == to
    assert former not in node.workers


@BOTH
async def test_a_call_of_one_s_own_successor_raises_at_once(node: Node, face: Face) -> None:
    exits = Exits(node)
    former = node.get_or_spawn("place", face(call_successor))
    await node.started(former)
    node.cancel(former)
    for told in (await exits.of(former)).value:
        assert told.startswith("InvalidCall: ")
        assert told.endswith(" is the caller's own successor, which waits for its end")


@BOTH
async def test_a_refusal_is_raised_at_the_caller(node: Node, face: Face) -> None:
    to = node.spawn(face(answering))
    told = await seen_by(node, face(call_once), to, "refuse", "no such board", TIMEOUT)
    assert told == "CallError: no such board"
    told = await seen_by(node, face(call_once), to, "refuse", "x" * 100_000, TIMEOUT)
    assert told.endswith("... (100000 characters)")
    assert len(told) == len("CallError: ") + 1000


@BOTH
async def test_what_wants_no_answer_takes_none_and_a_bad_answer_changes_nothing(
    node: Node, face: Face
) -> None:
    plain, called = await seen_by(node, face(misuse), node.spawn(face(answering)))
    assert (plain[0], plain[-1]) == (False, False)
    for one in plain[1:-1]:
        assert one.startswith("InvalidReply: 'misuse' of {")
        assert one.endswith("} wants no answer: only what process.call has sent does")
    assert (called[0], called[-1]) == (True, True)
    starts(
        called[1:-1],
        "PayloadError: payload: builtins.complex is not data",
        "PayloadError: Answer cannot be sent to the node: Expected `str | null`, got `int`",
    )


@BOTH
async def test_a_call_is_answered_once_also_from_a_channel_of_its_topic(
    node: Node, face: Face
) -> None:
    exits = Exits(node)
    to = node.spawn(face(listen_for_calls))
    await until(lambda: node.kernel.names.get("listening"), "it listens")
    answer = await node.call_async("listening", "question", [1, 2])
    assert answer == ["question", [1, 2], node.pid()]
    wants_reply, told = (await exits.of(to)).value
    assert not wants_reply
    assert told == f"InvalidReply: 'question' of {node.pid()} has been answered already"


@BOTH
async def test_a_call_keeps_its_place_among_the_messages_of_its_sender(
    node: Node, face: Face
) -> None:
    told = await seen_by(node, face(call_between), node.spawn(face(collecting)))
    first = ["hold"] * 3 + ["answer what is held"]
    assert told == [first, [*first, "hold", "answer what is held"]]


@BOTH
async def test_the_end_of_who_was_called_is_told_behind_all_that_it_had_sent(
    node: Node, face: Face
) -> None:
    to = node.spawn(face(answering))
    told, words = await seen_by(node, face(hear_last_words), to, 50)
    assert told == "ProcessError: killed: SIGKILL"
    assert words == list(range(50))


# What is left of a call


async def test_a_call_whose_task_is_cancelled_is_forgotten(node: Node) -> None:
    assert await seen_by(node, cancelled_call, node.spawn(answering.aio)) == 1
    assert not node._calls


async def test_the_calls_of_a_process_end_with_it(node: Node) -> None:
    caller = node.spawn(call_and_wait, None, node.spawn(answering.sync))
    await until(lambda: len(node._calls) == 1, "it waits")
    node.terminate(caller)
    await until(lambda: not node._calls, "it is forgotten")
    assert caller not in node.workers


async def test_calls_count_in_the_mailbox_of_who_is_called(node: Node) -> None:
    to = node.spawn(deaf, "small")
    await until(lambda: node.workers[to], "it was forked, so it does not end at once")
    calls = [node.call_async(to, "x", bytes(30_000), TIMEOUT) for _ in range(10)]
    for one in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(one, ProcessError)
        assert one.kind == "mailbox_overflow"
        assert one.message == "killed: its mailbox held more than 100000 bytes"


# From HTTP handlers


async def in_thread(*args: Any, **kwargs: Any) -> Any:
    return await asyncio.to_thread(process.call, *args, **kwargs)


async def in_another_loop(*args: Any, **kwargs: Any) -> Any:
    return await asyncio.to_thread(lambda: asyncio.run(aio_process.call(*args, **kwargs)))


PLACES = pytest.mark.parametrize("call", [aio_process.call, in_thread, in_another_loop])


@PLACES
async def test_the_node_calls_from_threads_and_coroutines(node: Node, call: Any) -> None:
    to = node.spawn(answering.sync)
    node.register("answering", to)
    assert await call("answering", "echo", {"a": 1}) == {"a": 1}
    assert await call(to, "echo", ["1"], as_=list[str]) == ["1"]
    with pytest.raises(ValueError, match=r"with 'x', which is not int: Expected `int`"):
        await call(to, "echo", "x", as_=int)
    with pytest.raises(ValueError, match=r"what cannot be read: it has more than 1,048,576 elem"):
        await call(to, "echo", [0] * 1_048_576)
    with pytest.raises(CallError, match=r"^not now$"):
        await call(to, "refuse", "not now")
    with pytest.raises(TimeoutError, match=r"'?answering'? did not answer 'hold' within 0\.05 s"):
        await call("answering", "hold", timeout=0.05)
    with pytest.raises(InvalidCall, match="is a node, which answers no calls"):
        await call(node.pid(), "x")
    with pytest.raises(ProcessError, match="there is no process nobody") as nobody:
        await call("nobody", "x")
    with pytest.raises(ProcessError, match="no reply: it returned without an answer") as silent:
        await call(to, "return")
    assert (nobody.value.kind, silent.value.kind) == ("noproc", "no_reply")


async def test_the_plain_call_raises_in_a_coroutine_and_names_the_other(node: Node) -> None:
    with pytest.raises(NotAProcess, match=r"hold up the event loop.*wsrelay\.aio\.process\.call"):
        process.call(node.spawn(answering.sync), "echo")
    assert not node._calls


async def test_a_call_that_waits_when_its_node_ends_is_told(node: Node) -> None:
    async with Node() as other:
        to = other.spawn(mortal)
        waiting = asyncio.create_task(asyncio.to_thread(other.call, to, "hold", None, None))
        await until(lambda: len(other._calls) == 1, "it waits")
    with pytest.raises(ProcessError, match="no reply"):
        await waiting
    assert not node._calls
