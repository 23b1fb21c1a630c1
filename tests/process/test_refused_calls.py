"""Calls that are refused: what is told, and that the caller goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from exits import Exits
from misuse_handlers import (
    NO_UTF8,
    WRONG_TYPES,
    foreign,
    malformed,
    relate_to_no_pid,
    return_too_much,
    send_too_much,
    wrong,
)
from one_node import BOTH, left_as_found, one_node, seen_by, starts
from relating import Face
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


@BOTH
async def test_malformed_pids_are_told_at_the_caller_everywhere(node: Node, face: Face) -> None:
    before = node.dead_letters
    for to, told in (await seen_by(node, face(malformed))).items():
        starts(told, *[f"InvalidPID: {to!r} is not a PID; one looks like {{local@"] * 12)
    assert node.dead_letters == before


@BOTH
async def test_relations_are_between_pids_alone(node: Node, face: Face) -> None:
    told = await seen_by(node, face(relate_to_no_pid))
    starts(told, *["InvalidPID: 'a name'", "InvalidPID: 3", "InvalidPID: None"] * 4)


@BOTH
@pytest.mark.parametrize("pid", ["{local@processes|none}", "{other@processes|1}"])
async def test_messages_to_nobody_are_dead_letters_and_relations_are_noproc(
    node: Node, face: Face, pid: str
) -> None:
    before = node.dead_letters
    seen = await seen_by(node, face(foreign), pid)
    assert seen[:6] == ["no error"] * 6
    assert seen[6:] == [["EXIT", pid, "noproc"], ["LINK_DOWN", pid, "noproc"]]
    assert node.dead_letters == before + 5


async def survives(node: Node, function: Callable[..., Any], *args: Any) -> list[str]:
    """Run a handler that misuses something; it must be told, and go on."""
    exits = Exits(node)
    pid = node.spawn(function, None, *args)
    await until(lambda: pid not in node.kernel.processes or node.workers.get(pid), "it runs")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            await exits.of(pid)
    assert pid in exits.results, "it hangs"
    result = exits.results[pid]
    assert result.error is None, result.error.message
    told: list[str] = result.value
    return told


@BOTH
@pytest.mark.parametrize("what", WRONG_TYPES)
async def test_what_is_no_text_is_refused_and_kills_nobody(
    node: Node, face: Face, what: str
) -> None:
    error, after = await survives(node, face(wrong), "types", what)
    assert error != "no error"
    assert after == "goes on"


@BOTH
@pytest.mark.parametrize("what", NO_UTF8)
async def test_text_that_utf8_cannot_hold_is_refused_and_blocks_nobody(
    node: Node, face: Face, what: str
) -> None:
    error, after = await survives(node, face(wrong), "utf8", what)
    assert error != "no error"
    assert after == "goes on"


@BOTH
async def test_more_than_a_frame_holds_is_refused_at_the_caller(node: Node, face: Face) -> None:
    *told, after = await seen_by(node, face(send_too_much))
    starts(told, *["PayloadError: "] * 2)
    assert after == "goes on"


async def test_a_returned_value_that_no_frame_holds_becomes_none_with_a_warning(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    assert await seen_by(node, return_too_much) is None
    assert "the handler's return value is dropped" in caplog.text
