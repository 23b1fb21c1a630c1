"""Monitors, links, events, names and groups of real processes and connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from relating import MEGABYTES, NO_UTF8, RELATIONS, WRONG_TYPES
from starlette.requests import Request
from support import client, closed, endpoint, processes, received, room, serving, until
from test_host import Exits
from websockets.asyncio.client import ClientConnection

from wsrelay import (
    PID,
    InvalidPID,
    InvalidTarget,
    NameNotFound,
    NameTaken,
    Node,
    NotAProcess,
    PayloadError,
    RelayResponse,
    ReservedTopic,
    Result,
    UnknownHost,
    WebSocketRelay,
    process,
)
from wsrelay.aio import process as aio_process

pytestmark = pytest.mark.anyio

FACES = ["", "aio_"]
BOTH = pytest.mark.parametrize("face", FACES)
NOBODY = ["{processes|none}", "{local@processes|none}", "{other@processes|1}", "{gateway|none}"]


def relating(function: str) -> str:
    return f"{Path(__file__).with_name('relating.py')}:{function}"


def caller(function: str) -> str:
    return f"{Path(__file__).with_name('callers.py')}:{function}"


# One node for all tests: each gets it without workers and has to leave it so.


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": os.environ.get("WSRELAY_TEST_LOOP") != "asyncio"}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    targets = (room("echo"), relating("mortal"))
    hosts = [
        processes(targets=targets, stop_timeout=5.0),
        processes(targets=targets, name="hasty", stop_timeout=0.05),
        processes(targets=targets, name="small", mailbox=100_000),
        processes(targets=targets, name="full"),
    ]
    # The first stream of uvloop opens a descriptor that the loop keeps: here, and not in a test.
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()
    async with Node(hosts=hosts) as node:
        await node.loaded()
        node.kernel.set_hosts(
            {host.name: host.max_processes * (host.name != "full") for host in hosts}
        )
        yield node


@pytest.fixture(scope="module")
async def front(shared: Node) -> AsyncIterator[str]:
    """A server that relays to the target that the query names."""

    def answer(request: Request) -> RelayResponse:
        return RelayResponse(request.query_params["target"])

    app = WebSocketRelay(endpoint(answer), node=shared, outbox_limit=64_000_000)
    async with serving(app) as url:
        yield url


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    sockets = open_sockets()
    observers = [*shared.engine.on_exit]
    yield shared
    shared.terminate_all()
    await until(lambda: not shared.workers and not shared.connections, "all are gone")
    await until(lambda: open_sockets() <= sockets, "their sockets are closed")
    shared.engine.on_exit[:] = observers
    assert not shared.kernel.processes
    assert not shared.kernel.relations
    assert not shared.kernel.names
    assert not shared.kernel.groups
    assert not shared._requests._execs


def open_sockets() -> int:
    if sys.platform != "linux":
        return 0
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


async def seen_by(node: Node, function: str, *args: Any) -> Any:
    """Run a handler and give what it returns; fails where it ends with an error."""
    result = await Exits(node).of(node.spawn(relating(function), None, *args))
    assert result.error is None, result.error.traceback or result.error
    return result.value


@contextlib.asynccontextmanager
async def connection(
    node: Node, front: str, target: str | None = None
) -> AsyncIterator[tuple[ClientConnection, PID]]:
    """A client, and the PID of its connection; the target echoes."""
    target = target or node.spawn(room("echo"))
    before = node.connections
    async with client(f"{front}/?target={quote(target)}", max_size=None) as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "hello"
        (pid,) = node.connections - before
        yield websocket, pid


def starts(told: list[str], *expected: str) -> None:
    """Each text begins as expected."""
    assert len(told) == len(expected), told
    for text, start in zip(told, expected, strict=True):
        assert text.startswith(start), (text, start)


# Monitors


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
    face: str,
    way: str,
    argument: Any,
    host: str | None,
    value: Any,
    kind: str | None,
    message: str | None,
) -> None:
    pid, first, more = await seen_by(node, f"{face}watch", way, argument, host)
    assert (first["kind"], first["sender"], first["reason"]) == ("EXIT", pid, "")
    assert (first["value"], first["error"]) == (value, kind)
    assert (message or "") in (first["message"] or "")
    has_stack = way == "raise" or message == "SIGSEGV"
    assert ("relating.py" in (first["traceback"] or "")) is has_stack
    assert more == []


@BOTH
async def test_a_monitor_tells_of_an_overflowing_mailbox(node: Node, face: str) -> None:
    event = await seen_by(node, f"{face}watch_flooded")
    assert event["error"] == "mailbox_overflow"
    assert "100000 bytes" in event["message"]


async def test_a_monitor_tells_of_a_lost_template() -> None:
    async with Node(hosts=[processes(), processes(name="other")]) as node:
        exits = Exits(node)
        watcher = node.spawn(relating("watch_on_other_host"), None, "other")
        await until(lambda: node.kernel.names.get("watching"), "it watches")
        await until(lambda: all(node.workers.values()), "both run")
        template = node._templates["other"].os_pid
        assert template is not None
        os.kill(template, signal.SIGKILL)
        pid, event = (await exits.of(watcher)).value
    assert (event["sender"], event["error"]) == (pid, "template_lost")


@BOTH
async def test_a_monitor_tells_of_a_process_that_another_one_s_end_took_along(
    node: Node, face: str
) -> None:
    exits = Exits(node)
    victim = node.spawn(relating("mortal"))
    linked = node.spawn(relating(f"{face}link_and_wait"), None, victim)
    await until(lambda: linked in node.kernel.relations._links, "they are linked")
    watcher = node.spawn(relating(f"{face}watch_one"), None, linked)
    await until(lambda: linked in node.kernel.relations._watchers, "it is watched")
    node.send(victim, "raise")
    event, more = (await exits.of(watcher)).value
    assert (event["sender"], event["error"], more) == (linked, "link_down", [])
    assert event["message"] == f"linked process {victim} ended (error)"


@BOTH
@pytest.mark.parametrize("pid", NOBODY)
async def test_monitoring_nobody_reports_at_once(node: Node, face: str, pid: str) -> None:
    event, more = await seen_by(node, f"{face}watch_one", pid)
    assert PID(event["sender"]).on("local") == PID(pid).on("local")
    assert (event["kind"], event["value"], event["error"]) == ("EXIT", None, "noproc")
    assert more == []


@BOTH
async def test_monitoring_the_dead_reports_at_once_each_time(node: Node, face: str) -> None:
    pid, seen, more = await seen_by(node, f"{face}watch_dead")
    assert [[event["sender"], event["error"]] for event in seen] == [[pid, "noproc"]] * 2
    assert more == []


@BOTH
async def test_a_second_monitor_of_the_same_process_changes_nothing(node: Node, face: str) -> None:
    assert await seen_by(node, f"{face}watch_twice") == [1, []]


@BOTH
async def test_everyone_who_monitors_is_told(node: Node, face: str) -> None:
    exits = Exits(node)
    victim = node.spawn(relating("mortal"))
    watchers = [node.spawn(relating(f"{face}watch_one"), None, victim) for _ in range(5)]
    relations = node.kernel.relations
    await until(lambda: len(relations._watchers.get(victim, ())) == 5, "all watch")
    node.send(victim, "return", "bye")
    for pid in watchers:
        event, more = (await exits.of(pid)).value
        assert (event["sender"], event["value"], more) == (victim, "bye", [])


@BOTH
async def test_after_unmonitor_nothing_is_told_and_monitor_works_again(
    node: Node, face: str
) -> None:
    assert await seen_by(node, f"{face}unwatch") == [[], "still monitored"]


@BOTH
async def test_a_process_that_monitors_and_links_itself_hears_nothing(
    node: Node, face: str
) -> None:
    assert await seen_by(node, f"{face}watch_oneself") == []


@BOTH
async def test_messages_of_the_dead_are_there_before_its_exit(node: Node, face: str) -> None:
    seen = await seen_by(node, f"{face}watch_through_messages", 100)
    assert seen == [True, "killed", list(range(100))]


@BOTH
async def test_an_exit_overtakes_messages_that_wait_for_room_and_loses_none(
    node: Node, face: str
) -> None:
    """Events have a lane of their own, so a process that is far behind still hears of ends."""
    seen = await seen_by(node, f"{face}watch_past_waiting_messages", 100)
    assert seen == [True, 100 * 10_000]


async def test_a_watcher_that_ends_leaves_nothing_behind(node: Node) -> None:
    exits = Exits(node)
    victim = node.spawn(relating("mortal"))
    watcher = node.spawn(relating("watch_one"), None, victim)
    await until(lambda: victim in node.kernel.relations._watchers, "it is watched")
    node.terminate(watcher)
    await exits.of(watcher)
    assert not node.kernel.relations
    node.send(victim, "return")
    assert (await exits.of(victim)).error is None


# Links


@BOTH
@pytest.mark.parametrize(("way", "argument"), [("raise", "x"), ("exit", 3), ("kill", "SIGKILL")])
async def test_the_end_of_one_ends_the_linked_other(
    node: Node, face: str, way: str, argument: Any
) -> None:
    exits = Exits(node)
    victim = node.spawn(relating("mortal"))
    linked = node.spawn(relating(f"{face}link_and_wait"), None, victim)
    await until(lambda: linked in node.kernel.relations._links, "they are linked")
    node.send(victim, way, argument)
    error = await exits.error(linked)
    assert error.kind == "link_down"
    assert victim in error.message


@BOTH
async def test_links_go_both_ways(node: Node, face: str) -> None:
    exits = Exits(node)
    other = node.spawn(relating("mortal"))
    linker = node.spawn(relating(f"{face}link_and_raise"), None, other)
    assert (await exits.error(linker)).kind == "error"
    error = await exits.error(other)
    assert (error.kind, error.message) == (
        "link_down",
        f"linked process {linker} ended (error)",
    )


@BOTH
async def test_an_end_goes_along_a_chain_of_links(node: Node, face: str) -> None:
    exits = Exits(node)
    chain = [node.spawn(relating("mortal"))]
    relations = node.kernel.relations
    for _ in range(3):
        pid = node.spawn(relating(f"{face}link_and_wait"), None, chain[-1])
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
    node: Node, face: str, way: str, argument: Any, kind: str
) -> None:
    pid, events = await seen_by(node, f"{face}trap", way, argument)
    (event,) = events
    assert (event["kind"], event["sender"], event["error"]) == ("LINK_DOWN", pid, kind)


@BOTH
@pytest.mark.parametrize(("way", "argument"), [("return", 1), ("exit", 0), ("cancel", None)])
async def test_a_normal_end_is_no_link_down(node: Node, face: str, way: str, argument: Any) -> None:
    _, events = await seen_by(node, f"{face}trap", way, argument)
    assert events == []


@BOTH
async def test_a_normal_end_ends_nobody(node: Node, face: str) -> None:
    exits = Exits(node)
    assert await seen_by(node, f"{face}link_and_outlive") == "outlived"
    other = node.spawn(relating("mortal"))
    linker = node.spawn(relating(f"{face}link_and_return"), None, other)
    assert (await exits.of(linker)).value == "done"
    node.send(other, "return", "unharmed")
    assert (await exits.of(other)).value == "unharmed"


@BOTH
async def test_a_linked_process_that_ignores_its_cancel_is_a_link_down(
    node: Node, face: str
) -> None:
    pid, event = await seen_by(node, f"{face}trap_deaf")
    assert (event["kind"], event["sender"], event["error"]) == ("LINK_DOWN", pid, "cancelled")


@BOTH
async def test_there_is_one_link_between_two_processes(node: Node, face: str) -> None:
    assert await seen_by(node, f"{face}link_twice") == ["LINK_DOWN"]


@BOTH
async def test_unlink_unties_and_is_no_error_where_nothing_is_tied(node: Node, face: str) -> None:
    assert await seen_by(node, f"{face}unlink_and_outlive") == "outlived"


@BOTH
async def test_either_side_can_unlink(node: Node, face: str) -> None:
    assert await seen_by(node, f"{face}unlinked_by_partner") == "outlived"


@BOTH
@pytest.mark.parametrize("pid", NOBODY)
async def test_linking_to_nobody_is_a_link_down(node: Node, face: str, pid: str) -> None:
    event, more = await seen_by(node, f"{face}trap_one", pid)
    assert PID(event["sender"]).on("local") == PID(pid).on("local")
    assert (event["kind"], event["error"], more) == ("LINK_DOWN", "noproc", [])


@BOTH
@pytest.mark.parametrize("pid", NOBODY)
async def test_linking_to_nobody_ends_who_does_not_trap_links(
    node: Node, face: str, pid: str
) -> None:
    exits = Exits(node)
    error = await exits.error(node.spawn(relating(f"{face}link_unknown"), None, pid))
    assert error.kind == "link_down"
    assert "noproc" in error.message


@BOTH
async def test_options_are_read_as_they_were_set(node: Node, face: str) -> None:
    exits = Exits(node)
    collector = node.spawn(caller("collect"), None, 1)
    pid = node.spawn(relating(f"{face}untrap"), None, collector)
    (shown,) = (await exits.of(collector)).value
    assert shown == [
        {"trap_links": False},
        {"trap_links": True},
        "LINK_DOWN",
        {"trap_links": False},
    ]
    assert (await exits.error(pid)).kind == "link_down"


# Starting with a relation


STARTS = [
    # target, host, arguments; value, kind of error, its message
    ("give", None, ["at once"], "at once", None, ""),
    ("crash", None, [], None, "error", "ZeroDivisionError: on purpose"),
    ("leave", None, [5], None, "exit", "exit code 5"),
    ("no_such_function", None, [], None, "start_failed", "has no function 'no_such_function'"),
    ("no_such_module_anywhere:f", None, [], None, "start_failed", "no_such_module_anywhere"),
    ("no_such_script.py", None, [], None, "start_failed", "does not exist"),
    ("give", "full", [], None, "host_full", "process host full is full: 0 of 0 processes run"),
]


@BOTH
@pytest.mark.parametrize("how", ["spawn_monitored", "spawn_linked", "spawn_linked_monitored"])
@pytest.mark.parametrize(("target", "host", "args", "value", "kind", "message"), STARTS)
async def test_a_child_that_dies_in_its_first_instruction_is_reported(
    node: Node,
    face: str,
    how: str,
    target: str,
    host: str | None,
    args: list[Any],
    value: Any,
    kind: str | None,
    message: str,
) -> None:
    target = target if ":" in target or target.endswith(".py") else relating(target)
    pid, events = await seen_by(node, f"{face}start", how, target, host, args)
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
        ("crash", None, "error"),
        ("no_such_function", None, "start_failed"),
        ("give", "full", "host_full"),
    ],
)
async def test_a_linked_child_that_fails_at_once_takes_its_parent_along(
    node: Node, face: str, target: str, host: str | None, kind: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(relating(f"{face}start_untrapped"), None, relating(target), host)
    error = await exits.error(pid)
    assert error.kind == "link_down"
    assert error.message.endswith(f"ended ({kind})")


@BOTH
async def test_a_linked_child_ends_with_its_parent(node: Node, face: str) -> None:
    exits = Exits(node)
    parent = node.spawn(relating(f"{face}start_and_end"), None, "raise", "child")
    child = await until(lambda: node.kernel.names.get("child"), "the child is registered")
    node.send(parent, "go")
    assert (await exits.error(parent)).kind == "error"
    assert (await exits.error(child)).kind == "link_down"


@BOTH
async def test_a_linked_child_outlives_a_parent_that_returns(node: Node, face: str) -> None:
    exits = Exits(node)
    parent = node.spawn(relating(f"{face}start_and_end"), None, "return", "child")
    child = await until(lambda: node.kernel.names.get("child"), "the child is registered")
    node.send(parent, "go")
    assert (await exits.of(parent)).error is None
    node.cancel(child)
    assert (await exits.of(child)).value == "closed"


@BOTH
async def test_what_cannot_be_started_at_all_raises_and_relates_nobody(
    node: Node, face: str
) -> None:
    told = await seen_by(node, f"{face}misstart")
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
async def test_cancel_frees_names_and_groups_at_once(node: Node, face: str) -> None:
    seen = await seen_by(node, f"{face}cancel_by_name")
    not_found = [text.partition(":")[0] for text in seen[:2]]
    assert not_found == ["NameNotFound", "NameNotFound"]
    assert seen[2:4] == [[], []]
    assert "is not alive" in seen[4]
    assert seen[5:] == [True, "cancelled"]


@BOTH
async def test_cancel_closes_every_channel_of_messages_behind_what_is_queued(
    node: Node, face: str
) -> None:
    seen = await seen_by(node, f"{face}be_cancelled")
    assert seen[:5] == ["CANCEL", "first", True, 1, 2]
    assert [text.rstrip(": ") for text in seen[5:]] == ["ChannelClosed", "ChannelClosed"]


@BOTH
async def test_ending_nobody_is_no_error_and_a_malformed_pid_is(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}end_unknown")
    expected = ["no error"] * 3 + ["InvalidPID: '{nonsense' is not a PID", "InvalidPID: 3 is not"]
    starts(told, *expected * 2)


@BOTH
async def test_terminate_takes_a_name_too(node: Node, face: str) -> None:
    assert await seen_by(node, f"{face}terminate_by_name") == "terminated"


@BOTH
async def test_cancel_tells_who_asked_and_why(node: Node, face: str) -> None:
    exits = Exits(node)
    victim = node.spawn(caller("tell_cancel"))
    ender = node.spawn(relating(f"{face}end_one"), None, "cancel", victim, "why not")
    assert (await exits.of(victim)).value == ["CANCEL", "why not", ender]


# listen, unlisten, select


@BOTH
async def test_a_listened_topic_bypasses_the_inbox_until_unlisten(node: Node, face: str) -> None:
    seen = await seen_by(node, f"{face}listen")
    assert seen[:3] == ["before", True, True]
    assert seen[3:6] == [[2], [1], [3]]
    assert seen[6].startswith("ChannelClosed")
    assert seen[7:] == [[5], True, 6, 4]


@BOTH
async def test_more_than_the_window_comes_through_a_listened_topic(node: Node, face: str) -> None:
    assert await seen_by(node, f"{face}listen_to_much", 100) == 1_000_000


@BOTH
async def test_unlisten_refuses_channels_that_are_no_topic_s(node: Node, face: str) -> None:
    *told, payload = await seen_by(node, f"{face}unlisten_what_is_no_topic")
    assert payload == "inbox is open"
    assert "no error" not in told


@BOTH
async def test_listen_refuses_what_can_be_no_topic(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}listen_to_no_topic")
    starts(told, *["ReservedTopic: topic"] * 3)


@BOTH
async def test_unlisten_wakes_who_waits(node: Node, face: str) -> None:
    function = f"{face}unlisten_while_a_{'task' if face else 'thread'}_waits"
    assert await seen_by(node, function) == ["ChannelClosed"]


@BOTH
async def test_select_gives_the_first_named_that_has_one(node: Node, face: str) -> None:
    seen = await seen_by(node, f"{face}select")
    assert seen[:4] == [["inbox", 3], ["a", 2], ["b", 1], ["a", 4]]
    starts(seen[4:6], "TimeoutError", "TimeoutError")
    assert seen[6:8] == [["events", "EXIT"], ["b", 5]]
    starts(seen[8:], *["ChannelClosed"] * 3, "TimeoutError")


@BOTH
async def test_select_waits_for_messages_and_events_alike(node: Node, face: str) -> None:
    assert await seen_by(node, f"{face}select_waits") == [["Event", True], ["Message", True]]


async def test_a_cancelled_receive_takes_nothing(node: Node) -> None:
    """The message is taken once: by who was not cancelled, or by who comes next."""
    count, then = await seen_by(node, "aio_receive_cancelled")
    assert count == 1
    assert then.startswith("TimeoutError")


# exec


@BOTH
async def test_exec_gives_the_value_and_no_event(node: Node, face: str) -> None:
    values = await seen_by(node, f"{face}exec_values")
    assert values == [{"a": [1, b"2"]}, 3, "a/b", None, [], {"trap_links": False}]


@BOTH
@pytest.mark.parametrize(
    ("target", "host", "args", "kind", "message"),
    [
        ("crash", None, ["remote"], "error", "ZeroDivisionError: remote"),
        ("leave", None, [7], "exit", "exit code 7"),
        ("no_such_function", None, [], "start_failed", "has no function 'no_such_function'"),
        ("give", "full", [], "host_full", "process host full is full"),
    ],
)
async def test_exec_raises_how_the_process_ended(
    node: Node, face: str, target: str, host: str | None, args: list[Any], kind: str, message: str
) -> None:
    error = await seen_by(node, f"{face}exec_error", relating(target), host, args)
    assert error["kind"] == kind
    assert message in error["message"]
    said = f"start failed: {error['message']}" if kind == "start_failed" else error["message"]
    assert error["text"].startswith(said), "kind and message, and neither twice"
    if kind == "error":
        assert "in crash" in error["traceback"]
        assert error["traceback"] in error["text"]
    else:
        assert not error["traceback"]


@BOTH
async def test_exec_raises_when_its_process_is_terminated_by_another(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}exec_of_terminated", "victim")
    assert told == "ProcessError: terminated"


@BOTH
async def test_exec_refuses_what_cannot_be_started_at_all(node: Node, face: str) -> None:
    for target, host, kind in (
        ("nonsense", None, "InvalidTarget"),
        (relating("give"), "no such host", "UnknownHost"),
    ):
        error = await seen_by(node, f"{face}exec_error", target, host, [])
        assert error["kind"] == kind


@BOTH
@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_exec_terminates_what_takes_too_long(node: Node, face: str, seconds: float) -> None:
    exits = Exits(node)
    pid = node.spawn(relating(f"{face}exec_too_long"), None, seconds)
    (told,) = (await exits.of(pid)).value
    assert told.startswith("TimeoutError: ")
    assert told.endswith(f"did not end within {seconds} s and was terminated")
    await until(lambda: not node.workers, "the executed process has ended")
    (executed,) = exits.results.keys() - {pid}
    assert (await exits.error(executed)).kind == "terminated"


@BOTH
async def test_what_exec_runs_does_not_outlive_its_caller(face: str) -> None:
    async with Node(hosts=[processes()]) as node:
        exits = Exits(node)
        collector = node.spawn(caller("collect"), None, 1)
        waiting = node.spawn(relating(f"{face}exec_forever"), None, collector)
        (executed,) = (await exits.of(collector)).value
        watcher = node.spawn(relating(f"{face}watch_one"), None, executed)
        await until(lambda: executed in node.kernel.relations._watchers, "it is watched")
        node.terminate(waiting)
        assert (await exits.error(PID(executed))).kind == "terminated"
        event, _ = (await exits.of(watcher)).value
        assert (event["sender"], event["error"]) == (executed, "terminated")


async def test_a_cancelled_exec_terminates_its_process(node: Node) -> None:
    assert await seen_by(node, "aio_exec_cancelled") == ["cancelled", "terminated"]


async def test_a_cancelled_exec_terminates_its_process_even_behind_a_full_pipe(
    tmp_path: Path,
) -> None:
    """The order to end must not overtake the order to start, which still waits to be written."""
    cancelled = tmp_path / "cancelled"
    async with Node(hosts=[processes()]) as node:
        target = node.spawn(room("echo"))
        app = WebSocketRelay(
            endpoint(lambda _: RelayResponse(target)),
            node=node,
            outbox_limit=100_000,
            outbox_overflow="pause",
        )
        async with serving(app) as url, connection(node, url, target) as (websocket, pid):
            websocket.transport.pause_reading()
            function = relating("aio_exec_cancelled_behind_a_full_pipe")
            caller_pid = node.spawn(function, None, pid, str(cancelled))
            relay: Any = node.connection(pid)
            await until(lambda: relay._session._held, "its writes wait")
            node.send(caller_pid, "go")
            await until(cancelled.exists, "the exec is cancelled")
            websocket.transport.resume_reading()
            for _ in range(MEGABYTES):
                await received(websocket)
            await until(lambda: node.kernel.names.get("fence"), "all has been written")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await until(lambda: len(node.workers) == 2)
            assert node.workers.keys() == {target, caller_pid}


@BOTH
async def test_many_can_exec_at_once(node: Node, face: str) -> None:
    """From the tasks of an event loop, and from the threads of a process without one."""
    assert await seen_by(node, f"{face}exec_many", 20) == list(range(20))


# drain


@BOTH
async def test_drain_returns_when_the_client_has_taken_most(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        websocket.transport.pause_reading()
        drainer = node.spawn(relating(f"{face}drain_to"), None, pid, 40, None)
        relay: Any = node.connection(pid)
        await until(lambda: relay._when_drained, "it drains")
        assert drainer in node.workers
        websocket.transport.resume_reading()
        for _ in range(40):
            assert len(await received(websocket)) == 1_000_000
        assert (await exits.of(drainer)).value == "no error"


@BOTH
async def test_drain_gives_up_at_its_deadline(node: Node, front: str, face: str) -> None:
    async with connection(node, front) as (websocket, pid):
        websocket.transport.pause_reading()
        told = await seen_by(node, f"{face}drain_to", pid, 40, 0.05)
        assert told.startswith("TimeoutError")
        relay: Any = node.connection(pid)
        assert not relay._when_drained, "nobody is told who does not wait any more"
        websocket.transport.abort()


@BOTH
async def test_drain_returns_when_the_connection_goes(node: Node, front: str, face: str) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        websocket.transport.pause_reading()
        drainer = node.spawn(relating(f"{face}drain_to"), None, pid, 40, None)
        relay: Any = node.connection(pid)
        await until(lambda: relay._when_drained, "it drains")
        websocket.transport.abort()
        assert (await exits.of(drainer)).value == "no error"


@BOTH
async def test_drain_of_what_is_no_connection_returns_at_once(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}drain_others")
    assert told[:3] == ["no error"] * 3
    starts(told[3:], *["InvalidPID: "] * 3)


@BOTH
async def test_a_worker_that_dies_while_it_drains_does_the_connection_no_harm(face: str) -> None:
    async with Node(hosts=[processes()]) as node:
        app = WebSocketRelay(
            endpoint(lambda request: RelayResponse(request.query_params["target"])),
            node=node,
            outbox_limit=64_000_000,
        )
        async with serving(app) as url, connection(node, url) as (websocket, pid):
            exits = Exits(node)
            websocket.transport.pause_reading()
            drainer = node.spawn(relating(f"{face}drain_to"), None, pid, 40, None)
            relay: Any = node.connection(pid)
            await until(lambda: relay._when_drained, "it drains")
            node.terminate(drainer)
            await exits.of(drainer)
            websocket.transport.resume_reading()
            for _ in range(40):
                assert len(await received(websocket)) == 1_000_000
            await websocket.send("still here")
            assert await received(websocket) == "still here"


# Names


@BOTH
async def test_names_are_taken_found_and_freed(node: Node, face: str) -> None:
    seen = await seen_by(node, f"{face}names")
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
async def test_a_name_is_free_when_the_exit_of_its_bearer_is_told(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}reregister_dead")
    starts(told, *["NameNotFound"] * 10)


@BOTH
async def test_what_cannot_be_named_is_refused(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}misname")
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
    node: Node, face: str
) -> None:
    """As `register` says of itself, in a worker as on the node."""
    told = await seen_by(node, f"{face}misname")
    with pytest.raises(ValueError, match="is not alive") as raised:
        node.register("name", "{processes|none}")
    assert told[4].partition(":")[0] == type(raised.value).__name__


# Groups


@BOTH
async def test_groups_have_members_in_order_and_the_dead_leave(node: Node, face: str) -> None:
    seen = await seen_by(node, f"{face}grouped")
    assert seen[:2] == [[], True]
    assert seen[2] == ["all"] * 3
    assert seen[3:5] == [True, ["without me"] * 2]
    assert seen[5:] == [True, [], True, ["PID"]]


@BOTH
async def test_misuse_of_groups_is_told_at_the_caller(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}misgroup")
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
async def test_a_broadcast_reaches_connections(node: Node, front: str, face: str) -> None:
    async with connection(node, front) as (one, _), connection(node, front) as (two, _):
        for pid in node.connections:
            node.join_group("clients", pid)
        await seen_by(node, f"{face}broadcast", "clients", "to all")
        assert [await received(one), await received(two)] == ["to all", "to all"]


@BOTH
async def test_a_connection_leaves_its_groups_by_its_end(node: Node, front: str, face: str) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        watcher = node.spawn(relating(f"{face}members_when_gone"), None, pid)
        assert await received(websocket) == "joined"
    assert (await exits.of(watcher)).value == [[pid], []]


# Monitors of connections


async def close_without_code(websocket: ClientConnection) -> None:
    websocket.protocol.send_close()
    for data in websocket.protocol.data_to_send():
        websocket.transport.write(data)


async def vanish(websocket: ClientConnection) -> None:
    websocket.transport.abort()


Leave = Callable[[ClientConnection], Any]

LEAVES: list[tuple[Leave, int, str, str | None]] = [
    (lambda websocket: websocket.close(1000, "bye"), 1000, "bye", None),
    (lambda websocket: websocket.close(1001), 1001, "", None),
    (lambda websocket: websocket.close(3000, "x"), 3000, "x", None),
    (lambda websocket: websocket.close(4999, "x"), 4999, "x", None),
    (close_without_code, 1005, "", None),
    (lambda websocket: websocket.close(1002, "x"), 1002, "x", "error"),
    (lambda websocket: websocket.close(1011, "x"), 1011, "x", "error"),
    (vanish, 1006, "", "disconnected"),
]


@BOTH
@pytest.mark.parametrize(("leave", "code", "reason", "kind"), LEAVES)
async def test_a_connection_s_end_is_its_exit(
    node: Node, front: str, face: str, leave: Leave, code: int, reason: str, kind: str | None
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        watcher = node.spawn(relating(f"{face}watch_connection"), None, pid)
        assert await received(websocket) == "watching"
        await leave(websocket)
        first, second, more = (await exits.of(watcher)).value
    assert (first["kind"], first["sender"]) == ("EXIT", pid)
    assert first["value"] == {"code": code, "reason": reason}
    assert first["error"] == kind
    assert (second["sender"], second["error"], more) == (pid, "noproc", [])


@BOTH
@pytest.mark.parametrize(
    ("payload", "code", "reason", "kind"),
    [
        (None, 1000, "", None),
        ({"code": 4000, "reason": "enough"}, 4000, "enough", None),
        ({"code": 1011, "reason": "broken"}, 1011, "broken", "error"),
        ({"code": 1013}, 1013, "", "error"),
    ],
)
async def test_a_connection_that_a_process_closes_ends_with_that_code(
    node: Node, front: str, face: str, payload: Any, code: int, reason: str, kind: str | None
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        closer = node.spawn(relating(f"{face}close_connection"), None, pid, payload)
        assert await closed(websocket) == (code, reason)
        (event,) = (await exits.of(closer)).value
    assert event["value"] == {"code": code, "reason": reason}
    assert event["error"] == kind


@BOTH
async def test_the_end_of_a_target_is_the_exit_of_its_connections(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    target = node.spawn(room("echo"))
    async with connection(node, front, target) as (websocket, pid):
        watcher = node.spawn(relating(f"{face}watch_connection"), None, pid)
        assert await received(websocket) == "watching"
        node.terminate(target)
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
        event = (await exits.of(watcher)).value[0]
    assert event["value"] == {"code": 1011, "reason": "target process killed (SIGKILL)"}
    assert event["error"] == "error"


@BOTH
async def test_a_cancelled_connection_closes_normally_and_loses_its_names(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        ender = node.spawn(relating(f"{face}end_connection"), None, "cancel", pid, "that is all")
        assert await closed(websocket) == (1000, "that is all")
        event, lookup, members = (await exits.of(ender)).value
    assert event["value"] == {"code": 1000, "reason": "that is all"}
    assert (event["sender"], event["error"], members) == (pid, None, [])
    assert lookup.startswith("NameNotFound")


@BOTH
async def test_a_terminated_connection_is_dropped_at_once(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        ender = node.spawn(relating(f"{face}end_connection"), None, "terminate", pid)
        assert (await closed(websocket))[0] == 1006
        event, lookup, members = (await exits.of(ender)).value
    assert event["value"] == {"code": 1006, "reason": ""}
    assert (event["sender"], members) == (pid, [])
    assert lookup.startswith("NameNotFound")
    assert event["error"] == "terminated"


# Links to connections


@BOTH
@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        (lambda websocket: websocket.close(1011, "x"), "error"),
        (vanish, "disconnected"),
    ],
)
async def test_a_connection_that_ends_abnormally_is_a_link_down(
    node: Node, front: str, face: str, leave: Leave, kind: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        trapping = node.spawn(relating(f"{face}link_connection"), None, pid, True)
        assert await received(websocket) == "watching"
        plain = node.spawn(relating(f"{face}link_connection"), None, pid, False)
        assert await received(websocket) == "watching"
        await leave(websocket)
        event, more = (await exits.of(trapping)).value
        error = await exits.error(plain)
    assert (event["kind"], event["sender"], event["error"]) == ("LINK_DOWN", pid, kind)
    assert more == []
    assert (error.kind, error.message) == ("link_down", f"linked process {pid} ended ({kind})")


@BOTH
@pytest.mark.parametrize("code", [1000, 1001, 4000])
async def test_a_connection_that_ends_normally_takes_nobody_along(
    node: Node, front: str, face: str, code: int
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        linked = node.spawn(relating(f"{face}link_connection_and_wait"), None, pid)
        assert await received(websocket) == "watching"
        await websocket.close(code)
        await until(lambda: pid not in node.connections, "the connection has ended")
    node.send(linked, "x", "unharmed")
    assert (await exits.of(linked)).value == "unharmed"


@BOTH
@pytest.mark.parametrize("way", ["raise", "kill"])
async def test_a_linked_worker_that_dies_closes_the_connection(
    node: Node, front: str, face: str, way: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        watcher = node.spawn(relating("watch_connection"), None, pid)
        assert await received(websocket) == "watching"
        node.spawn(relating(f"{face}link_connection_and_end"), None, pid, way)
        assert await received(websocket) == "watching"
        assert await closed(websocket) == (1011, "linked process ended")
        event = (await exits.of(watcher)).value[0]
    assert event["value"] == {"code": 1011, "reason": "linked process ended"}
    assert event["error"] is not None


@BOTH
@pytest.mark.parametrize("way", ["return", "unlink"])
async def test_a_worker_that_returns_or_has_unlinked_leaves_the_connection_alone(
    node: Node, front: str, face: str, way: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        worker = node.spawn(relating(f"{face}link_connection_and_end"), None, pid, way)
        assert await received(websocket) == "watching"
        await exits.of(worker)
        await websocket.send("still here")
        assert await received(websocket) == "still here"


async def test_a_target_linked_to_its_connection_closes_it_with_its_own_cause(
    node: Node, front: str
) -> None:
    """The target's end says more than the link's."""
    pid = node.spawn(room("echo"))
    async with connection(node, front, pid) as (websocket, me):
        node.kernel.link(pid, me)
        node.terminate(pid)
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")


# On the node


async def in_loop(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


PLACES = pytest.mark.parametrize("place", [in_loop, in_thread])


@PLACES
async def test_names_work_on_the_node(node: Node, place: Any) -> None:
    def use() -> None:
        pid, other = process.spawn(relating("mortal")), process.spawn(relating("mortal"))
        process.registry.register("name", pid)
        process.registry.register("name", pid.replace("local@", ""))
        assert process.registry.lookup("name") == pid
        assert process.get_or_spawn("name", relating("mortal")) == pid
        with pytest.raises(NameTaken, match=re.escape(f"the name 'name' belongs to {pid}")):
            process.registry.register("name", other)
        process.registry.unregister("name")
        with pytest.raises(NameNotFound, match="no process is registered as 'name'"):
            process.registry.unregister("name")
        with pytest.raises(LookupError):
            process.registry.lookup("name")
        with pytest.raises(NotAProcess, match="say which process you mean"):
            process.registry.register("name")
        with pytest.raises(InvalidPID):
            process.registry.register("name", "{nonsense")
        with pytest.raises(ValueError, match="is not alive"):
            process.registry.register("name", "{processes|none}")
        with pytest.raises(ValueError, match="is not a name"):
            process.registry.register("{name}", pid)
        process.registry.register("name", pid)
        process.cancel("name")
        with pytest.raises(NameNotFound):
            process.registry.lookup("name")

    await place(use)
    await until(lambda: len(node.workers) == 1, "the cancelled one has ended")


@PLACES
async def test_groups_work_on_the_node(node: Node, place: Any) -> None:
    exits = Exits(node)

    def use() -> list[PID]:
        pids = [process.spawn(relating("mortal")) for _ in range(3)]
        for pid in pids:
            process.groups.join("g", pid)
        process.groups.join("g", "{processes|none}")
        assert process.groups.members("g") == pids
        process.groups.leave("g", pids[0])
        process.groups.leave("g", pids[0])
        assert process.groups.members("g") == pids[1:]
        assert process.groups.members("no such group") == []
        with pytest.raises(NotAProcess, match="say which process you mean"):
            process.groups.join("g")
        with pytest.raises(NotAProcess, match="say which process you mean"):
            process.groups.leave("g")
        with pytest.raises(InvalidPID):
            process.groups.join("g", "{nonsense")
        with pytest.raises(ReservedTopic):
            process.groups.broadcast("g", "@x")
        with pytest.raises(PayloadError):
            process.groups.broadcast("g", "x", 3j)
        process.groups.broadcast("g", "return", "told")
        return pids

    first, *others = await place(use)
    for pid in others:
        assert await exits.of(pid) == Result("told")
    assert first in node.workers
    assert node.members("g") == []


@PLACES
async def test_malformed_pids_and_targets_are_told_at_the_caller_on_the_node(
    node: Node, place: Any
) -> None:
    def use() -> None:
        calls: list[Callable[[], Any]] = [
            lambda: process.send("{nonsense", "x"),
            lambda: process.send([node.pid(), "{nonsense"], "x"),
            lambda: process.cancel("{nonsense"),
            lambda: process.terminate("{nonsense"),
            lambda: process.groups.leave("g", "{nonsense"),
        ]
        for call in calls:
            with pytest.raises(InvalidPID, match=r"'\{nonsense' is not a PID; one looks like"):
                call()
        with pytest.raises(InvalidTarget):
            process.get_or_spawn("name", "nonsense")
        with pytest.raises(UnknownHost):
            process.get_or_spawn("name", relating("give"), "no such host")
        with pytest.raises(NameNotFound):
            process.registry.lookup("name")

    await place(use)
    assert not node.workers


async def test_messages_and_ends_for_nobody_are_dead_letters_on_the_node(node: Node) -> None:
    before = node.dead_letters
    for to in [*NOBODY, "no such name"]:
        process.send(to, "x")
        process.cancel(to)
        process.terminate(to)
    process.groups.broadcast("no such group", "x")
    assert node.dead_letters == before + 3 * 5


async def test_names_and_groups_of_connections_work_on_the_node(node: Node, front: str) -> None:
    async with connection(node, front) as (websocket, pid):
        process.registry.register("client", pid)
        process.groups.join("clients", pid)
        process.send("client", "ws.send", {"type": "text", "data": "by name"})
        process.groups.broadcast("clients", "ws.send", {"type": "text", "data": "by group"})
        assert await received(websocket) == "by name"
        assert await received(websocket) == "by group"
        process.cancel("client", "bye")
        assert process.groups.members("clients") == []
        with pytest.raises(NameNotFound):
            process.registry.lookup("client")
        assert await closed(websocket) == (1000, "bye")


NO_MAILBOX: Any = None
NO_CHANNEL: process.Channel[Any] = process.Channel(NO_MAILBOX, NO_MAILBOX)

WAITING: dict[str, Callable[[], Any]] = {
    "inbox": process.inbox,
    "events": process.events,
    "listen": lambda: process.listen("x"),
    "unlisten": lambda: process.unlisten(NO_CHANNEL),
    "select": process.select,
    "drain": lambda: process.drain("{gateway|1}"),
    "exec": lambda: process.exec("m:f"),
    "spawn_monitored": lambda: process.spawn_monitored("m:f"),
    "spawn_linked": lambda: process.spawn_linked("m:f"),
    "spawn_linked_monitored": lambda: process.spawn_linked_monitored("m:f"),
    "set_options": lambda: process.set_options(trap_links=True),
    "get_options": process.get_options,
    **{
        name: lambda name=name: getattr(process, name)("{processes|1}")  # type: ignore[misc]
        for name in RELATIONS
    },
    "aio.inbox": aio_process.inbox,
    "aio.events": aio_process.events,
    "aio.listen": lambda: aio_process.listen("x"),
    "aio.select": aio_process.select,
    "aio.drain": lambda: aio_process.drain("{gateway|1}"),
    "aio.exec": lambda: aio_process.exec("m:f"),
    "aio.send": lambda: aio_process.send("{processes|1}", "x"),
    "aio.get_or_spawn": lambda: aio_process.get_or_spawn("name", "m:f"),
    "aio.registry.register": lambda: aio_process.registry.register("name"),
    "aio.registry.lookup": lambda: aio_process.registry.lookup("name"),
    "aio.registry.unregister": lambda: aio_process.registry.unregister("name"),
    "aio.groups.members": lambda: aio_process.groups.members("g"),
    "aio.groups.broadcast": lambda: aio_process.groups.broadcast("g", "x"),
}


@pytest.mark.parametrize("name", WAITING)
async def test_what_only_a_process_can_do_raises_on_the_node(node: Node, name: str) -> None:
    async def call() -> None:
        await WAITING[name]()

    with pytest.raises(NotAProcess, match="only a process can do this") as raised:
        await call()
    assert "In an HTTP handler use process.spawn" in str(raised.value)
    assert not node.workers


# Bad input


@BOTH
async def test_malformed_pids_are_told_at_the_caller_everywhere(node: Node, face: str) -> None:
    before = node.dead_letters
    for to, told in (await seen_by(node, f"{face}malformed")).items():
        starts(told, *[f"InvalidPID: {to!r} is not a PID; one looks like {{local@"] * 12)
    assert node.dead_letters == before


@BOTH
async def test_relations_are_between_pids_alone(node: Node, face: str) -> None:
    told = await seen_by(node, f"{face}relate_to_no_pid")
    starts(told, *["InvalidPID: 'a name'", "InvalidPID: 3", "InvalidPID: None"] * 4)


@BOTH
@pytest.mark.parametrize("pid", ["{local@processes|none}", "{other@processes|1}"])
async def test_messages_to_nobody_are_dead_letters_and_relations_are_noproc(
    node: Node, face: str, pid: str
) -> None:
    before = node.dead_letters
    seen = await seen_by(node, f"{face}foreign", pid)
    assert seen[:6] == ["no error"] * 6
    assert seen[6:] == [["EXIT", pid, "noproc"], ["LINK_DOWN", pid, "noproc"]]
    assert node.dead_letters == before + 5


async def survives(node: Node, function: str, *args: Any) -> list[str]:
    """Run a handler that misuses something; it must be told, and go on."""
    exits = Exits(node)
    pid = node.spawn(relating(function), None, *args)
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
    node: Node, face: str, what: str
) -> None:
    error, after = await survives(node, f"{face}wrong", "types", what)
    assert error != "no error"
    assert after == "goes on"


@BOTH
@pytest.mark.parametrize("what", NO_UTF8)
async def test_text_that_utf8_cannot_hold_is_refused_and_blocks_nobody(
    node: Node, face: str, what: str
) -> None:
    error, after = await survives(node, f"{face}wrong", "utf8", what)
    assert error != "no error"
    assert after == "goes on"


@BOTH
async def test_more_than_a_frame_holds_is_refused_at_the_caller(node: Node, face: str) -> None:
    *told, after = await seen_by(node, f"{face}send_too_much")
    starts(told, *["PayloadError: "] * 2)
    assert after == "goes on"


async def test_a_returned_value_that_no_frame_holds_becomes_none_with_a_warning(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    assert await seen_by(node, "return_too_much") is None
    assert "the handler's return value is dropped" in caplog.text
