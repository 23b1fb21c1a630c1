"""Everything about one process, as the node tells it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import looked_at
import pytest
from controlled import wsrelay
from ending import ends_when_told
from looked_at import silent
from one_node import left_as_found
from support import client, relay_to, serving, until

from wsrelay import PID, Node, WebSocketRelay
from wsrelay.control import ControlClient, ControlSocket, find_nodes

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


async def busy_one(node: Node) -> tuple[PID, PID, PID]:
    """A process that waits for an answer, whom it has called, and whom it watches."""
    callee, watched = node.spawn(silent), node.spawn(silent)
    pid = node.spawn(f"{looked_at.__file__}:busy", None, callee, watched)
    await until(lambda: callee in node.calls.waiting, "it has called")
    return pid, callee, watched


async def test_all_that_a_process_has_is_told(controlled: Node, asked: ControlClient) -> None:
    pid, callee, watched = await busy_one(controlled)
    async with serving(WebSocketRelay(relay_to(pid), node=controlled)) as url, client(url):
        [connection] = controlled.connections
        told = await asyncio.to_thread(asked.process, "busy")
        other = await asyncio.to_thread(asked.process, str(callee))
        watched_one = await asyncio.to_thread(asked.process, str(watched))
    assert (told.process.pid, told.process.state) == (pid, "running")
    assert (told.names.count, told.names.first) == (2, ["busy", "busy too"])
    assert told.groups.first == ["crowd"]
    assert [one.pid for one in told.clients] == [connection]
    [child] = told.children.first
    assert controlled.engine.processes[child].parent == pid  # type: ignore[index]
    assert told.links.first == told.monitors.first == [watched]
    assert watched_one.links.first == watched_one.monitored_by.first == [pid]
    assert told.timers.count == 2
    assert told.timers.next_due is not None
    assert 60 < told.timers.next_due <= 600, "that of the next one was cancelled"
    [call] = told.calls
    assert (call.caller, call.callee, call.topic) == (pid, callee, "anybody there?")
    assert other.called_by[0].caller == pid
    assert (told.requests, other.requests) == (1, 0)
    assert told.code.file == looked_at.__file__
    lines = Path(looked_at.__file__).read_text().splitlines()
    assert told.code.line is not None
    assert lines[told.code.line - 1].startswith("def busy(")
    assert told.options["end_when_empty"] == 120
    assert told.options["trap_links"] is True
    assert told.options["stop_timeout"] == 2.0
    assert told.limits == {}
    assert (told.host.name, told.host.processes) == ("processes", 4)
    assert told.mailbox.limit == controlled.hosts["processes"].mailbox
    assert told.mailbox.messages >= 2, "its client has joined"
    assert (told.mailbox.waiting, told.mailbox.mail) == (0, 0)


async def test_show_prints_it_for_people_and_whole_as_json(controlled: Node) -> None:
    pid, callee, _ = await busy_one(controlled)
    for number in range(12):
        controlled.join_group(f"group {number:02}\x1b", pid)
    shown = await wsrelay("show", "busy too")
    lines = {line[:14].strip(): line[14:] for line in shown.splitlines()}
    assert lines["pid"].startswith(f"{pid}, running, OS pid {controlled.workers[pid]}")
    assert lines["runs"].startswith(f"{looked_at.__file__}:busy ({looked_at.__file__}, line ")
    assert lines["calls"].startswith(f"{callee} anybody there?, for ")
    assert lines["timers"].startswith("2, the next one in ")
    assert "end_when_empty 120, trap_links True" in lines["options"]
    assert lines["groups"] == "crowd"
    assert r"group 00\x1b" in shown
    assert "and 3 more: see --json" in shown
    assert "\x1b" not in shown
    assert lines["uses"].startswith("CPU ")
    told = json.loads(await wsrelay("show", pid.id, "--json"))
    assert len(told["groups"]["first"]) == told["groups"]["count"] == 13
    assert told["process"]["pid"] == pid


async def test_who_is_no_living_process_is_said_in_one_line(controlled: Node) -> None:
    pid = controlled.spawn(ends_when_told)
    controlled.register("gone", pid)
    controlled.send(pid, "return")
    await until(lambda: pid not in controlled.workers)
    for command in ("show", "trace"):
        ended = f"wsrelay: {pid} has ended; `wsrelay ends {pid.id}` says how\n"
        assert await wsrelay(command, pid.id, code=1) == ended
        assert await wsrelay(command, "gone", code=1) == ended
        said = await wsrelay(command, "nobody", code=1)
        assert said == "wsrelay: node local has no process 'nobody'\n"
        said = await wsrelay(command, "{other@processes|1.2-3}", code=1)
        assert said == "wsrelay: this node is in no cluster, so there is no node 'other'\n"
    other = controlled.spawn(silent)
    async with serving(WebSocketRelay(relay_to(other), node=controlled)) as url, client(url):
        [connection] = controlled.connections
        said = await wsrelay("show", connection.id, code=1)
        assert said.startswith(f"wsrelay: {connection} is a connection, which is no process")


async def test_code_is_found_where_the_node_knows_of_it(
    controlled: Node, asked: ControlClient, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.py"
    gone.write_text(
        "import asyncio\n\nclass Other: ...\n\nasync def handler():\n"
        "    await asyncio.Event().wait()\n"
    )
    script = controlled.spawn(str(gone))
    module = controlled.spawn("looked_at:silent")
    by_value = controlled.spawn(silent)
    nowhere = controlled.spawn(functools.partial(lambda run: run(), silent))
    for pid in (script, module, by_value, nowhere):
        assert await controlled.started(pid) is None
    code = (await asyncio.to_thread(asked.process, script.id)).code
    assert (code.file, code.line) == (str(gone), 5)
    code = (await asyncio.to_thread(asked.process, module.id)).code
    assert (code.target, code.file) == ("looked_at:silent", looked_at.__file__)
    code = (await asyncio.to_thread(asked.process, by_value.id)).code
    assert (code.target, code.file) == ("looked_at:silent", looked_at.__file__)
    code = (await asyncio.to_thread(asked.process, nowhere.id)).code
    assert code.target.startswith(f"{__name__}:test_code_is_found_")
    assert code.target.endswith(".<locals>.<lambda>")
    assert (code.file, code.line) == (None, None)
    gone.unlink()
    code = (await asyncio.to_thread(asked.process, script.id)).code
    assert (code.target, code.file) == (f"{gone}:handler", None)
