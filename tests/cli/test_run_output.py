"""`wsrelay run`: what handlers write, and what becomes of those that fail."""

from __future__ import annotations

import functools
import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from acting import ACTOR, ROOT, Write, ended, written
from running import Running, client, closed, news, until


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a script into the test's own folder."""
    return functools.partial(written, tmp_path)


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that does what its clients say and tells who it is."""
    return written(tmp_path_factory.mktemp("scripts"), "actor.py", ACTOR)


@pytest.fixture(scope="module")
def acting(actor: Path) -> Iterator[Running]:
    """A server of the actor, in `connection` scope, for tests that leave it as it was."""
    with Running(actor) as running:
        yield running


@pytest.fixture(scope="module")
def in_rooms(actor: Path) -> Iterator[Running]:
    """A server of the actor in `room` scope."""
    with Running(actor, "--scope", "room", "--room-linger", "500ms") as running:
        yield running


# What handlers write


def test_what_a_handler_prints_is_in_the_log_line_by_line_with_its_pid(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        pid = news(websocket)["pid"]
        for order, text in (("print", "first line"), ("print", "sécond"), ("print_error", "third")):
            websocket.send(f"{order} {text}")
            assert acting.stderr.line(text).endswith(f" INFO    {pid} output: {text}")
    assert acting.stdout.text == ""


def test_what_a_handler_logs_arrives_on_standard_error_with_its_pid(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        pid = news(websocket)["pid"]
        websocket.send("log something odd")
        line = acting.stderr.line("something odd")
        assert pid in line
        assert "WARNING" in line
        assert "actor" in line
        assert acting.stderr.text.count("something odd") == 1
        assert "something odd" not in acting.stdout.text


def test_logging_that_the_script_sets_up_does_not_double_the_lines(write: Write) -> None:
    script = write(
        "loud.py", "import logging\nlogging.basicConfig(level=10)\n" + textwrap.dedent(ACTOR)
    )
    with Running(script) as running, client(running.ws()) as websocket:
        news(websocket)
        for text in ("log once", "say done"):
            websocket.send(text)
        news(websocket)
        running.stderr.line("once")
        websocket.close()
        running.stderr.line("output: ended in order")
        assert running.stderr.text.count("once") == 1


def test_standard_input_is_empty(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        news(websocket)
        websocket.send("input")
        assert news(websocket) == {"read": ""}


# Faults


def test_a_handler_that_raises_is_logged_with_its_pid_and_closes_its_client_with_1011(
    actor: Path,
) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as crashing,
        client(running.ws()) as other,
    ):
        pid = news(crashing)["pid"]
        news(other)
        crashing.send("crash")
        assert closed(crashing) == (1011, "target process crashed")
        assert pid in running.stderr.line("ZeroDivisionError: on purpose")
        running.stderr.line("in crash")
        log = running.stderr.text
        assert log.count("Traceback") == 1
        assert f'File "{actor}"' in log
        assert ROOT not in log, "the traceback shows wsrelay's own frames"
        other.send("say still here")
        assert news(other) == {"said": "still here"}
        with client(running.ws()) as later:
            assert "os_pid" in news(later)


def test_breakpoint_in_a_handler_says_why_it_cannot_and_what_to_do(actor: Path) -> None:
    with Running(actor) as running, client(running.ws()) as websocket:
        pid = news(websocket)["pid"]
        websocket.send("breakpoint")
        assert closed(websocket) == (1011, "target process crashed")
        assert pid in running.stderr.line("breakpoint() needs a terminal")
        assert "debugpy.listen" in running.stderr.text


def test_kill_9_of_a_worker_closes_its_client_with_1011_and_others_go_on(actor: Path) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as one,
        client(running.ws()) as other,
    ):
        victim = news(one)
        news(other)
        os.kill(victim["os_pid"], signal.SIGKILL)
        assert closed(one) == (1011, "target process killed (SIGKILL)")
        assert "SIGKILL" in running.stderr.line(victim["pid"])
        other.send("say still here")
        assert news(other) == {"said": "still here"}
        with client(running.ws()) as later:
            assert "os_pid" in news(later)


def test_kill_9_of_a_room_empties_it_and_the_next_client_finds_a_new_one(
    in_rooms: Running,
) -> None:
    with (
        client(in_rooms.ws("/ws/victim")) as one,
        client(in_rooms.ws("/ws/victim")) as two,
    ):
        os_pid = news(one)["os_pid"]
        os.kill(os_pid, signal.SIGKILL)
        for websocket in (one, two):
            assert closed(websocket)[0] == 1011
    with client(in_rooms.ws("/ws/victim")) as websocket:
        assert news(websocket)["os_pid"] != os_pid


def test_kill_9_of_the_template_ends_its_workers_and_the_node_starts_another(actor: Path) -> None:
    with Running(actor) as running:
        template = running.template
        with client(running.ws()) as websocket:
            os_pid = news(websocket)["os_pid"]
            template.kill()
            assert closed(websocket)[0] == 1011
            until(lambda: ended(os_pid), "the worker is gone")
        with client(running.ws()) as websocket:
            assert news(websocket)["os_pid"] != os_pid
        assert running.template.pid != template.pid
        assert "Traceback" not in running.stderr.text
