"""What a process calls while the node does not read its pipe."""

from __future__ import annotations

import asyncio
from pathlib import Path

import callers
import pytest
from support import (
    TIMEOUT,
    client,
    closed,
    connected,
    not_reading,
    reading,
    received,
    relay_to,
    serving,
    until,
)

from wsrelay import Node, Result, WebSocketRelay

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000


async def test_plain_calls_of_a_coroutine_hold_up_nothing_behind_a_client_that_does_not_read(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And all of it, in the order of the calls, goes out before the process ends."""
    called = tmp_path / "called"
    pid = node.spawn(callers.plain_calls_behind_a_full_pipe, None, str(called))
    results: list[Result] = []
    node.when_ended(pid, results.append)
    app = WebSocketRelay(
        relay_to(pid), node=node, outbox_limit=200_000, outbox_overflow="pause", linger=20
    )
    async with (
        serving(app) as url,
        client(url, sock=await connected(url), max_size=None) as websocket,
    ):
        not_reading(websocket)
        await until(
            lambda: node.engine.processes[pid].incarnation.pipe._holds,
            "the node does not read it either",
        )
        called.with_name("called.held").touch()
        await until(called.exists, "all has been called")
        assert not results, "it has not ended: it still has to write"
        reading(websocket)
        async with asyncio.timeout(TIMEOUT):
            texts = [str(message).partition(" ")[0] async for message in websocket]
    assert texts[-20:] == [str(number) for number in range(20)]
    assert {len(text) for text in texts[:-20]} == {100_000}
    await until(lambda: results, "the process has ended")
    assert (results[0].error, results[0].value) == (None, "done")
    assert "behind a full pipe" in caplog.text


async def test_alarms_in_the_middle_of_sends_leave_whole_messages_and_a_normal_end(
    node: Node,
) -> None:
    pid = node.spawn(callers.interrupted_sends, None, 60)
    results: list[Result] = []
    node.when_ended(pid, results.append)
    app = WebSocketRelay(
        relay_to(pid), node=node, outbox_limit=10 * MEGABYTE, outbox_overflow="pause"
    )
    async with serving(app) as url, client(url, max_size=None) as websocket:
        whole = b"d" * MEGABYTE
        while isinstance(data := await received(websocket), bytes):
            assert data == whole
        assert data == "done"
        assert await closed(websocket) == (1000, "target process exited")
    await until(lambda: results, "the process has ended")
    assert results[0].error is None
