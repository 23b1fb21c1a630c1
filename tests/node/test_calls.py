"""What hostile workers do to calls: they harm nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hostile_calls import (
    answer_for_others,
    answer_garbage,
    answer_late,
    answer_one,
    answer_twice,
    ask_for_much,
    ask_once,
    ask_twice,
    call_often,
    call_with_garbage,
    call_with_one_number,
    count_until_told,
    refuse_at_length,
)
from support import end_of, processes, until, value_of

from wsrelay import ExitKind, Node, Result
from wsrelay.node import requests

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with Node(hosts=[processes()]) as node:
        await node.loaded()
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    yield shared
    shared.terminate_all()
    await until(lambda: not shared.workers, "all have ended")
    assert not shared._calls


async def test_nobody_answers_or_ends_the_calls_of_others(node: Node) -> None:
    to = node.spawn(answer_late)
    calls = [asyncio.create_task(node.call_async(to, "x", n, 60)) for n in range(2)]
    await until(lambda: len(node._calls) == 2, "they wait")
    assert (await end_of(node, answer_for_others)).error is None
    assert len(node._calls) == 2
    node.send(to, "go on")
    assert await asyncio.gather(*calls) == [["right", 0], ["right", 1]]


async def test_the_first_of_many_answers_counts(node: Node) -> None:
    to = node.spawn(answer_twice)
    assert await value_of(node, ask_twice, to) == ["first", "first"]
    assert await node.call_async(to, "x") == "first"


@pytest.mark.parametrize("content", [b"\xc1", b"\x91" * 5000, b"", b"\xc7\x01\x05x"])
async def test_an_answer_that_is_no_data_is_none_in_a_worker_and_told_on_the_node(
    node: Node, content: bytes
) -> None:
    to = node.spawn(answer_garbage, None, content)
    assert await value_of(node, ask_once, to) is None
    with pytest.raises(ValueError, match="answered 'x' with what cannot be read: "):
        await node.call_async(to, "x")


@pytest.mark.parametrize("content", [b"\xc1", b"\x91" * 5000, b""])
async def test_a_call_that_is_no_data_harms_neither_node_nor_receiver(
    node: Node, content: bytes
) -> None:
    results: list[Result] = []
    to = node.spawn(answer_one)
    node.when_ended(to, results.append)
    assert (await end_of(node, call_with_garbage, to, content)).error is None
    await until(lambda: results, "the receiver has ended")
    assert results == [Result("go on")]


async def test_a_number_that_waits_already_is_refused(node: Node) -> None:
    to = node.spawn(answer_late)
    told = await value_of(node, call_with_one_number, to)
    assert told == ["TooMany", "call limit of 10000 reached"]
    await until(lambda: not node._calls, "the first is forgotten with its caller")


async def test_an_answer_of_any_size_ends_no_caller(node: Node) -> None:
    result = await end_of(node, ask_for_much)
    assert result == Result([50, 16 * 1024 * 1024])


async def test_a_refusal_of_more_than_a_thousand_characters_is_garbage(node: Node) -> None:
    error = (await end_of(node, refuse_at_length)).error
    assert error is not None
    assert error.kind is ExitKind.ERROR
    assert error.message.startswith("killed: it wrote garbage on its pipe")


async def test_a_worker_waits_for_so_many_answers_and_one_call_more_sends_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MOST", 5)
    results: list[Result] = []
    to = node.spawn(count_until_told)
    node.when_ended(to, results.append)
    assert await value_of(node, call_often, to, 6) == [1005, "TooMany", "call limit of 5 reached"]
    await until(lambda: results, "it has ended")
    assert results == [Result([*["x"] * 5, "told"])]
