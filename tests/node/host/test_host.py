"""Process hosts: how workers start, end, fail, and what is left of them (architecture 1 to 6)."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import rooms
from exits import Exits, driven, template_of
from one_node import left_as_found, running_node
from support import Journal, closed, processes, received, room, say, until

from wsrelay import (
    HostFailed,
    HostFull,
    HostOptions,
    InvalidTarget,
    Node,
    PayloadError,
    Result,
    UnknownHost,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


@pytest.fixture(scope="module")
async def without_pidfds() -> AsyncIterator[Node]:
    async with running_node(processes(preload=("no_pidfd",))) as node:
        yield node


@pytest.fixture(params=["pidfd", "no pidfd", "warm"])
async def any_node(
    request: pytest.FixtureRequest, shared: Node, without_pidfds: Node
) -> AsyncIterator[Node]:
    """Nodes whose templates have pidfds, have none, and fork ahead."""
    if request.param == "warm":  # what it forks ahead is not left behind by the test
        async with Node(hosts=[processes(warm=2)]) as node:
            yield node
        return
    node = shared if request.param == "pidfd" else without_pidfds
    async with left_as_found(node):
        yield node


def has_no_workers(node: Node) -> bool:
    return not node.workers


# Start


async def test_a_worker_is_an_os_process_of_its_own(node: Node) -> None:
    pids = [node.spawn(room(rooms.echo)) for _ in range(3)]
    await until(lambda: all(node.workers.values()), "all are forked")
    os_pids = [node.workers[pid] for pid in pids]
    assert len({*os_pids, os.getpid(), template_of(node)}) == 5
    for os_pid in os_pids:
        assert psutil.Process(os_pid).ppid() == template_of(node)


async def test_spawn_returns_its_pid_at_once_and_messages_wait_for_the_start(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    for number in range(100):
        node.send(pid, "early", number)
    assert pid.node == "local"
    assert pid.host == "processes"
    assert node.workers[pid] is None
    await journal.line("early", 100)
    assert [line["payload"] for line in journal.lines()] == list(range(100))


async def test_a_callable_travels_with_what_it_closes_over(node: Node) -> None:
    exits = Exits(node)
    offset = 40

    def add(number: int, *, more: int = 0) -> int:
        return number + more + offset

    assert (await exits.of(node.spawn(add, None, 1, more=1))).value == 42


async def test_a_module_s_function_is_a_target(node: Node) -> None:
    exits = Exits(node)
    assert (await exits.of(node.spawn("posixpath:basename", None, "/a/b"))).value == "b"


async def test_pids_are_never_used_twice() -> None:
    seen = set()
    for _ in range(3):
        async with Node(hosts=[processes()]) as node:
            pids = [node.spawn(room(rooms.return_at_once)) for _ in range(20)]
            await until(functools.partial(has_no_workers, node), "all have ended")
            seen.update(pids)
    assert len(seen) == 60


@pytest.mark.parametrize("target", ["", "x", "a b:c", "module:1x", "x y.py z:f", 3, None])
async def test_a_malformed_target_is_refused_at_the_caller(node: Node, target: Any) -> None:
    with pytest.raises(InvalidTarget):
        node.spawn(target)
    assert not node.workers


async def test_an_unknown_host_is_refused_and_reminds_of_the_order(node: Node) -> None:
    with pytest.raises(UnknownHost, match="the target's arguments come after it"):
        node.spawn(room(rooms.echo), "some argument")
    assert not node.workers


async def test_what_cannot_be_pickled_is_refused_at_the_caller(node: Node) -> None:
    with pytest.raises(PayloadError, match="pickle"):
        node.spawn(room(rooms.echo), None, sys._getframe())


async def test_a_full_host_refuses_until_there_is_room() -> None:
    async with Node(hosts=[processes(max_processes=2)]) as node:
        first = node.spawn(room(rooms.echo))
        node.spawn(room(rooms.echo))
        with pytest.raises(HostFull, match="processes is full: 2 of 2"):
            node.spawn(room(rooms.echo))
        node.terminate(first)
        await until(lambda: first not in node.workers, "the first has ended")
        node.spawn(room(rooms.echo))


async def test_a_preloaded_script_is_loaded_once_and_not_in_the_node(tmp_path: Path) -> None:
    script = tmp_path / "once.py"
    script.write_text(
        "import os\n"
        "LOADED_IN = os.getpid()\n"
        "def handler():\n"
        "    return [LOADED_IN, os.getppid(), os.getpid()]\n"
    )
    async with Node(hosts=[HostOptions(targets=(f"{script}:handler",))]) as node:
        exits = Exits(node)
        values = [(await exits.of(node.spawn(f"{script}:handler"))).value for _ in range(3)]
        template = template_of(node)
    assert [value[:2] for value in values] == [[template, template]] * 3
    assert len({value[2] for value in values}) == 3
    assert "once" not in sys.modules


@pytest.mark.parametrize(
    ("source", "line", "details"),
    [
        (None, "does not exist", ""),
        ("1 / 0", "ZeroDivisionError: division by zero", "1 / 0"),
        ("def handler(:", "SyntaxError", "def handler(:"),
        ("import no_such_module_anywhere", "no_such_module_anywhere", "line 1"),
        ("raise SystemExit(3)", "SystemExit: 3", "raise SystemExit(3)"),
        ("def other(): pass", "has no function 'handler'; it defines other", ""),
        ("handler = 3", "'handler' is not a function but 3", ""),
    ],
)
async def test_a_script_that_cannot_be_preloaded_says_why(
    tmp_path: Path, source: str | None, line: str, details: str
) -> None:
    script = tmp_path / "broken.py"
    if source is not None:
        script.write_text(source + "\n")
    async with Node(hosts=[HostOptions(targets=(f"{script}:handler",))]) as node:
        with pytest.raises(HostFailed) as failed:
            await node.loaded()
        assert line in str(failed.value)
        assert details in failed.value.details
        assert "importlib" not in failed.value.details
        assert "wsrelay/worker" not in failed.value.details


async def test_a_worker_of_a_host_that_cannot_load_ends_as_start_failed() -> None:
    async with Node(hosts=[HostOptions(preload=("no_such_module_anywhere",))]) as node:
        exits = Exits(node)
        error = await exits.error(node.spawn(room(rooms.echo)))
        assert error.kind == "start_failed"
        assert "no_such_module_anywhere" in error.message


async def test_a_script_named_only_at_run_time_loads_in_the_worker(
    node: Node, tmp_path: Path
) -> None:
    exits = Exits(node)
    script = tmp_path / "late.py"
    error = await exits.error(node.spawn(f"{script}:handler"))
    assert (error.kind, error.message) == ("start_failed", f"{script} does not exist")
    script.write_text("def handler():\n    return 'now it is there'\n")
    assert (await exits.of(node.spawn(f"{script}:handler"))).value == "now it is there"


async def test_a_process_that_does_not_start_in_time_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(600)\ndef handler(): pass\n")
    async with Node(hosts=[processes(start_timeout=0.3)]) as node:
        await node.loaded()
        exits = Exits(node)
        error = await exits.error(node.spawn(str(script)))
    assert error.kind == "start_failed"
    assert "start timeout" in error.message


# End


@pytest.mark.parametrize(
    ("order", "kind", "message"),
    [
        (["exit", 3], "exit", "exit code 3"),
        (["abort", 4], "exit", "exit code 4"),
        (["raise", "secret"], "error", "ZeroDivisionError: secret"),
        (["kill", "SIGKILL"], "killed", "SIGKILL"),
        (["kill", "SIGSEGV"], "killed", "SIGSEGV"),
    ],
)
async def test_an_exit_tells_its_cause(
    any_node: Node, journal: Journal, order: list[Any], kind: str, message: str
) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room(rooms.record), None, str(journal.path))
    any_node.send(pid, "do", [order[0], order[1:]])
    error = await exits.error(pid)
    assert (error.kind, error.message) == (kind, message)
    assert ("rooms.py" in str(error.traceback)) is (kind == "error" or message == "SIGSEGV")


@pytest.mark.parametrize("order", [["exit", 0], ["abort", 0]])
async def test_a_zero_exit_code_is_a_normal_end(
    any_node: Node, journal: Journal, order: list[Any]
) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room(rooms.record), None, str(journal.path))
    any_node.send(pid, "do", [order[0], order[1:]])
    assert await exits.of(pid) == Result()


async def test_the_returned_value_is_the_result(any_node: Node) -> None:
    exits = Exits(any_node)
    value = {"list": [1, 2.5, None, True], "bytes": b"\x00"}
    assert await exits.of(any_node.spawn(room(rooms.return_at_once), None, value)) == Result(value)


async def test_a_returned_value_that_is_no_data_becomes_none_with_a_warning(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    exits = Exits(node)
    assert await exits.of(node.spawn(room(rooms.return_at_once), None, object())) == Result(None)
    assert "builtins.object is not data" in caplog.text


async def test_cancel_closes_the_inbox_behind_what_is_queued(
    any_node: Node, journal: Journal
) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room(rooms.record), None, str(journal.path))
    for number in range(50):
        any_node.send(pid, "queued", number)
    any_node.cancel(pid, "enough")
    any_node.send(pid, "late", 1)
    assert await exits.of(pid) == Result("closed")
    assert journal.topics() == ["queued"] * 50


async def test_a_cancelled_process_gives_its_names_up_at_once(node: Node) -> None:
    first = node.get_or_spawn("room", room(rooms.wait))
    assert node.get_or_spawn("room", room(rooms.wait)) == first
    node.cancel(first)
    second = node.get_or_spawn("room", room(rooms.wait))
    assert second != first
    node.terminate(first)
    node.terminate(second)


async def test_a_cancelled_process_that_goes_on_is_killed_after_the_stop_timeout() -> None:
    async with Node(hosts=[processes(stop_timeout=0.2)]) as node:
        exits = Exits(node)
        pids = [node.spawn(room(deaf)) for deaf in (rooms.deaf, rooms.aio_deaf)]
        await until(lambda: all(node.workers.values()), "all run")
        for pid in pids:
            node.cancel(pid)
        errors = [await exits.error(pid) for pid in pids]
    assert {error.kind for error in errors} == {"cancelled"}


async def test_a_process_cancelled_before_it_starts_ends_too(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(room(rooms.echo))
    node.cancel(pid)
    assert (await exits.of(pid)).error is None


async def test_sigterm_to_a_worker_is_a_cancel(any_node: Node, journal: Journal) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room(rooms.record), None, str(journal.path))
    any_node.send(pid, "hello")
    await journal.line("hello")
    os.kill(any_node.workers[pid] or 0, signal.SIGTERM)
    assert await exits.of(pid) == Result("closed")


async def test_terminate_ends_a_spinning_process_at_once(any_node: Node) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room(rooms.spin))
    await until(lambda: any_node.workers[pid], "it runs")
    any_node.terminate(pid)
    assert (await exits.error(pid)).kind == "terminated"


async def test_terminate_ends_a_process_that_does_not_run_yet(any_node: Node) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room(rooms.wait))
    any_node.terminate(pid)
    assert (await exits.error(pid)).kind == "terminated"


async def test_grandchildren_of_its_process_group_end_with_a_worker(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await say(websocket, "grandchild", False)
        grandchild = psutil.Process(int(await received(websocket)))
        os.kill(node.workers[pid] or 0, signal.SIGKILL)
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
    await until(lambda: not grandchild.is_running(), "the grandchild has ended")


async def test_a_grandchild_that_holds_the_pipe_does_not_delay_the_exit() -> None:
    async with Node(hosts=[processes()]) as node:
        exits = Exits(node)
        pid = node.spawn(room(rooms.hold_pipe))
        assert (await exits.of(pid)).value == "gone"


async def test_the_node_s_end_takes_grandchildren_in_their_own_sessions_with_it(
    journal: Journal,
) -> None:
    async with Node(hosts=[processes()]) as node:
        pid = node.spawn(room(rooms.record), None, str(journal.path))
        async with driven(node, pid) as websocket:
            await say(websocket, "grandchild", True)
            grandchild = psutil.Process(int(await received(websocket)))
    await until(lambda: not grandchild.is_running(), "the grandchild has ended")
