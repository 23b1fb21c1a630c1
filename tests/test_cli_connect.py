from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import HANDLERS, Running, until

from wsrelay.cli import orders
from wsrelay.cli.orders import Bye, Help, Ping, Say


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("hello", Say("hello")),
        ("  spaced ", Say("  spaced ")),
        ("//slash", Say("/slash")),
        ('/json {"a":  [1, "é"]}', Say('{"a":[1,"é"]}')),
        ("/binary 00 ff0A", Say(b"\x00\xff\x0a")),
        ("/ping", Ping()),
        ("/close", Bye()),
        ("/close 3001", Bye(3001)),
        ("/close 4000 had enough", Bye(4000, "had enough")),
        ("/help", Help()),
    ],
)
def test_a_line_is_an_order(line: str, order: orders.Order) -> None:
    assert orders.parse(line) == order


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("/pong", "there is no /pong; did you mean 'ping'? (//... sends text that begins with /)"),
        ("/binary xyz", "'xyz' is neither hexadecimal like '00 ff' nor @PATH"),
        ("/file /no/such", "'/no/such' cannot be read: No such file or directory"),
        ("/close 1006", "'1006' is no close code of a client: 1000, or 3000 to 4999"),
        (f"/close 1000 {'é' * 62}", "a reason has at most 123 bytes"),
    ],
)
def test_a_wrong_line_is_told_and_nothing_is_sent(line: str, wrong: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared
        orders.parse(line)
    assert str(raised.value) == wrong


def test_files_are_sent_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a\nb\xff")
    assert orders.parse(f"/binary @{file}") == Say(b"a\nb\xff")
    assert orders.parse(f"/file {file}") == Say("a\nb\ufffd")


@given(st.text())
def test_text_that_begins_with_no_slash_is_sent_as_it_is(text: str) -> None:
    if not text.startswith("/"):
        assert orders.parse(text) == Say(text)
    assert orders.parse(f"//{text}") == Say(f"/{text}")


@pytest.fixture(scope="module")
def echo() -> Iterator[Running]:
    with Running(HANDLERS / "echo.py") as running:
        yield running


def connect(*arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsrelay", "connect", *arguments],
        input=lines,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_lines_of_a_pipe_are_messages(echo: Running) -> None:
    done = connect(echo.ws(), lines="one\n/ping\ntwo\n")
    assert done.stdout == "one\n/ping\ntwo\n"
    assert (done.returncode, done.stderr) == (0, "wsrelay: closed with 1000\n")


def test_a_url_may_be_short(echo: Running) -> None:
    _, _, port = echo.address.partition(":")
    for url in (f":{port}/ws", f"127.0.0.1:{port}/ws", f"http://127.0.0.1:{port}/ws"):
        assert connect(url, lines="x\n").stdout == "x\n"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--origin", "https://evil.example"], 1, "the upgrade was refused with 403 Forbidden: "),
        (["-H", "nonsense"], 2, "'nonsense' is no header; write it like 'Name: value'"),
        (["--timeout", "soon"], 2, "'soon' is not a duration"),
    ],
)
def test_what_is_refused_is_told(echo: Running, options: list[str], code: int, said: str) -> None:
    done = connect(echo.ws(), *options)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_there_and_no_url() -> None:
    done = connect("ws://127.0.0.1:9/ws")
    assert done.returncode == 1
    assert "nobody listens there; start something with 'wsrelay run TARGET'" in done.stderr
    done = connect("ftp://x")
    assert done.returncode == 2
    assert "'ftp://x' is no WebSocket URL; it looks like ws://host:port/path" in done.stderr


def test_an_abnormal_end_is_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text(
        "from wsrelay import process\ndef handler():\n    process.inbox().receive(); 1/0"
    )
    with Running(script) as running:
        done = connect(running.ws(), "--wait", "10s")
    assert done.returncode == 1
    assert "closed with 1011 target process crashed" in done.stderr


_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """`wsrelay connect` in a terminal of its own."""

    def __init__(self, url: str, home: Path) -> None:
        self._ours, theirs = pty.openpty()
        self._shown = b""
        command = [sys.executable, "-m", "wsrelay", "connect", url]
        environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(home)}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, line: str) -> None:
        # What is typed before the prompt is there is thrown away; it turns this mode on.
        until(lambda: self._read().rfind(b"?2004h") > self._shown.rfind(b"?2004l"), "a prompt")
        os.write(self._ours, line.encode() + b"\r")

    def shows(self, text: str) -> None:
        until(
            lambda: text.encode() in _ESCAPES.sub(b"", self._read()), f"{text!r} is on the screen"
        )

    def _read(self) -> bytes:
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self._shown += os.read(self._ours, 65536)
            except OSError:
                break  # the other side is closed
        return self._shown

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextlib.contextmanager
def screen(url: str, home: Path) -> Iterator[Screen]:
    shown = Screen(url, home)
    try:
        yield shown
    finally:
        shown.close()


def test_in_a_terminal_lines_are_sent_remembered_and_answers_shown(
    echo: Running, tmp_path: Path
) -> None:
    with screen(echo.ws(), tmp_path) as shown:
        shown.shows("Connected to")
        shown.type("hello there")
        shown.shows("< hello there")
        shown.type("/binary 00ff")
        shown.shows("(2 bytes) 00 ff")
        shown.type('/json {"a": 1}')
        shown.shows('"a": 1')
        shown.type("/ping")
        shown.shows("pong after ")
        shown.type("/nonsense")
        shown.shows("there is no /nonsense")
        shown.type("/close 3001 enough")
        shown.shows("closed with 3001 enough")
        assert shown.process.wait(10) == 1
    history = tmp_path / "wsrelay" / "connect_history"
    assert "+hello there" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
