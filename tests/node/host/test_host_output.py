"""What workers log and print, and the stacks of those that crash."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import rooms
from exits import Exits
from one_node import left_as_found
from support import Journal, processes, room, until

from wsrelay import HostFailed, Node

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


# Output


async def test_logging_arrives_in_the_node_s_log_with_the_worker_s_pid(
    node: Node, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    node.send(pid, "do", ["log", [logging.WARNING, "it is %s", "hot"]])
    await until(lambda: "it is hot" in caplog.text, "the record")
    record = next(r for r in caplog.records if "it is hot" in r.getMessage())
    assert record.levelno == logging.WARNING
    assert record.name == "room"
    assert record.getMessage() == f"{pid} room: it is hot"


async def test_a_crash_is_in_the_log_with_pid_and_traceback(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    pid = node.spawn(room(rooms.raise_at_once))
    await until(lambda: not node.workers, "it has ended")
    text = next(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)
    assert text.startswith(f"{pid} crashed: ZeroDivisionError: on purpose")
    assert 'raise ZeroDivisionError("on purpose")' in text
    assert "wsrelay/worker" not in text


async def test_print_goes_to_the_log_at_once_and_never_into_the_pipe(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    async with Node(hosts=[processes()]) as node:
        pid = node.spawn(room(rooms.record), None, str(journal.path))
        node.send(pid, "do", ["print", ["visible at once"]])
        node.send(pid, "do", ["print", ["\x00\xff" * 100]])
        node.send(pid, "hello")
        await journal.line("hello")
        [line] = await until(lambda: [one for one in caplog.messages if "visible" in one])
        assert line == f"{pid} output: visible at once"


async def test_a_worker_has_an_empty_standard_input_and_no_foreign_descriptors(
    node: Node, tmp_path: Path
) -> None:
    exits = Exits(node)
    node.spawn(room(rooms.wait))
    value = (await exits.of(node.spawn(room(rooms.look_around)))).value
    assert value["stdin"] == ""
    assert "has no" in value["breakpoint"] or "none" in value["breakpoint"]
    kinds = Counter(link.partition(":")[0] for link in value["descriptors"])
    assert kinds == {"pipe": 2, "/memfd": 1}, "its own, beside the standard streams"
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
        node.terminate(pid := node.spawn(room(rooms.wait)))
        assert (await exits.error(pid)).traceback is None


async def test_a_segmentation_fault_at_the_top_level_says_where(tmp_path: Path) -> None:
    script = tmp_path / "crashes.py"
    script.write_text(f"{CRASHING}\ndeep()\n")
    async with Node(hosts=[processes(targets=(str(script),))]) as node:
        with pytest.raises(HostFailed, match="process: Segmentation fault") as failed:
            await node.loaded()
    assert f'File "{script}", line 4 in deep' in failed.value.details
