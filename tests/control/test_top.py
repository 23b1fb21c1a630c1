"""`wsrelay top`, and completion."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import rooms
from controlled import typed, visited, wsrelay
from obeying import idle
from one_node import left_as_found
from support import TIMEOUT, room, until

from wsrelay import Node
from wsrelay.cli.rates import MessageRates
from wsrelay.control import ControlSocket
from wsrelay.node import NodeInfo, ProcessInfo

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
async def controlled(shared: Node, directory: Path) -> AsyncIterator[Node]:
    async with left_as_found(shared), ControlSocket(shared, directory):
        yield shared


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


async def test_top_refreshes_in_place_and_ends_with_q(controlled: Node) -> None:
    pid = controlled.spawn(room(rooms.echo))
    await controlled.started(pid)
    with terminal() as (ours, theirs):
        top = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsrelay", "top", "--interval", "100ms"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
        )
        screen = b""

        def refreshed() -> bool:
            nonlocal screen
            while select.select([ours], [], [], 0)[0]:
                screen += os.read(ours, 65536)
            return screen.count(b"dead letters") >= 3

        await until(refreshed, "three screens")
        os.write(ours, b"q")
        assert await asyncio.wait_for(top.wait(), 10) == 0


async def screens(columns: int, rows: int, *arguments: str, last: str = "") -> list[str]:
    """Run a command in a terminal of that size until a line has `last`; gives the lines."""
    with terminal() as (ours, theirs):
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        command = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wsrelay", *arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm"},
        )
        screen = b""

        def there() -> bool:
            nonlocal screen
            while select.select([ours], [], [], 0)[0]:
                screen += os.read(ours, 65536)
            return last.encode() in screen if last else command.returncode is not None

        await until(there, f"{last!r} on the screen")
        os.write(ours, b"q")
        await asyncio.wait_for(command.wait(), 10)
        there()
    plain = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", screen).decode()
    return [line.rstrip() for line in plain.replace("\r", "\n").splitlines() if line.strip()]


async def test_in_a_very_narrow_terminal_it_is_figures_that_are_left_out(
    controlled: Node,
) -> None:
    async with visited(controlled) as (pid, _):
        await until(lambda: "obedient" in controlled.kernel.names.of(pid))  # type: ignore[arg-type]
        short = pid.rpartition("|")[2].rstrip("}")
        for command in ("top", "ps"):
            lines = await screens(40, 24, command, last="obedient")
            assert all(len(line) <= 40 for line in lines)
            assert ["PID", "CPU", "MEMORY", "NAME", "OR", "TARGET"] in map(str.split, lines)
            row = next(line for line in lines if "obedient" in line).split()
            assert (row[0], row[-1]) == (short, "obedient")
        lines = await screens(40, 24, "connections")
        assert lines[0].split() == ["PID", "OUTBOX", "CLIENT"]
        assert "127.0.0.1:" in lines[1]


async def test_top_and_the_others_fit_into_80_columns(controlled: Node) -> None:
    async with visited(controlled) as (pid, _):
        await until(lambda: "obedient" in controlled.kernel.names.of(pid))  # type: ignore[arg-type]
        short, os_pid = pid.rpartition("|")[2].rstrip("}"), controlled.workers[pid]  # type: ignore[index]
        for command in ("top", "ps"):
            lines = await screens(80, 24, command, last="obedient")
            assert all(len(line) <= 80 for line in lines)
            [headings] = {line.strip() for line in lines if "MAILBOX" in line}
            rate = ["MSG/S"] if command == "top" else []
            assert headings.replace("OS PID", "OS_PID").split() == [
                *("PID", "OS_PID", "UPTIME", "CPU", "MEMORY", *rate, "MAILBOX", "TOOK", "CLIENTS"),
                *("NAME", "OR", "TARGET"),
            ]
            row = next(line for line in lines if "obedient" in line).split()
            assert (row[0], row[1], row[-2], row[-1]) == (short, str(os_pid), "1", "obedient")
        lines = await screens(80, 24, "connections")
        assert all(len(line) <= 80 for line in lines)
        assert "127.0.0.1:" in "".join(lines)
        wide = await screens(200, 24, "top", last="obedient")
        assert pid in "".join(wide)


async def test_top_shows_the_busiest_that_have_room_and_says_how_many_more(
    controlled: Node,
) -> None:
    pids = [controlled.spawn(idle) for _ in range(7)]
    busy = controlled.spawn(spin)
    for pid in (*pids, busy):
        await controlled.started(pid)
    first = ""
    async with asyncio.timeout(TIMEOUT):  # on a busy machine it has got no CPU at first
        while busy.id not in first:
            lines = await screens(80, 10, "top", last="and 3 more")
            headings = next(i for i, line in enumerate(lines) if "MAILBOX" in line)
            first = lines[headings + 1]
    controlled.terminate(busy)


def spin() -> None:
    while True:
        pass


async def test_top_is_json_for_scripts_once_or_a_line_at_each_interval(controlled: Node) -> None:
    async with visited(controlled) as (pid, _):
        await until(lambda: len(controlled.workers) == 2)
        [line] = (await typed("top", "--json")).splitlines()
        shown = json.loads(line)
        assert (shown["name"], shown["os_pid"]) == ("local", os.getpid())
        assert {one["pid"] for one in shown["processes"]} == set(controlled.workers)
        assert all(one["memory"] > 1_000_000 for one in shown["processes"])
        assert all(one["cpu_percent"] >= 0 for one in shown["processes"])
        assert [one["target"] for one in shown["connections"]] == [pid]
        follower = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wsrelay", "top", "--json", "-f", "--interval", "100ms"),
            stdout=subprocess.PIPE,
        )
        assert follower.stdout is not None
        first, second = [json.loads(await follower.stdout.readline()) for _ in range(2)]
        assert second["time"] - first["time"] >= 0.1
        assert [one["messages_per_second"] for one in first["processes"]] == [None, None]
        assert [one["messages_per_second"] for one in second["processes"]] == [0.0, 0.0]
        follower.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(follower.wait(), 10) == 0
    assert "--follow needs --json" in await typed("top", "-f", code=2)


def test_rates_are_what_has_come_and_gone_since_the_last_look() -> None:
    now = 10.0
    rates = MessageRates(lambda: now)

    def noted(**counts: tuple[int, int]) -> list[float | None]:
        shown = [described(pid, *both) for pid, both in counts.items()]
        rates.note(NODE_INFO(processes=shown))
        return [rates.of(one) for one in shown]

    assert noted(a=(100, 50)) == [None]
    now = 12.0
    assert noted(a=(120, 60), b=(7, 0)) == [15.0, None]
    now = 13.0
    assert noted(b=(7, 1)) == [1.0]
    now = 14.0
    assert noted(a=(200, 100), b=(7, 1)) == [None, 0.0], "of what was away nothing is known"


NODE_INFO = functools.partial(
    NodeInfo,
    name="local",
    os_pid=1,
    version="1",
    draining=False,
    dead_letters=0,
    hosts=[],
    connections=[],
)


def described(pid: str, received: int, sent: int) -> ProcessInfo:
    return ProcessInfo(
        pid=pid,
        os_pid=None,
        host="processes",
        target="it",
        state="running",
        names=[],
        parent=None,
        uptime=1.0,
        mailbox=0,
        received=received,
        sent=sent,
        connections=0,
    )


async def test_completion_knows_the_processes_of_the_running_node(controlled: Node) -> None:
    pid = controlled.spawn(room(rooms.echo))
    controlled.register("the-echo", pid)
    done = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from wsrelay.cli.main import main; main(prog_name='wsrelay')",
        stdout=subprocess.PIPE,
        env={
            **os.environ,
            "_WSRELAY_COMPLETE": "bash_complete",
            "COMP_WORDS": "wsrelay kill ",
            "COMP_CWORD": "2",
        },
    )
    out, _ = await done.communicate()
    offered = {line.partition(",")[2] for line in out.decode().splitlines()}
    assert offered == {pid.rpartition("|")[2].rstrip("}"), "the-echo"}


async def test_completion_is_a_script_of_the_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_WSRELAY_COMPLETE" in await wsrelay("completion", shell)
