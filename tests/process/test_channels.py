"""`listen`, `unlisten` and `select`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from channel_handlers import (
    listen,
    listen_to_much,
    listen_to_no_topic,
    receive_cancelled,
    select,
    select_waits,
    unlisten_what_is_no_topic,
    unlisten_while_one_waits,
)
from one_node import BOTH, left_as_found, one_node, seen_by, starts
from relating import Face

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
async def test_a_listened_topic_bypasses_the_inbox_until_unlisten(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(listen))
    assert seen[:3] == ["before", True, True]
    assert seen[3:6] == [[2], [1], [3]]
    assert seen[6].startswith("ChannelClosed")
    assert seen[7:] == [[5], True, 6, 4]


@BOTH
async def test_more_than_the_window_comes_through_a_listened_topic(node: Node, face: Face) -> None:
    assert await seen_by(node, face(listen_to_much), 100) == 1_000_000


@BOTH
async def test_unlisten_refuses_channels_that_are_no_topic_s(node: Node, face: Face) -> None:
    *told, payload = await seen_by(node, face(unlisten_what_is_no_topic))
    assert payload == "inbox is open"
    assert "no error" not in told


@BOTH
async def test_listen_refuses_what_can_be_no_topic(node: Node, face: Face) -> None:
    told = await seen_by(node, face(listen_to_no_topic))
    starts(told, *["ReservedTopic: topic"] * 3)


@BOTH
async def test_unlisten_wakes_who_waits(node: Node, face: Face) -> None:
    function = face(unlisten_while_one_waits)
    assert await seen_by(node, function) == ["ChannelClosed"]


@BOTH
async def test_select_gives_the_first_named_that_has_one(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(select))
    assert seen[:4] == [["inbox", 3], ["a", 2], ["b", 1], ["a", 4]]
    starts(seen[4:6], "TimeoutError", "TimeoutError")
    assert seen[6:8] == [["events", "EXIT"], ["b", 5]]
    starts(seen[8:], *["ChannelClosed"] * 3, "TimeoutError")


@BOTH
async def test_select_waits_for_messages_and_events_alike(node: Node, face: Face) -> None:
    assert await seen_by(node, face(select_waits)) == [["Event", True], ["Message", True]]


async def test_a_cancelled_receive_takes_nothing(node: Node) -> None:
    """The message is taken once: by who was not cancelled, or by who comes next."""
    count, then = await seen_by(node, receive_cancelled)
    assert count == 1
    assert then.startswith("TimeoutError")
