"""Everything about one process, as the node tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import looked_at
import pytest
from looked_at import silent
from one_node import left_as_found
from support import client, relay_to, serving, until

from wsrelay import PID, Node, WebSocketRelay
from wsrelay.control import ControlClient, ControlServer, find_nodes

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
async def controlled(shared: Node, directory: Path) -> AsyncIterator[Node]:
    async with left_as_found(shared), ControlServer(shared, directory):
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
    assert 0 < told.timers.next_due <= 60
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
