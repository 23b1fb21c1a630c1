from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from running import HANDLERS, Running, until
from websockets.sync.server import ServerConnection, serve

import wsrelay.cli.connect as connecting
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
        (
            "/file ~nobody-at-all/x",
            "'~nobody-at-all/x' cannot be read: Could not determine home directory.",
        ),
        ("/close 1006", "'1006' is not a client's close code: use 1000, or 3000 to 4999"),
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


ACTOR = """
import json
from wsrelay import process

def handler():
    for message in process.inbox():
        client = message.payload["client_pid"]
        match message.payload.get("data"):
            case "headers":
                headers = message.payload["metadata"]["headers"]
                process.send(client, "ws.send", {"type": "text", "data": json.dumps(headers)})
            case "bye":
                process.send(client, "ws.close", {"code": 1001, "reason": "so \\x1b[31mlong"})
            case "slowly":
                for number in range(8):
                    try:
                        process.inbox().receive(0.2)
                    except TimeoutError:
                        process.send(client, "ws.send", {"type": "text", "data": str(number)})
"""


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    script = tmp_path_factory.mktemp("scripts") / "actor.py"
    script.write_text(ACTOR)
    with Running(script) as running:
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
    assert (done.returncode, done.stderr) == (0, "wsrelay: closed with 1000 normal closure\n")


def test_what_a_message_would_have_a_terminal_do_is_escaped_there_and_nowhere_else(
    echo: Running,
) -> None:
    hostile = "\x1b]0;owned\x07 \x9b2J"
    assert connect(echo.ws(), lines=f"{hostile}\n").stdout == f"{hostile}\n"
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "wsrelay", "connect", echo.ws()]
    said = f"{hostile}\n".encode()
    try:
        subprocess.run(command, input=said, stdout=theirs, stderr=theirs, timeout=20, check=True)
        shown = os.read(ours, 4096).decode()
    finally:
        os.close(theirs)
        os.close(ours)
    assert r"\x1b]0;owned\x07 \x9b2J" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("message", ["a \x9b2J\u202e", '["a \x9b2J\u202e"]', "a \x1b[2J\rb\x07"])
def test_what_is_shown_of_a_message_drives_no_terminal(message: str) -> None:
    shown = connecting._shown(message)
    text = str(getattr(shown, "value", shown))
    assert re.sub(r"\x1b\[[\d;]*m", "", text).replace("\n", "").isprintable()


def test_more_is_waited_for_while_messages_keep_coming(actor: Running) -> None:
    done = connect(actor.ws(), "--wait", "1s", lines="slowly\n")
    assert done.stdout == "".join(f"{number}\n" for number in range(8))


def test_it_ends_with_the_connection_while_its_input_is_still_open(actor: Running) -> None:
    command = [sys.executable, "-m", "wsrelay", "connect", actor.ws()]
    with subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("bye\n")
        process.stdin.flush()
        try:
            assert process.wait(10) == 0
        finally:
            process.kill()
        # What a terminal would obey is taken out of the server's words.
        assert process.stderr.read() == "wsrelay: closed with 1001 going away: so ?[31mlong\n"


def test_input_that_is_no_text_is_refused(echo: Running) -> None:
    command = [sys.executable, "-m", "wsrelay", "connect", echo.ws()]
    done = subprocess.run(command, input=b"\xff\n", capture_output=True, timeout=20, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(b"wsrelay: standard input is not UTF-8 text: ")


def test_without_any_input_it_connects_and_closes(echo: Running) -> None:
    command = f"exec {sys.executable} -m wsrelay connect {echo.ws()} <&-"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "wsrelay: closed with 1000 normal closure\n")


def test_headers_and_the_origin_reach_the_server(actor: Running) -> None:
    given = ["-H", "X-One: 1", "-H", "X-Two:2", "--origin", f"http://{actor.address}"]
    headers = json.loads(connect(actor.ws(), *given, lines="headers\n").stdout)
    assert (headers["x-one"], headers["x-two"]) == ("1", "2")
    assert headers["origin"] == f"http://{actor.address}"


@contextlib.contextmanager
def listening(answer: Callable[[ServerConnection], None], **options: Any) -> Iterator[str]:
    """A WebSocket server that is not ours; gives `host:port`."""
    with serve(answer, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_subprotocols_are_offered_in_their_order() -> None:
    def answer(socket: ServerConnection) -> None:
        assert socket.request is not None
        socket.send(socket.request.headers["Sec-WebSocket-Protocol"])

    with listening(answer, subprotocols=["b"]) as address:
        assert connect(address, "--subprotocol", "a", "--subprotocol", "b").stdout == "a, b\n"


def test_a_certificate_is_verified_unless_it_is_said_not_to() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with listening(lambda socket: socket.send(socket.recv()), ssl=tls) as address:
        refused = connect(f"wss://{address}")
        done = connect(f"wss://{address}", "--insecure", lines="hello\n")
    assert refused.returncode == 1
    assert refused.stderr.endswith("; use --insecure to connect anyway\n")
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_a_url_may_be_short(echo: Running) -> None:
    _, _, port = echo.address.partition(":")
    for url in (f":{port}/ws", f"127.0.0.1:{port}/ws", f"http://127.0.0.1:{port}/ws"):
        assert connect(url, lines="x\n").stdout == "x\n"


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--origin", "https://evil.example"], 1, "the upgrade was refused with 403 Forbidden: "),
        (["-H", "nonsense"], 2, "'nonsense' is not a header; write it like 'Name: value'"),
        (["-H", "A: b\nC: d"], 2, r"'A: b\nC: d' is not a header; write it like 'Name: value'"),
        (["--subprotocol", "a b"], 2, "'a b' is not a subprotocol; use a name without spaces"),
        (["--timeout", "soon"], 2, "'soon' is not a duration"),
    ],
)
def test_what_is_refused_is_told(echo: Running, options: list[str], code: int, said: str) -> None:
    done = connect(echo.ws(), *options)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_where_nobody_listens_it_tells_how_to_start_a_node() -> None:
    done = connect("ws://127.0.0.1:9/ws")
    assert done.returncode == 1
    assert "nobody is listening there; start something with 'wsrelay run TARGET'" in done.stderr


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://x", "scheme isn't ws or wss"),
        ("ws:///ws", "hostname isn't provided"),
        ("ws://127.0.0.1:99999/ws", "Port out of range 0-65535"),
        ("ws://[::1/ws", "Invalid IPv6 URL"),
        ("ws://127.0.0.1/ws#part", "fragment identifier is meaningless"),
    ],
)
def test_a_wrong_url_is_told_with_the_right_form(url: str, why: str) -> None:
    done = connect(url)
    assert done.returncode == 2
    said = f"{url!r} is not a WebSocket URL ({why}); write it like ws://host:port/path"
    assert said in done.stderr


def test_an_abnormal_end_is_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text(
        "from wsrelay import process\ndef handler():\n    process.inbox().receive(); 1/0"
    )
    with Running(script) as running:
        done = connect(running.ws(), "--wait", "10s")
    assert done.returncode == 1
    assert "closed with 1011 internal error: target process crashed" in done.stderr


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

    @property
    def raw(self) -> bytes:
        """All that was written, colours included."""
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
        shown.shows('  "a": 1')
        assert re.search(rb'\x1b\[[0-9;]+m"a"\x1b', shown.raw), "JSON is in colour"
        shown.type("[" * 2000)
        shown.shows("< " + "[" * 40)
        shown.type("/ping")
        shown.shows("pong after ")
        shown.type("/nonsense")
        shown.shows("there is no /nonsense")
        shown.type("/close 3001 enough")
        shown.shows("closed with 3001: enough")
        assert shown.process.wait(10) == 0
    history = tmp_path / "wsrelay" / "connect_history"
    assert "+hello there" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_a_history_that_cannot_be_written_keeps_nobody_from_talking(
    echo: Running, tmp_path: Path
) -> None:
    (tmp_path / "wsrelay").write_text("a file where the folder should be")
    with screen(echo.ws(), tmp_path) as shown:
        shown.type("hello")
        shown.shows("< hello")
