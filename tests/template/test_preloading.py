from __future__ import annotations

import logging
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import end_of, processes, value_of

from wsrelay import HostFailed, Node

pytestmark = pytest.mark.anyio


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


async def warnings(script: str, caplog: pytest.LogCaptureFixture) -> str:
    """What the node's log has of a template that loads the script."""
    async with Node(hosts=[processes(targets=(script,))]) as node:
        await node.loaded()
    found = (record for record in caplog.records if record.levelno >= logging.WARNING)
    return "\n".join(record.getMessage() for record in found)


# What stays open


async def test_a_connection_made_at_a_script_s_top_level_is_warned_of_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = (
            "import socket\n"
            f"class Client: sock = None\n"
            f"client = Client()\n"
            f"client.sock = socket.create_connection(('127.0.0.1', {port}))\n"
            "listener = socket.create_server(('127.0.0.1', 0))\n"
            "def handler(): pass\n"
        )
        script = write(tmp_path / "connects.py", code)
        text = await warnings(script, caplog)
    assert f"{script} left open at its top level: a connection to 127.0.0.1:{port}" in text
    assert "(connects.client)" in text
    assert "a socket at 127.0.0.1:" in text
    assert "(connects.listener)" in text
    assert "open it in the handler" in text


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
async def test_an_event_loop_and_a_database_made_at_the_top_level_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import asyncio, sqlite3\n"
        "loop = asyncio.new_event_loop()\n"
        f"db = sqlite3.connect({str(tmp_path / 'app.db')!r})\n"
        "db.execute('create table t (x)')\n"
        "def handler(): pass\n"
    )
    text = await warnings(write(tmp_path / "holds.py", code), caplog)
    assert "an epoll descriptor (holds.loop)" in text
    assert "an SQLite database" in text


async def test_nothing_is_warned_of_when_nothing_is_shared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import socket, tempfile\n"
        "socket.create_server(('127.0.0.1', 0)).close()\n"
        "file = tempfile.TemporaryFile()\n"
        "def handler(): pass\n"
    )
    assert await warnings(write(tmp_path / "tidy.py", code), caplog) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_what_bounds_the_time_of_loading_is_no_thread_of_a_library() -> None:
    code = """
        import _thread, logging, socket, time
        from wsrelay.confinement import HostOptions
        from wsrelay.template import preloading

        def end(told):
            with told:
                time.sleep(0.05)  # as where the machine is loaded

        def begin(*_, **__):
            told.acquire()
            _thread.start_new_thread(end, (told,))

        told = _thread.allocate_lock()
        preloading.faulthandler.dump_traceback_later = begin
        preloading.faulthandler.cancel_dump_traceback_later = told.release
        logging.basicConfig()
        one, other = socket.socketpair()
        preloading.preload(HostOptions(), (), one)
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stderr == ""


# Random generators


async def test_generators_made_at_the_top_level_give_each_process_other_numbers(
    tmp_path: Path,
) -> None:
    code = (
        "import random, numpy as np\n"
        "class Deep: rolls = [random.Random()]\n"
        "mine, fast = random.Random(), np.random.default_rng()\n"
        "old, again = np.random.RandomState(), random.Random(7)\n"
        "again.seed()\n"
        "def handler():\n"
        "    return [\n"
        "        int(draw(2**31 - 1)) for draw in (\n"
        "            mine.randrange, Deep.rolls[0].randrange, again.randrange, random.randrange,\n"
        "            fast.integers, old.randint, np.random.randint,\n"
        "        )\n"
        "    ]\n"
    )
    script = write(tmp_path / "draws.py", code)
    async with Node(hosts=[processes(targets=(script,))]) as node:
        first, second = await value_of(node, script), await value_of(node, script)
    assert all(a != b for a, b in zip(first, second, strict=True)), (first, second)


async def test_generators_made_with_a_seed_keep_it(tmp_path: Path) -> None:
    """Who gives a seed wants the same numbers each time."""
    code = (
        "import random, numpy as np\n"
        "mine, fast, old = random.Random(7), np.random.default_rng(7), np.random.RandomState(7)\n"
        "def handler():\n"
        "    return [mine.randrange(10**9), int(fast.integers(10**9)), int(old.randint(10**9))]\n"
    )
    script = write(tmp_path / "draws.py", code)
    async with Node(hosts=[processes(targets=(script,))]) as node:
        assert await value_of(node, script) == await value_of(node, script)


# Time


async def test_loading_that_does_not_end_says_where_it_stands(tmp_path: Path) -> None:
    code = "import time\ndef wait():\n    time.sleep(600)\n\nwait()\ndef handler(): pass\n"
    script = write(tmp_path / "hangs.py", code)
    async with Node(hosts=[processes(targets=(script,), start_timeout=0.5)]) as node:
        with pytest.raises(HostFailed) as failed:
            await node.loaded()
    assert f"start timeout of 0.5 s, and is now at line 5 of {script}" in str(failed.value)
    assert "start_timeout" in str(failed.value)
    assert 'hangs.py", line 3, in wait\n    time.sleep(600)' in failed.value.details
    assert "importlib" not in failed.value.details
    assert "wsrelay/" not in failed.value.details


async def test_a_spawn_whose_script_does_not_end_loading_fails_with_the_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = write(tmp_path / "hangs.py", "while True: pass\ndef handler(): pass\n")
    with caplog.at_level(logging.ERROR):
        async with Node(hosts=[processes(targets=(script,), start_timeout=1.0)]) as node:
            error = (await end_of(node, script)).error
    assert error is not None
    assert error.kind == "start_failed"
    assert f"line 1 of {script}" in error.message
