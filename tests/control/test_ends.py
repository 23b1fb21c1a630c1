"""How processes and connections have ended, as the node tells it afterwards."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from controlled import wsrelay
from ending import closes, ends_when_told, idles
from one_node import left_as_found
from support import client, closed, drop_all, not_reading, processes, relay_to, serving, until

from wsrelay import PID, Node, WebSocketRelay
from wsrelay.control import ControlClient, ControlSocket, find_nodes
from wsrelay.node import ends as kept
from wsrelay.node.info import ConnectionEndInfo, EndInfo

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
async def controlled(shared: Node, directory: Path) -> AsyncIterator[Node]:
    async with left_as_found(shared), ControlSocket(shared, directory):
        yield shared


@pytest.fixture
def asked(controlled: Node, directory: Path) -> ControlClient:
    assert controlled.running
    [found] = find_nodes(directory)
    return found


async def end_of(node: Node, pid: PID | str) -> EndInfo:
    """How a process has ended, once it has."""

    def found() -> EndInfo | None:
        return next((one for one in node.engine.ends.processes() if one.pid == pid), None)

    end: EndInfo = await until(found, f"{pid} has ended")
    return end


# Processes


async def test_who_returns_raises_or_exits_is_told_with_its_traceback(controlled: Node) -> None:
    before = time.time()
    pids = [controlled.spawn(ends_when_told) for _ in range(3)]
    controlled.register("crasher", pids[1])
    os_pids = dict(zip(pids, [await _os_pid(controlled, pid) for pid in pids], strict=True))
    for pid, topic, payload in zip(
        pids, ("return", "raise", "exit"), (None, "x" * 5_000, 3), strict=True
    ):
        controlled.send(pid, topic, payload)
    returned, raised, exited = [await end_of(controlled, pid) for pid in pids]
    assert (returned.kind, returned.how, returned.by) == ("returned", "returned", None)
    assert (returned.message, returned.traceback, returned.clients) == ("", None, 0)
    assert (returned.host, returned.os_pid) == ("processes", os_pids[pids[0]])
    assert before <= returned.started <= returned.ended <= time.time()
    assert (raised.kind, raised.how, raised.names) == ("error", "raised", ["crasher"])
    assert raised.message.startswith("ZeroDivisionError: xxx")
    assert len(raised.message) < 1_100
    assert raised.traceback is not None
    assert 10_000 < len(raised.traceback) < 17_000, "its middle is left out"
    assert raised.traceback.startswith("Traceback (most recent call last):\n")
    assert raised.traceback.rstrip().endswith("xxx")
    assert (exited.kind, exited.how) == ("exit", "exited")
    assert exited.message == "exit code 3"


async def _os_pid(node: Node, pid: PID) -> int | None:
    assert await node.started(pid) is None
    return node.workers[pid]


async def test_who_was_asked_to_end_is_told_by_whom(controlled: Node, asked: ControlClient) -> None:
    names = ("by the shell", "killed", "by a process", "by the node")
    pids = [controlled.spawn(ends_when_told) for _ in names]
    for name, pid in zip(names, pids, strict=True):
        controlled.register(name, pid)
        assert await controlled.started(pid) is None
    await asyncio.to_thread(asked.cancel, "by the shell", "go home")
    await asyncio.to_thread(asked.kill, "killed")
    other = controlled.spawn(ends_when_told)
    controlled.send(other, "cancel", pids[2])
    controlled.cancel(pids[3], "enough")
    for pid in pids:
        await end_of(controlled, pid)
    told = {one.pid: one for one in await asyncio.to_thread(asked.ends)}
    shell, killed, process, node = [told[pid] for pid in pids]
    assert (shell.how, shell.by, shell.reason) == ("cancelled", "shell", "go home")
    assert shell.names == ["by the shell"], "a cancelled process has lost its names by then"
    assert (killed.how, killed.by, killed.kind) == ("terminated", "shell", "terminated")
    assert (process.how, process.by, process.reason) == ("cancelled", other, "make room")
    assert (node.how, node.by, node.reason) == ("cancelled", controlled.pid(), "enough")


async def test_the_first_who_asked_counts_and_a_kill_more_than_a_cancel(controlled: Node) -> None:
    pid = controlled.spawn(obstinate)
    assert await controlled.started(pid) is None
    controlled.cancel(pid, "first", by="shell")
    controlled.cancel(pid, "second", by="console")
    controlled.terminate(pid, by="console")
    controlled.terminate(pid, by="shell")
    end = await end_of(controlled, pid)
    assert (end.how, end.by, end.kind) == ("terminated", "console", "terminated")


def obstinate() -> None:
    while True:
        time.sleep(0.1)


async def test_signals_limits_links_and_callers_that_end_are_told(controlled: Node) -> None:
    signal, flood, link, caller = (controlled.spawn(ends_when_told) for _ in range(4))
    controlled.send(signal, "signal")
    controlled.send(flood, "flood")
    controlled.send(link, "link")
    controlled.send(caller, "exec")
    children = [await _child(controlled, pid) for pid in (link, caller)]
    controlled.send(children[0], "raise", "on purpose")
    controlled.terminate(caller)
    end = await end_of(controlled, signal)
    assert (end.how, end.kind, end.message, end.by) == ("signal", "killed", "SIGKILL", None)
    end = await end_of(controlled, flood)
    assert (end.how, end.kind, end.by) == ("limit", "limit", None)
    end = await end_of(controlled, link)
    assert (end.how, end.kind) == ("link", "link_down")
    assert children[0] in end.message
    end = await end_of(controlled, children[1])
    assert (end.how, end.by, end.parent) == ("parent", caller, caller)


async def _child(node: Node, parent: PID) -> PID:
    def found() -> PID | None:
        processes = node.engine.processes.values()
        return next((one.pid for one in processes if one.parent == parent), None)

    child: PID = await until(found, "it has a child")
    return child


async def test_a_room_that_was_empty_and_what_a_node_ends_that_shuts_down_are_told() -> None:
    async with Node(hosts=[processes()]) as node:
        ends = node.engine.ends
        empty, stays = node.spawn(idles), node.spawn(idles)
        assert await node.started(empty) is None
        node.engine.processes[empty].set_end_when_empty(0.0)
        await end_of(node, empty)
        async with serving(WebSocketRelay(relay_to(stays), node=node)) as url, client(url) as one:
            node.drain()
            assert await closed(one) == (1012, "node shuts down")
            await until(lambda: not node.connections)
    told = {one.pid: (one.how, one.by, one.kind) for one in ends.processes()}
    assert told == {empty: ("empty", None, "returned"), stays: ("shutdown", None, "returned")}
    [end] = ends.connections()
    assert (end.how, end.code, end.by) == ("shutdown", 1012, None)


async def test_one_that_never_started_is_told(controlled: Node) -> None:
    pid = controlled.spawn("no_such_module:function")
    end = await end_of(controlled, pid)
    assert (end.how, end.kind) == ("start_failed", "start_failed")
    assert "no_such_module" in end.message


# What is kept


async def test_only_the_last_ones_are_kept_within_bounds(
    controlled: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = controlled.engine.ends
    for process in [controlled.spawn(ends_when_told) for _ in range(3)]:
        controlled.send(process, "raise", "one")
        await end_of(controlled, process)
    *_, before, last = ends.processes()
    assert last.number == before.number + 1
    assert [one.number for one in ends.processes(before.number)] == [last.number]
    monkeypatch.setattr(kept, "MOST_ENDS", 2)
    pid = controlled.spawn(ends_when_told)
    controlled.send(pid, "return")
    end = await end_of(controlled, pid)
    assert [one.number for one in ends.processes()] == [last.number, end.number]
    monkeypatch.setattr(kept, "_MOST_TEXT", 2_000)
    pid = controlled.spawn(ends_when_told)
    controlled.send(pid, "raise", "more text than fits")
    await until(lambda: pid not in controlled.workers)
    assert list(ends.processes()) == []


# Connections


async def test_a_client_that_goes_and_one_that_is_closed_are_told(
    controlled: Node, asked: ControlClient
) -> None:
    pid = controlled.spawn(closes, None, 4000, "you asked")
    controlled.register("closer", pid)
    relay = WebSocketRelay(relay_to(pid, metadata={"user": "Ada"}), node=controlled)
    async with serving(relay, ws_max_size=100_000) as url:

        async def ended(act: Callable[[Any, PID], Any]) -> ConnectionEndInfo:
            async with client(f"{url}/rooms/blue") as one:
                [connection] = controlled.connections
                local = one.local_address
                if (waits := act(one, connection)) is not None:
                    await waits
                await until(lambda: connection not in controlled.connections)
            [end] = await asyncio.to_thread(asked.connection_ends, limit=1)
            assert end.connection.client == tuple(local)
            assert (end.connection.path, end.connection.user) == ("/rooms/blue", "Ada")
            assert (end.connection.target, end.names) == (pid, ["closer"])
            return end

        end = await ended(lambda one, _: one.close(3001, "bye"))
        assert (end.how, end.code, end.reason, end.by) == ("client", 3001, "bye", None)
        end = await ended(lambda one, _: one.transport.abort())
        assert (end.how, end.code) == ("client", 1006)
        end = await ended(lambda one, _: one.send("close me"))
        assert (end.how, end.by, end.code, end.reason) == ("closed", pid, 4000, "you asked")
        assert end.connection.messages == 1
        end = await ended(lambda _, connection: controlled.send(connection, "ws.close"))
        assert (end.how, end.by, end.code) == ("closed", controlled.pid(), 1000)
        end = await ended(lambda _, it: asyncio.to_thread(asked.close, str(it), 4999, "kicked"))
        assert (end.how, end.by, end.code, end.reason) == ("closed", "shell", 4999, "kicked")
        end = await ended(lambda _, it: asyncio.to_thread(asked.cancel, str(it), "go"))
        assert (end.how, end.by, end.code, end.reason) == ("closed", "shell", 1000, "go")
        end = await ended(lambda _, it: asyncio.to_thread(asked.kill, str(it)))
        assert (end.how, end.by, end.code) == ("killed", "shell", 1006)
        end = await ended(lambda one, _: one.send("x" * 100_001))
        assert (end.how, end.code) == ("relay", 1009)
        end = await ended(lambda one, _: one.send("return"))
        assert (end.how, end.by, end.code) == ("target", None, 1000)
        assert end.reason == "target process exited"
        assert [one.clients for one in controlled.engine.ends.processes() if one.pid == pid] == [1]


async def test_what_the_relay_closes_by_itself_is_told_as_its_doing(controlled: Node) -> None:
    pid = controlled.spawn(idles)
    relay = WebSocketRelay(relay_to(pid), node=controlled, outbox_limit=10_000, linger=0.01)
    ends = controlled.engine.ends
    async with serving(relay) as url, client(url) as slow:
        [connection] = controlled.connections
        not_reading(slow)

        def is_gone() -> bool:
            controlled.send(connection, "ws.send", {"type": "text", "data": "x" * 500_000})
            return connection not in controlled.connections

        await until(is_gone)
        *_, end = ends.connections()
        assert (end.how, end.code, end.reason) == ("relay", 1013, "slow client")
        slow.transport.abort()
    silent: Any = {"ws_ping_interval": 0.01, "ws_ping_timeout": 0.01}
    async with serving(relay, **silent) as url, client(url) as gone:
        [connection] = controlled.connections
        drop_all(gone.transport.get_extra_info("socket"))
        await until(lambda: connection not in controlled.connections)
        *_, end = ends.connections()
        assert (end.how, end.code, end.reason) == ("relay", 1011, "keepalive ping timeout")
        gone.transport.abort()


async def test_an_upgrade_that_did_not_come_about_is_told(controlled: Node) -> None:
    pid = controlled.spawn(idles)
    app = WebSocketRelay(relay_to(pid), node=controlled)
    headers = [(b"host", b"localhost"), (b"sec-websocket-version", b"13")]
    scope = {
        "type": "websocket",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": headers,
        "subprotocols": [],
        "scheme": "ws",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("localhost", 80),
        "asgi": {"version": "3.0"},
    }
    events = asyncio.Queue[dict[str, Any]]()
    events.put_nowait({"type": "websocket.connect"})

    async def send(_: Any) -> None:
        raise OSError

    await app(scope, events.get, send)
    *_, end = controlled.engine.ends.connections()
    assert (end.how, end.code, end.connection.target) == ("refused", 1006, pid)
    assert end.connection.uptime == 0


# What is asked of the control socket


async def test_ends_are_asked_by_number_name_and_pid(
    controlled: Node, asked: ControlClient
) -> None:
    pids = [controlled.spawn(ends_when_told) for _ in range(4)]
    for pid in pids[:2]:
        controlled.register("twice", pid)
        controlled.send(pid, "return")
        await end_of(controlled, pid)
    first, second = await asyncio.to_thread(asked.ends, "twice")
    assert (first.pid, second.pid) == (pids[0], pids[1])
    for pid in pids[2:]:
        controlled.send(pid, "return")
        await end_of(controlled, pid)
    later = await asyncio.to_thread(asked.ends, after=second.number)
    assert [one.pid for one in later] == pids[2:]
    assert len(await asyncio.to_thread(asked.ends, after=second.number, limit=1)) == 1
    [last] = await asyncio.to_thread(asked.ends, limit=1)
    assert last.pid == pids[3]
    assert await asyncio.to_thread(asked.ends, pids[3].rpartition("|")[2][:-1]) == [last]
    assert await asyncio.to_thread(asked.ends, "nobody") == []


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/ends?kind=host", "kind is 'host' and must be process or connection"),
        ("/ends?limit=0", "limit is '0' and must be a number from 1 to 1000"),
        ("/ends?after=-1", "after is '-1' and must be a number from 0 to"),
        ("/trace?of=nobody&seconds=1", "node local has no process 'nobody'"),
        ("/trace?of=ends&seconds=nan", "seconds is 'nan' and must be a number from 0 to 86400"),
        ("/trace?of=ends&count=1e9", "count is '1e9' and must be a number from 1 to 1000000"),
        ("/process", "of is missing: say which process by its PID or name"),
        ("/process?of=nobody", "node local has no process 'nobody'"),
    ],
)
async def test_wrong_questions_are_answered_with_what_is_right(
    controlled: Node, asked: ControlClient, path: str, why: str
) -> None:
    controlled.spawn_as("ends", idles)

    def ask() -> None:
        with asked._asked("GET", path):
            raise AssertionError(f"{path} was answered")

    with pytest.raises(ValueError, match=f"^{re.escape(why)}"):
        await asyncio.to_thread(ask)


async def test_only_clients_are_closed_and_only_with_codes_that_may_be_sent(
    controlled: Node, asked: ControlClient
) -> None:
    pid = controlled.spawn(idles)
    async with serving(WebSocketRelay(relay_to(pid), node=controlled)) as url, client(url):
        [connection] = controlled.connections
        for to, code, why in (
            (pid, 1000, f"{pid} is a process and no connection"),
            (connection, 1006, "code 1006 may not be sent; RFC 6455 allows 1000-1003"),
            ("nobody", 1000, "node local has no process 'nobody'"),
        ):
            with pytest.raises(ValueError, match=f"^{re.escape(why)}"):
                await asyncio.to_thread(asked.close, str(to), code)
        assert connection in controlled.connections


# Commands


async def test_ends_prints_who_ended_how_and_the_traceback_of_one(controlled: Node) -> None:
    pid, other = (controlled.spawn(ends_when_told) for _ in range(2))
    controlled.register("\x1b[31mcrasher", pid)
    controlled.send(pid, "raise", "on purpose\nERROR forged")
    controlled.cancel(other, "enough", by="console")
    end = await end_of(controlled, pid)
    await end_of(controlled, other)
    lines = (await wsrelay("ends")).splitlines()
    [shown] = [line for line in lines if pid.id in line]
    assert r"\x1b[31mcrasher" in shown
    assert r"raised: ZeroDivisionError: on purpose" in shown
    assert f" {end.os_pid} " in shown
    [shown] = [line for line in lines if other.id in line]
    assert shown.endswith("cancelled by console (enough)")
    assert "Traceback" not in "".join(lines)
    told = await wsrelay("ends", pid.id)
    assert other.id not in told
    assert "\n    Traceback (most recent call last):\n" in told
    assert "\nERROR" not in told
    rows = [json.loads(line) for line in (await wsrelay("ends", "--json", str(pid))).splitlines()]
    assert [(row["pid"], row["how"]) for row in rows] == [(pid, "raised")]
    nobody = "wsrelay: node local remembers no process 'nobody' that has ended\n"
    assert await wsrelay("ends", "nobody", code=1) == nobody
    assert await wsrelay("ends", "nobody", "--json", code=1) == nobody


async def test_ends_of_connections_say_who_closed_them(controlled: Node) -> None:
    pid = controlled.spawn(closes, None, 4000, "you asked")
    async with serving(WebSocketRelay(relay_to(pid), node=controlled)) as url:
        pids: list[PID] = []
        for number in range(2):
            async with client(f"{url}/rooms/{number}") as one:
                pids += controlled.connections
                if number:
                    await wsrelay("close", pids[1].id, "--code", "4001", "--reason", "out")
                    assert await closed(one) == (4001, "out")
                else:
                    await one.close(3000, "bye")
                await until(lambda: not controlled.connections)
    first, second = (await wsrelay("ends", "--connections", pid.id)).splitlines()[1:]
    assert pids[0].id in first
    assert first.endswith("client: 3000 bye")
    assert second.endswith("closed by shell: 4001 out")
    [one_row] = (await wsrelay("ends", "--connections", "--json", pids[1].id)).splitlines()
    assert json.loads(one_row)["connection"]["path"] == "/rooms/1"
    said = await wsrelay("close", pid.id, code=1)
    assert "is a process and no connection" in said


async def test_ends_can_be_followed(controlled: Node) -> None:
    """What ends while somebody looks is printed as it ends."""
    following = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wsrelay", "ends", "--follow", "--json"),
        stdout=subprocess.PIPE,
    )
    assert following.stdout is not None
    for _ in range(2):
        pid = controlled.spawn(ends_when_told)
        controlled.send(pid, "return")
        async with asyncio.timeout(60):
            while json.loads(await following.stdout.readline())["pid"] != pid:
                pass
    following.terminate()
    await following.wait()
