"""Monitors: who is told of which end, how and when."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from exits import Exits
from link_handlers import link_and_wait
from monitor_handlers import (
    unwatch,
    watch,
    watch_dead,
    watch_flooded,
    watch_on_other_host,
    watch_one,
    watch_oneself,
    watch_past_waiting_messages,
    watch_through_messages,
    watch_twice,
)
from one_node import BOTH, NOBODY, left_as_found, one_node, seen_by
from relating import Face, mortal
from support import processes, until

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


WAYS = [
    # how, with what, where; value, kind of error, its message
    ("return", {"a": [1, None]}, None, {"a": [1, None]}, None, None),
    ("exit", 0, None, None, None, None),
    ("abort", 0, None, None, None, None),
    ("cancel", None, None, "closed", None, None),
    ("raise", "on purpose", None, None, "error", "ZeroDivisionError: on purpose"),
    ("exit", 3, None, None, "exit", "exit code 3"),
    ("abort", 4, None, None, "exit", "exit code 4"),
    ("kill", "SIGKILL", None, None, "killed", "SIGKILL"),
    ("kill", "SIGSEGV", None, None, "killed", "SIGSEGV"),
    ("terminate", None, None, None, "terminated", "terminated"),
    ("cancel", None, "hasty", None, "cancelled", "did not end within its stop timeout"),
]


@BOTH
@pytest.mark.parametrize(("way", "argument", "host", "value", "kind", "message"), WAYS)
async def test_a_monitor_tells_once_how_a_process_ended(
    node: Node,
    face: Face,
    way: str,
    argument: Any,
    host: str | None,
    value: Any,
    kind: str | None,
    message: str | None,
) -> None:
    pid, first, more = await seen_by(node, face(watch), way, argument, host)
    assert (first["kind"], first["sender"], first["reason"]) == ("EXIT", pid, "")
    assert (first["value"], first["error"]) == (value, kind)
    assert (message or "") in (first["message"] or "")
    has_stack = way == "raise" or message == "SIGSEGV"
    assert ("relating.py" in (first["traceback"] or "")) is has_stack
    assert more == []


@BOTH
async def test_a_monitor_tells_of_an_overflowing_mailbox(node: Node, face: Face) -> None:
    event = await seen_by(node, face(watch_flooded))
    assert event["error"] == "mailbox_overflow"
    assert "100000 bytes" in event["message"]


async def test_a_monitor_tells_of_a_lost_template() -> None:
    async with Node(hosts=[processes(), processes(name="other")]) as node:
        exits = Exits(node)
        watcher = node.spawn(watch_on_other_host.sync, None, "other")
        await until(lambda: node.kernel.names.get("watching"), "it watches")
        await until(lambda: all(node.workers.values()), "both run")
        template = node._templates["other"].os_pid
        assert template is not None
        os.kill(template, signal.SIGKILL)
        pid, event = (await exits.of(watcher)).value
    assert (event["sender"], event["error"]) == (pid, "template_lost")


@BOTH
async def test_a_monitor_tells_of_a_process_that_another_one_s_end_took_along(
    node: Node, face: Face
) -> None:
    exits = Exits(node)
    victim = node.spawn(mortal)
    linked = node.spawn(face(link_and_wait), None, victim)
    await until(lambda: linked in node.kernel.relations._links, "they are linked")
    watcher = node.spawn(face(watch_one), None, linked)
    await until(lambda: linked in node.kernel.relations._watchers, "it is watched")
    node.send(victim, "raise")
    event, more = (await exits.of(watcher)).value
    assert (event["sender"], event["error"], more) == (linked, "link_down", [])
    assert event["message"] == f"linked process {victim} ended (error)"


@BOTH
@pytest.mark.parametrize("pid", NOBODY)
async def test_monitoring_nobody_reports_at_once(node: Node, face: Face, pid: str) -> None:
    event, more = await seen_by(node, face(watch_one), pid)
    assert PID(event["sender"]).on("local") == PID(pid).on("local")
    assert (event["kind"], event["value"], event["error"]) == ("EXIT", None, "noproc")
    assert more == []


@BOTH
async def test_monitoring_the_dead_reports_at_once_each_time(node: Node, face: Face) -> None:
    pid, seen, more = await seen_by(node, face(watch_dead))
    assert [[event["sender"], event["error"]] for event in seen] == [[pid, "noproc"]] * 2
    assert more == []


@BOTH
async def test_a_second_monitor_of_the_same_process_changes_nothing(node: Node, face: Face) -> None:
    assert await seen_by(node, face(watch_twice)) == [1, []]


@BOTH
async def test_everyone_who_monitors_is_told(node: Node, face: Face) -> None:
    exits = Exits(node)
    victim = node.spawn(mortal)
    watchers = [node.spawn(face(watch_one), None, victim) for _ in range(5)]
    relations = node.kernel.relations
    await until(lambda: len(relations._watchers.get(victim, ())) == 5, "all watch")
    node.send(victim, "return", "bye")
    for pid in watchers:
        event, more = (await exits.of(pid)).value
        assert (event["sender"], event["value"], more) == (victim, "bye", [])


@BOTH
async def test_after_unmonitor_nothing_is_told_and_monitor_works_again(
    node: Node, face: Face
) -> None:
    assert await seen_by(node, face(unwatch)) == [[], "still monitored"]


@BOTH
async def test_a_process_that_monitors_and_links_itself_hears_nothing(
    node: Node, face: Face
) -> None:
    assert await seen_by(node, face(watch_oneself)) == []


@BOTH
async def test_messages_of_the_dead_are_there_before_its_exit(node: Node, face: Face) -> None:
    seen = await seen_by(node, face(watch_through_messages), 100)
    assert seen == [True, "killed", list(range(100))]


@BOTH
async def test_an_exit_overtakes_messages_that_wait_for_room_and_loses_none(
    node: Node, face: Face
) -> None:
    """Events have a lane of their own, so a process that is far behind still hears of ends."""
    seen = await seen_by(node, face(watch_past_waiting_messages), 100)
    assert seen == [True, 100 * 10_000]


async def test_a_watcher_that_ends_leaves_nothing_behind(node: Node) -> None:
    exits = Exits(node)
    victim = node.spawn(mortal)
    watcher = node.spawn(watch_one.sync, None, victim)
    await until(lambda: victim in node.kernel.relations._watchers, "it is watched")
    node.terminate(watcher)
    await exits.of(watcher)
    assert not node.kernel.relations
    node.send(victim, "return")
    assert (await exits.of(victim)).error is None
