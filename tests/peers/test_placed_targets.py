"""Targets that a header places on another node, for one client and without a name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import naming_handlers
import pytest
import rooms
from circles import Shared
from exits import template_of
from support import client, endpoint, received, room, serving, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from wsrelay import PID, Node, RelayResponse, WebSocketRelay
from wsrelay.cluster.frames import VisitFrame
from wsrelay.session.header import TargetSpec
from wsrelay.values.targets import TargetEntry
from wsrelay.wire.code import pack_plain

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def placed(node: Node, host: str, target: str = "room") -> AsyncIterator[ClientConnection]:
    """A client of that node, whose process the header places in that host."""
    app = WebSocketRelay(endpoint(lambda _: RelayResponse(target=target, host=host)), node=node)
    async with serving(app) as url, client(url) as websocket:
        yield websocket


async def refused(node: Node, host: str, target: str = "room") -> tuple[int, str | None]:
    with pytest.raises(InvalidStatus) as caught:
        async with placed(node, host, target):
            pass
    response = caught.value.response
    return response.status_code, response.headers.get("retry-after")


async def only_worker(node: Node) -> PID:
    [pid] = await until(lambda: node.workers, "it runs")
    return PID(pid)


async def test_a_header_starts_its_target_on_another_node_for_one_client(cluster: Shared) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    async with placed(ann, "processes@ben") as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "hello"
        assert not ann.workers
        pid = await only_worker(ben)
        assert not ben.kernel.names.of(pid)
    await until(lambda: not ben.workers, "it ends with its client")


async def test_a_header_may_leave_the_node_to_the_load(cluster: Shared) -> None:
    ann = cluster["ann"]
    for there in ("cyd", "ann"):
        ann.engine.prefer({"processes": there} if there != "ann" else {})
        async with placed(ann, "processes@*") as websocket:
            await websocket.send("hello")
            assert await received(websocket) == "hello"
            await only_worker(cluster[there])
        await until(lambda: not cluster[there].workers)  # noqa: B023 - used at once


async def test_what_the_other_node_cannot_start_is_refused_with_its_reason(
    cluster: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    filling = ben.spawn("room", "small")
    assert await refused(ann, "small@ben") == (503, "1")
    assert "process host small is full: 1 of 1" in caplog.text
    ben.terminate(filling)
    assert await refused(ann, "processes@far") == (503, "1")
    assert "node 'far' is not in the cluster" in caplog.text
    ben.engine.draining = True
    assert await refused(ann, "processes@ben") == (503, "1")
    ben.engine.draining = False
    assert "node ben shuts down" in caplog.text
    assert (await refused(ann, "nowhere@ben"))[0] == 500
    assert "no process host 'nowhere@ben'" in caplog.text
    assert (await refused(ann, "processes@ben", f"{naming_handlers.__file__}:keep"))[0] == 500
    assert "other nodes start only entries of the configuration" in caplog.text
    entries = dict(ben.entries)
    ben.engine.reconfigure({})
    assert (await refused(ann, "processes@ben"))[0] == 500
    ben.engine.reconfigure(entries)
    assert "node ben has no entry 'room'" in caplog.text
    await until(lambda: not ben.workers)
    assert not ben.dead_letters


async def test_without_a_cluster_no_node_can_be_named(node: Node) -> None:
    node.engine.reconfigure({"room": TargetEntry(room(rooms.echo))})
    assert (await refused(node, "processes@ben"))[0] == 500
    assert not node.workers


async def test_an_upgrade_that_is_given_up_leaves_no_process_there(cluster: Shared) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    cluster.ways["ben", "ann"].stop()
    spec = TargetSpec(target="room", host="processes@ben")
    finding = asyncio.create_task(ann.find_target(spec))
    await until(lambda: ben.workers, "it is started")
    finding.cancel()
    await until(lambda: not ben.workers, "it is ended")


async def test_when_its_client_s_node_is_gone_the_process_ends(cluster: Shared) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    async with placed(ann, "processes@ben") as websocket:
        pid = await only_worker(ben)
        cluster.exchange("ben").down(cluster.peer("ann"))
        await until(lambda: pid not in ben.workers, "it is ended")
        cluster.exchange("ann").down(cluster.peer("ben"))
        with pytest.raises(ConnectionClosed):
            await received(websocket)
    cluster.connect("ann", "ben")


async def test_when_its_client_s_node_is_gone_while_it_starts_it_ends_too(cluster: Shared) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    pid = ann._ids.placed("processes", "ben")
    frame: Any = VisitFrame(77, 0, str(pid), True, "room", pack_plain((), {}))
    template = template_of(ben)
    os.kill(template, signal.SIGSTOP)
    try:
        asked = cluster.exchange("ann").ask(cluster.exchange("ann").neighbours["ben"], frame)
        await until(lambda: pid in ben.workers, "it is about to start")
        cluster.exchange("ben").down(cluster.peer("ann"))
        cluster.exchange("ann").down(cluster.peer("ben"))
        await asyncio.wait([asked])
        assert asked.exception()
    finally:
        os.kill(template, signal.SIGCONT)
    await until(lambda: pid not in ben.workers, "it is ended")
    cluster.connect("ann", "ben")
