"""The options of a process: what is set is read, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import rooms
from one_node import BOTH, connection, front_of, left_as_found, seen_by
from option_handlers import changed, ends_when_empty, misused, sets_it_later
from relating import Face
from support import processes, room, until

from wsrelay import Node

pytestmark = pytest.mark.anyio


LATER = f"{sets_it_later.__module__}:sets_it_later"


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    # The first stream of uvloop opens a descriptor that the loop keeps: here, and not in a test.
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()
    async with Node(hosts=[processes(targets=(LATER, room(rooms.echo)))]) as node:
        await node.loaded()
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


@BOTH
async def test_only_what_is_given_changes(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(changed))
    assert [(each["trap_links"], each["end_when_empty"]) for each in seen] == [
        (False, None),
        (False, 90.0),
        (True, 90.0),
        (True, 90.0),
        (True, 90.0),
        (True, None),
    ]


@BOTH
async def test_wrong_options_are_told_at_the_caller_and_change_nothing(
    node: Node, face: Face
) -> None:
    errors, after = await seen_by(node, face(misused))
    assert [error.split(": ")[0] for error in errors] == [
        "ValueError",
        "ValueError",
        "ValueError",
        "TypeError",
        "TypeError",
    ]
    assert errors[0] == (
        "ValueError: end_when_empty: 'soon' is not a duration; write it like '30s', '1m30s' or "
        "'500ms'"
    )
    assert errors[4] == "TypeError: trap_links is 1 and must be True or False"
    assert after == {"trap_links": False, "end_when_empty": None}


@BOTH
@pytest.mark.parametrize("given", [0, 0.01, "10ms"])
async def test_a_process_without_clients_is_cancelled_so_long_after_it_says_so(
    node: Node, face: Face, given: Any
) -> None:
    told = await seen_by(node, face(ends_when_empty), given)
    assert told == ["CANCEL", "end_when_empty"]


async def test_a_process_with_a_client_is_not_and_its_last_one_ends_it(node: Node) -> None:
    target = node.spawn(LATER)
    async with front_of(node) as front:
        async with connection(node, front, target) as (websocket, _):
            node.send(target, "set", 0)
            await until(lambda: node.engine.processes[target].end_when_empty == 0)
            await websocket.send("hello")
            assert await websocket.recv() == "hello"
        await until(lambda: target not in node.workers, "it has ended")


async def test_what_is_turned_off_ends_nobody(node: Node) -> None:
    target = node.spawn(LATER)
    node.send(target, "set", 60)
    worker = node.engine.processes[target]
    await until(lambda: worker._empty is not None, "it will end")
    node.send(target, "set", None)
    await until(lambda: worker._empty is None, "it will not")


async def test_a_client_that_is_moved_away_leaves_its_process_empty(node: Node) -> None:
    target, other = node.spawn(LATER), node.spawn(room(rooms.echo))
    async with front_of(node) as front, connection(node, front, target) as (websocket, client):
        node.send(target, "set", 0)
        await until(lambda: node.engine.processes[target].end_when_empty == 0)
        node.send(client, "ws.control", {"target_pid": other})
        await until(lambda: target not in node.workers, "it has ended")
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
