"""Signals: what a handler begins with, and how one that goes on is interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import rooms
from exits import Exits, template_of
from running import Running
from running import client as sync_client
from support import client, processes, received, relay_to, room, serving, until

from wsrelay import PID, Node, WebSocketRelay, wire

pytestmark = pytest.mark.anyio

PLAIN = str(Path(__file__).with_name("plain.py"))


def plain(function: str) -> str:
    return f"{PLAIN}:{function}"


@contextlib.asynccontextmanager
async def node_with(**options: Any) -> AsyncIterator[Node]:
    async with Node(hosts=[processes(targets=(plain("stream"),), **options)]) as running:
        yield running


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with node_with() as running:
        yield running


# What a worker begins with


async def test_a_worker_begins_with_the_signals_of_any_script(node: Node) -> None:
    exits = Exits(node)
    seen = (await exits.of(node.spawn(plain("look_at_signals")))).value
    assert seen.pop("SIGINT").startswith("<built-in function default_int_handler>")
    assert "function" in seen.pop("SIGTERM"), "it is a CANCEL"
    # subprocess gives SIGPIPE and SIGXFSZ back, Python ignores them for itself again
    assert seen.pop("ignored in a program") == "['SIGPIPE', 'SIGXFSZ']"
    assert seen.pop("masked") == "set()"
    assert set(seen.values()) == {str(signal.SIG_DFL)}


def test_what_the_node_was_started_to_ignore_is_default_in_a_worker(tmp_path: Path) -> None:
    script = tmp_path / "hangup.py"
    script.write_text(
        "import signal\nfrom wsrelay import process\n"
        "def handler():\n"
        "    client = process.inbox().receive().sender\n"
        "    process.send(client, 'ws.send',"
        " {'type': 'text', 'data': str(signal.getsignal(signal.SIGUSR1))})\n"
    )
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as `nohup` does with SIGHUP
    try:
        running = Running(script)
        with running, sync_client(running.ws()) as websocket:
            assert websocket.recv(20) == str(signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_ctrl_c_in_a_shell_of_a_handler_interrupts_its_program(node: Node) -> None:
    pid = node.spawn(plain("shell"))
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as websocket:
        seen = b""

        async def until_seen(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                seen += bytes(await received(websocket))  # type: ignore[arg-type]

        await websocket.send("sh -c 'echo run\"\"ning; exec sleep 600'; echo sle''pt\n")
        await until_seen(b"running")
        await websocket.send("\x03")
        await websocket.send("echo ba''ck\n")
        await until_seen(b"back")
        assert b"slept" not in seen


async def test_interrupt_main_interrupts_a_handler(node: Node) -> None:
    exits = Exits(node)
    assert (await exits.of(node.spawn(plain("interrupt_main")))).value == "interrupted"
    assert (await exits.of(node.spawn(plain("aio_interrupt_main")))).value == "cancelled"


async def test_signal_handlers_of_a_script_s_top_level_are_the_worker_s(node: Node) -> None:
    exits = Exits(node)
    assert (await exits.of(node.spawn(plain("hang_up")))).value == [signal.SIGHUP]
    assert (await exits.of(node.spawn(plain("own_sigterm")))).value == "SIGTERM"


async def test_a_script_s_own_sigint_handler_is_not_the_template_s(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        "import os, signal, sys\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(os.getpid()))\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "def handler(number):\n"
        "    os.kill(os.getpid(), number)\n"
        "    return seen == [os.getpid()]\n"
    )
    async with Node(hosts=[processes(targets=(f"{script}:handler",))]) as node:
        exits = Exits(node)
        await node.loaded()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(template_of(node), number)
        first = node.spawn(f"{script}:handler", None, int(signal.SIGINT))
        assert (await exits.of(first)).value is True
        second = node.spawn(f"{script}:handler", None, int(signal.SIGTERM))
        assert (await exits.error(second)).message == "exit code 7"


# One that goes on after its CANCEL

WORKS = ["sleep", "compute", "wait for a lock", "wait for an event", "send", "asyncio"]
AIO_WORKS = ["sleep", "wait for an event", "send", "wait for a task"]


async def cancelled_while(node: Node, handler: str, *args: Any) -> PID:
    """Cancel a process that is busy."""
    pid = node.spawn(plain(handler), None, *args)
    await until(lambda: node.kernel.names.get("goes on"), "it goes on")
    node.cancel(pid)
    return pid


@pytest.mark.parametrize(
    ("handler", "work"),
    [*(("go_on", work) for work in WORKS), *(("aio_go_on", work) for work in AIO_WORKS)],
)
async def test_a_handler_that_goes_on_is_interrupted_so_that_its_finally_runs(
    handler: str, work: str, tmp_path: Path
) -> None:
    async with node_with(stop_timeout=20) as node:
        exits = Exits(node)
        file = tmp_path / "file"
        pid = node.spawn(plain(handler), None, str(file), work)
        await until(lambda: node.kernel.names.get("goes on"), "it goes on")
        node.engine.processes[pid].interrupt(20)  # what the first half of the time comes to
        assert (await exits.of(pid)).error is None
        assert file.read_text() == "finally"


async def test_a_handler_that_did_not_notice_is_interrupted_again(tmp_path: Path) -> None:
    async with node_with(stop_timeout=2) as node:
        exits = Exits(node)
        file = tmp_path / "file"
        pid = await cancelled_while(node, "miss_an_interrupt", str(file))
        assert (await exits.of(pid)).error is None
        assert file.read_text() == "finally"


@pytest.mark.parametrize("kind", ["pidfd", "no pidfd", "warm"])
async def test_half_of_the_stop_timeout_is_for_the_handler_and_half_for_its_end(
    kind: str, tmp_path: Path
) -> None:
    preload = ("no_pidfd",) if kind == "no pidfd" else ()
    async with node_with(stop_timeout=2, preload=preload, warm=2 * (kind == "warm")) as node:
        exits = Exits(node)
        file = tmp_path / "file"
        result = await exits.of(await cancelled_while(node, "clean_up_slowly", str(file)))
        assert (result.value, result.error) == ("cleaned up", None)
        assert file.read_text() == "finally"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a signal that ends a process")
async def test_an_interrupt_before_and_after_the_handler_is_nothing(
    node: Node, tmp_path: Path
) -> None:
    """The worker's own end is never interrupted, or the node would not learn of its result."""
    exits = Exits(node)

    async def try_it(ready: Path) -> None:
        pid = node.spawn(plain("return_at_its_interrupt"), None, str(ready))
        os_pid: int = await until(lambda: node.workers.get(pid), "it is forked")
        os.kill(os_pid, wire.INTERRUPT)  # while it starts
        node.cancel(pid)
        await until(lambda: ready.exists() or not node.workers, "it returns, or was not begun")
        while node.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(os_pid, wire.INTERRUPT)
            await asyncio.sleep(0.002)
        assert (await exits.of(pid)).error is None

    for number in range(20):
        await try_it(tmp_path / str(number))


async def test_without_a_stop_timeout_it_is_killed_at_once(tmp_path: Path) -> None:
    async with node_with(stop_timeout=0) as node:
        exits = Exits(node)
        file = tmp_path / "file"
        pid = await cancelled_while(node, "go_on", str(file), "sleep")
        assert (await exits.error(pid)).kind == "cancelled"
        assert not file.exists()


async def test_a_process_killed_after_its_client_has_left_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node(hosts=[processes(stop_timeout=0.1)]) as node:
        pid = node.spawn(room(rooms.deaf))
        app = WebSocketRelay(relay_to(pid, cancel_on_leave=True), node=node)
        async with serving(app) as url, client(url):
            pass
        await until(lambda: not node.workers, "it has ended")
    [record] = [record for record in caplog.records if "stop timeout" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert str(pid) in record.getMessage()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_process_of_a_client_that_leaves_ends_with_its_finally(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with Running(plain("stream"), "--stop-timeout", "20s") as running:
        with sync_client(running.ws()) as websocket:
            websocket.send(str(file))
            assert websocket.recv(20) == "tick"
            [worker] = running.workers()
        # Not the ten seconds of the interrupt: that is `stop_timeout` of the command.
        os.kill(worker, wire.INTERRUPT)
        running_until(file.exists)
        running_until(lambda: not running.workers())
        assert "ERROR" not in running.stderr.text


def running_until(condition: Any) -> None:
    from running import until as wait_for  # noqa: PLC0415 - the other `until` is for coroutines

    wait_for(condition, "it has ended")
