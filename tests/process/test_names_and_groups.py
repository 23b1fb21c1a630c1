"""Names and groups of real processes and connections."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from exits import Exits
from name_handlers import (
    broadcast,
    fences,
    grouped,
    members_when_gone,
    misgroup,
    misname,
    names,
    reregister_dead,
)
from one_node import BOTH, connection, front_of, left_as_found, one_node, seen_by, starts
from relating import Face
from support import received

from wsrelay import Node

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


# Names


@BOTH
async def test_each_owner_of_a_name_has_a_greater_number_that_it_keeps_until_it_has_ended(
    node: Node, face: Face
) -> None:
    first, second, mine, mine_again, *errors = await seen_by(node, face(fences))
    for numbers in (first, second, mine, mine_again):
        assert len(set(numbers)) == 1, "it stays the same, even once the name is the next one's"
    assert first[0] < second[0]
    assert mine[0] < mine_again[0]
    starts(
        errors,
        "InvalidName: {local@processes|",
        "NameNotFound: {local@processes|",
        "InvalidName: '{room}' is not a name",
        "NameNotFound: {local@processes|",
    )
    assert "was started under no name; say which of its names you mean" in errors[0]
    assert "is not registered as 'me'" in errors[1]


@BOTH
async def test_names_are_taken_found_and_freed(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(names))
    assert seen[:4] == [True, True, "PID", True]
    starts(
        seen[4:9],
        "NameTaken: the name 'me' belongs to {local@processes|",
        "NameTaken: the name 'other' belongs to {local@processes|",
        "NameNotFound: no process is registered as 'nobody'",
        "NameNotFound: no process is registered as 'nobody'",
        "NameNotFound: no process is registered as 'other'",
    )
    assert seen[9] == "unharmed"
    starts(seen[10:], "NameNotFound: no process is registered as 'other'", "NameNotFound")


@BOTH
async def test_a_name_is_free_when_the_exit_of_its_bearer_is_told(node: Node, face: Face) -> None:
    told = await seen_by(node, face(reregister_dead))
    starts(told, *["NameNotFound"] * 10)


@BOTH
async def test_what_cannot_be_named_is_refused(node: Node, face: Face) -> None:
    told = await seen_by(node, face(misname))
    assert [text.partition(": ")[2] for text in told[2:4]] == [
        "'{name}' is not a name: a name is not empty and does not start with {",
        "'' is not a name: a name is not empty and does not start with {",
    ]
    starts(told[:2], "InvalidPID: '{nonsense' is not a PID", "InvalidPID: 'text' is not a PID")
    assert "is not alive, so it cannot be registered as 'name'" in told[4]
    assert "{other@processes|1} is not alive" in told[5]
    assert told[6].startswith("NameNotFound")


@BOTH
async def test_a_dead_process_cannot_be_registered_which_is_a_value_error(
    node: Node, face: Face
) -> None:
    """As `register` says of itself, in a worker as on the node."""
    told = await seen_by(node, face(misname))
    with pytest.raises(ValueError, match="is not alive") as raised:
        node.register("name", "{processes|none}")
    assert told[4].partition(":")[0] == type(raised.value).__name__


# Groups


@BOTH
async def test_groups_have_members_in_order_and_the_dead_leave(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(grouped))
    assert seen[:2] == [[], True]
    assert seen[2] == ["all"] * 3
    assert seen[3:5] == [True, ["without me"] * 2]
    assert seen[5:] == [True, [], True, ["PID"]]


@BOTH
async def test_misuse_of_groups_is_told_at_the_caller(node: Node, face: Face) -> None:
    told = await seen_by(node, face(misgroup))
    starts(
        told,
        "InvalidPID: '{nonsense'",
        "InvalidPID: 'a name'",
        "InvalidPID: '{nonsense'",
        "ReservedTopic: topic '@exit'",
        "ReservedTopic: topic 3",
        "PayloadError: payload: builtins.complex",
        "[]",
    )


@BOTH
async def test_a_broadcast_reaches_connections(node: Node, front: str, face: Face) -> None:
    async with connection(node, front) as (one, _), connection(node, front) as (two, _):
        for pid in node.connections:
            node.join_group("clients", pid)
        await seen_by(node, face(broadcast), "clients", "to all")
        assert [await received(one), await received(two)] == ["to all", "to all"]


@BOTH
async def test_a_connection_leaves_its_groups_by_its_end(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        watcher = node.spawn(face(members_when_gone), None, pid)
        assert await received(websocket) == "joined"
    assert (await exits.of(watcher)).value == [[pid], []]
