from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import HANDLERS, until

from wsrelay import HostFailed, process
from wsrelay.testing import RelayServer, serve

ECHO = HANDLERS / "echo.py"


def shout() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            data = message.payload["data"]
            if data == "crash":
                raise ValueError(data)
            process.send(message.sender, "ws.send", {"type": "text", "data": data.upper()})


def test_a_handler_is_tested_in_three_lines(relay_server: Callable[..., RelayServer]) -> None:
    client = relay_server(str(ECHO)).connect()
    client.send("hello")
    client.expect("hello")


def test_a_room_with_two_clients() -> None:
    chat = serve(str(HANDLERS / "chat.py"), scope="room")
    with chat as server, server.connect("/ws/a?name=Ada") as ada:
        ada.expect(lambda message: "Ada joined" in message)
        with server.connect("/ws/a?name=Bob") as bob:
            news = {
                "type": "joined",
                "name": "Bob",
                "text": "Bob joined",
                "members": ["Ada", "Bob"],
            }
            ada.expect(news)
            bob.expect(news)
            bob.send({"text": "hi"})
            ada.expect(re.compile('.*"text": "hi".*'))
        assert len(server.workers) == 1


def test_a_function_of_the_test_is_a_handler(relay_server: Callable[..., RelayServer]) -> None:
    greeting = "from here"

    def handler() -> None:
        for message in process.inbox():
            if message.topic == "ws.join":
                process.send(message.sender, "ws.send", {"type": "text", "data": greeting})

    relay_server(handler).connect().expect(greeting)


def test_a_crash_and_a_kill_are_close_frames(relay_server: Callable[..., RelayServer]) -> None:
    server = relay_server(shout)
    one = server.connect()
    one.send("crash")
    one.expect_close(1011, "target process crashed")
    other = server.connect()
    other.send("x")
    other.expect("X")
    [pid] = server.workers
    server.kill(pid)
    other.expect_close(1011, "target process killed (SIGKILL)")


def test_what_did_not_come_as_expected_is_told(relay_server: Callable[..., RelayServer]) -> None:
    client = relay_server(shout).connect()
    client.send("a")
    client.send("b")
    client.expect(...)
    for expected, shown in (
        ("C", "'C'"),
        ({"a": 1}, "{'a': 1}"),
        (re.compile("x+"), "text like 'x+'"),
    ):
        with pytest.raises(AssertionError) as raised:
            client.expect(expected)
        assert str(raised.value) == f"expected {shown}, got 'B'; before that: 'A'"
        client.send("b")
    client.expect("B")
    with pytest.raises(AssertionError, match=r"^no message within 0\.01 s; before that: 'A', 'B'$"):
        client.receive(0.01)
    client.expect_nothing(0.01)
    client.send("c")
    with pytest.raises(AssertionError, match=r"^expected nothing, got 'C'; before that: 'A', 'B'$"):
        client.expect_nothing(5)
    client.send("crash")
    expected_close = (
        r"^expected close 1000, got 1011 target process crashed; before that: 'A', 'B'$"
    )
    with pytest.raises(AssertionError, match=expected_close):
        client.expect_close(1000)
    with pytest.raises(AssertionError, match=r"^no message but a close frame: 1011 target"):
        client.receive()


def test_a_handler_that_cannot_be_loaded_fails_the_test(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("1/0")
    with pytest.raises(HostFailed, match="ZeroDivisionError"), serve(str(script)):
        pass


def test_several_servers_run_in_one_test(relay_server: Callable[..., RelayServer]) -> None:
    one, other = relay_server(shout).connect(), relay_server(str(ECHO)).connect()
    one.send("x")
    other.send("x")
    one.expect("X")
    other.expect("x")


def test_the_fixture_is_there_for_every_project(tmp_path: Path) -> None:
    test = tmp_path / "test_theirs.py"
    test.write_text(
        "def test_echo(relay_server):\n"
        f"    client = relay_server({str(ECHO)!r}).connect()\n"
        "    client.send('hello')\n"
        "    client.expect('hello')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "1 passed" in done.stdout, done.stdout


def test_its_processes_end_with_the_test() -> None:
    with serve(shout) as server, server.connect() as client:
        client.send("x")
        client.expect("X")
        [os_pid] = server.workers.values()
    assert os_pid is not None
    until(
        lambda: not Path(f"/proc/{os_pid}").exists() or os.getpgid(os_pid) != os_pid, "it is gone"
    )
