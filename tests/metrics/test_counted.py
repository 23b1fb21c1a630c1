"""Each number moves when what it counts happens, and by as much."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import rooms
from one_node import left_as_found, running_node
from scraped import Moved, fronting
from support import (
    Journal,
    client,
    closed,
    end_of,
    processes,
    received,
    relay_to,
    room,
    say,
    serving,
    until,
)

from wsrelay import Node, RelayResponse, WebSocketRelay, process
from wsrelay.node import describe
from wsrelay.values.targets import TargetEntry
from wsrelay.wire import payload

pytestmark = pytest.mark.anyio

ENTRIES = {"app:echo": TargetEntry(room(rooms.echo), "processes")}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    """A node with an entry, for all tests of this file."""
    async with running_node(processes(), entries=ENTRIES) as node:
        yield node


TEXTS = ["", "a" * 125, "a" * 126, "é" * 100, "a" * 65_535, "a" * 65_536, "é" * 70_000]
"""Around the sizes at which a frame's head gets longer, in one byte for a character and in two."""


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_messages_of_clients_and_to_them_are_counted_with_their_payloads(
    shared: Node, front_end: str
) -> None:
    size = sum(len(text.encode()) for text in TEXTS) + 3
    async with left_as_found(shared):
        pid = shared.spawn(room(rooms.echo))
        moved = Moved(shared)
        async with (
            serving(WebSocketRelay(relay_to(pid), node=shared), front_end) as url,
            client(url, max_size=None) as one,
        ):
            contents: list[str | bytes] = [*TEXTS, b"\0\1\2"]
            for content in contents:
                await one.send(content)
                assert await received(one) == content
            [info] = describe(shared).connections
            assert (info.messages, info.sent) == (len(TEXTS) + 1, len(TEXTS) + 1)
            [worker] = describe(shared).processes
            assert (worker.received, worker.sent) == (len(TEXTS) + 2, len(TEXTS) + 1)
        for direction in ("from_clients", "to_clients"):
            await moved.to(len(TEXTS) + 1, "messages_total", direction=direction)
            await moved.to(size, "message_bytes_total", direction=direction)
        assert moved.by("messages_total", direction="between_processes") == 0


async def test_what_waits_in_an_outbox_is_counted_when_it_is_written(
    shared: Node, journal: Journal
) -> None:
    """A large message goes another way than a small one, and both through the outbox."""
    async with left_as_found(shared):
        pid = shared.spawn(room(rooms.record), None, str(journal.path))
        app = WebSocketRelay(relay_to(pid), node=shared, outbox_limit=32_000_000)
        async with serving(app) as url, client(url, max_size=None) as one:
            one.transport.pause_reading()
            await journal.line("ws.join")
            moved = Moved(shared)
            await say(one, "flood", 20, 400_000)
            await until(lambda: moved.by("outbox_bytes") > 400_000, "something waits")
            assert moved.by("messages_total", direction="to_clients") < 21
            one.transport.resume_reading()
            for _ in range(20):
                assert len(await received(one)) == 400_000
            assert await received(one) == "flooded"
            await moved.to(21, "messages_total", direction="to_clients")
            assert moved.by("message_bytes_total", direction="to_clients") == 8_000_007
            assert moved.by("outbox_bytes") == 0


async def test_messages_between_processes_are_counted_where_they_arrive(
    shared: Node, journal: Journal
) -> None:
    async with left_as_found(shared):
        pid = shared.spawn(room(rooms.record), None, str(journal.path))
        idle = shared.spawn(room(rooms.echo))
        moved = Moved(shared)
        order = ["send", [[idle, pid], "greet", {"one": 1}]]
        shared.send(pid, "do", order)
        await journal.line("greet")
        sizes = len(payload.pack(order)) + 2 * len(payload.pack({"one": 1}))
        await moved.to(3, "messages_total", direction="between_processes")
        await moved.to(sizes, "message_bytes_total", direction="between_processes")
        told = {one.pid: (one.received, one.sent) for one in describe(shared).processes}
        assert told == {pid: (2, 1), idle: (1, 0)}, "one to many is sent once"
        shared.send("nobody", "greet", None)
        await moved.to(1, "dead_letters_total")


CODES = {1000: "1000", 1001: "1001", 1011: "1011", 3000: "other", 4321: "other"}


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_connections_are_counted_when_they_open_and_by_their_close_code(
    shared: Node, front_end: str
) -> None:
    async with left_as_found(shared):
        pid = shared.spawn(room(rooms.echo))
        moved = Moved(shared)
        async with serving(WebSocketRelay(relay_to(pid), node=shared), front_end) as url:
            for number, (code, shown) in enumerate(CODES.items(), 1):
                async with client(url) as one:
                    assert moved.by("connections") == 1
                    before = moved.by("connections_closed_total", code=shown)
                    await one.close(code)
                await moved.to(before + 1, "connections_closed_total", code=shown)
                assert moved.by("connections_opened_total") == number
            async with client(url) as one:
                one.transport.abort()
                await moved.to(1, "connections_closed_total", code="1006")
        assert moved.by("connections_closed_total") == len(CODES) + 1
        assert moved.by("connections") == 0
        assert moved.by("upgrades_refused_total") == 0


def crash() -> None:
    raise ZeroDivisionError


def give() -> None:
    """Return at once."""


async def test_processes_are_counted_by_host_entry_and_how_they_end(shared: Node) -> None:
    async with left_as_found(shared):
        moved = Moved(shared)
        for target in (give, crash):
            await end_of(shared, target)
        pids = [shared.spawn("app:echo", None) for _ in range(3)]
        for pid in pids:
            await shared.started(pid)
        assert moved.by("processes", host="processes", state="running") == 3
        cancelled, terminated, killed = pids
        shared.cancel(cancelled)
        shared.terminate(terminated)
        os.kill(shared.workers[killed] or 0, signal.SIGKILL)
        await moved.to(5, "process_exits_total")
        assert moved.others("process_exits_total") == {
            ",processes,returned": 1,
            ",processes,error": 1,
            "app:echo,processes,returned": 1,
            "app:echo,processes,terminated": 1,
            "app:echo,processes,killed": 1,
        }
        assert moved.others("process_starts_total") == {",processes": 2, "app:echo,processes": 3}
        assert moved.by("process_start_seconds_count", host="processes") == 5
        assert 0 < moved.by("process_start_seconds_sum") < 60
        assert moved.by("processes", host="processes") == 0


async def test_clients_of_a_process_that_dies_are_timed_until_their_close_frames(
    shared: Node,
) -> None:
    async with left_as_found(shared):
        pid = shared.spawn(room(rooms.echo))
        await shared.started(pid)
        moved = Moved(shared)
        for front_end in ("direct", "uvicorn"):
            pid = shared.spawn(room(rooms.echo))
            async with (
                serving(WebSocketRelay(relay_to(pid), node=shared), front_end) as url,
                client(url) as one,
                client(url) as two,
            ):
                shared.terminate(pid)
                for websocket in (one, two):
                    assert (await closed(websocket))[0] == 1011
        await moved.to(4, "exit_to_close_seconds_count")
        assert 0 < moved.by("exit_to_close_seconds_sum") < 60
        assert moved.by("exit_to_close_seconds_bucket", le="+Inf") == 4


def late(go: str) -> None:
    """Take nothing until the file exists."""
    while not Path(go).exists():
        time.sleep(0.005)
    for _ in process.inbox():
        pass


async def test_a_join_is_timed_until_a_process_with_a_name_takes_it(
    shared: Node, tmp_path: Path
) -> None:
    def named(_: object) -> RelayResponse:
        shared.functions["late"] = late
        return RelayResponse(target="late", name="late-one", args=[str(tmp_path / "go")])

    async with left_as_found(shared):
        async with fronting(shared, named) as url, client(url):
            moved = Moved(shared)
            began = time.monotonic()
            await until(lambda: time.monotonic() - began > 0.05, "some time has passed")
            assert moved.by("join_wait_seconds_count") == 0
            await asyncio.to_thread((tmp_path / "go").touch)
            await moved.to(1, "join_wait_seconds_count")
            assert moved.by("join_wait_seconds_sum") > 0.05
        del shared.functions["late"]


async def test_the_loop_is_sampled_while_somebody_looks(
    shared: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with left_as_found(shared):
        moved = Moved(shared)
        await until(lambda: moved.by("loop_lag_seconds_count") > 1, "it is sampled")
        time.sleep(0.3)  # noqa: ASYNC251 - it is what is to be seen
        await until(
            lambda: (
                moved.by("loop_lag_seconds_count") - moved.by("loop_lag_seconds_bucket", le="0.1")
            ),
            "a lag of more than 0.1 s",
        )
        assert moved.by("loop_lag_seconds_sum") > 0.2
    monkeypatch.setattr("wsrelay.node.lag._LOOKED_AT", 0.0)
    shared.lag.look()
    await until(lambda: shared.lag._next is None, "nobody looks any more")


async def test_what_waits_for_a_process_is_shown_by_host(shared: Node, tmp_path: Path) -> None:
    async with left_as_found(shared):
        pid = shared.spawn(late, None, str(tmp_path / "go"))
        moved = Moved(shared)
        for _ in range(8):
            shared.send(pid, "fill", bytes(100_000))
        assert 500_000 < moved.by("mailbox_bytes", host="processes") < 900_000
        await asyncio.to_thread((tmp_path / "go").touch)
        await until(lambda: moved.by("mailbox_bytes") == 0, "it has been taken")


async def test_a_frozen_or_waiting_process_has_a_state_of_its_own(shared: Node) -> None:
    async with left_as_found(shared):
        holder = shared.get_or_spawn("holder", room(rooms.echo))
        await shared.started(holder)
        moved = Moved(shared)
        shared.engine.processes[holder].frozen = True
        assert moved.by("processes", state="frozen") == 1
        assert moved.by("processes", state="running") == -1
        shared.engine.processes[holder].frozen = False
        shared.cancel(holder)
        shared.get_or_spawn("holder", room(rooms.echo))
        assert moved.by("processes", state="waiting") == 1
