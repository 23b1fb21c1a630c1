"""`wsrelay run`: mistakes of its user, the command itself, limits and edits."""

from __future__ import annotations

import functools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from acting import ACTOR, ROOT, Write, written
from commands import run_here
from ports import free_port
from running import HANDLERS, TIMEOUT, Running, client, closed, news, received, until
from websockets.exceptions import InvalidHandshake


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


# Bad input


def run_to_the_end(target: str | Path, *options: str, **settings: Any) -> str:
    """Run what cannot be served; gives its standard error."""
    with Running(target, *options, serves=False, **settings) as running:
        assert running.wait() != 0
        until(lambda: not running.family(), "nothing is left running", 1)
        running.stderr.join()
        assert running.stdout.text == ""
        return running.stderr.text


def refused(*arguments: str) -> list[str]:
    """What the command says of wrong arguments, in lines."""
    done = run_here("run", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("missing.py", "missing.py does not exist"),
        ("folder.py", "folder.py is a folder"),
        ("module_that_is_not_there:handler", "no module 'module_that_is_not_there'"),
        ("package_that_is_not_there.rooms:handler", "no module 'package_that_is_not_there'"),
        ("good.py:nothing", "has no function 'nothing'; it defines handler, other"),
        ("good:nothing", "has no function 'nothing'; it defines handler, other"),
        ("good.py:NUMBER", "'NUMBER' is not a function"),
        ("empty.py", "has no function 'handler'; it defines no function"),
    ],
)
def test_a_target_that_cannot_be_loaded_gets_one_line(
    write: Write, target: str, complaint: str
) -> None:
    folder = write("good.py", "NUMBER = 3\ndef handler(): ...\ndef other(): ...\n").parent
    write("empty.py", "")
    (folder / "folder.py").mkdir()
    complaints = run_to_the_end(target, cwd=folder).splitlines()
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith("wsrelay: ")
    assert complaint in complaints[0]


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("", "target ''"),
        (".", "target '.'"),
        ("no target", "target 'no target'"),
        ("good.py:", "target 'good.py:'"),
        ("good.py:1st", "'1st' is not a function name"),
        ("good", "target 'good'"),
        ("good:handler:other", "target 'good:handler:other'"),
    ],
)
def test_a_malformed_target_is_a_wrong_usage(
    write: Write, monkeypatch: pytest.MonkeyPatch, target: str, complaint: str
) -> None:
    monkeypatch.chdir(write("good.py", "def handler(): ...\n").parent)
    *_, last = refused(target)
    assert last.startswith("Error: Invalid value for 'TARGET'")
    assert complaint in last


@pytest.mark.parametrize(
    ("text", "error", "shown"),
    [
        ("def f():\n    1 / 0\n\nf()\n", "ZeroDivisionError: division by zero", "line 2, in f"),
        ("def handler(:\n", "SyntaxError: invalid syntax", "line 1"),
        (
            "import nothing_like_this\n",
            "ModuleNotFoundError: No module named 'nothing_like_this'",
            "line 1",
        ),
        ("import sys\n\nsys.exit(3)\n", "SystemExit: 3", "line 3"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt", "line 1"),
    ],
    ids=["raises", "syntax-error", "import-error", "exits", "interrupts"],
)
def test_a_script_that_raises_shows_its_own_traceback_once(
    write: Write, text: str, error: str, shown: str
) -> None:
    script = write("broken.py", text)
    complaint = run_to_the_end(script)
    line = complaint.splitlines()[-1]
    assert line == f"wsrelay: {script} cannot be imported: {error}"
    assert complaint.count(f'File "{script}"') in (1, text.count("f()"))
    assert shown in complaint
    assert complaint.count("Traceback") <= 1, "shown twice"
    assert ROOT not in complaint, "the traceback shows wsrelay's own frames"


def test_a_script_whose_top_level_does_not_end_is_given_up_and_says_where_it_stands(
    write: Write,
) -> None:
    script = write("endless.py", "while True:\n    pass\n")
    line = run_to_the_end(script, "--start-timeout", "500ms").splitlines()[-1]
    assert "loading takes longer than the start timeout of 0.5 s" in line
    assert re.search(f"is now at line [12] of {script}[.] .*--start-timeout", line)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_script_that_ends_the_process_at_import_is_an_error_too(
    write: Write, leaves: bool
) -> None:
    order = "os._exit(0)" if leaves else "os.kill(os.getpid(), signal.SIGKILL)"
    script = write("broken.py", f"import os, signal\n{order}\n")
    complaints = run_to_the_end(script).splitlines()
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith("wsrelay: ")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--allowed-hosts", "https://app.example.com"], "it has no scheme and no port"),
        (["--subprotocol", "a b"], "'a b'"),
        (["--scope", "universe"], "'universe' is not one of 'connection', 'room', 'shared'"),
        (["--heartbeat", "often"], "'often' is not a duration; write it like '30s'"),
        (["--heartbeat", "1us"], "'1us' is too short"),
        (["--origins", "example.com"], "allowed origin 'example.com' is none of"),
        (["--path", "ws"], "'ws' is not a path"),
        (["--room-linger", "5"], "'5' is not a duration"),
        (["--room-linger", "-1s"], "'-1s' is too short"),
        (["--start-timeout", "0s"], "'0s' is too short"),
        (["--static", "missing-folder"], "'missing-folder' does not exist"),
        (["--static", __file__], "is a file"),
        (["--port", "65536"], "65536 is not in the range"),
        (["--port", "http"], "'http' is not a valid integer"),
        (["--max-processes", "0"], "0 is not in the range"),
        (["--warm", "300"], "is 300 and must be 0 to max_processes, which is 256"),
        (["--memory", "0"], "is 0 and must be 1 to 2**62 bytes"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_option_gets_a_line_that_names_it(options: list[str], complaint: str) -> None:
    *_, last = refused(*options, str(HANDLERS / "echo.py"))
    assert last.startswith("Error: ")
    assert options[0] in last
    assert complaint in last


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        complaint = run_to_the_end(HANDLERS / "echo.py", port=port)
    assert complaint == (
        f"wsrelay: cannot listen on 127.0.0.1:{port}: the address is in use; choose another port"
    )


def test_an_unknown_host_is_named() -> None:
    complaints = run_to_the_end(HANDLERS / "echo.py", "--host", "nowhere.invalid").splitlines()
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith("wsrelay: cannot listen on nowhere.invalid:")


# The command


def test_the_command_explains_itself() -> None:
    command = [sys.executable, "-m", "wsrelay"]
    typed = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    for done in (typed, run_here("run", "--help"), run_here("-h")):
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: wsrelay")
        assert done.stderr == ""
    done = subprocess.run([*command, "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Missing argument 'TARGET'" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_output_cannot_be_written_ends_with_a_line_that_says_so(
    acting: Running, unbuffered: str
) -> None:
    node = ["--node", f":{acting.address.rpartition(':')[2]}"]
    seen = [[name, *node] for name in ("ps", "tree", "connections", "top")]
    as_json = [[*command, "--json"] for command in seen]
    others = [["--help"], ["completion", "bash"], ["check", "-c", f"{HANDLERS}/relay.yaml"]]
    for arguments in (*seen, *as_json, *others):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "wsrelay", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                text=True,
                check=False,
            )
        said = "wsrelay: the output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, said), arguments


# Limits and edits


def test_memory_limits_each_process(tmp_path: Path) -> None:
    script = tmp_path / "hungry.py"
    script.write_text(
        "from wsrelay import process\n"
        "def handler():\n"
        "    process.inbox().receive()\n"
        "    bytearray(500 << 20)\n"
    )
    with Running(script, "--memory", "400MB") as running, client(running.ws()) as one:
        assert closed(one) == (1011, "target process crashed (memory limit)")
        running.stderr.line("memory limit of 400MB reached")


def test_a_size_that_is_none_is_a_wrong_option() -> None:
    with Running(HANDLERS / "echo.py", "--memory", "lots", serves=False) as running:
        assert running.wait() == 2
        running.stderr.line("'lots' is not a size; write it like '512MB', '64KB' or '1.5GB'")


def test_reload_starts_the_script_again_when_it_is_edited(tmp_path: Path) -> None:
    script = tmp_path / "greet.py"
    text = (
        "from wsrelay import process\n"
        "def handler():\n"
        "    for message in process.inbox():\n"
        "        process.send(message.sender, 'ws.send', {'type': 'text', 'data': 'one'})\n"
    )
    script.write_text(text)
    with Running(script, "--reload", port=free_port()) as running:
        with client(running.ws()) as one:
            assert received(one) == "one"
            script.write_text(text.replace("one", "two"))
            assert closed(one) == (1012, "node shuts down")
        until(lambda: len([x for x in running.stderr.lines if "Serving" in x]) == 2, "it serves")
        with client(running.ws()) as one:
            assert received(one) == "two"
        running.interrupt()
        assert running.wait() == 0


@pytest.mark.parametrize("edited", ["greet.py", "greeting.py"])
def test_reload_sees_an_edit_that_byte_code_is_not_told_from(tmp_path: Path, edited: str) -> None:
    """An edit within the same second, and of the same size: the file's time is set to that."""
    texts = {
        "greeting.py": "TEXT = 'one'\n",
        "greet.py": (
            "import greeting\n"
            "from wsrelay import process\n"
            "AND = 'one'\n"
            "def handler():\n"
            "    for message in process.inbox():\n"
            "        data = f'{greeting.TEXT} {AND}'\n"
            "        process.send(message.sender, 'ws.send', {'type': 'text', 'data': data})\n"
        ),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    file = tmp_path / edited
    before = file.stat().st_mtime_ns
    with Running(tmp_path / "greet.py", "--reload", port=free_port()) as running:
        with client(running.ws()) as one:
            assert received(one) == "one one"
            other = tmp_path / "other.tmp"
            other.write_text(texts[edited].replace("'one'", "'two'"))
            os.utime(other, ns=(before, before))
            other.rename(file)
            assert closed(one) == (1012, "node shuts down")
        until(lambda: len([x for x in running.stderr.lines if "Serving" in x]) == 2, "it serves")
        with client(running.ws()) as one:
            assert "two" in str(received(one))
        running.interrupt()
        assert running.wait() == 0


def test_one_ctrl_c_under_reload_lets_a_handler_come_to_its_end(write: Write) -> None:
    script = write(
        "ends.py",
        """
        import time
        from wsrelay import process

        def handler():
            for message in process.inbox():
                process.send(message.sender, "ws.send", {"type": "text", "data": "here"})
                try:
                    while True:
                        time.sleep(0.01)
                finally:
                    print("finally ran")
        """,
    )
    with Running(script, "--reload", port=free_port()) as running:
        with client(running.ws()) as one:
            assert received(one) == "here"
            running.interrupt()
            assert running.wait() == 0
        running.stderr.line("output: finally ran")
    assert "terminated" not in running.stderr.text


@pytest.mark.parametrize("closed_ones", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_serves_and_ends_where_standard_streams_are_closed(
    actor: Path, closed_ones: str
) -> None:
    port = free_port()
    arguments = [sys.executable, "-m", "wsrelay", "run", str(actor), "--port", str(port)]
    started = subprocess.Popen(["/bin/sh", "-c", f'exec "$@" {closed_ones}', "sh", *arguments])
    try:

        def connected() -> bool:
            try:
                with client(f"ws://127.0.0.1:{port}/ws") as one:
                    return "os_pid" in news(one)
            except (OSError, InvalidHandshake):
                assert started.poll() is None
                return False

        until(connected, "it serves")
        started.send_signal(signal.SIGINT)
        assert started.wait(TIMEOUT) == 0
    finally:
        started.kill()
        started.wait()


def test_a_current_folder_that_was_removed_is_told_in_one_line(actor: Path, tmp_path: Path) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    shell = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    command = [sys.executable, "-m", "wsrelay", "run", str(actor), "--port", "0"]
    ended = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", str(removed), *command],
        capture_output=True,
        check=False,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "wsrelay: the template cannot be started: the current folder was removed\n"
    )
