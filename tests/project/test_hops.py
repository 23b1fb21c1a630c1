"""How many calls of our own a message takes in node and worker, and a start and an end in the node.

They are counted, not timed. The table in `docs/performance.md` is the bound: it says what there are
now, and a change that adds some has to say so there.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
from exits import Exits
from support import client, processes, received, relay_to, serving

import wsrelay
from wsrelay import Node, WebSocketRelay, process
from wsrelay.worker import short_way

pytestmark = pytest.mark.anyio

PACKAGE = f"{Path(wsrelay.__file__).parent}/"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
TIMES = 5


class Calls:
    """Counts the calls of Python functions of this package in this thread while it is entered."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            self.names.append(f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_qualname}")

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


def bound(of: str) -> int:
    """The figure in the column `now` of the page's table."""
    row = re.search(rf"^\| {re.escape(of)} \|.*\| (\d+) \|$", PAGE.read_text(), re.MULTILINE)
    assert row is not None, f"docs/performance.md has no row for {of}"
    return int(row[1])


def echo() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            text = {"type": "text", "data": message.payload["data"]}
            process.send(message.sender, "ws.send", text)


def echo_and_count() -> list[list[str]]:
    """Return the names of what each message has called, from one to the next."""
    counted = []
    with Calls() as calls:
        for message in process.inbox():
            if message.topic == "ws.leave":
                break
            if message.topic == "ws.message":
                text = {"type": "text", "data": message.payload["data"]}
                process.send(message.sender, "ws.send", text)
                counted.append(calls.names[:])
                calls.names.clear()
    return counted


def tell_all() -> None:
    clients = []
    for message in process.inbox():
        if message.topic == "ws.join":
            clients.append(message.sender)
        if message.topic == "ws.message":
            process.send(clients, "ws.send", {"type": "text", "data": "hello"})


def stay() -> None:
    process.inbox().receive()


def check(of: str, counted: list[Calls]) -> None:
    """Take the least: timers and what else there is to do may come between."""
    least = min((calls.names for calls in counted), key=len)
    assert 0 < len(least) <= bound(of), "\n".join([str(len(least)), *least])


async def test_an_echo_takes_no_more_calls_than_the_page_says(node: Node) -> None:
    pid = node.spawn(echo)
    counted = []
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        client(url) as websocket,
    ):
        for _ in range(TIMES + 2):  # the first ones take what is made once
            with Calls() as calls:
                await websocket.send("hello")
                await received(websocket)
            counted.append(calls)
    check("an echo", counted[2:])


async def test_an_echo_takes_no_more_calls_in_the_worker_than_the_page_says(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(echo_and_count)
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        client(url) as websocket,
    ):
        for _ in range(TIMES + 2):
            await websocket.send("hello")
            await received(websocket)
    counted = (await exits.of(pid)).value[2:]
    least = min(counted, key=len)
    in_c = "in C" if short_way.ShortWay is not short_way.PyShortWay else "in Python"
    assert 0 < len(least) <= bound(f"an echo, in a worker, {in_c}"), least


async def test_a_delivery_to_one_of_many_takes_no_more_calls_than_the_page_says(
    node: Node,
) -> None:
    pid = node.spawn(tell_all)
    least = {}
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        contextlib.AsyncExitStack() as stack,
    ):
        clients: list[Any] = []
        for count in (5, 15):
            while len(clients) < count:
                clients.append(await stack.enter_async_context(client(url)))
            counted = []
            for _ in range(TIMES + 2):
                with Calls() as calls:
                    await clients[0].send("go")
                    for each in clients:
                        await received(each)
                counted.append(len(calls.names))
            least[count] = min(counted[2:])
    assert 0 < (least[15] - least[5]) / 10 <= bound("a delivery to one of many")


async def test_a_start_and_an_end_take_no_more_calls_than_the_page_says() -> None:
    starts, ends = [], []
    async with Node(hosts=[processes()], control=False) as node:  # which keeps no log
        for _ in range(4 * TIMES + 1):  # the template's report of the one before comes between
            with Calls() as calls:
                pid = node.spawn(stay)
                assert await node.started(pid) is None
            starts.append(calls)
            over = asyncio.get_running_loop().create_future()
            node.when_ended(pid, over.set_result)
            with Calls() as calls:
                node.terminate(pid)
                await over
            ends.append(calls)
    check("a start", starts[1:])
    check("an end", ends[1:])
