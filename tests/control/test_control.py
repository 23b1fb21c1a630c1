"""The control socket, and the commands that ask and order through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import rooms
from controlled import typed, visited, wsrelay
from obeying import idle
from one_node import left_as_found
from starlette.requests import Request
from support import (
    client,
    closed,
    endpoint,
    processes,
    received,
    relay_to,
    room,
    serving,
    until,
)

from wsrelay import Node, RelayResponse, WebSocketRelay, process
from wsrelay.control import ControlError, ControlSocket, find_nodes
from wsrelay.control.records import Records

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
async def controlled(shared: Node, directory: Path) -> AsyncIterator[Node]:
    async with left_as_found(shared), ControlSocket(shared, directory):
        yield shared


# The socket


async def test_only_its_owner_can_open_the_socket(controlled: Node, directory: Path) -> None:
    [sock] = directory.iterdir()
    assert sock.name == f"{controlled.name}-{os.getpid()}.sock"
    assert stat.S_IMODE(sock.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_the_socket_goes_with_the_node(node: Node, directory: Path) -> None:
    async with ControlSocket(node, directory):
        assert len(find_nodes(directory)) == 1
    assert list(directory.iterdir()) == []


async def test_an_application_under_uvicorn_seems_to_start_and_end_once(
    shared: Node, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "uvicorn.error")
    async with left_as_found(shared), ControlSocket(shared, directory):
        assert "OS PID" in await wsrelay("ps")
    assert [one.getMessage() for one in caplog.records if one.name == "uvicorn.error"] == []


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
async def test_a_directory_that_others_may_open_is_refused(
    node: Node, directory: Path, mode: int
) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(ControlError, match=rf"others can open it \(mode {mode:04o}, not 0700\)"):
        async with ControlSocket(node, directory):
            pass


async def test_a_directory_of_somebody_else_or_a_link_is_refused(
    node: Node, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ControlError, match="it is not a directory"):
        async with ControlSocket(node, directory):
            pass
    directory.unlink()
    if os.getuid() == 0:
        directory.mkdir(mode=0o700)
        os.chown(directory, 12345, 12345)
        with pytest.raises(ControlError, match="it belongs to user 12345"):
            async with ControlSocket(node, directory):
                pass


async def test_sockets_in_a_directory_of_somebody_else_are_not_talked_to(
    directory: Path,
) -> None:
    """Another user could have put a socket there that plays a node."""
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trap:
        trap.bind(str(directory / "local-1.sock"))
        trap.listen()
        directory.chmod(0o777)
        said = await wsrelay("ps", code=1)
        assert "others can open it (mode 0777, not 0700)" in said
        if os.getuid() == 0:
            directory.chmod(0o700)
            os.chown(directory, 12345, 12345)
            assert "it belongs to user 12345" in await wsrelay("kill", "room", code=1)
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


async def test_a_path_too_long_for_a_socket_is_told(node: Node, tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="set WSRELAY_RUNTIME_DIR to a shorter path"):
        async with ControlSocket(node, tmp_path / ("x" * 120)):
            pass


async def test_an_unsafe_directory_keeps_no_node_from_starting(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    async with Node(hosts=[processes()]) as node:
        assert node.control_path is None
        assert await node.started(node.spawn(room(rooms.echo))) is None
    [record] = [one for one in caplog.records if "cannot find it" in one.message]
    assert "others can open it (mode 0755, not 0700)" in record.message
    assert record.levelname == "WARNING"


async def test_nodes_of_one_name_in_one_os_process_have_a_socket_each(directory: Path) -> None:
    async with Node() as one, Node() as two:
        assert sorted(path.name for path in directory.iterdir()) == [
            f"local-{os.getpid()}.sock",
            f"local.2-{os.getpid()}.sock",
        ]
        assert one.control_path != two.control_path
        assert json.loads(await wsrelay("tree", "--json", "--node", "local.2"))["name"] == "local"
    assert not [*directory.iterdir()]


async def test_a_node_may_have_no_control_socket(directory: Path) -> None:
    async with Node(control=False) as node:
        assert node.control_path is None
        assert "no running node" in await wsrelay("ps", code=1)
    assert not directory.exists()


async def test_a_node_that_starts_again_has_its_socket_again(directory: Path) -> None:
    node = Node()
    for _ in range(2):
        async with node:
            assert json.loads(await wsrelay("tree", "--json"))["os_pid"] == os.getpid()
        assert not [*directory.iterdir()]


async def test_what_a_dead_node_left_behind_is_removed(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    stale = directory / "local-1.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    assert find_nodes(directory) == []
    assert not stale.exists()


async def test_a_node_that_is_about_to_listen_is_not_taken_for_a_dead_one(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LookedFor(socket.socket):
        def listen(self, backlog: int) -> None:  # type: ignore[override]
            assert find_nodes(directory) == []
            super().listen(backlog)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", LookedFor)
        node = await Node().__aenter__()
    async with contextlib.aclosing(node):
        [found] = find_nodes(directory)
        assert (await asyncio.to_thread(found.node)).os_pid == os.getpid()


# Commands


async def test_ps_shows_every_process_with_what_it_uses(controlled: Node) -> None:
    async with visited(controlled) as (pid, _):
        await until(lambda: len(controlled.workers) == 2)
        shown = json.loads(await typed("ps", "--json"))
        [mine] = [row for row in shown if row["pid"] == pid]
        assert mine["os_pid"] == controlled.workers[pid]  # type: ignore[index]
        assert (mine["state"], mine["connections"], mine["parent"]) == ("running", 1, None)
        assert mine["memory"] > 1_000_000
        assert mine["cpu_percent"] >= 0
        [child] = [row for row in shown if row["parent"] == pid]
        assert child["connections"] == 0
        table = await wsrelay("ps")
        assert pid in table
        assert "MAILBOX" in table


async def test_names_are_shown_as_they_are_and_harm_no_terminal(controlled: Node) -> None:
    controlled.register("room:[/red][bold]", pid := controlled.spawn(idle))
    controlled.register("room:\x1b]0;title\n", pid)
    for command in ("ps", "tree", "top"):
        shown = await wsrelay(command)
        assert "room:[/red][bold]" in shown
        assert r"room:\x1b]0;title\n" in shown
        assert "\x1b" not in shown


async def test_tree_and_connections_show_who_belongs_to_whom(controlled: Node) -> None:
    async with visited(controlled) as (pid, _):
        await until(lambda: "obedient" in controlled.kernel.names.of(pid))  # type: ignore[arg-type]
        [connection] = controlled.connections
        lines = (await typed("tree")).splitlines()
        assert lines[0].startswith("node local (OS pid ")
        assert "processes: 2 of 256" in lines[1]
        [parent] = [i for i, line in enumerate(lines) if pid in line]
        assert "obedient" in lines[parent]
        below = "\n".join(lines[parent + 1 :])
        assert str(connection) in below
        [shown] = json.loads(await wsrelay("connections", "--json"))
        assert (shown["pid"], shown["target"]) == (connection, pid)
        assert shown["outbox"] == 0
        assert str(connection) in await typed("connections")


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_connections_and_tree_say_who(controlled: Node, front_end: str) -> None:
    cases: list[tuple[Any, str | None]] = [
        ({"user": "Ada", "name": "nobody"}, "Ada"),
        ({"user": {"id": 7, "name": "Ada"}}, "Ada"),
        ({"user": {"id": 7}}, "7"),
        ({"name": "Ada"}, "Ada"),
        ({"user": ["Ada"]}, None),
        (None, None),
    ]
    pid = controlled.spawn(idle)

    def answer(request: Request) -> RelayResponse:
        metadata, _ = cases[int(request.query_params["case"])]
        return RelayResponse(pid, metadata=metadata, headers={"sec-websocket-protocol": "chat.v2"})

    relay = WebSocketRelay(endpoint(answer), node=controlled)
    chat: Any = {"subprotocols": ["chat.v2"]}
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(relay, front_end))
        users = {}
        for number, (_, user) in enumerate(cases):
            one = client(f"{url}/rooms/a%20b?token=secret&case={number}", **chat)
            websocket = await stack.enter_async_context(one)
            users[websocket.local_address] = user
        await until(lambda: len(controlled.connections) == len(cases))
        shown = json.loads(await wsrelay("connections", "--json"))
        assert {tuple(one["client"]): one["user"] for one in shown} == users
        assert [(one["path"], one["subprotocol"]) for one in shown] == [
            ("/rooms/a b", "chat.v2")
        ] * len(cases)
        tree, table = await wsrelay("tree"), await wsrelay("connections")
        for (host, port), user in users.items():
            said = f"user {user} " if user else ""
            who = f"{host}:{port} /rooms/a b {said}subprotocol chat.v2, 0 messages"
            assert who in tree
            [row] = [line for line in table.splitlines() if f"{host}:{port}" in line]
            for text in ("/rooms/a b", "chat.v2", user or "-"):
                assert text in row
        assert "secret" not in table


async def test_send_reaches_a_handler_by_pid_id_and_name(controlled: Node) -> None:
    async with visited(controlled) as (pid, one):
        [connection] = controlled.connections
        payload = json.dumps({"to": connection, "text": "hello"})
        short = pid.rpartition("|")[2].rstrip("}")
        for to in (pid, pid.strip("{}"), short):
            await wsrelay("send", to, "say", payload)
            assert await received(one) == "told"
        await typed("send", "obedient", "say", payload)
        assert await received(one) == "told"


async def test_call_prints_the_answer_as_json_or_says_why_there_is_none(
    controlled: Node, directory: Path
) -> None:
    pid = controlled.spawn(answer)
    controlled.register("room", pid)
    sums = json.dumps({"of": [1, 2]})
    assert await wsrelay("call", "room", "echo", sums, "--timeout", "1m") == '{"of":[1,2]}\n'
    said = await wsrelay("call", "room", "never", "--timeout", "50ms", code=1)
    assert said == "wsrelay: room did not answer 'never' within 0.05 s\n"
    said = await wsrelay("call", "room", "echo", "1", "--timeout", "9999999h", code=2)
    assert "'9999999h' is too long" in said
    said = await wsrelay("call", "room", "echo", str(2**64), code=1)
    assert said == f"wsrelay: payload: {2**64} does not fit into 64 bits\n"
    said = await wsrelay("call", "room", "echo", "no JSON", code=1)
    assert "'no JSON' is not JSON" in said
    [client_] = find_nodes(directory)

    async def call(to: str, topic: str) -> Any:
        return await asyncio.to_thread(client_.call, to, topic, None, 60)

    assert await call(pid.rpartition("|")[2], "bytes") == "AP8="
    for topic, why in (
        ("refuse", "room refuses: not now"),
        ("no JSON", "the answer of room is no JSON: "),
        ("@x", "topic '@x' is refused"),
        ("return", "room does not answer: no reply: it returned without an answer"),
        ("anything", "node local has no process 'room'"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(why)}"):
            await call("room", topic)
    pid = controlled.spawn(answer)
    with pytest.raises(ValueError, match=r"^\S+ does not answer: ZeroDivisionError: on purpose$"):
        await call(str(pid), "crash")


def answer() -> None:
    for message in process.inbox():
        match message.topic:
            case "echo":
                message.reply(message.payload)
            case "bytes":
                message.reply(b"\0\xff")
            case "refuse":
                message.refuse("not now")
            case "no JSON":
                message.reply({(1, 2): 3})
            case "crash":
                raise ZeroDivisionError("on purpose")
            case "return":
                return


async def test_kill_is_a_close_frame_and_cancel_an_orderly_end(controlled: Node) -> None:
    async with visited(controlled) as (pid, one):
        await typed("kill", pid)
        assert await closed(one) == (1011, "target process killed (SIGKILL)")
    async with visited(controlled) as (pid, one):
        [connection] = controlled.connections
        await typed("cancel", connection, "--reason", "go home")
        assert await closed(one) == (1000, "go home")
        await wsrelay("cancel", pid)
        await until(lambda: pid not in controlled.workers)


async def test_the_clients_of_a_room_that_an_operator_cancels_are_told_to_come_again(
    controlled: Node,
) -> None:
    for to in ("pid", "name"):
        async with visited(controlled) as (pid, one):
            await wsrelay("cancel", pid if to == "pid" else "obedient")
            assert await closed(one) == (1012, "target process restarts")
    async with visited(controlled) as (pid, one):
        controlled.cancel(pid)  # another process does it: its end is the room's own
        assert await closed(one) == (1000, "target process exited")


def stubborn() -> None:
    threading.Event().wait()


def clumsy() -> None:
    for _ in process.inbox():
        pass
    raise ValueError("at the end")


def unread() -> None:
    process.events().receive()


@pytest.mark.parametrize(
    ("handler", "code", "reason"),
    [
        (stubborn, 1012, "target process restarts"),  # killed at its stop timeout
        (clumsy, 1011, "target process crashed"),
        (unread, 1012, "target process restarts"),
    ],
)
@pytest.mark.usefixtures("directory")
async def test_how_else_a_room_that_an_operator_cancels_may_end(
    handler: Callable[[], None], code: int, reason: str
) -> None:
    hosts = [processes(stop_timeout=0.2)]
    async with Node(hosts=hosts) as node:
        pid = node.spawn(handler)
        async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
            await until(lambda: node.connections)
            await wsrelay("cancel", pid)
            assert await closed(one) == (code, reason)


async def test_logs_are_those_of_the_process_and_follow_it(controlled: Node) -> None:
    async with visited(controlled) as (pid, one):
        [connection] = controlled.connections
        controlled.send(pid, "say", {"to": connection, "text": "first"})
        await received(one)
        assert "saying first" in await typed("logs", pid)
        other = next(worker for worker in controlled.workers if worker != pid)
        assert await wsrelay("logs", other) == ""
        for text in (pid.strip("{}"), pid.rpartition("|")[2].rstrip("}"), "obedient"):
            assert "saying first" in await wsrelay("logs", text)
        follower = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "wsrelay", "logs", "-f", pid, "--json", stdout=subprocess.PIPE
        )
        assert follower.stdout is not None
        line = json.loads(await follower.stdout.readline())
        assert (line["pid"], line["level"]) == (pid, "warning")
        controlled.send(pid, "say", {"to": connection, "text": "second"})
        assert b"saying second" in await follower.stdout.readline()
        follower.terminate()
        await follower.wait()


def doomed(name: str) -> None:
    process.registry.register(name)
    raise ValueError(name)


async def test_logs_of_a_process_that_has_ended_are_found_by_name_and_pid(
    controlled: Node,
) -> None:
    one, two = controlled.spawn(doomed, None, "room"), controlled.spawn(doomed, None, "other")
    await until(lambda: not controlled.workers)
    for text in (one, one.rpartition("|")[2].rstrip("}"), "room"):
        shown = await wsrelay("logs", text)
        assert f"{one} room crashed: ValueError: room" in shown
        assert two not in shown


async def test_logs_of_a_name_are_those_of_all_that_had_it(controlled: Node) -> None:
    for number in (1, 2):
        pid = controlled.spawn(doomed, None, "service")
        await until(lambda: not controlled.workers)
        shown = await wsrelay("logs", "service")
        assert shown.count("ValueError: service") == 2 * number  # the line and the traceback
        assert pid in shown


async def test_ps_tells_what_clients_have_begun(
    controlled: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "begun" not in await wsrelay("ps")
    monkeypatch.setattr(controlled.buffered, "size", 3_000_000)
    assert "clients have begun 2.9MB of at most 256.0MB" in await wsrelay("ps")


@pytest.mark.usefixtures("controlled")
async def test_logs_of_nobody_is_one_clear_line_and_no_success() -> None:
    for text in ("nobody", "{local@processes|x.1-1}", "x.1-1", ""):
        assert await wsrelay("logs", text, code=1) == (
            f"wsrelay: node local has no process {text!r}, and no log records of one\n"
        )
    assert "is not a PID" in await wsrelay("logs", "{nonsense", code=1)


async def test_a_slow_reader_of_the_log_is_told_what_it_lost() -> None:
    records = Records("|", "local")
    reading = records.read(None, follow=True)
    for number in range(3):
        records.emit(logging.LogRecord("x", logging.INFO, "", 0, f"{number}", None, None))
    await asyncio.sleep(0)
    assert (await anext(reading)).text == "0"
    for number in range(3, 2003):
        records.emit(logging.LogRecord("x", logging.INFO, "", 0, f"{number}", None, None))
    await asyncio.sleep(0)
    assert [(await anext(reading)).text for _ in range(2)] == ["1", "2"]
    assert (await anext(reading)).text.startswith("1000 records were lost")
    assert (await anext(reading)).text == "1003"


async def test_a_wrong_order_is_one_clear_line(controlled: Node) -> None:
    nobody = "{local@processes|x.1-1}"
    expected = f"wsrelay: node local has no process '{nobody}'\n"
    assert await wsrelay("kill", nobody, code=1) == expected
    assert "is not JSON" in await wsrelay("send", nobody, "topic", "{", code=1)
    assert "is not a PID" in await wsrelay("kill", "{nonsense", code=1)
    pid = controlled.spawn(room(rooms.echo))
    assert "@" in await wsrelay("send", pid, "@reserved", code=1)


async def test_stack_prints_where_a_process_is_or_why_it_does_not(controlled: Node) -> None:
    async with visited(controlled) as (pid, _):
        [client_pid] = controlled.connections
        for named in (pid, pid.rpartition("|")[2].rstrip("}"), "obedient"):
            said = await wsrelay("stack", named)
            assert said.startswith(f"{pid} obedient obeying:obedient, OS pid ")
            assert "\nMain thread (most recent call first):\n" in said
            assert " in obedient\n" in said
        refused = await wsrelay("stack", client_pid, code=1)
        assert "is a client's connection, which its node runs: it has no stack" in refused
    nobody = "{local@processes|x.1-1}"
    expected = f"wsrelay: node local has no process '{nobody}'\n"
    assert await wsrelay("stack", nobody, code=1) == expected
    assert await wsrelay("stack", "nobody", code=1) == expected.replace(nobody, "nobody")


async def test_ps_shows_who_took_a_message_when_and_what_waits(controlled: Node) -> None:
    async with visited(controlled) as (pid, _):
        lines = (await wsrelay("ps")).splitlines()
        [line] = [line for line in lines if pid in line]
        assert re.search(r" \d+\.\ds +1 +0 +obedient ", line), line
        [told] = [one for one in json.loads(await wsrelay("ps", "--json")) if one["pid"] == pid]
        assert (told["waiting"], told["stalled"]) == (0, False)
        assert told["idle"] >= 0


async def test_without_a_node_commands_say_how_to_start_one(directory: Path) -> None:
    said = await typed("ps", code=1)
    assert said == (
        f"wsrelay: this user has no running node (looked in {directory}); "
        "start one with 'wsrelay run TARGET' or 'wsrelay serve'\n"
    )


async def test_with_several_nodes_one_has_to_be_chosen(controlled: Node) -> None:
    async with Node(name="other", hosts=[processes()]) as other:
        assert "2 nodes are running; choose one with --node" in await wsrelay("ps", code=1)
        pid = other.spawn(room(rooms.echo))
        [shown] = json.loads(await wsrelay("ps", "--json", "--node", "other"))
        assert shown["pid"] == pid
        assert json.loads(await wsrelay("ps", "--json", "--node", controlled.name)) == []


@pytest.mark.usefixtures("directory")
async def test_which_nodes_there_are_is_said_where_one_has_to_be_chosen() -> None:
    async with contextlib.AsyncExitStack() as stack:
        for name, port in (("one", 8001), ("two", 8002)):
            node = await stack.enter_async_context(Node(name=name, hosts=[processes()]))
            node.application, node.addresses = f"{name}.yaml", [f"http://127.0.0.1:{port}"].copy
        said, headings, *rows = (await wsrelay("ps", code=1)).splitlines()
        example = f"'wsrelay ps --node {os.getpid()}'"
        assert said == f"wsrelay: 2 nodes are running; choose one with --node, as in {example}"
        assert headings.split() == ["OS", "PID", "NAME", "STARTED", "ADDRESS", "APPLICATION"]
        assert [row.split()[:2] + row.split()[6:] for row in rows] == [
            [str(os.getpid()), name, f"http://127.0.0.1:{port}", f"{name}.yaml"]
            for name, port in (("one", 8001), ("two", 8002))
        ]
        assert json.loads(await wsrelay("tree", "--json", "--node", ":8002"))["name"] == "two"
        wrong = await wsrelay("ps", "--node", ":8003", code=1)
        assert wrong.startswith("wsrelay: no node ':8003' is running; the running nodes are:\n")
        assert "one.yaml" in wrong


async def test_a_node_that_does_not_answer_keeps_nobody_from_choosing(
    controlled: Node, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.cli.nodes._PATIENCE", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / "hung-1.sock"))
        silent.listen()
        assert "(it does not answer)" in await wsrelay("ps", code=1)
        assert json.loads(await wsrelay("ps", "--json", "--node", controlled.name)) == []
