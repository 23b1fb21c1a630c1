"""`wsrelay run`: its end, in order or not."""

from __future__ import annotations

import functools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from acting import ACTOR, Write, ended, written
from running import HANDLERS, Running, client, closed, news, until

GRACE = 2.0
"""Seconds that `wsrelay run` gives its workers at the end."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a script into the test's own folder."""
    return functools.partial(written, tmp_path)


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that does what its clients say and tells who it is."""
    return written(tmp_path_factory.mktemp("scripts"), "actor.py", ACTOR)


def end(running: Running, how: str) -> None:
    if how == "Ctrl-C":
        running.interrupt()
    else:
        running.signal(signal.SIGTERM)


@pytest.fixture(params=["Ctrl-C", "SIGTERM"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_end_in_order_closes_clients_with_1012_and_leaves_nothing(
    actor: Path, how: str
) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as one,
        client(running.ws()) as two,
    ):
        for websocket in (one, two):
            news(websocket)
        end(running, how)
        for websocket in (one, two):
            assert closed(websocket) == (1012, "node shuts down")
        assert running.wait() == 0
        until(lambda: not running.family(), "nothing is left running", 1)
        running.stderr.join()
        assert running.stderr.text.count("output: ended in order") == 2
        assert "Traceback" not in running.stderr.text
        assert "ERROR" not in running.stderr.text


def test_the_end_without_clients_comes_at_once(how: str) -> None:
    with Running(HANDLERS / "echo.py") as running:
        end(running, how)
        assert running.wait(GRACE - 0.5) == 0


def test_the_end_waits_the_grace_time_for_a_deaf_handler_and_then_kills_it(
    actor: Path, how: str
) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as spinning,
        client(running.ws()) as deaf,
        client(running.ws()) as other,
    ):
        for websocket, order in ((spinning, "spin"), (deaf, "deaf"), (other, "grandchild")):
            news(websocket)
            websocket.send(order)
            news(websocket)
        end(running, how)
        for websocket in (spinning, deaf, other):
            assert closed(websocket) == (1012, "node shuts down")
        assert running.wait(GRACE + 2) == 0
        until(lambda: not running.family(), "nothing is left running", 1)


def test_a_second_signal_ends_at_once(actor: Path, how: str) -> None:
    with Running(actor) as running, client(running.ws()) as websocket:
        news(websocket)
        websocket.send("spin")
        news(websocket)
        end(running, how)
        assert closed(websocket)[0] == 1012
        end(running, how)
        assert running.wait(GRACE - 0.5) == 0
        until(lambda: not running.family(), "nothing is left running", 1)


def test_a_client_that_does_not_answer_the_close_frame_does_not_hold_up_the_end(
    actor: Path, how: str
) -> None:
    with Running(actor) as running:
        host, port = running.address.split(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.sendall(
                b"GET /ws HTTP/1.1\r\nHost: localhost\r\n"
                b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert silent.recv(64).startswith(b"HTTP/1.1 101")
            until(running.workers, "its process runs")
            end(running, how)
            assert running.wait(GRACE + 3) == 0


@pytest.fixture
def loading(write: Write) -> Iterator[Running]:
    """A server whose script is still being imported, and will be for long."""
    script = write("slow.py", "import time\nprint('loading', flush=True)\ntime.sleep(600)\n")
    with Running(script, serves=False) as running:
        running.stderr.line("output: loading")
        yield running


def test_the_end_while_the_script_still_loads_comes_in_order_too(
    loading: Running, how: str
) -> None:
    end(loading, how)
    assert loading.wait(GRACE + 2) == 0
    until(lambda: not loading.family(), "nothing is left running", 1)
    assert "Traceback" not in loading.stderr.text


def test_kill_9_of_the_node_while_the_script_still_loads_leaves_nothing(
    loading: Running,
) -> None:
    loading.signal(signal.SIGKILL)
    loading.wait()
    until(lambda: not loading.family(), "nothing is left running", 1)


def test_kill_9_of_the_node_leaves_no_process_behind(actor: Path) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as idle,
        client(running.ws()) as spinning,
        client(running.ws()) as deaf,
        client(running.ws()) as parent,
    ):
        os_pids = {running.pid, running.template.pid}
        for websocket in (idle, spinning, deaf, parent):
            os_pids.add(news(websocket)["os_pid"])
        for websocket, order in ((spinning, "spin"), (deaf, "deaf")):
            websocket.send(order)
            news(websocket)
        parent.send("grandchild")
        os_pids.add(news(parent)["os_pid"])
        assert len(os_pids) == 7
        # With a resource tracker; a program that has just begun has no mark yet.
        until(lambda: os_pids < {process.pid for process in running.family()}, "all are marked")
        running.signal(signal.SIGKILL)
        running.wait()
        # One that is about to end loses its mark first.
        until(lambda: all(ended(os_pid) for os_pid in os_pids), "all have ended", 1)
        until(lambda: not running.family(), "nothing is left running", 1)
