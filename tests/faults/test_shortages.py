"""The matrix goes on: no descriptors, no processes."""

from __future__ import annotations

import contextlib
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rooms
from staged import linux, staged
from support import processes, received, room, until

from wsrelay import ExitKind, HostFailed, HostOptions, Isolation, Node, Result

pytestmark = pytest.mark.anyio


# Descriptors


async def test_a_worker_without_descriptors_still_talks() -> None:
    async with staged() as scene:
        await scene.hit.send("exhaust")
        assert await received(scene.hit) == "none left"
        await scene.is_well()


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Let this process open so many more and no others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 5, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(spare):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


@linux
async def test_a_node_without_descriptors_refuses_spawns_and_goes_on() -> None:
    async with staged() as scene:
        with few_descriptors(1):
            with pytest.raises(HostFailed, match="no process can be started: Too many open files"):
                scene.node.spawn(room(rooms.echo))
            await scene.healthy.send("well?")
            assert await received(scene.healthy) == "well?"
        assert len(scene.node.kernel.processes) == 4, "two rooms, two connections"
        await scene.is_well()


@linux
async def test_a_worker_that_spawns_is_told_that_there_are_no_descriptors() -> None:
    async with staged() as scene:
        with few_descriptors(1):
            await scene.hit.send("spawn")
            assert await received(scene.hit) == "start_failed"
        await scene.is_well()


@linux
async def test_a_pidfd_that_finds_no_room_is_no_loss() -> None:
    """The pipe was made, but the pidfd that comes from the template has no place."""
    async with staged() as scene:
        results: list[Result] = []
        pid = scene.node.spawn(room(rooms.echo))
        scene.node.when_ended(pid, results.append)
        with few_descriptors(0):
            await until(lambda: scene.node.workers[pid], "it is forked")
        assert scene.node.engine.processes[pid].incarnation._pidfd is None
        assert await scene.node.started(pid) is None
        scene.node.terminate(pid)
        await until(lambda: results, "its end is told by the template")
        await scene.is_well()


@linux
async def test_a_template_that_cannot_be_started_is_told() -> None:
    async with Node(hosts=[processes()]) as node:
        results: list[Result] = []
        with few_descriptors(6):
            node.when_ended(node.spawn(room(rooms.echo)), results.append)
        await until(lambda: results, "its end is told")
        error = results[0].error
        assert error is not None
        assert error.kind is ExitKind.START_FAILED
        assert error.message == "the template cannot be started: Too many open files"
        assert await node.started(node.spawn(room(rooms.echo))) is None


# A system that refuses to fork


@linux
async def test_a_fork_that_fails_with_eagain_is_told_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    """The template's user has no process left, until there is a file."""
    script = tmp_path / "room.py"
    script.write_text(
        "import os, resource\n"
        "fork = os.fork\n"
        "def refuse():\n"
        f"    if os.path.exists({str(tmp_path / 'refuse')!r}):\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return fork()\n"
        "os.fork = refuse\n"
        "def handler():\n"
        "    from wsrelay import process\n"
        "    for _ in process.inbox(): pass\n"
    )
    async with Node(hosts=[HostOptions(targets=(str(script),), stop_timeout=2.0)]) as node:
        assert await node.started(node.spawn(str(script))) is None
        (tmp_path / "refuse").touch()
        said = await node.started(node.spawn(str(script)))
        assert said is not None
        assert "the operating system refused a fork" in said
        (tmp_path / "refuse").unlink()
        assert await node.started(node.spawn(str(script))) is None


@linux
@pytest.mark.skipif(os.getuid() != 0, reason="root is not counted, so a user is needed")
async def test_a_user_without_processes_left_is_told() -> None:
    """The system's own EAGAIN: the template takes away what it may have."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        script = folder / "room.py"
        script.write_text(
            "import resource\n"
            "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
            "def handler(): pass\n"
        )
        isolation = Isolation(user="54322", group="54322")
        async with Node(hosts=[HostOptions(targets=(str(script),), isolation=isolation)]) as node:
            said = await node.started(node.spawn(str(script)))
    assert said is not None
    assert "the operating system refused a fork" in said
    assert "Resource temporarily unavailable" in said
