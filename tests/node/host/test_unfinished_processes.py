"""Processes that do not finish a message, or wait for room for one."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support import end_of, processes, until

from wsrelay import ExitKind, Node, Result, process, wire
from wsrelay.node.host import Unfinished
from wsrelay.node.host import unfinished as books
from wsrelay.session.ends import close_for
from wsrelay.values.pid import PID
from wsrelay.wire import payload

pytestmark = pytest.mark.anyio

KB = 1024
MB = 1024 * 1024


@pytest.fixture
async def node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """One with little room, and quick looks at who has it."""
    monkeypatch.setattr(books, "MOST", MB)
    monkeypatch.setattr(books, "_LOOK", 0.1)
    async with Node(hosts=[processes(stop_timeout=0.5)]) as node:
        book = node.engine.unfinished
        yield node
    assert (book.size, book.waiting, book._next_look) == (0, 0, None)


def begin(size: int) -> None:
    """Write all of a large message but for its end, and wait."""
    own: Any = process._worker().pipe
    own.ends.write_all(size.to_bytes(4, "big") + bytes(size - 1))
    threading.Event().wait()


def return_and_stay(size: int) -> None:
    own: Any = process._worker().pipe
    own.write(wire.DoneFrame(payload.pack(bytes(size)), None, 0, []))
    threading.Event().wait()


def give(size: int) -> bytes:
    return bytes(size)


async def spawned(node: Node, target: Any, *args: Any) -> tuple[PID, list[Result]]:
    results: list[Result] = []
    pid = node.spawn(target, None, *args)
    node.when_ended(pid, results.append)
    return pid, results


@contextlib.contextmanager
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is ended meanwhile."""
    with monkeypatch.context() as patched:
        patched.setattr(books, "_PATIENCE", 10**9)
        yield


async def test_a_process_that_does_not_finish_its_message_is_ended_when_another_waits(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    _, results = await spawned(node, begin, 900 * KB)
    await until(lambda: node.engine.unfinished.size, "it has begun")
    assert await end_of(node, give, 900 * KB) == Result(bytes(900 * KB))
    await until(lambda: results, "it was ended")
    [result] = results
    error = result.error
    assert error is not None
    assert error.kind == ExitKind.LIMIT
    assert error.message == (
        f"unfinished message limit of 1MB (of all processes) reached: {900 * KB + 3} bytes of its "
        f"message of {900 * KB + 4} arrived, but the rest did not"
    )
    assert error.message in caplog.text
    assert close_for(Result(error=error), join_read=True) == (
        1011,
        "target process killed (unfinished message limit)",
    )


async def test_a_process_that_has_returned_and_does_not_end_is_ended_when_another_waits(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    _, results = await spawned(node, return_and_stay, 900 * KB)
    await until(lambda: node.engine.unfinished.size == 900 * KB + 5, "its value is kept")
    assert results == []
    assert await end_of(node, give, 900 * KB) == Result(bytes(900 * KB))
    await until(lambda: results, "it was ended")
    assert results == [Result(bytes(900 * KB))], "it has said how it ends, and is believed"
    assert f"reached: it has returned {900 * KB + 5} bytes and does not end" in caplog.text


async def test_what_a_process_has_returned_is_not_kept_once_its_end_is_told(node: Node) -> None:
    """Whether or not Python's collector comes: it took 1.2 GB for twenty who returned 60 MB."""
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            assert len((await end_of(node, give, 10 * MB)).value) == 10 * MB
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < 25 * MB


async def test_a_killed_process_gives_room_to_one_that_waits(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with patience(monkeypatch):
        pid, _ = await spawned(node, begin, 900 * KB)
        await until(lambda: node.engine.unfinished.size, "it has begun")
        _, results = await spawned(node, give, 900 * KB)
        await until(lambda: node.engine.unfinished.waiting, "the other waits")
        node.terminate(pid)
        await until(lambda: results, "the other has ended")
        assert results == [Result(bytes(900 * KB))]


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_a_process_that_waits_for_room_can_be_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with patience(monkeypatch):
        await spawned(node, begin, 900 * KB)
        await until(lambda: node.engine.unfinished.size, "one has begun")
        pid, results = await spawned(node, give, 900 * KB)
        await until(lambda: node.engine.unfinished.waiting, "the other waits")
        getattr(node, how)(pid)
        await until(lambda: results, "it has ended")
        [result] = results
        error = result.error
        kind = ExitKind.CANCELLED if how == "cancel" else ExitKind.TERMINATED
        assert error is not None
        assert error.kind == kind
        assert node.engine.unfinished.waiting == 0


@pytest.mark.parametrize("closing", [True, False], ids=["closed", "its event loop ends"])
def test_a_node_ends_while_some_wait_for_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, closing: bool
) -> None:
    import asyncio  # noqa: PLC0415 - the loop of this test is its own

    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(books, "MOST", MB)
    node = Node(hosts=[processes(stop_timeout=0.2)])

    async def main() -> Unfinished:
        node.start()
        for size in (900 * KB, 900 * KB, 800 * KB, 100 * KB):
            node.spawn(begin if size > 100 * KB else give, None, size)
        await until(lambda: node.engine.unfinished.waiting == 2, "two wait")
        book = node.engine.unfinished
        if closing:
            await node.aclose()
        return book

    book = asyncio.run(main())
    assert (book.size, book.waiting, book._next_look) == (0, 0, None)
    assert not node.running
