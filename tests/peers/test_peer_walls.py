"""What a process of a walled-in host may do to those of other nodes: as to those of its own."""

from __future__ import annotations

import functools
import sys
from typing import Any

import peer_handlers
import pytest
import relating
import rooms
from monitor_handlers import watch_one
from one_node import connection, front_of, seen_by
from pair import cluster
from peer_handlers import answer, call_it, errors_of_spawns, exec_there, write_past_the_walls
from relating import mortal
from support import closed, processes, received, room, until

from wsrelay import Isolation, Node
from wsrelay.values.targets import TargetEntry
from wsrelay.wire import payload

pytest_plugins = ["sharing"]
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has walls"),
]

TARGETS = (
    room(rooms.echo),
    f"{relating.__file__}:mortal",
    f"{peer_handlers.__file__}:answer",
)
ENTRIES = {
    "give": TargetEntry(f"{relating.__file__}:give", "jail"),
    "mortal": TargetEntry(f"{relating.__file__}:mortal", "open"),
}
CLOSE = payload.pack({"code": 4000, "reason": "out"})


HOSTS = (
    processes(name="trusted", targets=TARGETS),
    processes(name="open", targets=TARGETS),
    processes(
        name="jail",
        targets=TARGETS,
        isolation=Isolation(network="none"),
        may_spawn=("open",),
        may_control=("open",),
    ),
)
CLUSTER = functools.partial(cluster, *HOSTS, entries=ENTRIES)


async def jailed(node: Node, handler: Any, *args: Any) -> Any:
    """Run a handler in the walled-in host and give what it returns."""
    return await seen_by(node, in_jail, handler, list(args))


def in_jail(handler: Any, args: list[Any]) -> Any:
    from wsrelay import process  # noqa: PLC0415 - it travels by value

    return process.exec(handler, "jail", *args)


@pytest.mark.parametrize("what", ["cancel", "terminate", "link", "unlink"])
async def test_a_walled_in_process_ends_and_links_nobody_elsewhere_but_in_hosts_it_may_control(
    a: Node, b: Node, what: str
) -> None:
    there = b.spawn(mortal, "trusted")
    told = await jailed(a, write_past_the_walls, what, there)
    assert told.startswith("a process of host 'jail', which is walled in, may not ")
    assert there in b.workers
    mine = b.spawn(mortal, "open")
    assert await jailed(a, write_past_the_walls, what, mine) == "not refused"
    if what in ("cancel", "terminate"):
        await until(lambda: mine not in b.workers, "it has ended")


async def test_clients_elsewhere_are_neither_closed_nor_controlled(a: Node, b: Node) -> None:
    target = b.spawn(room(rooms.echo), "trusted")
    async with front_of(b) as front, connection(b, front, target) as (websocket, pid):
        told = await jailed(a, write_past_the_walls, "ws.close", pid, CLOSE)
        assert told.startswith("a process of host 'jail', which is walled in, may not send ws.clo")
        await websocket.send("still here")
        assert await received(websocket) == "still here"
        b.send(pid, "ws.close", {"code": 4000, "reason": "out"})
        assert await closed(websocket) == (4000, "out")


async def test_monitors_messages_and_calls_reach_everybody_elsewhere(a: Node, b: Node) -> None:
    there = b.spawn(answer, "trusted")
    assert await jailed(a, call_it.sync, there, "double", 21) == 42
    event, more = await jailed(a, watch_one.sync, "{b@trusted|none}")
    assert (event["error"], more) == ("noproc", [])


async def test_only_entries_of_hosts_that_may_spawn_lists_are_started_elsewhere(
    a: Node, b: Node
) -> None:
    spawns = [["mortal", "trusted@b"], ["give", "open@b"], ["mortal", "open@b"], ["give", "jail@b"]]
    said = await jailed(a, errors_of_spawns.sync, spawns)
    assert [text.partition(":")[0] for text in said] == [
        "NotAllowed",
        "NotAllowed",
        "no error",
        "no error",
    ]
    await until(lambda: [pid.host for pid in b.workers] == ["open"], "it runs")
    told = await jailed(a, write_past_the_walls, "spawn", "{b@trusted|1}")
    assert told.startswith("a process of host 'jail', which is walled in, may not start one in")
    assert await jailed(a, exec_there.sync, "give", "jail@b", [3], 20.0) == 3


async def test_what_a_walled_in_process_runs_elsewhere_it_ends_at_its_timeout(
    a: Node, b: Node
) -> None:
    told = await jailed(a, exec_there.sync, "mortal", "open@b", [], 0.1)
    assert told.startswith("TimeoutError")
    await until(lambda: not b.workers, "it is terminated")
