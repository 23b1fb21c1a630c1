"""Nodes that are one cluster over a real NATS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import peer_handlers
import pytest
import relating
from nats_ports import cluster_of
from nats_servers import NatsServer
from peers_over_nats import clustered
from support import processes, until

from wsrelay import HostFailed, Node, ProcessError, RestartPolicy, Service, Supervisor
from wsrelay.cluster.lease import LeaseRecord, key_of_node
from wsrelay.cluster.ports import Conflict
from wsrelay.errors import CannotJoin
from wsrelay.peers.nats import NatsStore
from wsrelay.peers.options import Cluster
from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio

ENTRIES = {
    "answer": TargetEntry(f"{peer_handlers.__file__}:answer"),
    "mortal": TargetEntry(f"{relating.__file__}:mortal"),
}


@pytest.fixture
async def trio(nats: NatsServer) -> AsyncIterator[list[Node]]:
    async with clustered(nats, ENTRIES, "a", "b", "c") as nodes:
        yield nodes


async def test_nodes_find_each_other_and_call_processes_of_each_other(trio: list[Node]) -> None:
    a, b, c = trio
    there = b.spawn("answer")
    assert await a.call_async(there, "double", 1) == 2
    assert await c.call_async(there, "ask") == c.pid()
    started = a.spawn("answer", "processes@c")
    assert started.node == "c"
    assert await a.started(started) is None  # or b may ask c before it has heard of it
    assert await b.call_async(started, "double", 3) == 6


async def test_what_may_run_anywhere_goes_where_most_room_is_said_to_be(trio: list[Node]) -> None:
    a, b, _ = trio
    a.kernel.set_hosts({"processes": 0})
    b.kernel.set_hosts({"processes": 1})
    await until(lambda: a.engine.choose("processes") == "c", "it is told")
    pid = a.spawn("answer", "processes@*")
    assert pid.node == "c"
    assert await a.call_async(pid, "double", 1) == 2


async def test_a_node_that_leaves_is_gone_at_once(nats: NatsServer) -> None:
    async with clustered(nats, ENTRIES, "a", "b") as [a, b]:
        there = b.spawn("answer")
        await b.aclose()
        with pytest.raises(ProcessError) as caught:
            await a.call_async(there, "double", 1)
        assert caught.value.kind in ("noproc", "node_down")
        await until(lambda: a.engine.elsewhere.find(there) is None, "it is gone")


async def test_a_call_waits_while_nats_restarts(own_nats: NatsServer) -> None:
    async with clustered(own_nats, ENTRIES, "a", "b") as [a, b]:
        there = b.spawn("answer")
        assert await a.call_async(there, "double", 1) == 2
        await asyncio.to_thread(own_nats.kill)
        asked = asyncio.create_task(a.call_async(there, "double", 2, timeout=60))
        await asyncio.to_thread(own_nats.start)
        assert await asked == 4


async def test_all_nodes_get_one_process_for_each_name(trio: list[Node]) -> None:
    asks = [node.get_or_spawn_async(f"room/{n}", "answer") for n in range(5) for node in trio]
    pids = await asyncio.gather(*asks)
    assert len(set(pids)) == 5
    assert sum(len(node.workers) for node in trio) == 5
    for node in trio:
        await until(lambda: node.lookup("room/4") == pids[-1])  # noqa: B023 - used at once
        assert await node.call_async("room/4", "double", 2) == 4


async def test_the_names_of_a_node_that_leaves_pass_on(nats: NatsServer) -> None:
    async with clustered(nats, ENTRIES, "a", "b") as [a, b]:
        first = await b.get_or_spawn_async("room/1", "answer")
        before = b.kernel.names.fence("room/1")
        assert await a.get_or_spawn_async("room/1", "answer") == first
        asked = asyncio.create_task(b.aclose())
        second = first
        while second == first:
            second = await a.get_or_spawn_async("room/1", "answer")
        await asked
        assert second.node == "a"
        assert a.kernel.names.fence("room/1") > before


async def test_a_name_is_given_when_nats_is_there_again(own_nats: NatsServer) -> None:
    async with clustered(own_nats, ENTRIES, "a", "b") as [a, b]:
        await asyncio.to_thread(own_nats.kill)
        asks = [asyncio.create_task(n.get_or_spawn_async("room/1", "answer")) for n in (a, b)]
        await asyncio.to_thread(own_nats.start)
        first, second = await asyncio.gather(*asks)
        assert first == second


async def test_keys_that_the_store_has_lost_are_written_again(nats: NatsServer) -> None:
    async with clustered(nats, ENTRIES, "a") as [a]:
        pid = await a.get_or_spawn_async("room/1", "answer")
        elsewhere: Any = a.engine.elsewhere
        store: NatsStore = elsewhere._member._store
        [entry] = await store.list("name.")
        seen = await store.delete(entry.key, entry.revision)
        store._rewound(seen - 1)
        async with asyncio.timeout(30):
            while not (entries := await store.list("name.")):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.05)
        assert [one.key for one in entries] == [entry.key]
        assert a.lookup("room/1") == pid


async def test_a_second_node_of_a_living_node_s_name_does_not_start(trio: list[Node]) -> None:
    first = trio[0]
    again = Node(cluster=first._cluster)
    with pytest.raises(CannotJoin, match=r"named .a. is in the cluster already"):
        async with again:
            pass


async def test_a_node_whose_nats_cannot_be_reached_does_not_start() -> None:
    node = Node(cluster=Cluster(["nats://127.0.0.1:9"], node="a", timeout=0.2))
    with pytest.raises(CannotJoin, match=r"127\.0\.0\.1:9"):
        async with node:
            pass


async def test_a_node_whose_end_is_cut_short_keeps_no_lease(nats: NatsServer) -> None:
    before = asyncio.all_tasks()
    cluster = cluster_of(nats, node="a", lease=3)
    node = Node(hosts=[processes(stop_timeout=60)], cluster=cluster)
    await node.__aenter__()
    await until(lambda: node.engine.elsewhere.shares_names)
    pid = node.spawn(relating.deaf)
    assert await node.started(pid) is None
    ends = asyncio.create_task(node.aclose())
    await until(lambda: node.draining, "it ends")
    ends.cancel()
    await asyncio.wait([ends])
    await until(lambda: asyncio.all_tasks() <= before, "nothing of it runs")
    async with Node(hosts=[processes()], cluster=cluster):  # its lease has run out
        pass


async def declare_dead(node: Node) -> None:
    """Write what others write when the node does not renew its lease."""
    elsewhere: Any = node.engine.elsewhere
    store, key = elsewhere._member._store, key_of_node(node.name)
    while (entry := await store.get(key)) is not None:
        with contextlib.suppress(Conflict):  # it has just been renewed
            dead = LeaseRecord.of(entry).declared_dead("nobody")
            await store.put(key, dead.encode(), entry.revision)
            return


async def test_services_of_a_node_that_was_declared_dead_run_again_when_it_has_joined(
    nats: NatsServer,
) -> None:
    node = Node(hosts=[processes()], entries=ENTRIES, cluster=cluster_of(nats, node="a", lease=3))
    services = [
        Service(name="steady", target="answer"),
        Service(name="stopped", target="answer"),
        Service(name="idle", target="answer", auto_start=False),
    ]
    supervisor = Supervisor(node, services)
    async with node:
        first = supervisor.pid("steady")
        await supervisor.stop_service("stopped")
        await declare_dead(node)
        await until(lambda: supervisor.pid("steady") not in {None, first}, "it runs again")
        again = supervisor.pid("steady")
        assert again is not None
        assert await node.call_async("steady", "double", 2) == 4
        assert node.lookup("steady") == again
        assert [supervisor.pid(name) for name in ("stopped", "idle")] == [None, None]
        assert list(node.workers) == [again]


async def test_a_service_that_was_due_while_its_node_was_out_of_the_cluster_runs_then(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(hosts=[processes()], entries=ENTRIES, cluster=cluster_of(nats, node="a", lease=3))
    policy = RestartPolicy(initial_delay=0.01, max_attempts=1)
    supervisor = Supervisor(node, [Service(name="steady", target="answer", restart=policy)])
    async with node:
        elsewhere: Any = node.engine.elsewhere
        await elsewhere._member.on_dead("for the test")
        supervisor.start_service("steady")
        with pytest.raises(HostFailed, match="node a joins its cluster again"):
            node.spawn("answer")
        elsewhere._member.on_joined(elsewhere._member.member.me)
        assert await node.call_async("steady", "double", 2) == 4
    assert "given up" not in caplog.text


async def test_a_node_that_shuts_down_stays_shut_when_it_joins_again_meanwhile(
    nats: NatsServer,
) -> None:
    async with Node(hosts=[processes()], cluster=cluster_of(nats, node="a", lease=3)) as node:
        elsewhere: Any = node.engine.elsewhere
        await elsewhere._member.on_dead("for the test")
        node.drain()
        elsewhere._member.on_joined(elsewhere._member.member.me)
        assert node.draining
        with pytest.raises(HostFailed, match="node a shuts down"):
            node.spawn(relating.deaf)


async def test_a_node_whose_start_fails_leaves_nothing(nats: NatsServer) -> None:
    class Broken:
        def start(self) -> None:
            raise RuntimeError("on purpose")

        async def stop(self) -> None:
            pass

    before = asyncio.all_tasks()
    node = Node(hosts=[processes()], cluster=cluster_of(nats, node="a", lease=3))
    node.accompany(Broken())
    with pytest.raises(RuntimeError, match="on purpose"):
        node.start()
    await until(lambda: asyncio.all_tasks() <= before, "nothing of it runs")
