"""Links: whose end ends whom, and who is told instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import callers
import pytest
from exits import Exits
from link_handlers import (
    link_and_outlive,
    link_and_raise,
    link_and_return,
    link_and_wait,
    link_twice,
    trap,
    trap_deaf,
    trap_one,
    unlink_and_outlive,
    unlinked_by_partner,
    untrap,
)
from misuse_handlers import link_unknown
from one_node import BOTH, NOBODY, left_as_found, one_node, seen_by
from relating import Face, mortal
from support import until

from wsrelay import PID, Node

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
@pytest.mark.parametrize(("way", "argument"), [("raise", "x"), ("exit", 3), ("kill", "SIGKILL")])
async def test_the_end_of_one_ends_the_linked_other(
    node: Node, face: Face, way: str, argument: Any
) -> None:
    exits = Exits(node)
    victim = node.spawn(mortal)
    linked = node.spawn(face(link_and_wait), None, victim)
    await until(lambda: linked in node.kernel.relations._links, "they are linked")
    node.send(victim, way, argument)
    error = await exits.error(linked)
    assert error.kind == "link_down"
    assert victim in error.message


@BOTH
async def test_links_go_both_ways(node: Node, face: Face) -> None:
    exits = Exits(node)
    other = node.spawn(mortal)
    linker = node.spawn(face(link_and_raise), None, other)
    assert (await exits.error(linker)).kind == "error"
    error = await exits.error(other)
    assert (error.kind, error.message) == (
        "link_down",
        f"linked process {linker} ended (error)",
    )


@BOTH
async def test_an_end_goes_along_a_chain_of_links(node: Node, face: Face) -> None:
    exits = Exits(node)
    chain = [node.spawn(mortal)]
    relations = node.kernel.relations
    for _ in range(3):
        pid = node.spawn(face(link_and_wait), None, chain[-1])
        chain.append(pid)
        await until(lambda pid=pid: pid in relations._links, "they are linked")  # type: ignore[misc]
    node.send(chain[0], "raise")
    assert [(await exits.error(pid)).kind for pid in chain] == ["error", *["link_down"] * 3]


@BOTH
@pytest.mark.parametrize(
    ("way", "argument", "kind"),
    [
        ("raise", "x", "error"),
        ("exit", 3, "exit"),
        ("kill", "SIGKILL", "killed"),
        ("terminate", None, "terminated"),
    ],
)
async def test_who_traps_links_gets_one_link_down_and_lives(
    node: Node, face: Face, way: str, argument: Any, kind: str
) -> None:
    pid, events = await seen_by(node, face(trap), way, argument)
    (event,) = events
    assert (event["kind"], event["sender"], event["error"]) == ("LINK_DOWN", pid, kind)


@BOTH
@pytest.mark.parametrize(("way", "argument"), [("return", 1), ("exit", 0), ("cancel", None)])
async def test_a_normal_end_is_no_link_down(
    node: Node, face: Face, way: str, argument: Any
) -> None:
    _, events = await seen_by(node, face(trap), way, argument)
    assert events == []


@BOTH
async def test_a_normal_end_ends_nobody(node: Node, face: Face) -> None:
    exits = Exits(node)
    assert await seen_by(node, face(link_and_outlive)) == "outlived"
    other = node.spawn(mortal)
    linker = node.spawn(face(link_and_return), None, other)
    assert (await exits.of(linker)).value == "done"
    node.send(other, "return", "unharmed")
    assert (await exits.of(other)).value == "unharmed"


@BOTH
async def test_a_linked_process_that_ignores_its_cancel_is_a_link_down(
    node: Node, face: Face
) -> None:
    pid, event = await seen_by(node, face(trap_deaf))
    assert (event["kind"], event["sender"], event["error"]) == ("LINK_DOWN", pid, "cancelled")


@BOTH
async def test_there_is_one_link_between_two_processes(node: Node, face: Face) -> None:
    assert await seen_by(node, face(link_twice)) == ["LINK_DOWN"]


@BOTH
async def test_unlink_unties_and_is_no_error_where_nothing_is_tied(node: Node, face: Face) -> None:
    assert await seen_by(node, face(unlink_and_outlive)) == "outlived"


@BOTH
async def test_either_side_can_unlink(node: Node, face: Face) -> None:
    assert await seen_by(node, face(unlinked_by_partner)) == "outlived"


@BOTH
@pytest.mark.parametrize("pid", NOBODY)
async def test_linking_to_nobody_is_a_link_down(node: Node, face: Face, pid: str) -> None:
    event, more = await seen_by(node, face(trap_one), pid)
    assert PID(event["sender"]).on("local") == PID(pid).on("local")
    assert (event["kind"], event["error"], more) == ("LINK_DOWN", "noproc", [])


@BOTH
@pytest.mark.parametrize("pid", NOBODY)
async def test_linking_to_nobody_ends_who_does_not_trap_links(
    node: Node, face: Face, pid: str
) -> None:
    exits = Exits(node)
    error = await exits.error(node.spawn(face(link_unknown), None, pid))
    assert error.kind == "link_down"
    assert "noproc" in error.message


@BOTH
async def test_options_are_read_as_they_were_set(node: Node, face: Face) -> None:
    exits = Exits(node)
    collector = node.spawn(callers.collect, None, 1)
    pid = node.spawn(face(untrap), None, collector)
    (shown,) = (await exits.of(collector)).value
    assert shown == [
        {"trap_links": False, "end_when_empty": None},
        {"trap_links": True, "end_when_empty": None},
        "LINK_DOWN",
        {"trap_links": False, "end_when_empty": None},
    ]
    assert (await exits.error(pid)).kind == "link_down"
