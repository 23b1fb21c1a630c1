"""Each refusal of an upgrade is counted by its reason, and each bound that is hit."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import rooms
from one_node import left_as_found, running_node
from scraped import Moved, fronting
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from support import (
    client,
    closed,
    connected,
    not_reading,
    processes,
    received,
    relay_to,
    room,
    say,
    serving,
    until,
)
from websockets.exceptions import InvalidStatus

from wsrelay import Node, RelayResponse, WebSocketRelay, process
from wsrelay.errors import HostFull, NoQuorum
from wsrelay.gateway import admission, middleware
from wsrelay.gateway.allowed_hosts import AllowedHosts
from wsrelay.node import describe
from wsrelay.session.hosts import Hosts
from wsrelay.values.numbers import Bound, Refusal

pytestmark = pytest.mark.anyio

MEGABYTE = 1024 * 1024
REFUSALS: dict[Refusal, Callable[[Node, Path], Awaitable[None]]] = {}
BOUNDS: dict[Bound, Callable[[Node, Path], Awaitable[None]]] = {}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    """A node whose hosts have little room, each of another kind."""
    hosts = [
        processes(),
        processes(name="one", max_processes=1),
        processes(name="small", mailbox=80_000, warm=0),
        processes(name="slow", spawn_rate=20),
        processes(name="quiet", log_rate=5),
    ]
    async with running_node(*hosts) as node:
        yield node


def refusal(reason: Refusal) -> Callable[[Any], Any]:
    def note(function: Any) -> Any:
        REFUSALS[reason] = function
        return function

    return note


def bound(name: Bound) -> Callable[[Any], Any]:
    def note(function: Any) -> Any:
        BOUNDS[name] = function
        return function

    return note


async def visit(url: str, times: int) -> None:
    for _ in range(times):
        async with client(url):
            pass


async def refused(url: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as raised:
        async with client(url, **options):
            pass
    return raised.value.response.status_code


def echo(node: Node) -> Callable[[Any], Response]:
    return lambda _: RelayResponse(node.spawn(room(rooms.echo)), cancel_on_leave=True)


def raising(error: Exception) -> Callable[[Any], Response]:
    def answer(_: Any) -> Response:
        raise error

    return answer


# Why upgrades are refused


@refusal("origin")
async def _(node: Node, _: Path) -> None:
    async with fronting(node, echo(node)) as url:
        assert await refused(url, origin="http://elsewhere.example") == 403


@refusal("host")
async def _(node: Node, _: Path) -> None:
    def around(app: Any) -> AllowedHosts:
        return AllowedHosts(app, Hosts("app.example.com"), "allowed_hosts", node.numbers)

    async with fronting(node, echo(node), around=around) as url:
        here = {"host": "127.0.0.1", "port": int(url.rpartition(":")[2])}
        assert await refused("ws://elsewhere.example", **here) == 403


async def ask(url: str, *lines: str) -> bytes:
    host, port = url.removeprefix("ws://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = ["GET / HTTP/1.1", f"Host: {host}:{port}", "Connection: Upgrade", "Upgrade: websocket"]
    writer.write("\r\n".join([*head, *lines, "", ""]).encode())
    said = await reader.read()
    writer.close()
    return said


@refusal("handshake")
async def _(node: Node, _: Path) -> None:
    async with fronting(node, echo(node)) as url:
        assert b" 400 " in await ask(url, "Sec-WebSocket-Version: 13")


@refusal("rate_limit")
async def _(node: Node, _: Path) -> None:
    limits = {"ratelimit.requests": 1, "ratelimit.interval": "1h"}
    around = partial(middleware.wrap, names=["ratelimit"], options=limits, node=node)
    async with fronting(node, echo(node), around=around) as url:
        async with client(url):
            pass
        assert await refused(url) == 429


@refusal("application")
async def _(node: Node, _: Path) -> None:
    async with fronting(node, lambda _: PlainTextResponse("no", 403), native=False) as url:
        assert await refused(url) == 403


@refusal("wrong_answer")
async def _(node: Node, _: Path) -> None:
    answer = partial(PlainTextResponse, headers={"X-WS-Relay": "{no json"})
    async with fronting(node, lambda _: answer("")) as url:
        assert await refused(url) == 500


@refusal("host_full")
async def _(node: Node, _: Path) -> None:
    pid = node.spawn(room(rooms.echo), "one")
    full = raising(HostFull("one", 1))
    targets = [lambda _: RelayResponse(target=room(rooms.echo), host="one"), full]
    moved = Moved(node)
    for target in targets:
        async with fronting(node, target) as url:
            assert await refused(url) == 503
    assert moved.by("upgrades_refused_total", reason="host_full") == len(targets)
    node.terminate(pid)


@refusal("start_failed")
async def _(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise ZeroDivisionError\n")
    async with fronting(node, lambda _: RelayResponse(target=f"{script}:handler")) as url:
        assert await refused(url) == 503


@refusal("not_alive")
async def _(node: Node, _: Path) -> None:
    pid = node.spawn(room(rooms.echo))
    node.terminate(pid)
    await until(lambda: pid not in node.workers)
    async with fronting(node, lambda _: RelayResponse(pid)) as url:
        assert await refused(url) == 503


def late(go: str) -> None:
    """Take nothing until the file exists."""
    while not Path(go).exists():
        time.sleep(0.005)
    for _ in process.inbox():
        pass


@refusal("busy")
async def _(node: Node, tmp_path: Path) -> None:
    pid = node.spawn(late, "small", str(tmp_path / "go"))
    metadata = {"query": "x" * 50_000}
    async with fronting(node, lambda _: RelayResponse(pid, metadata=metadata)) as url:
        with pytest.raises(InvalidStatus, match="503"):
            await visit(url, 20)
    (tmp_path / "go").touch()


@refusal("draining")
async def _(node: Node, _: Path) -> None:
    target = room(rooms.echo)
    async with fronting(node, lambda _: RelayResponse(target=target)) as url:
        node.engine.draining = True
        try:
            assert await refused(url) == 503
        finally:
            node.engine.draining = False


@refusal("no_quorum")
async def _(node: Node, _: Path) -> None:
    """Of a cluster that cannot decide a name, handlers get this error."""
    async with fronting(node, raising(NoQuorum("the store is away"))) as url:
        assert await refused(url) == 503


@refusal("client_gone")
async def _(node: Node, _: Path) -> None:
    asked = asyncio.Event()

    async def answer(request: Request) -> Response:
        asked.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return RelayResponse(target=room(rooms.echo))

    async def enter(url: str) -> None:
        async with client(url):
            pass

    async with fronting(node, answer) as url:
        task = asyncio.create_task(enter(url))
        await asked.wait()
        task.cancel()
        await asyncio.wait({task})
        await until(lambda: node.numbers.refused["client_gone"], "its end has been noticed")


@refusal("max_buffered")
async def _(node: Node, _: Path) -> None:
    most, node.buffered.most = node.buffered.most, 1
    node.buffered.size += 1
    try:
        async with serving(WebSocketRelay(relay_to("{x|1}"), node=node)) as url:
            assert await refused(url) == 503
    finally:
        node.buffered.most = most
        node.buffered.size -= 1


def test_each_reason_is_tested() -> None:
    assert set(REFUSALS) == set(get_args(Refusal))


@pytest.mark.parametrize("reason", get_args(Refusal))
async def test_an_upgrade_that_is_refused_is_counted_by_its_reason(
    shared: Node, tmp_path: Path, reason: Refusal
) -> None:
    async with left_as_found(shared):
        moved = Moved(shared)
        await REFUSALS[reason](shared, tmp_path)
        await until(lambda: moved.by("upgrades_refused_total", reason=reason), reason)
        assert [*moved.others("upgrades_refused_total")] == [reason]


# Bounds


@bound("mailbox")
async def _(node: Node, tmp_path: Path) -> None:
    pid = node.spawn(late, "small", str(tmp_path / "go"))
    await node.started(pid)
    for _ in range(6):
        node.send(pid, "fill", bytes(50_000))
    await until(lambda: pid not in node.workers, "it is ended")


async def flood(node: Node, journal: Path, overflow: str) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal))
    options = {"outbox_limit": MEGABYTE, "outbox_overflow": overflow, "linger": 0.2}
    async with serving(WebSocketRelay(relay_to(pid), node=node, **options)) as url:  # type: ignore[arg-type]
        slow = await connected(url)
        async with client(url, sock=slow) as websocket, client(url) as other:
            await until(lambda: len(node.connections) == 2)
            not_reading(websocket)
            ours = websocket.local_address[:2]
            [me] = [one.pid for one in describe(node).connections if one.client == ours]
            message = {"type": "binary", "data": bytes(100_000)}
            for _ in range(60):
                node.send(me, "ws.send", message)
            await say(other, "pid")
            await received(other)
            if overflow == "close":
                await until(lambda: len(node.connections) == 1, "the client is closed")


@bound("outbox")
async def _(node: Node, tmp_path: Path) -> None:
    moved = Moved(node)
    await flood(node, tmp_path / "journal", "drop")
    assert moved.by("bounds_hit_total", bound="outbox") > 1, "each that is dropped"


@bound("slow_client")
async def _(node: Node, tmp_path: Path) -> None:
    moved = Moved(node)
    await flood(node, tmp_path / "journal", "close")
    await moved.to(1, "bounds_hit_total", bound="slow_client")
    assert moved.by("connections_closed_total", code="1013") == 1


@bound("message_size")
async def _(node: Node, _: Path) -> None:
    async with (
        fronting(node, echo(node), server={"max_message_size": 1000}) as url,
        client(url) as one,
    ):
        await one.send(bytes(1001))
        assert (await closed(one))[0] == 1009


@bound("max_buffered")
async def _(node: Node, _: Path) -> None:
    most, node.buffered.most = node.buffered.most, 100_000
    try:
        async with fronting(node, echo(node)) as url, client(url) as one:
            head = b"\x82\xff" + (1_000_000).to_bytes(8, "big") + bytes(4)
            one.transport.write(head + bytes(300_000))
            assert (await closed(one))[0] == 1013
    finally:
        node.buffered.most = most


@bound("max_processes")
async def _(node: Node, _: Path) -> None:
    node.spawn(room(rooms.echo), "one")
    with pytest.raises(HostFull):
        node.spawn(room(rooms.echo), "one")


@bound("max_connections")
async def _(node: Node, _: Path) -> None:
    async with (
        fronting(node, echo(node), server={"max_connections": 1}) as url,
        client(url),
    ):
        assert await refused(url) == 503


@bound("max_connections_per_ip")
async def _(node: Node, _: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "is_loopback", lambda _: False)
        async with (
            fronting(node, echo(node), server={"max_connections_per_ip": 1}) as url,
            client(url),
        ):
            assert await refused(url) == 429


@bound("spawn_rate")
async def _(node: Node, _: Path) -> None:
    pids = [node.spawn(room(rooms.echo), "slow") for _ in range(22)]
    await until(lambda: all(node.workers[pid] for pid in pids), "all are forked")


def chatter() -> None:
    log = logging.getLogger("chatter")
    for i in range(8):
        log.warning("line %d", i)
        print("line", i)  # noqa: T201 - it is what is bounded


@bound("log_rate")
async def _(node: Node, _: Path) -> None:
    moved = Moved(node)
    ended: list[object] = []
    node.when_ended(node.spawn(chatter, "quiet"), ended.append)
    await until(lambda: ended, "it has ended")
    assert moved.by("bounds_hit_total", bound="log_rate") >= 3


def test_each_bound_is_tested() -> None:
    assert set(BOUNDS) == set(get_args(Bound))


@pytest.mark.parametrize("name", get_args(Bound))
async def test_a_bound_that_is_hit_is_counted(shared: Node, tmp_path: Path, name: Bound) -> None:
    async with left_as_found(shared):
        moved = Moved(shared)
        await BOUNDS[name](shared, tmp_path)
        await until(lambda: moved.by("bounds_hit_total", bound=name), name)
        also = {"outbox"} if name == "slow_client" else set()
        assert {*moved.others("bounds_hit_total")} == {name, *also}


async def test_a_successor_that_finds_its_host_full_is_counted(
    shared: Node, tmp_path: Path
) -> None:
    async with left_as_found(shared):
        first = shared.get_or_spawn("name", room(rooms.record), "one", str(tmp_path / "journal"))
        await shared.started(first)
        moved = Moved(shared)
        os.kill(shared.workers[first] or 0, signal.SIGSTOP)
        shared.cancel(first)
        assert shared.get_or_spawn("name", room(rooms.echo), "one") != first
        limits = {name: host.max_processes for name, host in shared.hosts.items()}
        shared.kernel.set_hosts({**limits, "one": 0})
        shared.terminate(first)
        await moved.to(1, "bounds_hit_total", bound="max_processes")
        assert moved.by("process_exits_total", host="one", kind="host_full") == 1
        shared.kernel.set_hosts(limits)
