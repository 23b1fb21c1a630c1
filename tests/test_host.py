"""Process hosts: how workers start, end, fail, and what is left of them (architecture 1 to 6)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import select
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import (
    Journal,
    client,
    closed,
    processes,
    received,
    relay_to,
    room,
    say,
    serving,
    until,
)

from wsrelay import (
    PID,
    ExitError,
    ExitKind,
    HostFailed,
    HostFull,
    HostOptions,
    InvalidTarget,
    Node,
    PayloadError,
    Result,
    UnknownHost,
    WebSocketRelay,
    wire,
)
from wsrelay.node import WorkerProcess

pytestmark = pytest.mark.anyio


class Exits:
    """Exit results of a node's workers, taken where the node learns them."""

    def __init__(self, node: Node) -> None:
        self.results: dict[PID, Result] = {}

        def note(process: WorkerProcess, result: Result) -> None:
            self.results[process.pid] = wire.PackedResult.of(result).opened()

        node.engine.on_exit.append(note)

    async def of(self, pid: PID) -> Result:
        await until(lambda: pid in self.results, f"{pid} has ended")
        return self.results[pid]

    async def error(self, pid: PID) -> ExitError:
        error = (await self.of(pid)).error
        assert error is not None
        return error


@pytest.fixture(params=["pidfd", "no pidfd", "warm"])
async def any_node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """Nodes whose templates have pidfds, have none, and fork ahead."""
    preload = ("no_pidfd",) if request.param == "no pidfd" else ()
    warm = 2 if request.param == "warm" else 0
    async with Node(hosts=[processes(preload=preload, warm=warm)]) as node:
        yield node


@contextlib.asynccontextmanager
async def driven(node: Node, pid: PID) -> AsyncIterator[Any]:
    """A client of the process."""
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as websocket:
        yield websocket


def has_no_workers(node: Node) -> bool:
    return not node.workers


def template_of(node: Node) -> int:
    pid = node._templates["processes"].os_pid
    assert pid is not None
    return pid


# Start


async def test_a_worker_is_an_os_process_of_its_own(node: Node) -> None:
    pids = [node.spawn(room("echo")) for _ in range(3)]
    await until(lambda: all(node.workers.values()), "all are forked")
    os_pids = [node.workers[pid] for pid in pids]
    assert len({*os_pids, os.getpid(), template_of(node)}) == 5
    for os_pid in os_pids:
        assert psutil.Process(os_pid).ppid() == template_of(node)


async def test_spawn_returns_its_pid_at_once_and_messages_wait_for_the_start(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
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
            pids = [node.spawn(room("return_at_once")) for _ in range(20)]
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
        node.spawn(room("echo"), "some argument")
    assert not node.workers


async def test_what_cannot_be_pickled_is_refused_at_the_caller(node: Node) -> None:
    with pytest.raises(PayloadError, match="pickle"):
        node.spawn(room("echo"), None, sys._getframe())


async def test_a_full_host_refuses_until_there_is_room() -> None:
    async with Node(hosts=[processes(max_processes=2)]) as node:
        first = node.spawn(room("echo"))
        node.spawn(room("echo"))
        with pytest.raises(HostFull, match="processes is full: 2 of 2"):
            node.spawn(room("echo"))
        node.terminate(first)
        await until(lambda: first not in node.workers, "the first has ended")
        node.spawn(room("echo"))


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
        ("handler = 3", "'handler' is no function but 3", ""),
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
        error = await exits.error(node.spawn(room("echo")))
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
    pid = any_node.spawn(room("record"), None, str(journal.path))
    any_node.send(pid, "do", [order[0], order[1:]])
    error = await exits.error(pid)
    assert (error.kind, error.message) == (kind, message)
    assert ("rooms.py" in str(error.traceback)) is (kind == "error" or message == "SIGSEGV")


@pytest.mark.parametrize("order", [["exit", 0], ["abort", 0]])
async def test_a_zero_exit_code_is_a_normal_end(
    any_node: Node, journal: Journal, order: list[Any]
) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room("record"), None, str(journal.path))
    any_node.send(pid, "do", [order[0], order[1:]])
    assert await exits.of(pid) == Result()


async def test_the_returned_value_is_the_result(any_node: Node) -> None:
    exits = Exits(any_node)
    value = {"list": [1, 2.5, None, True], "bytes": b"\x00"}
    assert await exits.of(any_node.spawn(room("return_at_once"), None, value)) == Result(value)


async def test_a_returned_value_that_is_no_data_becomes_none_with_a_warning(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    exits = Exits(node)
    assert await exits.of(node.spawn(room("return_at_once"), None, object())) == Result(None)
    assert "builtins.object is not data" in caplog.text


async def test_cancel_closes_the_inbox_behind_what_is_queued(
    any_node: Node, journal: Journal
) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room("record"), None, str(journal.path))
    for number in range(50):
        any_node.send(pid, "queued", number)
    any_node.cancel(pid, "enough")
    any_node.send(pid, "late", 1)
    assert await exits.of(pid) == Result("closed")
    assert journal.topics() == ["queued"] * 50


async def test_a_cancelled_process_gives_its_names_up_at_once(node: Node) -> None:
    first = node.get_or_spawn("room", room("wait"))
    assert node.get_or_spawn("room", room("wait")) == first
    node.cancel(first)
    second = node.get_or_spawn("room", room("wait"))
    assert second != first
    node.terminate(first)
    node.terminate(second)


async def test_a_cancelled_process_that_goes_on_is_killed_after_the_stop_timeout() -> None:
    async with Node(hosts=[processes(stop_timeout=0.2)]) as node:
        exits = Exits(node)
        pids = [node.spawn(room(name)) for name in ("deaf", "aio_deaf")]
        await until(lambda: all(node.workers.values()), "all run")
        for pid in pids:
            node.cancel(pid)
        errors = [await exits.error(pid) for pid in pids]
    assert {error.kind for error in errors} == {"cancelled"}


async def test_a_process_cancelled_before_it_starts_ends_too(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(room("echo"))
    node.cancel(pid)
    assert (await exits.of(pid)).error is None


async def test_sigterm_to_a_worker_is_a_cancel(any_node: Node, journal: Journal) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room("record"), None, str(journal.path))
    any_node.send(pid, "hello")
    await journal.line("hello")
    os.kill(any_node.workers[pid] or 0, signal.SIGTERM)
    assert await exits.of(pid) == Result("closed")


async def test_terminate_ends_a_spinning_process_at_once(any_node: Node) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room("spin"))
    await until(lambda: any_node.workers[pid], "it runs")
    any_node.terminate(pid)
    assert (await exits.error(pid)).kind == "terminated"


async def test_terminate_ends_a_process_that_does_not_run_yet(any_node: Node) -> None:
    exits = Exits(any_node)
    pid = any_node.spawn(room("wait"))
    any_node.terminate(pid)
    assert (await exits.error(pid)).kind == "terminated"


async def test_grandchildren_of_its_process_group_end_with_a_worker(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await say(websocket, "grandchild", False)
        grandchild = psutil.Process(int(await received(websocket)))
        os.kill(node.workers[pid] or 0, signal.SIGKILL)
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
    await until(lambda: not grandchild.is_running(), "the grandchild has ended")


async def test_a_grandchild_that_holds_the_pipe_does_not_delay_the_exit(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(room("hold_pipe"))
    assert (await exits.of(pid)).value == "gone"


async def test_the_node_s_end_takes_grandchildren_in_their_own_sessions_with_it(
    journal: Journal,
) -> None:
    async with Node(hosts=[processes()]) as node:
        pid = node.spawn(room("record"), None, str(journal.path))
        async with driven(node, pid) as websocket:
            await say(websocket, "grandchild", True)
            grandchild = psutil.Process(int(await received(websocket)))
    await until(lambda: not grandchild.is_running(), "the grandchild has ended")


# Faults


async def test_a_killed_template_takes_its_workers_along_and_is_replaced(any_node: Node) -> None:
    exits = Exits(any_node)
    pids = [any_node.spawn(room("wait")) for _ in range(3)]
    await until(lambda: all(any_node.workers.values()), "all run")
    os_pids = [pid for pid in any_node.workers.values() if pid is not None]
    os.kill(template_of(any_node), signal.SIGKILL)
    errors = [await exits.error(pid) for pid in pids]
    assert {error.kind for error in errors} == {"template_lost"}
    await until(lambda: not any(map(psutil.pid_exists, os_pids)), "all workers are gone")
    assert (await exits.of(any_node.spawn(room("return_at_once"), None, 1))).value == 1


async def test_a_template_killed_with_frames_unread_on_both_sides_is_lost_too(node: Node) -> None:
    """Behind its last frames there is an error then, which is not told a second time."""
    await node.loaded()
    template, control = node.templates["processes"], node._templates["processes"]._control
    assert template is not None
    assert control is not None
    results: list[Result] = []
    node.when_ended(node.spawn(room("echo")), results.append)
    select.select([control], [], [], 10)  # it has answered, and the event loop has not seen it
    os.kill(template, signal.SIGSTOP)
    node.when_ended(node.spawn(room("echo")), results.append)
    pidfd = os.pidfd_open(template)
    os.kill(template, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0], "it is dead, and the event loop has waited"
    os.close(pidfd)
    await until(lambda: len(results) == 2, "both are told")
    assert {r.error.kind for r in results if r.error} == {ExitKind.TEMPLATE_LOST}


async def test_a_stalled_template_does_not_hide_a_death(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await journal.line("ws.join")
        template = template_of(node)
        os.kill(template, signal.SIGSTOP)
        try:
            os.kill(node.workers[pid] or 0, signal.SIGKILL)
            assert (await closed(websocket))[0] == 1011
        finally:
            os.kill(template, signal.SIGCONT)


async def test_garbage_on_the_pipe_ends_its_worker_and_nobody_else(
    node: Node, journal: Journal
) -> None:
    exits = Exits(node)
    other = node.spawn(room("echo"))
    pid = node.spawn(room("record"), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await say(websocket, "garbage")
        assert await closed(websocket) == (1011, "target process crashed")
    assert "garbage" in (await exits.error(pid)).message
    async with driven(node, other) as websocket:
        await websocket.send("still here")
        assert await received(websocket) == "still here"


async def test_a_frame_cut_by_death_is_dropped_and_what_came_before_it_is_not(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await say(websocket, "half_frame")
        assert await received(websocket) == "whole"
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")


async def test_a_worker_that_floods_another_ends_that_one_loudly(journal: Journal) -> None:
    async with Node(hosts=[processes(mailbox=1_000_000)]) as node:
        exits = Exits(node)
        stalled = node.spawn(room("wait"))
        pid = node.spawn(room("record"), None, str(journal.path))
        async with driven(node, pid) as websocket:
            for _ in range(20):
                await say(websocket, "send", stalled, "data", "x" * 100_000)
            error = await exits.error(stalled)
            assert error.kind == "mailbox_overflow"
            await say(websocket, "send", None, "ws.send", {"type": "text", "data": "fine"})
            assert await received(websocket) == "fine"


async def test_hundreds_of_spawns_leave_everything_as_it_was(node: Node) -> None:
    exits = Exits(node)

    async def cycle(count: int) -> None:
        pids = [node.spawn(room("return_at_once"), None, number) for number in range(count)]
        for number, pid in enumerate(pids):
            assert (await exits.of(pid)).value == number
        exits.results.clear()

    me, template = psutil.Process(), psutil.Process
    await cycle(50)
    host = template(template_of(node))
    await until(lambda: not host.children(), "all are reaped")
    before = me.num_fds(), host.num_fds()
    for _ in range(10):
        await cycle(50)
    # The template may not have got round to closing what it needed for the last ones.
    await until(
        lambda: me.num_fds() <= before[0] and host.num_fds() <= before[1] and not host.children(),
        "everything is as it was",
    )
    rss = me.memory_info().rss, host.memory_info().rss
    assert not node.workers
    for _ in range(4):
        await cycle(50)
    grown = me.memory_info().rss - rss[0], host.memory_info().rss - rss[1]
    assert max(grown) < 2_000_000


# Output


async def test_logging_arrives_in_the_node_s_log_with_the_worker_s_pid(
    node: Node, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pid = node.spawn(room("record"), None, str(journal.path))
    node.send(pid, "do", ["log", [logging.WARNING, "it is %s", "hot"]])
    await until(lambda: "it is hot" in caplog.text, "the record")
    record = next(r for r in caplog.records if "it is hot" in r.getMessage())
    assert record.levelno == logging.WARNING
    assert record.name == "room"
    assert record.getMessage() == f"{pid} room: it is hot"


async def test_a_crash_is_in_the_log_with_pid_and_traceback(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    pid = node.spawn(room("raise_at_once"))
    await until(lambda: not node.workers, "it has ended")
    text = next(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    assert text.startswith(f"{pid} crashed: ZeroDivisionError: on purpose")
    assert 'raise ZeroDivisionError("on purpose")' in text
    assert "wsrelay/worker" not in text


async def test_print_goes_to_the_log_at_once_and_never_into_the_pipe(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async with Node(hosts=[processes()]) as node:
        pid = node.spawn(room("record"), None, str(journal.path))
        node.send(pid, "do", ["print", ["visible at once"]])
        node.send(pid, "do", ["print", ["\x00\xff" * 100]])
        node.send(pid, "hello")
        await journal.line("hello")
        [line] = [line for line in caplog.messages if "visible" in line]
        assert line == f"{pid} output: visible at once"


async def test_a_worker_has_an_empty_standard_input_and_no_foreign_descriptors(
    node: Node, tmp_path: Path
) -> None:
    exits = Exits(node)
    node.spawn(room("wait"))
    value = (await exits.of(node.spawn(room("look_around")))).value
    assert value["stdin"] == ""
    assert "has no" in value["breakpoint"] or "none" in value["breakpoint"]
    kinds = Counter(link.partition(":")[0] for link in value["descriptors"])
    assert kinds == {"pipe": 2}, "its own two, beside the standard streams"
    assert value["session"] == value["pid"]
    await asyncio.to_thread((tmp_path / "x").write_text, json.dumps(value))


async def test_a_preload_that_hangs_does_not_hold_up_the_node_s_end(tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text("import time\ntime.sleep(600)\ndef handler(): pass\n")
    async with Node(hosts=[processes(targets=(str(script),), start_timeout=0.2)]) as node:
        exits = Exits(node)
        assert (await exits.error(node.spawn(str(script)))).kind == "start_failed"
        terminated = node.spawn(str(script))
        node.terminate(terminated)
        assert (await exits.error(terminated)).kind == "terminated"
        node.spawn(str(script))


# Crashes

CRASHING = """
import ctypes, os, time
def deep():
    ctypes.string_at(0)
def handler(child=False):
    if child:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    deep()
"""


@pytest.mark.parametrize("warm", [0, 1])
async def test_the_stack_of_a_segmentation_fault_is_in_the_log_with_the_pid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, warm: int
) -> None:
    script = tmp_path / "crashes.py"
    script.write_text(CRASHING)
    async with Node(hosts=[processes(targets=(str(script),), warm=warm)]) as node:
        exits = Exits(node)
        pids = [node.spawn(str(script)) for _ in range(2)]
        for pid in pids:
            error = await exits.error(pid)
            assert (error.kind, error.message) == ("killed", "SIGSEGV")
            assert f'File "{script}", line 4 in deep' in (error.traceback or "")
            assert "wsrelay/" not in (error.traceback or "")
    for pid in pids:  # once, not in its output too
        (line,) = [r.getMessage() for r in caplog.records if str(pid) in r.getMessage()]
        assert f'File "{script}", line 4 in deep' in line


async def test_the_stack_of_a_handler_s_child_goes_to_its_output(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "crashes.py"
    script.write_text(CRASHING)
    async with Node(hosts=[processes(targets=(str(script),))]) as node:
        exits = Exits(node)
        assert (await exits.of(node.spawn(str(script), None, True))).value == -signal.SIGSEGV
        assert any("output: " in line and "line 4 in deep" in line for line in caplog.messages)
        node.terminate(pid := node.spawn(room("wait")))
        assert (await exits.error(pid)).traceback is None


async def test_a_segmentation_fault_at_the_top_level_says_where(tmp_path: Path) -> None:
    script = tmp_path / "crashes.py"
    script.write_text(f"{CRASHING}\ndeep()\n")
    async with Node(hosts=[processes(targets=(str(script),))]) as node:
        with pytest.raises(HostFailed, match="process: Segmentation fault") as failed:
            await node.loaded()
    assert f'File "{script}", line 4 in deep' in failed.value.details
