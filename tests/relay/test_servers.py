"""The relay under other people's servers, in this process and in their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import rooms
from applications import Telling, application, echo, echoes, refusal
from commands import run_here
from starlette.requests import Request
from starlette.responses import Response
from support import (
    Journal,
    client,
    closed,
    hypercorn_serving,
    received,
    relay_to,
    room,
    say,
    serving,
    until,
)
from websockets.asyncio.client import connect

from wsrelay import Node, RelayResponse, WebSocketRelay, process
from wsrelay.node.siblings import server_workers

pytestmark = pytest.mark.anyio

APPS = Path(__file__).parents[1] / "apps"


# Other servers, in this process


@pytest.mark.parametrize(
    "protocol",
    [
        "websockets-sansio",
        pytest.param(
            "websockets",
            marks=[
                pytest.mark.filterwarnings("ignore:The `websockets` implementation is deprecated"),
                pytest.mark.filterwarnings("ignore:remove second argument of ws_handler"),
                pytest.mark.filterwarnings("ignore:websockets.legacy:DeprecationWarning"),
                pytest.mark.filterwarnings("ignore:websockets.server:DeprecationWarning"),
            ],
        ),
    ],
)
async def test_the_relay_works_with_uvicorn_s_other_protocols(
    protocol: str, journal: Journal
) -> None:
    async def ws(_: Request) -> Response:
        return RelayResponse(process.spawn(room(rooms.record), None, str(journal.path)))

    app = WebSocketRelay(application("starlette", ws=ws, echo=echo))
    async with serving(app, "uvicorn", ws=protocol) as url:
        async with client(f"{url}/echo", compression="deflate") as websocket:
            for data in ("héllo", "", "x" * 300_000):
                await echoes(websocket, data)
            await websocket.send(b"\x00\xff")
            assert await received(websocket) == b"\x00\xff"
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
            assert await closed(websocket) == (4321, "enough")
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "kill", "SIGKILL")
            assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
        async with client(f"{url}/ws") as websocket:
            await websocket.close(4001, "bye")
        leave = (await journal.line("ws.leave", 2))["payload"]
        assert (leave["code"], leave["reason"]) == (4001, "bye")
        async with client(f"{url}/ws") as websocket:
            await journal.line("ws.join", 4)
            websocket.transport.abort()
        assert (await journal.line("ws.leave", 3))["payload"]["code"] in (1005, 1006)
        assert (await refusal(f"{url}/ws", origin="https://evil.example")).status_code == 403


async def test_the_relay_works_with_hypercorn(journal: Journal) -> None:
    async def ws(_: Request) -> Response:
        return RelayResponse(process.spawn(room(rooms.record), None, str(journal.path)))

    app = WebSocketRelay(application("starlette", ws=ws, echo=echo))
    async with hypercorn_serving(app) as url:
        async with client(f"{url}/echo") as websocket:
            for data in ("héllo", "", "x" * 300_000):
                await echoes(websocket, data)
            await websocket.send(b"\x00\xff")
            assert await received(websocket) == b"\x00\xff"
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
            assert await closed(websocket) == (4321, "enough")
        async with client(f"{url}/ws") as websocket:
            await say(websocket, "kill", "SIGKILL")
            assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
        async with client(f"{url}/ws") as websocket:
            await journal.line("ws.join", 3)
            await websocket.close(4001, "bye")
        await journal.line("ws.leave", 2)
        async with client(f"{url}/ws") as websocket:
            await journal.line("ws.join", 4)
            websocket.transport.abort()
        assert (await journal.line("ws.leave", 3))["payload"]["code"] == 1006
        assert journal.topics().count("ws.leave") == 3
        assert (await refusal(f"{url}/ws", origin="https://evil.example")).status_code == 403
        assert (await refusal(f"{url}/nowhere")).status_code == 404


async def test_an_endless_streaming_response_ends_with_its_client_on_hypercorn_too() -> None:
    ticks: list[int] = []
    ended: list[str] = []

    async def body() -> AsyncIterator[bytes]:
        while True:
            ticks.append(1)
            yield b"tick"
            await asyncio.sleep(0.005)

    async def ws(_: Request) -> Response:
        relay = RelayResponse(process.spawn(room(rooms.echo))).headers["x-ws-relay"]
        return Telling(lambda: ended.append("streaming"), body(), headers={"X-WS-Relay": relay})

    async with hypercorn_serving(WebSocketRelay(application("starlette", ws=ws))) as url:
        async with client(f"{url}/ws") as websocket:
            await echoes(websocket)
            count = len(ticks)
            await until(lambda: len(ticks) > count + 2 or ended, "it goes on streaming")
            assert not ended
        await until(lambda: ended, "the stream has ended")


# Servers in OS processes of their own


class Program:
    """A server program; all that it and its processes print is in `output`."""

    def __init__(self, started: subprocess.Popen[bytes], output: Path) -> None:
        self.started = started
        self._output = output

    @property
    def output(self) -> str:
        return self._output.read_text()

    async def printed(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until the pattern is in the output so many times; gives what it captures."""

        def found() -> list[str]:
            matches = re.findall(pattern, self.output)
            assert len(matches) >= count or self.started.poll() is None, self.output
            return matches if len(matches) >= count else []

        return cast("list[str]", await until(found, f"{count} x {pattern} in the output"))

    async def url(self) -> str:
        """Wait until it listens; gives `ws://host:port`."""
        return f"ws://{(await self.printed(r'unning on http://(127.0.0.1:[0-9]+)'))[0]}"

    async def ended(self) -> int:
        """Wait for its end; gives its exit code."""
        await until(lambda: self.started.poll() is not None, "the server has ended")
        return self.started.returncode

    async def ends_alone(self, number: signal.Signals, *, processes: int) -> int:
        """Send the signal; gives the exit code once nothing that it started is left.

        `processes`: how many there are at least before.
        """
        family = psutil.Process(self.started.pid).children(recursive=True)
        assert len(family) >= processes
        self.started.send_signal(number)
        code = await self.ended()
        await until(lambda: not [one for one in family if runs(one)], "its processes are gone")
        return code


def runs(one: psutil.Process) -> bool:
    try:
        return one.is_running() and one.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start `python ARGUMENTS` among the test applications."""
    programs: list[Program] = []

    def start(*arguments: str) -> Program:
        output = tmp_path / f"output {len(programs)}"
        with output.open("wb") as file:
            started = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=APPS,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        programs.append(Program(started, output))
        return programs[-1]

    try:
        yield start
    finally:
        for program in programs:
            if program.started.poll() is None:
                for one in psutil.Process(program.started.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                program.started.kill()
            program.started.wait()


UVICORN = ("-m", "uvicorn", "--port", "0", "--ws", "wsproto", "--http", "h11")


async def test_ten_lines_of_fastapi_run_under_uvicorn_and_end_with_it(
    run: Callable[..., Program],
) -> None:
    server = run(*UVICORN, "ten_lines:app")
    url = await server.url()
    async with client(f"{url}/ws") as one, client(f"{url}/ws") as two:
        await echoes(one, "hello")
        await echoes(two, "world")
        # Two workers and their template, whatever multiprocessing brings along.
        code = await server.ends_alone(signal.SIGTERM, processes=3)
        assert (await closed(one))[0] == 1012
        assert (await closed(two))[0] == 1012
    assert code == -signal.SIGTERM, server.output
    assert "Traceback" not in server.output
    assert "share no names" not in server.output  # there is one server process only


async def test_the_page_s_commands_serve_clients_with_their_default_options(
    run: Callable[..., Program],
) -> None:
    """What a browser offers, and uvicorn would negotiate: permessage-deflate."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "embedding.md").read_text()
    commands = re.findall(r"^uvicorn app:app (.+?)(?: #.*)?$", page, re.MULTILINE)
    assert len(commands) == 2
    direct = {}
    for command in commands:
        server = run("-m", "uvicorn", *command.split(), "--port", "0", "native:app")
        url = await server.url()
        extensions = {}
        for path in ("/ws", "/native"):
            async with connect(f"{url}{path}", proxy=None) as websocket:
                extensions[path] = [extension.name for extension in websocket.protocol.extensions]
                for data in ("héllo", "", "x" * 300_000):
                    await echoes(websocket, data)
                await websocket.close()
            assert (websocket.close_code, server.started.poll()) == (1000, None)
        direct["RelayProtocol" in command] = extensions
        assert "Traceback" not in server.output
    deflate = ["permessage-deflate"]
    assert direct == {
        False: {"/ws": deflate, "/native": deflate},
        True: {"/ws": [], "/native": deflate},
    }


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
@pytest.mark.parametrize("set_up", [False, True])
async def test_what_rooms_log_is_written_once_whether_the_application_sets_up_logging_or_not(
    run: Callable[..., Program], monkeypatch: pytest.MonkeyPatch, server: str, set_up: bool
) -> None:
    monkeypatch.setenv("SET_UP", "yes" if set_up else "no")
    command = UVICORN if server == "uvicorn" else ("-m", "hypercorn", "--bind", "127.0.0.1:0")
    program = run(*command, "logging_room:app")
    async with client(f"{await program.url()}/ws") as websocket:
        await websocket.send("x")
        assert await received(websocket) == "done"
        for level in ("info", "warning"):
            await program.printed(f"room: at {level}")
        assert await program.ends_alone(signal.SIGTERM, processes=2) in (0, -signal.SIGTERM)
    lines = [line for line in program.output.splitlines() if "room: at" in line]
    assert len(lines) == 2, program.output
    for line in lines:
        expected = r"mine: {local@" if set_up else r"[\d-]+ [\d:,]+ (INFO   |WARNING) {local@"
        assert re.match(expected, line), line


async def test_an_answer_to_the_node_is_told_once_for_each_process(
    run: Callable[..., Program],
) -> None:
    program = run(*UVICORN, "logging_room:app")
    url = await program.url()
    for count in (1, 2):
        async with client(f"{url}/ws") as websocket:
            await websocket.send("x")
            assert await received(websocket) == "done"
        told = await program.printed("(?m)^.*sent answer to the node, which has no inbox.*$", count)
        assert len(told) == count
        assert all("WARNING" in line and "Put the PID" in line for line in told)


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
async def test_operators_find_an_application_under_any_server(
    run: Callable[..., Program],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
) -> None:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))

    async def wsrelay(*arguments: str, code: int = 0) -> str:
        done = await asyncio.to_thread(run_here, *arguments)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    command = UVICORN if server == "uvicorn" else ("-m", "hypercorn", "--bind", "127.0.0.1:0")
    program, other = run(*command, "titled:app"), run(*UVICORN, "ten_lines:app")
    url = await program.url()
    port = url.rpartition(":")[2]
    await other.url()
    async with client(f"{url}/ws") as websocket:
        await echoes(websocket)
        said, _, *rows = (await wsrelay("ps", code=1)).splitlines()
        assert said.startswith("wsrelay: 2 nodes are running; choose one with --node")
        [untitled] = [one for one in rows if one.split()[0] == str(other.started.pid)]
        assert untitled.endswith("ten_lines:app"), untitled
        [row] = [one for one in rows if one != untitled]
        assert row.endswith(f"127.0.0.1:{port}  A titled application"), row
        for which in (f":{port}", "titled", row.split()[0]):  # hypercorn serves in a child
            [room] = json.loads(await wsrelay("ps", "--json", "--node", which))
        [one] = json.loads(await wsrelay("connections", "--json", "--node", "titled"))
        assert one["target"] == room["pid"]
        assert one["pid"] in await wsrelay("tree", "--node", "titled")
        assert "echo" in await wsrelay("top", "--node", "titled")
        assert "room: started" in await wsrelay("logs", room["pid"], "--node", "titled")
        answer = await wsrelay("call", room["pid"], "double", "4", "--node", "titled")
        assert answer == "8\n"
        await wsrelay("cancel", one["pid"], "--reason", "enough", "--node", "titled")
        assert await closed(websocket) == (1000, "enough")
        said = await wsrelay("send", "nobody", "x", "--node", "titled", code=1)
        assert said == "wsrelay: node local has no process 'nobody'\n"
    assert len([*(tmp_path / "run").iterdir()]) == 2
    for one in (program, other):
        one.started.send_signal(signal.SIGTERM)
        await one.ended()
    assert not [*(tmp_path / "run").iterdir()]
    assert "no running node" in await wsrelay("ps", code=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_script_that_serves_without_a_guard_is_never_run_again(
    run: Callable[..., Program], number: signal.Signals
) -> None:
    server = run("script.py")
    url = await server.url()
    async with client(f"{url}/ws") as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "you said hello"
        code = await server.ends_alone(number, processes=2)
    assert code == (-signal.SIGTERM if number == signal.SIGTERM else 0), server.output
    main = re.findall(r"main module runs as (\S+) in (\d+)", server.output)
    assert main == [("__main__", str(server.started.pid))]
    assert "Traceback" not in server.output


async def test_a_server_without_lifespan_leaves_nothing_behind_either(
    run: Callable[..., Program],
) -> None:
    server = run(*UVICORN, "--lifespan", "off", "ten_lines:app")
    async with client(f"{await server.url()}/ws") as websocket:
        await echoes(websocket)
        assert await server.ends_alone(signal.SIGTERM, processes=2) == -signal.SIGTERM


async def test_a_server_that_is_killed_leaves_nothing_behind(run: Callable[..., Program]) -> None:
    server = run(*UVICORN, "ten_lines:app")
    async with client(f"{await server.url()}/ws") as websocket:
        await echoes(websocket)
        assert await server.ends_alone(signal.SIGKILL, processes=2) == -signal.SIGKILL
        assert (await closed(websocket))[0] == 1006


@pytest.mark.parametrize(
    "command",
    [
        (*UVICORN, "--workers", "2", "ten_lines:app"),
        (*UVICORN, "--workers", "2", "own_node:app"),
        ("own_node.py",),
        ("-m", "hypercorn", "--workers", "2", "--bind", "127.0.0.1:0", "own_node:app"),
    ],
    ids=["uvicorn", "with a node of its own", "uvicorn.run", "hypercorn"],
)
async def test_a_server_with_two_worker_processes_warns_that_they_share_no_names(
    run: Callable[..., Program], command: tuple[str, ...]
) -> None:
    server = run(*command)
    url = await server.url()
    warnings = await server.printed("this server runs 2 worker processes.*share no names", 2)
    assert len(warnings) == 2
    async with client(f"{url}/ws") as websocket:
        await echoes(websocket)
        assert await server.ends_alone(signal.SIGTERM, processes=4) == 0, server.output


@pytest.mark.parametrize(
    ("arguments", "environment", "workers"),
    [
        (["-w", "3", "app:app"], {}, 3),
        (["-w3", "app:app"], {}, 3),
        (["--workers=4", "app:app"], {"WEB_CONCURRENCY": "2"}, 4),
        (["app:app"], {"WEB_CONCURRENCY": "2"}, 2),
        (["app:app"], {"GUNICORN_CMD_ARGS": "--bind :80 --workers 5"}, 5),
        (["app:app"], {}, 1),
        (["-w", "3", "app:app"], {"SERVER_SOFTWARE": ""}, 1),
    ],
)
def test_gunicorn_s_worker_processes_are_known_from_how_it_was_called(
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    workers: int,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gunicorn", *arguments])
    for name, value in {"SERVER_SOFTWARE": "gunicorn/23.0.0", **environment}.items():
        monkeypatch.setenv(name, value)
    assert server_workers() == workers


async def test_the_hypercorn_command_serves_and_leaves_nothing_behind(
    run: Callable[..., Program], journal: Journal
) -> None:
    server = run("-m", "hypercorn", "--bind", "127.0.0.1:0", "orders:app")
    url = f"{await server.url()}/ws?journal={journal.path}"
    async with client(url) as websocket:
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "hello"})
        assert await received(websocket) == "hello"
        await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
        assert await closed(websocket) == (4321, "enough")
    async with client(url) as websocket:
        await say(websocket, "kill", "SIGKILL")
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
    assert (await refusal(url, origin="https://evil.example")).status_code == 403
    async with client(url):
        await journal.line("ws.join", 3)
    assert (await journal.line("ws.leave", 2))["payload"]["code"] == 1006
    assert await server.ends_alone(signal.SIGTERM, processes=2) == 0, server.output
    assert "Traceback" not in server.output


async def test_the_hypercorn_command_ends_also_if_the_application_has_no_lifespan(
    run: Callable[..., Program], journal: Journal
) -> None:
    server = run("-m", "hypercorn", "--bind", "127.0.0.1:0", "orders:without_lifespan")
    async with client(f"{await server.url()}/ws?journal={journal.path}") as websocket:
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "hello"})
        assert await received(websocket) == "hello"
    assert await server.ends_alone(signal.SIGTERM, processes=2) == 0, server.output


async def test_how_a_client_went_is_no_error_where_the_server_does_not_know(node: Node) -> None:
    """Hypercorn reports 1006 for every client: a process linked to one must not die of it."""

    def watch() -> list[Any]:
        process.set_options(trap_links=True)
        client_pid = process.inbox().receive(timeout=20).sender
        process.link(client_pid)
        process.monitor(client_pid)
        process.send(client_pid, "ws.send", {"type": "text", "data": "watched"})
        event = process.events().receive(timeout=20)
        assert event.result is not None
        return [event.kind, event.result.value, event.result.error]

    results: list[Any] = []
    pid = node.spawn(watch)
    node.when_ended(pid, lambda result: results.append(result.value))
    async with hypercorn_serving(WebSocketRelay(relay_to(pid), node=node)) as url:
        async with client(url) as websocket:
            assert await received(websocket) == "watched"
        await until(lambda: results, "the process has ended")
    assert results == [["EXIT", {"code": 1006, "reason": ""}, None]]
