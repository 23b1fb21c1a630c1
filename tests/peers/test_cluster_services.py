"""Services in a cluster: one for each node, or one for all."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from pathlib import Path

import naming_handlers
import pytest
import rooms
from circles import Shared, circle, joining
from support import room, until

from wsrelay import PID, NameTaken, RestartPolicy, Service
from wsrelay.values.bounds import InvalidOptions

pytest_plugins = ["sharing"]
pytestmark = pytest.mark.anyio

CHANCE = random.Random(1)  # noqa: S311 - no secret
SOON = RestartPolicy(initial_delay=0.01, max_delay=0.05)
LATE = RestartPolicy(initial_delay=3600.0, max_delay=3600.0)
NAMES = ("ann", "ben", "cyd")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "starts"


def one_for_all(path: Path, restart: RestartPolicy = SOON, **options: object) -> list[Service]:
    options = {"name": "ticker", "target": naming_handlers.alone, "args": (str(path),)} | options
    return [Service(scope="cluster", restart=restart, **options)]  # type: ignore[arg-type]


def starts(path: Path) -> list[str]:
    """The nodes that have started the service, in order."""
    return path.read_text().split() if path.exists() else []


async def serve(cluster: Shared, services: list[Service]) -> None:
    """Have all nodes run these services, from now on."""
    for name in cluster.nodes:
        await cluster.supervisors[name].reconfigure(services)


def runs_on(cluster: Shared) -> list[str]:
    return [name for name in cluster.nodes if cluster.supervisors[name].pid("ticker") is not None]


def idle(cluster: Shared) -> bool:
    """Whether nothing runs, as when the service has returned."""
    return not any(node.workers for node in cluster.nodes.values())


async def owner(cluster: Shared, path: Path, count: int = 1) -> str:
    """The node that runs the service when it was started so many times."""
    await until(lambda: len(starts(path)) >= count, f"start {count}")
    assert len(starts(path)) == count
    [name] = await until(lambda: runs_on(cluster), "it is known that it runs")
    assert starts(path)[-1] == name
    return str(name)


def pid_on(cluster: Shared, name: str) -> PID:
    pid = cluster.supervisors[name].pid("ticker")
    assert pid is not None
    return pid


async def test_a_service_runs_once_on_each_node_under_a_name_that_stays_there() -> None:
    async with circle() as cluster:
        before = cluster.server.sequence
        async with contextlib.AsyncExitStack() as stack:
            for name in ("dan", "eve"):
                joined = joining(cluster, name, services=[Service(name="ticker", target="room")])
                await stack.enter_async_context(joined)
            pids = [node.lookup("ticker") for node in cluster.nodes.values()]
            assert [pid.node for pid in pids] == ["dan", "eve"]
            assert pids == [node.lookup("local/ticker") for node in cluster.nodes.values()]
            dan = cluster["dan"]
            dan.terminate("ticker")
            await until(lambda: pids[0] not in dan.workers)
            await until(lambda: "local/ticker" in dan.kernel.names._pids, "it is started again")
            assert dan.lookup("ticker") == dan.get_or_spawn("ticker", "room") != pids[0]
            assert not dan.engine.processes[dan.lookup("ticker")].fenced
            assert len(cluster.seat("eve").own.directory) == 0
        assert cluster.server.sequence == before


async def test_a_service_of_the_cluster_runs_once_for_all_nodes_under_its_name(path: Path) -> None:
    async with circle(*NAMES, services=one_for_all(path)) as cluster:
        pid = pid_on(cluster, await owner(cluster, path))
        for node in cluster.nodes.values():
            await until(lambda: node.lookup("ticker") == pid)  # noqa: B023 - used at once
        assert cluster.nodes[str(pid.node)].engine.processes[pid].fenced
        assert cluster.keys == ["name.ticker"]
    assert not cluster.keys
    assert len(set(starts(path))) == len(starts(path)), "each node that was left took it over"


async def test_the_node_that_runs_it_starts_it_again_and_keeps_its_name_meanwhile(
    cluster: Shared,
    path: Path,
) -> None:
    await serve(cluster, one_for_all(path))
    name = await owner(cluster, path)
    node, before = cluster[name], cluster.server.sequence
    fence = node.kernel.names.fence("ticker")
    for count in (2, 3, 4):
        node.send("ticker", "raise")
        assert await owner(cluster, path, count) == name
    assert node.kernel.names.fence("ticker") > fence
    assert cluster.server.sequence == before


async def test_a_node_that_shuts_down_passes_it_on_when_it_has_ended(path: Path) -> None:
    async with circle(*NAMES, services=one_for_all(path)) as cluster:
        seen, fences = [], []
        for count in (1, 2, 3):
            seen.append(await owner(cluster, path, count))
            fences.append(cluster[seen[-1]].kernel.names.fence("ticker"))
            if count < len(NAMES):
                await cluster.leave(seen[-1])
        assert sorted(seen) == sorted(NAMES)
        assert fences == sorted(set(fences))
    assert starts(path) == seen


async def test_when_its_node_is_dead_another_one_starts_it(path: Path) -> None:
    """The dead one is stopped by its templates before that, which this test does by hand."""
    async with circle(*NAMES, services=one_for_all(path)) as cluster:
        name = await owner(cluster, path)
        fence = cluster[name].kernel.names.fence("ticker")
        cluster.supervisors.pop(name)
        cluster[name].engine.draining = True
        cluster[name].terminate_all()
        await until(lambda: not cluster[name].workers)
        cluster.declare_dead(name)
        dead = cluster.nodes.pop(name)
        other = await owner(cluster, path, 2)
        assert other != name
        assert cluster[other].kernel.names.fence("ticker") > fence
        cluster.nodes[name] = dead
        cluster.network.off.discard(name)


async def test_one_that_has_finished_runs_again_only_when_its_node_is_gone(path: Path) -> None:
    async with circle(*NAMES, services=one_for_all(path)) as cluster:
        name = await owner(cluster, path)
        cluster[name].send("ticker", "return")
        await until(lambda: not runs_on(cluster), "it has finished")
        assert cluster.keys == ["name.ticker"]
        await cluster.leave(name)
        second = await owner(cluster, path, 2)
        assert second != name


async def test_one_that_is_given_up_is_tried_by_each_node_and_then_by_none(
    cluster: Shared, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = RestartPolicy(initial_delay=0.01, max_attempts=2)
    await serve(cluster, one_for_all(path, policy))
    for turn in range(6):
        name = await owner(cluster, path, turn + 1)
        cluster[name].send("ticker", "raise")
    await until(lambda: not cluster.keys, "nobody keeps its name")
    assert caplog.text.count("service ticker is given up after 2 failures in a row") == 3
    cluster.supervisors["ben"].start_service("ticker")
    assert await owner(cluster, path, 7) == "ben"
    each = [starts(path)[number] for number in (0, 2, 4)]
    assert sorted(each) == sorted(NAMES)
    assert starts(path)[:6] == [name for name in each for _ in range(2)]


async def test_a_node_without_a_place_for_it_leaves_it_to_the_others(path: Path) -> None:
    service = one_for_all(path, host="small")
    async with circle("ann", "ben") as cluster:
        cluster["ann"].spawn(rooms.wait, "small")
        await cluster.supervisors["ann"].reconfigure(service)
        await until(lambda: cluster.server.sequence >= 2, "ann has tried it, and left it")
        await cluster.supervisors["ben"].reconfigure(service)
        assert await owner(cluster, path) == "ben"


async def test_one_that_is_stopped_passes_on_and_comes_back_to_whoever_still_has_it(
    path: Path,
) -> None:
    async with circle(*NAMES[:2], services=one_for_all(path)) as cluster:
        first = await owner(cluster, path)
        await cluster.supervisors[first].stop_service("ticker")
        second = await owner(cluster, path, 2)
        assert second != first
        cluster.supervisors[first].start_service("ticker")
        await cluster.supervisors[second].stop_service("ticker")
        assert await owner(cluster, path, 3) == first
        await cluster.supervisors[first].stop_service("ticker")
        await until(lambda: not cluster.keys, "nobody keeps its name")
    assert starts(path) == [first, second, first]


async def test_until_it_is_started_again_only_its_own_node_may_give_its_name(path: Path) -> None:
    async with circle("ann", "ben", services=one_for_all(path, LATE)) as cluster:
        name = await owner(cluster, path)
        here = cluster[name]
        there = cluster["ben" if name == "ann" else "ann"]
        here.send("ticker", "raise")
        await until(lambda: not runs_on(cluster), "it has failed")
        await until(lambda: cluster.seat(there.name).find("ticker") is None, "that is known")
        with pytest.raises(NameTaken, match=f"kept by node {name} for a service"):
            await there.get_or_spawn_async("ticker", rooms.wait)
        other = there.spawn("room")
        with pytest.raises(NameTaken, match=f"kept by node {name} for a service"):
            await there.register_async("ticker", other)
        pid = await there.get_or_spawn_async("ticker", "room")
        assert pid.node == name
        here.terminate(pid)
        await until(lambda: pid not in here.workers)
        assert cluster.keys == ["name.ticker"]


async def test_a_process_that_has_its_name_is_waited_for(path: Path) -> None:
    async with circle("ann") as cluster:
        thief = await cluster["ann"].get_or_spawn_async("ticker", "room")
        async with joining(cluster, "ben", services=one_for_all(path)):
            asked = cluster.ways["ben", "ann"].seen
            await until(lambda: "AskNameFrame" in asked, "it waits")
            cluster["ann"].terminate(thief)
            await until(lambda: starts(path) == ["ben"], "it is started")


async def test_whatever_becomes_of_its_nodes_it_never_runs_twice_at_once(
    cluster: Shared, path: Path
) -> None:
    """Stops, starts, crashes and ends on all nodes, with a store that is slow and loses answers."""
    await serve(cluster, one_for_all(path))
    network, supervisors = cluster.network, cluster.supervisors
    network.lose_answer = lambda _node, _key: CHANCE.random() < 0.2
    network.delay = lambda _node: CHANCE.choice([0.0, 0.0, 0.01])
    for _ in range(20):
        count = len(starts(path))
        name, other = CHANCE.sample(NAMES, 2)
        supervisors[other].start_service("ticker")
        match CHANCE.choice(["stop", "raise", "return", "kill"]):
            case "stop":
                await supervisors[name].stop_service("ticker")
            case "kill":
                for node in runs_on(cluster):
                    cluster[node].terminate(pid_on(cluster, node))
            case topic:
                cluster[name].send("ticker", topic)
        supervisors[other].start_service("ticker")
        assert len(runs_on(cluster)) <= 1
        if CHANCE.random() < 0.5:
            await until(lambda: len(starts(path)) > count or runs_on(cluster) or idle(cluster))  # noqa: B023
    network.lose_answer = lambda _node, _key: False
    network.delay = lambda _node: 0.0
    for name in NAMES:
        await supervisors[name].stop_service("ticker")
    await until(lambda: not cluster.keys, "nobody keeps its name")
    count = len(starts(path))
    await asyncio.gather(*map(functools.partial(_start, cluster), NAMES))
    await owner(cluster, path, count + 1)
    assert "two" not in starts(path)


async def _start(cluster: Shared, name: str) -> None:
    cluster.supervisors[name].start_service("ticker")


def test_what_cannot_be_a_service_s_place_is_refused() -> None:
    with pytest.raises(InvalidOptions, match="scope is 'all' and must be node or cluster"):
        Service(name="ticker", target=room(rooms.echo), scope="all")  # type: ignore[arg-type]
    with pytest.raises(InvalidOptions, match="host is 'processes@ben' and must be a host alone"):
        Service(name="ticker", target=room(rooms.echo), host="processes@ben")
