"""Twenty seconds of killing at random under client traffic; afterwards the books must balance."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos import CLIENTS, HANDLERS, Chaos
from chaos_guests import ENDS_BY
from support import TIMEOUT, client, endpoint, processes, serving, until

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway.direct import DirectProtocol
from wsrelay.node import WorkerProcess
from wsrelay.node.host import Incarnation
from wsrelay.node.host.pipe import NodePipe
from wsrelay.relay.connection import RelayedConnection

pytestmark = pytest.mark.anyio


def objects() -> Counter[str]:
    """Living objects of the node, which also timers and callbacks hold on to."""
    gc.collect()
    kinds = (WorkerProcess, Incarnation, NodePipe, RelayedConnection, DirectProtocol)
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))


def descriptors(os_pid: int) -> int:
    return psutil.Process(os_pid).num_fds()


def offspring() -> int:
    return len(psutil.Process().children(recursive=True))


def sizes(part: object, path: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """How much every collection holds that can be reached through attributes of wsrelay's own."""
    if isinstance(part, dict | list | set | deque):
        yield path, len(part)
    if isinstance(part, dict):
        children: dict[object, object] = part
    elif type(part).__module__.startswith("wsrelay"):
        children = getattr(part, "__dict__", {})
    else:
        return
    if id(part) not in seen:
        seen.add(id(part))
        for name, child in children.items():
            yield from sizes(child, f"{path}.{name}", seen)


_KEPT = (
    "node.engine.kernel.names._freed",  # for the logs of the dead
    "node.engine.ends._processes",
    "node.engine.ends._connections",
    "node.control._records._kept",
    "node.numbers.ends",  # a count for each kind of end
    "node._templates._running.processes._lines",  # those that are free, gathered at times
)
"""What is kept of the dead, up to a bound."""


def holdings(node: Node) -> dict[str, Any]:
    """Everything that could be left over, counted."""
    template = node._templates["processes"]
    assert template.os_pid is not None
    held = dict(sizes(node, "node", set()))
    for kept in _KEPT:
        del held[kept]
    return {
        **held,
        "on the host": node.kernel.count("processes"),
        "tasks": len(asyncio.all_tasks()),
        "descriptors": descriptors(os.getpid()),
        "template's descriptors": descriptors(template.os_pid),
        "offspring": offspring(),
        "objects": objects(),
    }


async def balanced(node: Node, before: dict[str, Any]) -> None:
    """Wait until nothing is held but what was held before."""

    def left() -> dict[str, Any]:
        after = holdings(node)
        # What is reached through something that is left has another path than before.
        return {key: (one, after.get(key)) for key, one in before.items() if one != after.get(key)}

    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while over := left():
        assert asyncio.get_running_loop().time() < deadline, (
            f"{Chaos.seed}: left over (before, after): {over}"
        )
        await asyncio.sleep(0.1)


@contextlib.contextmanager
def telling_the_seed() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(Chaos.seed)
        raise


async def warm_up(chaos: Chaos, url: str) -> None:
    """Let everything be made that is made once, and go again."""
    async with client(f"{url}/0") as websocket:
        await websocket.recv()
    node = chaos.node
    for pid in node.workers:
        node.cancel(pid)
    await until(lambda: not node.workers and not objects(), "nothing is left of the first client")
    chaos.rooms.clear()


async def test_after_random_kills_under_traffic_every_book_balances_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    host = processes(targets=(f"{HANDLERS}:room",), stop_timeout=15.0)
    with telling_the_seed():
        async with Node(hosts=[host]) as node:
            chaos = Chaos(node)
            async with serving(WebSocketRelay(endpoint(chaos.answer), node=node)) as url:
                await warm_up(chaos, url)
                # There is one for each host, from here on.
                node.engine.mistakes.again("crashes in processes", 0.0)
                before = holdings(node)
                await run(chaos, url, tmp_path / "journal")
                problems = list(chaos.problems())
                assert not problems, "\n".join([f"{len(problems)} wrong:", *problems[:20]])
                await balanced(node, before)
    assert set(chaos.stays_ended()) >= {1000, 1006, 1011, 4001}
    assert len(chaos.stays) > 3 * CLIENTS
    assert {deed for deeds in chaos.deeds.values() for deed in deeds} == set(ENDS_BY)


async def run(chaos: Chaos, url: str, journal: Path) -> None:
    node = chaos.node
    chaos.open(journal, url)
    async with asyncio.TaskGroup() as guests:
        for guest in chaos.guests:
            guests.create_task(guest.run())
        await chaos.reign()
        await until(lambda: chaos.certain <= set(chaos.results), "all that was harmed has ended")
        await until(
            lambda: all(guest.settled for guest in chaos.guests),
            "every client has shown that its connection works, or it is closed",
        )
        await until(lambda: not chaos.unheard(), "every room has heard of the others' ends")
        assert any(guest.works for guest in chaos.guests)
        await chaos.close()
    await until(lambda: set(node.workers) <= {chaos.watcher}, "all rooms and helpers have ended")
    await until(lambda: not node.connections, "all connections have ended")
    await until(chaos.heard_of_all, "the watcher has heard of all ends")
    node.cancel(chaos.watcher)
    await until(lambda: not node.workers, "the watcher has ended")
    node.engine.on_exit.remove(chaos._note)
