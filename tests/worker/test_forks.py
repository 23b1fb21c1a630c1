"""Children that a handler forks: they have no part in what is the process's."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from exits import Exits
from running import Running
from running import client as sync_client
from support import processes

from wsrelay import Node

pytestmark = pytest.mark.anyio

FACES = ["", "aio_"]


def plain(function: str) -> str:
    return f"{Path(__file__).with_name('plain.py')}:{function}"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node(hosts=[processes(targets=(plain("leave_by"),))]) as running:
        yield running


WAYS = [
    ("return", 0, ""),
    ("sys.exit", 7, ""),
    ("raise", 1, "ZeroDivisionError: in the child\n"),
    ("signal", -signal.SIGTERM, ""),
]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(("way", "code", "said"), WAYS)
async def test_a_forked_child_leaves_as_a_script_would_and_its_parent_goes_on(
    node: Node, tmp_path: Path, way: str, code: int, said: str, face: str
) -> None:
    """It takes none of the mail, tells no end of its own, and its SIGTERM is no CANCEL."""
    exits = Exits(node)
    pid = node.spawn(plain(f"{face}leave_by"), None, way)
    node.send(pid, "file", str(tmp_path / "standard error"))
    for number in range(100):
        node.send(pid, "number", number)
    result = await exits.of(pid)
    assert result.error is None
    left, text, got_all = result.value
    assert (left, got_all) == (code, True)
    assert text.endswith(said)
    assert text.startswith("Traceback") if said else not text


async def test_every_call_in_a_forked_child_says_whose_child_it_is(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(plain("call_in_child"))
    for number in range(10):
        node.send(pid, "mail", number)
    *told, code, count, me = (await exits.of(pid)).value
    assert (me, code, len(told)) == (pid, "0", int(count))
    for text in told:
        assert text.startswith(f"NotAProcess: this is a child of process {pid}"), text


async def test_a_forked_child_logs_to_standard_error(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    exits = Exits(node)
    pid = node.spawn(plain("log_in_child"), None, "x" * 50_000)
    text, code = (await exits.of(pid)).value
    assert code == 0
    assert text.endswith(f"WARNING {'x' * 50_000}\n"), text[:200]
    logged = [record.getMessage() for record in caplog.records]
    assert len([line for line in logged if "x" * 50_000 in line]) == 1, "that of the parent"


async def test_a_function_before_a_program_is_run_in_a_child(node: Node) -> None:
    exits = Exits(node)
    said = (await exits.of(node.spawn(plain("preexec")))).value
    assert said == ["before", "True", str(-signal.SIGTERM)]


async def test_a_child_that_a_script_s_top_level_forks_is_no_template(tmp_path: Path) -> None:
    script = tmp_path / "forks.py"
    script.write_text(
        "import multiprocessing, os, sys, time\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    sys.exit(7)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "victim = multiprocessing.Process(target=time.sleep, args=(600,))\n"
        "victim.start()\n"
        "victim.terminate()\n"
        "victim.join()\n"
        "def handler():\n"
        "    return [code, victim.exitcode]\n"
    )
    async with Node(hosts=[processes(targets=(f"{script}:handler",))]) as node:
        exits = Exits(node)
        await node.loaded()
        result = await exits.of(node.spawn(f"{script}:handler"))
    assert result.value == [7, -signal.SIGTERM]


POOL = """
import logging, multiprocessing, os
from wsrelay import process

def work(number):
    logging.getLogger("job").info("job %d %s", number, "x" * 20_000)
    return number

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            with multiprocessing.Pool(4) as pool:
                job = pool.map_async(work, range(100), chunksize=1)
                for number in range(100):
                    text = f"{number} " + "z" * 50_000
                    process.send(message.sender, "ws.send", {"type": "text", "data": text})
                job.get(60)
            process.send(message.sender, "ws.send", {"type": "text", "data": "done"})
"""


def test_a_pool_s_children_log_while_the_handler_sends_and_no_frame_is_torn(
    tmp_path: Path,
) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    with Running(script) as running, sync_client(running.ws()) as websocket:
        for _ in range(3):
            websocket.send("go")
            for number in range(100):
                assert websocket.recv(60) == f"{number} " + "z" * 50_000
            assert websocket.recv(60) == "done"
        with contextlib.suppress(AssertionError):  # lines of children may stand in one another
            running.stderr.line("job 99")
        assert len(set(re.findall(r"job (\d+) x", running.stderr.text))) > 90
        assert "ERROR" not in running.stderr.text


def test_the_end_of_the_process_is_the_end_of_its_children(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import os, time\nfrom wsrelay import process\n"
        "def handler():\n"
        "    client = process.inbox().receive().sender\n"
        "    if (child := os.fork()) == 0:\n"
        "        time.sleep(600)\n"
        "    process.send(client, 'ws.send', {'type': 'text', 'data': str(child)})\n"
        "    process.inbox().receive()\n"
    )
    with Running(script) as running, sync_client(running.ws()) as websocket:
        child: Any = int(websocket.recv(20))
        os.kill(child, 0)
        websocket.send("end")
        from running import until as wait_for  # noqa: PLC0415 - the other one is for coroutines

        wait_for(lambda: child not in {one.pid for one in running.family()}, "it is gone")
