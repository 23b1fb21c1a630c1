"""Processes that are stopped when their node's deadline passes, whatever has become of the node."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fenced_handlers as handlers
import psutil
import pytest
from exits import Exits, template_of
from one_node import left_as_found, running_node
from running import gone
from running import until as wait_for
from support import processes, until

from wsrelay import PID, Node
from wsrelay.node.snapshot import describe
from wsrelay.template import guardian

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of sessions in /proc"),
]

TARGET = handlers.__file__


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    hosts = [processes(), processes(name="hasty", stop_timeout=1)]
    async with running_node(*hosts) as node:
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        freeze(shared, in_time=True)
        yield shared
        freeze(shared, in_time=True)
        shared.engine.fencing.is_cluster_name = lambda _: False


def freeze(node: Node, *, in_time: bool = False) -> None:
    """Let the deadline be one that has passed, or one that is far away."""
    node.engine.fencing.set_deadline(time.monotonic_ns() + 600_000_000_000 if in_time else 0)


async def runs(node: Node, function: str, *args: Any, host: str | None = None) -> PID:
    pid = node.spawn(f"{TARGET}:{function}", host, *map(str, args))
    assert await node.started(pid) is None
    return pid


def is_stopped(node: Node, pid: PID) -> bool:
    os_pid = node.workers[pid]
    assert os_pid is not None
    return psutil.Process(os_pid).status() == psutil.STATUS_STOPPED


async def grows(*paths: Path) -> None:
    sizes = [size(path) for path in paths]
    await until(
        lambda: all(size(path) > one for path, one in zip(paths, sizes, strict=True)), "they write"
    )


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def test_who_is_fenced_is_stopped_at_the_deadline_and_goes_on_when_it_is_renewed(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fenced, other = tmp_path / "fenced", tmp_path / "other"
    pid = await runs(node, "write", fenced)
    await runs(node, "write", other)
    assert await node.engine.fencing.fence(pid)
    await grows(fenced, other)
    node.engine.fencing.set_deadline(time.monotonic_ns() + 10_000_000)
    await until(lambda: is_stopped(node, pid), "it is stopped")
    before = size(fenced)
    await grows(other)
    assert size(fenced) == before
    states = {one.pid: one.state for one in describe(node).processes}
    assert states.pop(pid) == "frozen"
    assert set(states.values()) == {"running"}
    freeze(node, in_time=True)
    await grows(fenced)
    assert caplog.messages == [
        f"node local: {pid} is stopped until the node's lease is renewed",
        f"node local: {pid} is running again",
    ]


async def test_the_guardian_is_told_once_of_a_process_that_is_fenced_again_and_again(
    node: Node, tmp_path: Path
) -> None:
    pid = await runs(node, "write", tmp_path / "fenced")
    busy = psutil.Process(template_of(node)).parent()
    assert busy is not None
    busy.suspend()  # and so reads no order, of which only some hundreds can wait
    try:
        for _ in range(1000):
            assert await node.engine.fencing.fence(pid)
    finally:
        busy.resume()
    freeze(node)
    await until(lambda: is_stopped(node, pid), "it is stopped")


async def test_all_of_its_session_is_stopped_and_goes_on(node: Node, tmp_path: Path) -> None:
    paths = [tmp_path / "0", tmp_path / "1"]
    pid = await runs(node, "have_written", f"{tmp_path}/")
    assert await node.engine.fencing.fence(pid)
    await grows(*paths)
    os_pid = node.workers[pid]
    assert os_pid is not None
    family = [psutil.Process(os_pid), *psutil.Process(os_pid).children()]
    assert len({os.getpgid(one.pid) for one in family}) == 2
    freeze(node)
    await until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family), "all stop")
    freeze(node, in_time=True)
    await grows(*paths)
    freeze(node)
    await until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family), "again")
    node.engine.fencing.unfence(pid)
    await grows(*paths)
    family[2].kill()  # it has left the group that ends with its worker


async def test_who_is_fenced_after_the_deadline_is_stopped_at_once(
    node: Node, tmp_path: Path
) -> None:
    pid = await runs(node, "write", tmp_path / "file")
    freeze(node)
    assert await node.engine.fencing.fence(pid)
    await until(lambda: is_stopped(node, pid), "it is stopped")


async def test_a_process_that_is_stopped_can_be_ended(node: Node, tmp_path: Path) -> None:
    exits, pid = Exits(node), await runs(node, "write", tmp_path / "file")
    assert await node.engine.fencing.fence(pid)
    freeze(node)
    await until(lambda: is_stopped(node, pid), "it is stopped")
    node.terminate(pid)
    assert (await exits.error(pid)).kind == "terminated"
    assert not await node.engine.fencing.fence(pid), "it is not alive"


async def test_the_time_in_which_it_is_stopped_does_not_count_as_time_to_end(
    node: Node, tmp_path: Path
) -> None:
    exits, pid = Exits(node), await runs(node, "wait", tmp_path / "file", host="hasty")
    other = await runs(node, "endure", host="hasty")
    assert await node.engine.fencing.fence(pid)
    freeze(node)
    await until(lambda: is_stopped(node, pid), "it is stopped")
    node.cancel(pid)
    node.cancel(other)
    assert "did not end within its stop timeout" in (await exits.error(other)).message
    assert pid not in exits.results
    freeze(node, in_time=True)
    assert (await exits.of(pid)).error is None


async def test_a_process_without_clients_does_not_end_for_that_while_it_is_stopped(
    node: Node, tmp_path: Path
) -> None:
    exits, pid = Exits(node), await runs(node, "wait", tmp_path / "file")
    process = node.engine.processes[pid]
    assert await node.engine.fencing.fence(pid)
    process.set_end_when_empty(600)
    freeze(node)
    process.set_end_when_empty(0)
    assert process._empty is None
    freeze(node, in_time=True)
    assert (await exits.of(pid)).value == "has ended"


async def test_who_is_started_under_a_cluster_s_name_after_the_deadline_waits_for_the_next(
    node: Node, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    node.engine.fencing.is_cluster_name = lambda name: name == "fenced"
    freeze(node)
    pid = node.get_or_spawn("fenced", f"{TARGET}:wait", None, str(path))
    other = node.get_or_spawn("other", f"{TARGET}:wait", None, str(tmp_path / "other"))
    assert await node.started(other) is None
    await until(lambda: node.workers[pid] and is_stopped(node, pid), "it is forked, and stopped")
    os.kill(node.workers[pid] or 0, signal.SIGCONT)
    await runs(node, "wait", tmp_path / "meanwhile")
    assert not path.exists(), "it has nothing to run yet"
    freeze(node, in_time=True)
    assert await node.started(pid) is None
    await until(path.exists, "it runs")
    freeze(node)
    await until(lambda: is_stopped(node, pid), "it is fenced")


async def test_who_loses_its_fence_before_it_could_begin_begins(node: Node, tmp_path: Path) -> None:
    node.engine.fencing.is_cluster_name = lambda _: True
    freeze(node)
    early, late = [
        node.get_or_spawn(name, f"{TARGET}:wait", None, str(tmp_path / name)) for name in "ab"
    ]
    node.engine.fencing.unfence(early)
    assert await node.started(early) is None
    await until(lambda: node.workers[late], "it is forked")
    node.engine.fencing.unfence(late)
    assert await node.started(late) is None


async def test_whoever_fences_a_process_waits_until_it_is_forked(
    node: Node, tmp_path: Path
) -> None:
    pid = node.spawn(f"{TARGET}:write", None, str(tmp_path / "file"))
    assert node.workers[pid] is None
    assert await node.engine.fencing.fence(pid)
    assert node.workers[pid] is not None
    freeze(node)
    await until(lambda: is_stopped(node, pid), "it is stopped")
    template = psutil.Process(template_of(node))
    template.suspend()
    gone_early = node.spawn(f"{TARGET}:write", None, str(tmp_path / "file"))
    waiting = asyncio.ensure_future(node.engine.fencing.fence(gone_early))
    await asyncio.sleep(0)
    node.terminate(gone_early)
    template.resume()
    assert not await waiting


async def test_a_host_whose_template_starts_after_the_deadline_knows_it(tmp_path: Path) -> None:
    async with Node(hosts=[processes()]) as node:
        node.engine.fencing.is_cluster_name = lambda _: True
        freeze(node)
        pid = node.get_or_spawn("fenced", f"{TARGET}:wait", None, str(tmp_path / "file"))
        await until(lambda: node.workers[pid] and is_stopped(node, pid), "it is stopped")
        freeze(node, in_time=True)


async def test_a_guardian_that_cannot_be_told_anything_is_ended_with_all_that_it_guards(
    tmp_path: Path,
) -> None:
    async with Node(hosts=[processes()]) as node:
        exits, pid = Exits(node), await runs(node, "write", tmp_path / "file")
        there = psutil.Process(node.workers[pid]).parents()[1]
        assert "guardian.py" in " ".join(there.cmdline())
        there.suspend()
        for _ in range(10_000):
            freeze(node, in_time=True)
            if pid in exits.results or node.templates["processes"] is None:
                break
        assert (await exits.error(pid)).kind == "template_lost"
        await until(lambda: gone(there), "it has ended")


def test_node_and_template_are_stopped_and_the_fenced_process_is_too(tmp_path: Path) -> None:
    file = tmp_path / "fenced"
    args = [sys.executable, TARGET, str(tmp_path)]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdin is not None
        assert node.stdout is not None
        template, worker = map(psutil.Process, json.loads(node.stdout.readline()))
        template.suspend()
        os.kill(node.pid, signal.SIGSTOP)
        wait_for(lambda: worker.status() == psutil.STATUS_STOPPED, "it is stopped")
        before = size(file)
        assert before
        node.stdin.write("\n")
        node.stdin.flush()
        os.kill(node.pid, signal.SIGCONT)
        wait_for(lambda: size(file) > before, "it goes on")
        os.kill(node.pid, signal.SIGKILL)
        node.wait()
        wait_for(lambda: gone(worker) and gone(template), "nothing is left")


# By themselves


def test_a_process_id_that_is_another_s_by_now_is_not_stopped() -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as child:
        fence, there = guardian._Fence(), psutil.Process(child.pid)
        fence.obey(guardian.FENCE, child.pid)
        fence.obey(guardian.DEADLINE, 0)
        assert fence.keep() is None
        wait_for(lambda: there.status() == psutil.STATUS_STOPPED, "it is stopped")
        fence.obey(guardian.DEADLINE, time.monotonic_ns() + 600_000_000_000)
        seconds = fence.keep()
        assert seconds is not None
        assert 500 < seconds < 600
        wait_for(lambda: there.status() != psutil.STATUS_STOPPED, "it goes on")
        fence._fenced[child.pid] = b"1"  # as if that one had begun when the system did
        fence.obey(guardian.DEADLINE, 0)
        fence.keep()
        assert not fence._fenced
        assert not fence._stopped
        child.kill()


def test_who_has_ended_is_forgotten_and_never_told_to_go_on() -> None:
    fence = guardian._Fence()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as child:
        fence.obey(guardian.FENCE, child.pid)
        child.kill()
    fence.obey(guardian.UNFENCE, child.pid)
    assert not fence._fenced
    fence.obey(guardian.DEADLINE, 0)
    assert fence.keep() is None
    assert not fence._stopped
