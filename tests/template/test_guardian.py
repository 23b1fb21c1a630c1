"""What is left when node and template end, together or not at all: nothing."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import rooms
from exits import Exits, template_of
from running import Running, gone
from running import client as sync_client
from running import until as wait_for
from support import processes, room, until, value_of

from wsrelay import HostOptions, Isolation, Node

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers"),
]

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can change users")

SCRIPT = """
import atexit, ctypes, os, time
from pathlib import Path
from wsrelay import process

libc = ctypes.CDLL(None)
CLONE_PARENT = 0x8000
HANGS

def tell(path):
    (Path(path) / str(os.getpid())).touch()

def endure(path):
    tell(path)
    time.sleep(600)

def daemon(path):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            endure(path)
        os._exit(0)

def sibling(path):
    # The parent of the child is the caller's own parent.
    clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    if libc.syscall(clone, CLONE_PARENT, 0, 0, 0, 0) == 0:
        endure(path)

def hydra(path):
    # In one process group, each head lives no longer than it takes to fork the next.
    if os.fork() == 0:
        os.setsid()
        (Path(path) / str(os.getpid())).touch()
        while True:
            if os.fork():
                os._exit(0)

def wait(path, *ways):
    libc.prctl(1, 0, 0, 0, 0)  # PR_SET_PDEATHSIG: nothing is to end this with its parent
    for way in ways:
        globals()[way](path)
    tell(path)
    for message in process.inbox():
        pass

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            wait(message.payload["data"], "daemon")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all users can write to, with the script."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o777)
        (path / "stays.py").write_text(SCRIPT.replace("HANGS", ""))
        (path / "stays.py").chmod(0o644)
        yield path


def told(folder: Path) -> list[psutil.Process]:
    """Who has told its process id, and lives."""
    pids = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def options(folder: Path, **more: object) -> HostOptions:
    return processes(targets=(f"{folder}/stays.py:wait",), **more)


async def test_a_killed_template_takes_all_along_that_its_workers_have_started(
    folder: Path,
) -> None:
    async with Node(hosts=[options(folder)]) as node:
        exits = Exits(node)
        pid = node.spawn(f"{folder}/stays.py:wait", None, str(folder), "daemon", "sibling")
        await until(lambda: len(told(folder)) == 3, "all run")
        left = told(folder)
        os.kill(template_of(node), signal.SIGKILL)
        assert (await exits.error(pid)).kind == "template_lost"
        await until(lambda: all(map(gone, left)), "none of them is left")
        assert await value_of(node, room(rooms.return_at_once), 1) == 1, "the node goes on"


@as_root
async def test_those_of_another_user_end_too(folder: Path) -> None:
    isolation = Isolation(user="54321", group="54321")
    async with Node(hosts=[options(folder, isolation=isolation)]) as node:
        node.spawn(f"{folder}/stays.py:wait", None, str(folder), "daemon")
        await until(lambda: len(told(folder)) == 2, "both run")
        left = told(folder)
        assert {uid for one in left for uid in one.uids()} == {54321}
        os.kill(template_of(node), signal.SIGKILL)
        await until(lambda: all(map(gone, left)), "none of them is left")


async def test_a_stopped_template_does_not_keep_anything_alive(folder: Path) -> None:
    async with Node(hosts=[options(folder)]) as node:
        node.spawn(f"{folder}/stays.py:wait", None, str(folder), "daemon")
        await until(lambda: len(told(folder)) == 2, "both run")
        left = [psutil.Process(template_of(node)), *told(folder)]
        os.kill(template_of(node), signal.SIGSTOP)
    assert all(map(gone, left)), "when the node has closed, none of them is left"


async def test_a_stopped_guardian_goes_on_when_the_node_closes(folder: Path) -> None:
    async with Node(hosts=[options(folder)]) as node:
        node.spawn(f"{folder}/stays.py:wait", None, str(folder), "daemon")
        await until(lambda: len(told(folder)) == 2, "both run")
        template = psutil.Process(template_of(node))
        guardian = template.parent()
        assert guardian is not None
        guardian.suspend()
    assert all(map(gone, [guardian, template, *told(folder)]))


async def test_a_template_that_does_not_end_is_killed(folder: Path) -> None:
    """Exit handlers of user code run in it, and this one never returns."""
    hangs = "atexit.register(time.sleep, 600)"
    (folder / "stays.py").write_text(SCRIPT.replace("HANGS", hangs))
    async with Node(hosts=[options(folder)]) as node:
        node.spawn(f"{folder}/stays.py:wait", None, str(folder), "daemon")
        await until(lambda: len(told(folder)) == 2, "both run")
        left = [psutil.Process(template_of(node)), *told(folder)]
    assert all(map(gone, left)), "when the node has closed, none of them is left"


async def test_one_that_forks_and_ends_again_and_again_is_caught_by_its_group(
    folder: Path,
) -> None:
    async with Node(hosts=[options(folder)]) as node:
        node.spawn(f"{folder}/stays.py:wait", None, str(folder), "hydra")
        await until(lambda: len(list(folder.glob("[0-9]*"))) == 2, "both run")
        groups = [int(entry.name) for entry in folder.glob("[0-9]*")]
    for group in groups:
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_node_and_template_killed_together_leave_nothing(folder: Path, how: str) -> None:
    with Running(folder / "stays.py") as running, sync_client(running.ws()) as websocket:
        websocket.send(str(folder))
        wait_for(lambda: len(told(folder)) == 2, "both run")
        left = [running.guardian, running.template, *told(folder)]
        os.kill(running.template.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        os.kill(running.pid, signal.SIGKILL)
        wait_for(lambda: all(map(gone, left)), "none of them is left")


def test_a_kill_of_the_node_s_whole_process_group_leaves_nothing(folder: Path) -> None:
    with Running(folder / "stays.py") as running, sync_client(running.ws()) as websocket:
        websocket.send(str(folder))
        wait_for(lambda: len(told(folder)) == 2, "both run")
        left = [running.guardian, running.template, *told(folder)]
        os.killpg(running.pid, signal.SIGKILL)
        wait_for(lambda: all(map(gone, left)), "none of them is left")


async def test_a_killed_guardian_takes_template_and_workers_along_and_is_replaced(
    folder: Path,
) -> None:
    async with Node(hosts=[options(folder)]) as node:
        exits = Exits(node)
        pid = node.spawn(room(rooms.wait))
        assert await node.started(pid) is None
        template = psutil.Process(template_of(node))
        left = [template, psutil.Process(node.workers[pid])]
        guardian = template.parent()
        assert guardian is not None
        guardian.kill()
        assert (await exits.error(pid)).kind == "template_lost"
        await until(lambda: all(map(gone, left)), "none of them is left")
        assert await value_of(node, room(rooms.return_at_once), 1) == 1


async def test_signals_that_are_for_the_node_do_not_end_a_guardian(node: Node) -> None:
    await node.loaded()
    guardian = psutil.Process(template_of(node)).parent()
    assert guardian is not None
    assert "wsrelay/template/guardian.py" in " ".join(guardian.cmdline())
    assert guardian.cmdline()[-1] == "processes", "ps tells whose it is"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        guardian.send_signal(number)
    assert await value_of(node, room(rooms.return_at_once), 1) == 1
    assert guardian.is_running()
    assert os.getsid(guardian.pid) == guardian.pid != os.getsid(0)


async def test_a_guardian_reaps_the_orphans_that_come_to_it(node: Node, folder: Path) -> None:
    pid = node.spawn(f"{folder}/stays.py:wait", None, str(folder), "daemon")
    await until(lambda: len(told(folder)) == 2, "both run")
    guardian = psutil.Process(template_of(node)).parent()
    assert guardian is not None
    [orphan] = [one for one in guardian.children() if one.pid != template_of(node)]
    orphan.kill()
    await until(lambda: not psutil.pid_exists(orphan.pid), "it was reaped")
    node.terminate(pid)
