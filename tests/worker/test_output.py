"""What processes write to their standard output and error: where it arrives, and how much of it."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from running import Running, client, closed, received
from running import until as wait_for
from support import end_of, processes, until, value_of

from wsrelay import HostOptions, Node, process
from wsrelay.confinement import Filesystem, Isolation
from wsrelay.errors import HostFailed
from wsrelay.values.bounds import InvalidOptions

pytestmark = pytest.mark.anyio

KB = 1024


def printed(caplog: pytest.LogCaptureFixture, pid: str = "") -> list[str]:
    """What stands in the log of the output of processes, or of this one."""
    return [
        text.partition(" output: ")[2]
        for text in caplog.messages
        if " output: " in text and text.startswith(pid)
    ]


def told(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [line for line in caplog.messages if part in line]


# Lines


def writes(*pieces: bytes) -> None:
    for piece in pieces:
        os.write(1, piece)


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\nt", b"wo"], ["one", "two"]),
        ([b"one\r\n", b"two\r", b"\nthree\r"], ["one", "two", "three"]),
        ([b"\r10%", b"\r20%", b"\rdone\n"], ["", "10%", "20%", "done"]),
        ([b"\n\n"], ["", ""]),
        ([b"caf\xc3", b"\xa9 \xff\x00\x1b[31m\n"], [r"café \xff\x00\x1b[31m"]),
        ([b"tab\tulated\n"], ["tab     ulated"]),
        ([b"x" * 40_000], ["x" * 16384, "x" * 16384, "x" * 7232]),
        (["é".encode() * 8200], ["é" * 8192, "é" * 8]),
        ([b"a" + "é".encode() * 8200], ["a" + "é" * 8191, "é" * 9]),
    ],
)
async def test_output_is_told_a_line_at_a_time_whatever_its_pieces(
    caplog: pytest.LogCaptureFixture, pieces: list[bytes], lines: list[str]
) -> None:
    async with Node(hosts=[processes()]) as node:
        await value_of(node, writes, *pieces)
        assert [line.expandtabs() for line in printed(caplog)] == lines


def prints_and_logs(count: int, begin: str, end: str) -> None:
    log = logging.getLogger("between")
    print("ready")  # noqa: T201 - it is what is tested
    while not Path(begin).exists():
        time.sleep(0.001)
    for number in range(count):
        print(f"printed {number}")  # noqa: T201 - it is what is tested
        log.warning("logged %d", number)
        sys.stderr.write(f"complained {number}\n")
    Path(end).touch()


async def test_both_streams_and_log_records_keep_their_order(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    begin, end = tmp_path / "begin", tmp_path / "end"
    async with Node(hosts=[processes()]) as node:
        node.spawn(prints_and_logs, None, 100, str(begin), str(end))
        await until(lambda: printed(caplog), "it runs")
        begin.touch()
        wait_for(end.exists, "all is written while the node reads nothing")
        await until(lambda: not node.workers, "it has ended")
    came = [text.split(": ", 1)[1] for text in caplog.messages if "|" in text]
    assert came[1:] == [
        line for n in range(100) for line in (f"printed {n}", f"logged {n}", f"complained {n}")
    ]


def by_all_means() -> None:
    subprocess.run(["echo", "by a program"], check=True)
    if (child := os.fork()) == 0:
        print("by a child")  # noqa: T201 - it is what is tested
        sys.exit()
    os.waitpid(child, 0)
    libc = ctypes.CDLL(None)
    libc.puts(b"by C")
    libc.fflush(None)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()


async def test_what_children_threads_and_libraries_write_is_the_process_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node(hosts=[processes()]) as node:
        await value_of(node, by_all_means)
    lines = printed(caplog)
    assert lines[:3] == ["by a program", "by a child", "by C"]
    assert lines[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("warm", [0, 1])
async def test_a_line_is_told_while_its_process_runs_and_names_it(
    caplog: pytest.LogCaptureFixture, warm: int
) -> None:
    def waits() -> None:
        process.inbox().receive()  # the node has heard of the fork by then
        print("here", end="\n")  # noqa: T201 - it is what is tested
        threading.Event().wait()

    async with Node(hosts=[processes(warm=warm)]) as node:
        pid = node.spawn(waits)
        assert await node.started(pid) is None
        node.send(pid, "go")
        await until(lambda: printed(caplog, pid), "it is there")
        [record] = [one for one in caplog.records if one.name == "output"]
        fields = vars(record)
        assert (record.levelname, fields["wsrelay_pid"]) == ("INFO", pid)
        assert fields["wsrelay_os_pid"] == node.workers[pid]
        node.terminate(pid)


async def test_it_is_told_whatever_the_log_s_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="wsrelay")
    caplog.handler.setLevel(logging.NOTSET)
    async with Node(hosts=[processes()]) as node:
        await value_of(node, writes, b"all the same\n")
    assert printed(caplog) == ["all the same"]


async def test_what_a_script_prints_while_it_is_loaded_is_told_also_if_that_fails(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script = tmp_path / "fails.py"
    script.write_text("print('loading the model')\nimport os; os._exit(3)\n")
    async with Node(hosts=[processes(targets=(str(script),))]) as node:
        with pytest.raises(HostFailed):
            await node.loaded()
    assert told(caplog, "process host processes: output: loading the model")


def test_json_has_a_line_of_output_with_who_wrote_it(tmp_path: Path) -> None:
    script = tmp_path / "prints.py"
    script.write_text(
        "from wsrelay import process\n"
        "def handler():\n    process.inbox().receive()\n    print('a\\u2028b \\x1b[31m')\n"
    )
    with Running(script, "--log-format", "json", "--log-level", "error") as running:
        with client(running.ws()) as websocket:
            closed(websocket)
        line = running.stderr.line('"output"')
    record = json.loads(line)
    assert record["message"] == "a\u2028b \x1b[31m"
    assert record["pid"].startswith("{local@processes|")
    assert "\u2028" not in line


# How much


def floods(count: int, text: str) -> None:
    for number in range(count):
        print(number, text)  # noqa: T201 - it is what is tested


@pytest.mark.parametrize("count", [1, 3000])
async def test_lines_beyond_the_rate_are_left_out_and_each_is_counted(
    caplog: pytest.LogCaptureFixture, count: int
) -> None:
    async with Node(hosts=[processes(log_rate=20)]) as node:
        await value_of(node, floods, count, "x")
    lost = [int(line.split(": ")[1].split()[0]) for line in told(caplog, "left out")]
    assert len(printed(caplog)) + sum(lost) == count, "each is written or counted"
    assert printed(caplog)[-1] == f"{count - 1} x"
    assert bool(lost) == (count > 1)
    for line in told(caplog, "left out"):
        assert line.endswith(" left out: it writes more than 20 a second (limits.log_rate)")


async def test_what_an_ordinary_script_prints_comes_whole(caplog: pytest.LogCaptureFixture) -> None:
    async with Node(hosts=[processes()]) as node:
        await value_of(node, floods, 1900, "a line of a table " * 5)
    assert len(printed(caplog)) == 1900
    assert not told(caplog, "left out")


async def test_one_line_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def loses_one() -> None:
        log = logging.getLogger("many")
        for _ in range(21):
            log.warning("x")

    async with Node(hosts=[processes(log_rate=20)]) as node:
        await value_of(node, loses_one)
    [line] = told(caplog, "left out")
    assert ": 1 log record was left out: " in line


FLOOD = """
import os, time
from wsrelay import process
def handler(seconds):
    end, block, written = time.monotonic() + seconds, b"forged line\\n" * 5000, 0
    os.set_blocking(2, False)
    while time.monotonic() < end:
        try:
            written += os.write(2, block)
        except BlockingIOError:
            time.sleep(0.001)
    return written
"""


async def test_who_writes_more_bytes_than_are_read_waits(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    script = tmp_path / "flood.py"
    script.write_text(FLOOD)
    async with Node(hosts=[processes(log_rate=10)]) as node:
        written = await value_of(node, str(script), 1.0)
    # The pipe, what may come at once, what is read in that second; and a loaded machine's seconds.
    assert written < 1000 * KB
    assert len(printed(caplog)) < 500
    [line] = told(caplog, " waits: ")
    assert "more than 65536 bytes a second" in line
    assert "limits.log_rate" in line


async def test_a_flood_of_empty_lines_leaves_its_neighbour_s_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It costs the loop far less than a line in the log each."""

    def empty_lines() -> None:
        for _ in range(60):
            os.write(1, b"\n" * 4096)

    async with Node(hosts=[processes(log_rate=50)]) as node:
        before = time.process_time()
        await value_of(node, empty_lines)
        used = time.process_time() - before
    lost = sum(int(line.split(": ")[1].split()[0]) for line in told(caplog, "left out"))
    assert len(printed(caplog)) + lost == 60 * 4096
    assert used < 2.0, "a line each of 245,760 would be ten seconds"


def has_written(path: str) -> list[str]:
    results = []
    for act in (
        lambda: os.ftruncate(2, 0),
        lambda: os.pread(2, 1, 0),
        lambda: os.lseek(2, 0, os.SEEK_SET),
    ):
        try:
            act()
        except OSError as error:
            results.append(type(error).__name__)
        else:
            results.append("done")
    here = [os.path.realpath(f"/proc/self/fd/{n}") for n in (1, 2)]
    return [*results, str(path in here)]


def test_a_process_has_no_descriptor_of_the_node_s_log(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    script = (
        "import asyncio, sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_output import *\n"
        "async def main():\n"
        "    async with Node(hosts=[processes()]) as node:\n"
        "        print(await value_of(node, has_written, sys.argv[1]))\n"
        "asyncio.run(main())\n"
    )
    here = Path(__file__).parent
    with log.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", script, str(log), here, here.parent],
            stdout=subprocess.PIPE,
            stderr=file,
            check=True,
            text=True,
        )
    assert done.stdout == "['OSError', 'OSError', 'OSError', 'False']\n"


# Last words


def aborts(lines: int) -> None:
    floods(lines, "before")
    os.write(2, b"free(): invalid pointer")
    ctypes.CDLL(None).abort()


@pytest.mark.parametrize("lines", [0, 3000])
async def test_a_crash_s_last_words_are_never_lost_and_come_before_its_end(
    caplog: pytest.LogCaptureFixture, lines: int
) -> None:
    async with Node(hosts=[processes(log_rate=10)]) as node:
        error = (await end_of(node, aborts, lines)).error
    assert error is not None
    assert error.message == "SIGABRT"
    assert "in aborts" in (error.traceback or "")
    assert printed(caplog)[-1] == "free(): invalid pointer"
    last, end = caplog.messages[-2:]
    assert last.endswith("free(): invalid pointer")
    assert "crashed: SIGABRT\n    Fatal Python error: Aborted" in end
    assert caplog.text.count("Fatal Python error") == 1


async def test_a_stack_that_ends_nobody_is_output_like_any_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def pretends() -> None:
        sys.stderr.write("Fatal Python error: not so\nbehind it\n")
        threading.Event().wait()

    async with Node(hosts=[processes()]) as node:
        pid = node.spawn(pretends)
        await until(lambda: len(printed(caplog)) == 2, "both lines are there")
        node.terminate(pid)
        await until(lambda: not node.workers, "it is gone")
    assert printed(caplog) == ["Fatal Python error: not so", "behind it"]


@pytest.mark.parametrize("number", [0, 3])
async def test_a_handler_that_closes_all_descriptors_is_told_what_it_did(
    caplog: pytest.LogCaptureFixture, number: int
) -> None:
    async with Node(hosts=[processes()]) as node:
        error = (await end_of(node, os.closerange, number, 1000)).error
    assert error is not None
    assert error.kind == "exit"
    assert "it has closed the pipe to its node" in error.message
    assert told(caplog, "it has closed the pipe to its node")


async def test_a_process_that_closes_its_output_goes_on(node: Node) -> None:
    def closes() -> str:
        os.closerange(1, 3)
        return "went on"

    assert await value_of(node, closes) == "went on"


async def test_what_outlives_its_process_does_not_hold_its_end_back(node: Node) -> None:
    def leaves_one_behind() -> int:
        code = "import time; time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        child.returncode = 0  # nobody is warned of it
        return child.pid

    child = await value_of(node, leaves_one_behind)
    os.kill(child, signal.SIGKILL)


async def test_no_descriptor_is_left_of_processes_that_have_ended() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - these are no files

    before = count()
    async with Node(hosts=[processes(max_processes=20)]) as node:
        await value_of(node, writes, b"first\n")
        there = count()
        for _ in range(10):
            await value_of(node, writes, b"again\n")
        assert count() == there
    assert count() == before


# The terminal


def read_until(terminal: int, part: bytes, seen: bytes = b"") -> bytes:
    while part not in seen:
        seen += os.read(terminal, 4096)
    return seen


def test_with_raw_output_a_handler_has_the_terminal(tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text(
        "import sys\nfrom wsrelay import process\n"
        "def handler():\n"
        "    for message in process.inbox():\n"
        "        if message.topic == 'ws.message':\n"
        "            print('tty', sys.stdout.isatty())\n"
        "            name = input('name? ')\n"
        "            breakpoint()\n"
        "            data = {'type': 'text', 'data': name}\n"
        "            process.send(message.sender, 'ws.send', data)\n"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "wsrelay", "run", "--raw-output", "--port", "0"]
    with subprocess.Popen(
        [*command, str(script)], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as node:
        os.close(theirs)
        try:
            url = read_until(ours, b"Ctrl-C").partition(b" at ")[2].split()[0].decode()
            with client(url) as websocket:
                websocket.send("go")
                assert b"tty True\r\nname? " in read_until(ours, b"name? ")
                os.write(ours, b"Ada\n")
                read_until(ours, b"(Pdb) ")
                os.write(ours, b"name + '!'\n")
                read_until(ours, b"'Ada!'")
                os.write(ours, b"c\n")
                assert received(websocket) == "Ada"
        finally:
            node.terminate()
            os.close(ours)


def test_without_it_breakpoint_says_how_to_get_one(tmp_path: Path) -> None:
    script = tmp_path / "stops.py"
    script.write_text(
        "from wsrelay import process\n"
        "def handler():\n    process.inbox().receive()\n    breakpoint()\n"
    )
    with Running(script) as running:
        with client(running.ws()) as websocket:
            assert closed(websocket) == (1011, "target process crashed")
        assert "`wsrelay run --raw-output` gives it yours" in running.stderr.line("RuntimeError")


@pytest.mark.parametrize(
    "isolation",
    [Isolation(user="nobody"), Isolation(filesystem=Filesystem()), Isolation(network="none")],
)
def test_raw_output_is_refused_where_processes_are_kept_apart(isolation: Isolation) -> None:
    with pytest.raises(InvalidOptions, match="raw_output gives the node's streams away"):
        HostOptions(raw_output=True, isolation=isolation)
