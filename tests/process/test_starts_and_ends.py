"""Processes that are started with a relation, and how they are ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import callers
import pytest
from exits import Exits
from one_node import BOTH, NO_FUNCTION, left_as_found, one_node, seen_by, starts
from relating import Face, crash, give, leave
from start_handlers import (
    be_cancelled,
    cancel_by_name,
    end_one,
    end_unknown,
    misstart,
    start,
    start_and_end,
    start_untrapped,
    terminate_by_name,
)
from support import until

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


# Starting with a relation

STARTS = [
    # target, host, arguments; value, kind of error, its message
    (give, None, ["at once"], "at once", None, ""),
    (crash, None, [], None, "error", "ZeroDivisionError: on purpose"),
    (leave, None, [5], None, "exit", "exit code 5"),
    pytest.param(
        NO_FUNCTION,
        None,
        [],
        None,
        "start_failed",
        "has no function 'no_such_function'",
        id="no such function",
    ),
    ("no_such_module_anywhere:f", None, [], None, "start_failed", "no_such_module_anywhere"),
    ("no_such_script.py", None, [], None, "start_failed", "does not exist"),
    (give, "full", [], None, "host_full", "process host full is full: 0 of 0 processes run"),
]


@BOTH
@pytest.mark.parametrize("how", ["spawn_monitored", "spawn_linked", "spawn_linked_monitored"])
@pytest.mark.parametrize(("target", "host", "args", "value", "kind", "message"), STARTS)
async def test_a_child_that_dies_in_its_first_instruction_is_reported(
    node: Node,
    face: Face,
    how: str,
    target: Any,
    host: str | None,
    args: list[Any],
    value: Any,
    kind: str | None,
    message: str,
) -> None:
    pid, events = await seen_by(node, face(start), how, target, host, args)
    expected = ["EXIT"] if "monitored" in how else []
    if kind is not None and "linked" in how:
        expected.append("LINK_DOWN")
    assert sorted(event["kind"] for event in events) == expected
    for event in events:
        assert (event["sender"], event["value"], event["error"]) == (pid, value, kind)
        assert message in (event["message"] or "")


@BOTH
@pytest.mark.parametrize(
    ("target", "host", "kind"),
    [
        (crash, None, "error"),
        pytest.param(NO_FUNCTION, None, "start_failed", id="no such function"),
        (give, "full", "host_full"),
    ],
)
async def test_a_linked_child_that_fails_at_once_takes_its_parent_along(
    node: Node, face: Face, target: Any, host: str | None, kind: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(face(start_untrapped), None, target, host)
    error = await exits.error(pid)
    assert error.kind == "link_down"
    assert error.message.endswith(f"ended ({kind})")


@BOTH
async def test_a_linked_child_ends_with_its_parent(node: Node, face: Face) -> None:
    exits = Exits(node)
    parent = node.spawn(face(start_and_end), None, "raise", "child")
    child = await until(lambda: node.kernel.names.get("child"), "the child is registered")
    node.send(parent, "go")
    assert (await exits.error(parent)).kind == "error"
    assert (await exits.error(child)).kind == "link_down"


@BOTH
async def test_a_linked_child_outlives_a_parent_that_returns(node: Node, face: Face) -> None:
    exits = Exits(node)
    parent = node.spawn(face(start_and_end), None, "return", "child")
    child = await until(lambda: node.kernel.names.get("child"), "the child is registered")
    node.send(parent, "go")
    assert (await exits.of(parent)).error is None
    node.cancel(child)
    assert (await exits.of(child)).value == "closed"


@BOTH
async def test_what_cannot_be_started_at_all_raises_and_relates_nobody(
    node: Node, face: Face
) -> None:
    told = await seen_by(node, face(misstart))
    starts(
        told,
        *[
            "InvalidTarget: target 'nonsense' is neither path/to/script.py:function",
            "InvalidTarget: target 3 is neither text",
            "UnknownHost: no process host 'no such host'; this node has full, hasty, processes",
            "PayloadError: cannot be sent to another process: cannot pickle '_thread.lock'",
        ]
        * 3,
    )


# Ends


@BOTH
async def test_cancel_frees_names_and_groups_at_once(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(cancel_by_name))
    not_found = [text.partition(":")[0] for text in seen[:2]]
    assert not_found == ["NameNotFound", "NameNotFound"]
    assert seen[2:4] == [[], []]
    assert "is not alive" in seen[4]
    assert seen[5:] == [True, "cancelled"]


@BOTH
async def test_cancel_closes_every_channel_of_messages_behind_what_is_queued(
    node: Node, face: Face
) -> None:
    seen = await seen_by(node, face(be_cancelled))
    assert seen[:5] == ["CANCEL", "first", True, 1, 2]
    assert [text.rstrip(": ") for text in seen[5:]] == ["ChannelClosed", "ChannelClosed"]


@BOTH
async def test_ending_nobody_is_no_error_and_a_malformed_pid_is(node: Node, face: Face) -> None:
    told = await seen_by(node, face(end_unknown))
    expected = ["no error"] * 3 + ["InvalidPID: '{nonsense' is not a PID", "InvalidPID: 3 is not"]
    starts(told, *expected * 2)


@BOTH
async def test_terminate_takes_a_name_too(node: Node, face: Face) -> None:
    assert await seen_by(node, face(terminate_by_name)) == "terminated"


@BOTH
async def test_cancel_tells_who_asked_and_why(node: Node, face: Face) -> None:
    exits = Exits(node)
    victim = node.spawn(callers.tell_cancel)
    ender = node.spawn(face(end_one), None, "cancel", victim, "why not")
    assert (await exits.of(victim)).value == ["CANCEL", "why not", ender]
