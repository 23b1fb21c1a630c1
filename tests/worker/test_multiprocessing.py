"""`multiprocessing` in a handler is what it is in `python script.py`."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from exits import Exits, template_of
from running import Running
from running import client as sync_client
from running import until as wait_for
from support import processes, until

from wsrelay import Node

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm and /proc"),
]

SHARED = Path("/dev/shm")  # noqa: S108 - where the system has it
DEFAULT: Any = multiprocessing.get_all_start_methods()[0]


def plain(function: str) -> str:
    return f"{Path(__file__).with_name('plain.py')}:{function}"


@pytest.fixture(autouse=True)
def directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a temporary directory of its own.

    A process that is killed leaves its folder of sockets behind, and a manager that has not ended a
    second after it was asked to is killed by `multiprocessing`: on a loaded machine that happens.
    """
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node(hosts=[processes(targets=(plain("use"),))]) as running:
        yield running


def gone(name: str) -> bool:
    return not (SHARED / name).exists()


def _trackers() -> set[int]:
    """The trackers of what the tests have started, whoever their parents are by now."""
    mine = f"WSRELAY_RUNTIME_DIR={os.environ['WSRELAY_RUNTIME_DIR']}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            is_one = b"multiprocessing.resource_tracker" in (entry / "cmdline").read_bytes()
            if is_one and mine in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    own: Any = resource_tracker._resource_tracker
    return found - {own._pid}


@pytest.fixture(autouse=True)
def no_tracker_is_left_behind() -> Iterator[None]:
    """They lead sessions of their own: nobody ends them but themselves, and the template."""
    assert not _trackers()
    yield
    wait_for(lambda: not _trackers(), "all trackers have ended")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_a_handler_can_use_all_of_multiprocessing(node: Node, method: str) -> None:
    exits = Exits(node)
    pid = node.spawn(plain("use"), None, method)
    result = await exits.of(pid)
    assert result.error is None, result.error
    queued, joined, code, doubled, [said], executed, shared, terminated = result.value
    assert (queued, joined, code) == ("from a child", None, 0)
    assert doubled == executed == [0, 2, 4]
    assert said.startswith(f"this is a child of process {pid}")
    assert (shared, terminated) == ({"a": 1, "b": 2}, -signal.SIGTERM)


async def test_a_handler_is_a_main_process_with_the_platform_s_start_method(node: Node) -> None:
    exits = Exits(node)
    seen = (await exits.of(node.spawn(plain("main_process")))).value
    assert seen == [None, "MainProcess", None, "Process-1"]
    assert multiprocessing.get_start_method() == DEFAULT


SCRIPT = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from wsrelay import process

{top}
filled = {{}}

def look(key):
    return filled.get(key, "empty")

class Thing:
    pass

def kind(thing):
    return type(thing) is Thing

def look_with(method):
    filled["key"] = "filled"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return [executor.submit(look, "key").result(60), executor.submit(kind, Thing()).result(60)]

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            method = message.payload["data"]
            said = " ".join(map(str, [multiprocessing.get_start_method(), *look_with(method)]))
            process.send(message.sender, "ws.send", {{"type": "text", "data": said}})
"""


@pytest.mark.parametrize("name", ["mine.py", "cmd.py", "signal.py"])
def test_functions_of_a_script_go_over_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    script = tmp_path / name
    script.write_text(SCRIPT.format(top=""))
    with Running(script) as running, sync_client(running.ws()) as websocket:
        for method, seen in (("fork", "filled"), ("spawn", "empty"), ("forkserver", "empty")):
            websocket.send(method)
            assert websocket.recv(60) == f"{DEFAULT} {seen} True"


def test_a_script_may_choose_its_start_method(tmp_path: Path) -> None:
    script = tmp_path / "chooses.py"
    script.write_text(SCRIPT.format(top="multiprocessing.set_start_method('forkserver')"))
    with Running(script) as running, sync_client(running.ws()) as websocket:
        websocket.send("fork")
        assert websocket.recv(60) == "forkserver filled True"


# What it leaves behind


async def test_a_handler_that_returns_leaves_no_folder_of_sockets_behind(node: Node) -> None:
    exits = Exits(node)
    folder = Path((await exits.of(node.spawn(plain("folder_of_sockets")))).value)
    assert folder.name.startswith("pymp-")
    assert not folder.exists()


@pytest.mark.parametrize("how", ["return", "raise", "kill", "terminate"])
async def test_shared_memory_and_semaphores_do_not_outlive_the_process(
    node: Node, how: str
) -> None:
    exits = Exits(node)
    order = "wait" if how == "terminate" else how
    collector = node.spawn(plain("collect"), None, plain("leave_behind"), order)
    names = (await exits.of(collector)).value
    assert len(names) == 2
    for pid in node.workers if how == "terminate" else ():
        node.terminate(pid)
    await until(lambda: not node.workers, "they have ended")
    await until(lambda: all(map(gone, names)), "nothing of it is left")


async def test_the_end_of_the_node_leaves_no_shared_memory() -> None:
    async with Node(hosts=[processes(targets=(plain("use"),), stop_timeout=0)]) as node:
        exits = Exits(node)
        collector = node.spawn(plain("collect"), None, plain("leave_behind"), "wait")
        names = (await exits.of(collector)).value
        assert [(SHARED / name).exists() for name in names] == [True, True]
    assert [(SHARED / name).exists() for name in names] == [False, False]


async def test_a_killed_template_leaves_no_shared_memory(node: Node) -> None:
    exits = Exits(node)
    collector = node.spawn(plain("collect"), None, plain("leave_behind"), "wait alone")
    names = (await exits.of(collector)).value
    os.kill(template_of(node), signal.SIGKILL)
    await until(lambda: not node.workers, "all are lost")
    await until(lambda: all(map(gone, names)), "nothing of it is left")


async def test_workers_share_no_tracker_with_the_top_level_of_their_script(tmp_path: Path) -> None:
    script = tmp_path / "top.py"
    script.write_text(
        "from multiprocessing import resource_tracker, shared_memory\n"
        "shared = shared_memory.SharedMemory(create=True, size=100)\n"
        "def handler():\n"
        "    own = shared_memory.SharedMemory(create=True, size=100)\n"
        "    return [shared.name, own.name, bytes(shared.buf[:1])]\n"
    )
    async with Node(hosts=[processes(targets=(f"{script}:handler",))]) as node:
        exits = Exits(node)
        for _ in range(2):
            shared, own, _ = (await exits.of(node.spawn(f"{script}:handler"))).value
            await until(functools.partial(gone, own), "it went with its process")
            assert (SHARED / shared).exists()
    assert not (SHARED / shared).exists()


def test_a_plain_script_leaves_the_same(tmp_path: Path) -> None:
    """What the tests above ask for is what Python does."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\nfrom multiprocessing import shared_memory\n"
        "memory = shared_memory.SharedMemory(create=True, size=100)\n"
        "print(memory.name, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    wait_for(lambda: not (SHARED / done.stdout.strip()).exists(), "it is gone")


@pytest.mark.parametrize("how", ["return 0", "1 / 0", "raise SystemExit(3)"])
async def test_the_folder_of_its_sockets_is_removed_with_the_process(
    tmp_path: Path, how: str
) -> None:
    script = tmp_path / "folders.py"
    script.write_text(
        "from multiprocessing import util\nfrom pathlib import Path\nfrom wsrelay import process\n"
        "shared = util.get_temp_dir()\n"
        "def handler(_):\n"
        "    own = util.get_temp_dir()\n"
        "    collector = process.inbox().receive().payload\n"
        "    process.send(collector, 'made', [shared, own, Path(own).is_dir()])\n"
        f"    {how}\n"
    )
    async with Node(hosts=[processes(targets=(f"{script}:handler",))]) as node:
        exits = Exits(node)
        collector = node.spawn(plain("collect"), None, f"{script}:handler", None)
        shared, own, was_there = (await exits.of(collector)).value
        await until(lambda: not node.workers, "both have ended")
        assert (was_there, own != shared) == (True, True)
        assert [Path(own).exists(), Path(shared).exists()] == [False, True]
    assert not Path(shared).exists()
