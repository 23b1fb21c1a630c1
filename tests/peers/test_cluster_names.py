"""Names that several nodes share, with real nodes and processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random

import msgspec
import naming_handlers
import pytest
import rooms
from circles import Shared, circle, joining
from one_node import BOTH, seen_by, starts
from relating import Face
from starlette.requests import Request
from support import client, endpoint, received, serving, until
from traces import Spans, outside
from websockets.exceptions import InvalidStatus

from wsrelay import (
    PID,
    HostFailed,
    HostFull,
    InvalidTarget,
    Isolation,
    NameNotFound,
    NameTaken,
    Node,
    NoQuorum,
    RelayResponse,
    WebSocketRelay,
    WsrelayError,
)
from wsrelay.aio import process
from wsrelay.cluster.claims import NameClaim
from wsrelay.cluster.frames import (
    AskNameFrame,
    Named,
    NamesFrame,
    PeerFrame,
    RegisterNameFrame,
    UnregisterNameFrame,
)
from wsrelay.cluster.framing import pack
from wsrelay.cluster.peer import Peer
from wsrelay.errors import NotAProcess, TooMany, UnknownHost
from wsrelay.peers import names as peer_names
from wsrelay.wire.code import pack_plain

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing", "traced_here"]

CHANCE = random.Random(1)  # noqa: S311 - no secret


def _knows(node: Node, given: dict[str, PID]) -> bool:
    return all(node.lookup(name) == pid for name, pid in given.items())


def asked_ways(cluster: Shared) -> list[tuple[str, str]]:
    """From which node to which other one a name was asked for."""
    return [ends for ends, way in cluster.ways.items() if "AskNameFrame" in way.seen]


async def test_many_who_ask_on_all_nodes_at_once_get_one_process_for_each_name(
    cluster: Shared,
) -> None:
    names = [f"room/{number}" for number in range(50)]
    asks = [(CHANCE.choice([*cluster.nodes.values()]), name) for name in names for _ in range(4)]
    CHANCE.shuffle(asks)
    pids = await asyncio.gather(*(node.get_or_spawn_async(name, "room") for node, name in asks))
    given = {name: pid for (_, name), pid in zip(asks, pids, strict=True)}
    assert len(set(pids)) == 50
    assert all(given[name] == pid for (_, name), pid in zip(asks, pids, strict=True))
    assert sum(len(node.workers) for node in cluster.nodes.values()) == 50
    assert len(cluster.keys) == 50
    for node in cluster.nodes.values():
        await until(functools.partial(_knows, node, given))
    for seat in cluster.seats:
        assert sum(pid.node == seat.me.node for pid in set(pids)) == len(seat.own.keys.held)


async def test_a_new_name_takes_one_write_and_asks_no_other_node(cluster: Shared) -> None:
    ann = cluster["ann"]
    before = cluster.server.sequence
    pid = await ann.get_or_spawn_async("room/1", "room")
    assert pid.node == "ann"
    assert cluster.server.sequence == before + 1
    assert not asked_ways(cluster)
    assert await ann.get_or_spawn_async("room/1", "room") == pid
    assert cluster.server.sequence == before + 1


async def test_a_name_that_is_on_another_node_is_asked_of_it_and_needs_no_write(
    cluster: Shared,
) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    pid = await ann.get_or_spawn_async("room/1", "room")
    await until(lambda: cluster.seat("ben").find("room/1") == pid)
    before = cluster.server.sequence
    assert await ben.get_or_spawn_async("room/1", "room") == pid
    assert ben.lookup("room/1") == pid
    assert cluster.server.sequence == before
    assert asked_ways(cluster) == [("ben", "ann")]


async def test_a_successor_is_started_by_the_node_that_decides_and_costs_no_write(
    cluster: Shared,
) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    first = await ann.get_or_spawn_async("room/1", "deaf")
    assert await ann.started(first) is None
    fence = ann.kernel.names.fence("room/1")
    ann.cancel(first)
    before = cluster.server.sequence
    second = await ben.get_or_spawn_async("room/1", "room")
    assert second != first
    assert second.node == "ann"
    assert ann.kernel.names.awaited(second) == first
    assert cluster.server.sequence == before
    assert ann.kernel.names.fence("room/1") > fence


async def test_who_cannot_have_the_successor_waits_for_the_end_of_the_former_process(
    cluster: Shared,
) -> None:
    """A function is started on its own node only, which another node decides the name at first."""
    ann, ben = cluster["ann"], cluster["ben"]
    first = await ann.get_or_spawn_async("room/1", "deaf")
    assert await ann.started(first) is None
    ann.cancel(first)
    asked = asyncio.ensure_future(ben.get_or_spawn_async("room/1", rooms.wait))
    await until(lambda: asked_ways(cluster))
    ann.terminate(first)
    assert (await asked).node == "ben"


async def test_a_full_host_makes_no_key_and_the_next_nodes_are_asked_until_all_are_full(
    cluster: Shared,
) -> None:
    ann = cluster["ann"]
    pids = [await ann.get_or_spawn_async(f"small/{number}", "small") for number in range(3)]
    assert pids[0].node == "ann"
    assert {pid.node for pid in pids} == {"ann", "ben", "cyd"}
    before = cluster.server.sequence
    with pytest.raises(HostFull, match="small is full: 1 of 1"):
        await ann.get_or_spawn_async("small/3", "small")
    assert cluster.server.sequence == before
    with pytest.raises(HostFull):
        await ann.get_or_spawn_async("small/4", rooms.wait, "small")
    assert cluster.server.sequence == before


async def test_a_node_that_shuts_down_places_processes_on_the_others(cluster: Shared) -> None:
    ann = cluster["ann"]
    ann.engine.draining = True
    try:
        pid = await ann.get_or_spawn_async("room/1", "room")
    finally:
        ann.engine.draining = False
    assert pid.node != "ann"


def _has_ended(node: Node, pid: PID) -> bool:
    return pid not in node.kernel.processes


async def test_whoever_asks_while_the_owner_ends_gets_a_process_that_lives(
    cluster: Shared,
) -> None:
    alive = [*cluster.nodes.values()]
    for turn in range(12):
        first = await alive[turn % 3].get_or_spawn_async("room/1", "room")
        owner = next(node for node in alive if node.name == first.node)
        asks = [
            asyncio.ensure_future(node.get_or_spawn_async("room/1", "room"))
            for node in CHANCE.sample(alive, 3)
        ]
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        owner.terminate(first)
        pids = {*await asyncio.gather(*asks)} - {first}
        assert len(pids) <= 1, pids
        await until(functools.partial(_has_ended, owner, first), "it has ended")
        second = pids.pop() if pids else await alive[0].get_or_spawn_async("room/1", "room")
        there = next(node for node in alive if node.name == second.node)
        assert await there.started(second) is None


def fence(cluster: Shared, pid: PID, name: str = "room/1") -> int:
    assert pid.node is not None
    return cluster[pid.node].kernel.names.fence(name)


async def test_a_fence_grows_with_each_owner_on_whichever_node(cluster: Shared) -> None:
    fences = []
    for node in cluster.nodes.values():
        pid = await node.get_or_spawn_async("room/1", "room")
        fences.append(fence(cluster, pid))
        node.terminate(pid)
        await until(lambda: pid not in node.workers)  # noqa: B023 - used at once
    assert fences == sorted(set(fences))
    with pytest.raises(NameNotFound):
        fence(cluster, pid)


async def test_no_answers_and_late_writes_leave_one_process_for_each_name_and_no_key(
    cluster: Shared,
) -> None:
    network = cluster.network
    network.lose_answer = lambda _node, _key: CHANCE.random() < 0.3
    network.delay = lambda _node: CHANCE.choice([0.0, 0.0, 0.0, 0.06])
    try:
        names = [f"room/{number}" for number in range(10)]
        asks = [(node, name) for name in names for node in cluster.nodes.values()]
        pids = await asyncio.gather(*(node.get_or_spawn_async(name, "room") for node, name in asks))
    finally:
        network.lose_answer = lambda _node, _key: False
        network.delay = lambda _node: 0.0
    assert len(set(pids)) == 10
    assert sum(len(node.workers) for node in cluster.nodes.values()) == 10


@pytest.fixture
def hurried(cluster: Shared, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """Names are decided within 0.3 s, or not at all."""
    for node in cluster.nodes.values():
        options = node.engine.templates.options
        hasty = msgspec.structs.replace(options["processes"], start_timeout=0.3)
        monkeypatch.setitem(options, "processes", hasty)
    return cluster


async def test_without_the_store_nobody_gets_a_new_name_but_all_others_go_on(
    hurried: Shared,
) -> None:
    ann, ben = hurried["ann"], hurried["ben"]
    known = await ann.get_or_spawn_async("room/1", "room")
    await until(lambda: ben.kernel.names.get("room/1") or hurried.seat("ben").find("room/1"))
    hurried.network.cut()
    try:
        with pytest.raises(NoQuorum, match=r"'room/2' was not decided within 0.3 s: .*store"):
            await ann.get_or_spawn_async("room/2", "room")
        with pytest.raises(NoQuorum):
            await ann.register_async("label", known)
        assert await ben.get_or_spawn_async("room/1", "room") == known
        assert ann.workers.keys() == {known}
    finally:
        hurried.network.heal()
    assert (await ann.get_or_spawn_async("room/2", "room")).node == "ann"


async def test_without_a_lease_that_is_renewed_no_name_is_claimed_until_it_is(
    hurried: Shared,
) -> None:
    seat = hurried.seat("ann")
    seat.allow(allowed=False)
    with pytest.raises(NoQuorum, match="lease"):
        await hurried["ann"].get_or_spawn_async("room/1", "room")
    asked = asyncio.ensure_future(hurried["ann"].get_or_spawn_async("room/1", "room"))
    await asyncio.sleep(0)
    seat.allow(allowed=True)
    assert (await asked).node == "ann"


async def test_a_node_that_does_not_answer_is_told_to_whoever_asks(hurried: Shared) -> None:
    ann, ben, _ = [*hurried.nodes.values()]
    await ann.get_or_spawn_async("room/1", "room")
    await until(lambda: hurried.seat("ben").find("room/1"))
    hurried.ways["ann", "ben"].stop()
    with pytest.raises(NoQuorum, match="node ann, which has it, does not answer"):
        await ben.get_or_spawn_async("room/1", "room")


async def test_a_question_that_nobody_waits_for_any_more_leaves_no_key(cluster: Shared) -> None:
    ann = cluster["ann"]
    before = cluster.server.sequence
    cluster.network.delay = lambda _node: 0.01
    asked = asyncio.ensure_future(ann.get_or_spawn_async("room/1", "room"))
    await asyncio.sleep(0.005)
    asked.cancel()
    await until(lambda: cluster.server.sequence > before, "the claim comes late")
    cluster.network.delay = lambda _node: 0.0
    await until(lambda: not cluster.keys)
    assert not ann.workers


async def test_a_name_is_registered_for_a_process_of_any_node_and_freed_from_any(
    cluster: Shared,
) -> None:
    ann, ben, cyd = [*cluster.nodes.values()]
    pid = ben.spawn("room")
    await ann.register_async("label", pid)
    assert ben.lookup("label") == pid
    assert ben.engine.processes[pid].fenced
    await until(lambda: cluster.seat("cyd").find("label"))
    assert cyd.lookup("label") == pid
    await ben.register_async("label", pid)  # it has it
    for node in (ann, ben, cyd):
        with pytest.raises(NameTaken, match=r"'label' belongs to \{ben@"):
            await node.register_async("label", node.spawn("room"))
    assert await cyd.get_or_spawn_async("label", "room") == pid
    await cyd.unregister_async("label")
    with pytest.raises(NameNotFound):
        ben.lookup("label")
    assert not ben.engine.processes[pid].fenced
    await until(lambda: not cluster.keys)
    await ann.register_async("label", await ann.get_or_spawn_async("room/1", "room"))
    with pytest.raises(NameNotFound):
        await cyd.unregister_async("nobody")


async def test_what_cannot_be_registered_costs_no_key_and_no_fence(cluster: Shared) -> None:
    ann, ben, _ = [*cluster.nodes.values()]
    before = cluster.server.sequence
    gone = PID("{ann@processes|gone}")
    for node in (ann, ben):
        with pytest.raises(ValueError, match="is not alive"):
            await node.register_async("label", gone)
    with pytest.raises(ValueError, match="is not alive"):
        await ann.register_async("label", PID("{far@processes|gone}"))
    with pytest.raises(ValueError, match="is not a name"):
        await ann.register_async("{label", ann.spawn("room"))
    assert cluster.server.sequence == before
    held = await ann.get_or_spawn_async("room/1", "deaf")
    assert await ann.started(held) is None
    ann.cancel(held)
    mine = ben.spawn("room")
    with pytest.raises(NameTaken, match="until it has ended"):
        await ben.register_async("room/1", mine)
    assert not ben.engine.processes[mine].fenced


async def test_names_that_begin_with_local_cost_nothing_and_stay_on_their_node(
    cluster: Shared,
) -> None:
    before = cluster.server.sequence
    pids = [node.get_or_spawn("local/ticker", "room") for node in cluster.nodes.values()]
    assert [pid.node for pid in pids] == ["ann", "ben", "cyd"]
    for node, pid in zip([*cluster.nodes.values()], pids, strict=True):
        assert node.lookup("local/ticker") == pid
        assert not node.engine.processes[pid].fenced
        node.register("local/other", pid)
        node.unregister("local/other")
    assert cluster.server.sequence == before


async def test_plain_calls_in_the_event_loop_name_what_to_call_instead(cluster: Shared) -> None:
    ann = cluster["ann"]
    pid = ann.spawn("room")
    with pytest.raises(NotAProcess, match=r"aio\.process\.get_or_spawn.*header's `target`"):
        ann.get_or_spawn("room/1", "room")
    with pytest.raises(NotAProcess, match=r"aio\.process\.registry\.register"):
        ann.register("label", pid)
    with pytest.raises(NotAProcess, match=r"aio\.process\.registry\.unregister"):
        ann.unregister("label")
    assert ann.workers.keys() == {pid}


async def test_plain_calls_in_other_threads_wait_for_the_cluster(cluster: Shared) -> None:
    ann = cluster["ann"]
    pid = await asyncio.to_thread(ann.get_or_spawn, "room/1", "room")
    await asyncio.to_thread(ann.register, "label", pid)
    assert ann.lookup("label") == pid
    await asyncio.to_thread(ann.unregister, "label")


async def test_writes_that_the_store_has_lost_are_made_again_with_greater_fences(
    cluster: Shared,
) -> None:
    ann, ben, _ = [*cluster.nodes.values()]
    start = cluster.server.sequence
    for number in range(10):
        cluster.server.write(f"lease.{number}", b"", 0)
    pids = [await node.get_or_spawn_async(f"room/{node.name}", "room") for node in (ann, ben)]
    fences = [fence(cluster, pid, f"room/{pid.node}") for pid in pids]
    cluster.server.lose(cluster.server.sequence - start)
    for seat in cluster.seats:
        seat.own.writes_lost()
    await until(lambda: len(cluster.keys) == 2)
    new = await ben.get_or_spawn_async("room/1", "room")
    assert fence(cluster, new) > max(fences)
    assert ann.workers.keys() | ben.workers.keys() == {*pids, new}


async def test_a_release_that_the_store_has_lost_is_made_again(cluster: Shared) -> None:
    ann = cluster["ann"]
    ann.terminate(await ann.get_or_spawn_async("lost/1", "room"))
    await until(lambda: not cluster.keys and not len(cluster.seat("ann").own.keys))
    cluster.server.lose(1)
    assert cluster.keys == ["name.lost/1"]
    for seat in cluster.seats:
        seat.own.writes_lost()
    await until(lambda: not cluster.keys)


async def test_what_the_store_has_lost_while_others_wrote_more_is_noticed_when_it_is_back(
    cluster: Shared,
) -> None:
    ann = cluster["ann"]
    gone = await ann.get_or_spawn_async("lost/1", "room")
    pid = await ann.get_or_spawn_async("lost/2", "room")
    before = fence(cluster, pid, "lost/2")
    ann.terminate(gone)
    await until(lambda: cluster.keys == ["name.lost/2"])
    cluster.server.lose(2)
    for number in range(10):
        cluster.server.write(f"lease.{number}", b"", 0)
    cluster.seat("ann").own.store_was_away()
    await until(lambda: cluster.keys == ["name.lost/2"])
    ann.cancel(pid)
    second = await cluster["ben"].get_or_spawn_async("lost/2", "room")
    assert second != pid
    assert fence(cluster, second, "lost/2") > before


async def test_a_key_is_not_written_again_by_a_node_that_may_have_been_declared_dead() -> None:
    async with circle("dan", "eve") as cluster:
        await cluster["dan"].get_or_spawn_async("room/1", "room")
        seat = cluster.seat("dan")
        cluster.declare_dead("dan")
        await until(lambda: not cluster.keys, "its key is deleted")
        seat.certain = False
        cluster.network.off.discard("dan")
        seat.own.store_was_away()
        await until(lambda: seat.own._bell._rung is not None, "it waits for its lease")
        seat.own.forget()
        await until(lambda: not seat.own.keys._tasks)
        assert (cluster.keys, seat.floor.value) == ([], 0)


async def test_a_process_whose_name_the_store_has_lost_and_given_away_is_ended(
    cluster: Shared,
) -> None:
    ann, ben, _ = [*cluster.nodes.values()]
    first = await ann.get_or_spawn_async("room/1", "room")
    cluster.server.lose(1)
    cluster.seat("ben").own.directory.drop(cluster.seat("ann").me)
    second = await ben.get_or_spawn_async("room/1", "room")
    cluster.seat("ann").own.writes_lost()
    await until(lambda: first not in ann.workers)
    assert second in ben.workers
    await until(lambda: cluster.seat("cyd").find("room/1") == second)


async def test_a_key_that_a_late_write_has_brought_back_is_deleted_by_who_is_asked(
    cluster: Shared,
) -> None:
    ann, ben, _ = [*cluster.nodes.values()]
    claim = NameClaim("late/1", *cluster.seat("ann").me, "late")
    cluster.server.write("name.late/1", claim.encode(), 0)
    assert (await ben.get_or_spawn_async("late/1", "room")).node == "ben"
    claim = NameClaim("late/2", *cluster.seat("ann").me, "late")
    cluster.server.write("name.late/2", claim.encode(), 0)
    assert (await ann.get_or_spawn_async("late/2", "room")).node == "ann"


@BOTH
async def test_processes_share_names_as_they_do_on_one_node(cluster: Shared, face: Face) -> None:
    ann, ben, _ = [*cluster.nodes.values()]
    pid = await ben.get_or_spawn_async("theirs", "room")
    await until(lambda: cluster.seat("ann").find("theirs"))
    seen = await seen_by(ann, face(naming_handlers.share), "mine", "theirs")
    assert seen[:4] == ["ann", "ben", True, True]
    starts(seen[4:], "NameTaken", "NameTaken", "NameNotFound")
    with pytest.raises(NameNotFound):
        ben.lookup("theirs")
    assert pid in ben.workers


@BOTH
async def test_a_process_is_told_that_nobody_decides_now(hurried: Shared, face: Face) -> None:
    ann = hurried["ann"]
    hurried.seat("ann").allow(allowed=False)
    told = await seen_by(ann, face(naming_handlers.ask_for), "room/1")
    starts([told], "NoQuorum: who has the name 'room/1' was not decided within 0.3 s")


async def test_a_process_that_ends_while_it_asks_leaves_no_key_and_no_process(
    cluster: Shared,
) -> None:
    ann = cluster["ann"]
    before = cluster.server.sequence
    cluster.network.lose_answer = lambda _node, _key: True
    pid = ann.spawn(naming_handlers.wait_for.sync, None, "room/1")
    await until(lambda: cluster.server.sequence > before)
    ann.terminate(pid)
    await until(lambda: not ann.workers)
    cluster.network.lose_answer = lambda _node, _key: False
    await until(lambda: not cluster.keys)


async def test_arguments_that_wait_for_a_claim_are_bounded(
    hurried: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_names, "_MOST_CODE", 1_000_000)
    ann = hurried["ann"]
    hurried.seat("ann").allow(allowed=False)
    large = bytes(400_000)
    asks = [ann.get_or_spawn_async(f"room/{number}", "room", None, large) for number in range(3)]
    ends = await asyncio.gather(*asks, return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["NoQuorum", "NoQuorum", "TooMany"]
    hurried.seat("ann").allow(allowed=True)
    await ann.get_or_spawn_async("room/1", "deaf")


async def test_arguments_for_which_another_node_waits_here_are_bounded(
    hurried: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_names, "_MOST_CODE", 1_000_000)
    hurried.seat("ben").allow(allowed=False)
    exchange = hurried.seat("ann").exchange
    large = pack_plain((bytes(400_000),), {})
    asks = []
    for number in range(3):
        frame = AskNameFrame(0, f"room/{number}", "place", "", "processes", "room", large)
        asks.append(exchange.ask(exchange.neighbours["ben"], frame))
    await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(TooMany, match="arguments"):
        await asks.pop()
    assert not any(ask.done() for ask in asks)
    for ask in asks:
        ask.cancel()
    hurried.seat("ben").allow(allowed=True)
    await until(lambda: not hurried.seat("ben").own._code, "they are forgotten")


async def test_the_names_of_a_dead_node_pass_on_with_greater_fences_and_its_keys_go() -> None:
    async with circle("dan", "eve") as cluster:
        dan, eve = [*cluster.nodes.values()]
        pid = await dan.get_or_spawn_async("room/1", "room")
        await dan.get_or_spawn_async("room/2", "room")
        await until(lambda: cluster.seat("eve").find("room/2"))
        before = fence(cluster, pid)
        cluster.ways["dan", "eve"].stop()
        asks = [asyncio.ensure_future(eve.get_or_spawn_async("room/1", "room")) for _ in range(3)]
        seen = cluster.ways["eve", "dan"].seen
        await until(lambda: seen.count("AskNameFrame") == 3, "it is asked in vain")
        cluster.declare_dead("dan")
        (there,) = {*await asyncio.gather(*asks)}
        assert there.node == "eve"
        assert there != pid
        assert fence(cluster, there) > before
        assert eve.lookup("room/1") == there
        await until(lambda: cluster.keys == ["name.room/1"])


async def test_a_claim_of_the_key_of_an_unknown_node_waits_for_its_end(cluster: Shared) -> None:
    ann = cluster["ann"]
    unknown = Peer("far", "before")
    cluster.server.write("name.room/1", NameClaim("room/1", *unknown, "n").encode(), 0)
    asked = asyncio.ensure_future(ann.get_or_spawn_async("room/1", "room"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not asked.done()
    cluster.down.add(unknown)
    cluster.seat("ann").own.moved()
    assert (await asked).node == "ann"


async def test_all_names_are_told_to_a_node_that_comes_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_names, "MAX_NAMES", 10)
    async with circle("dan") as cluster:
        (dan,) = [*cluster.nodes.values()]
        pid = dan.spawn("room")
        for number in range(25):
            await dan.register_async(f"label/{number}", pid)
        async with joining(cluster, "eve") as eve:
            await until(lambda: len(cluster.seat("eve").own.directory) == 25)
            assert eve.lookup("label/24") == pid
            dan.terminate(pid)
            await until(lambda: not len(cluster.seat("eve").own.directory))
        await until(lambda: not cluster.keys)


@BOTH
async def test_arguments_that_are_data_travel_to_another_node_and_no_others_do(
    cluster: Shared, face: Face
) -> None:
    ann, ben, _ = [*cluster.nodes.values()]
    await ann.get_or_spawn_async("small/1", "small")
    value = {"a": [1, "x"], "b": None}
    pid = PID(await seen_by(ann, face(naming_handlers.start_kept), "kept/1", value))
    assert pid.node != "ann"
    assert await ann.call_async(pid, "what") == [value]
    other = await ann.get_or_spawn_async("kept/2", "keep", None, value)
    assert await ben.call_async("kept/2", "what") == [value]
    assert {pid.node, other.node} == {"ben", "cyd"}
    cluster[str(other.node)].terminate(other)
    await until(lambda: other not in cluster[str(other.node)].workers)
    starts([await seen_by(ann, face(naming_handlers.start_with_code), "kept/3")], "HostFull")
    with pytest.raises(HostFull):
        await ann.get_or_spawn_async("kept/3", "keep", None, naming_handlers.keep)


async def test_a_host_of_a_node_is_where_a_new_name_goes(cluster: Shared) -> None:
    ann, ben, _ = [*cluster.nodes.values()]
    pid = await ann.get_or_spawn_async("room/1", "room", "processes@ben")
    assert pid in ben.workers
    assert await ann.get_or_spawn_async("room/1", "room", "processes@cyd") == pid
    assert await ann.get_or_spawn_async("room/1", rooms.wait, "processes@cyd") == pid
    code = [("a callable", rooms.wait), ("target 'keep'", "keep", naming_handlers.keep)]
    for what, target, *args in code:
        refusal = f"{what} cannot be started on node 'ben': other nodes start only entries"
        with pytest.raises(InvalidTarget, match=refusal):
            await ann.get_or_spawn_async("room/2", target, "processes@ben", *args)
    with pytest.raises(HostFailed, match="node 'far' is not in the cluster"):
        await ann.get_or_spawn_async("room/2", "room", "processes@far")
    with pytest.raises(UnknownHost, match="nowhere@ben"):
        await ann.get_or_spawn_async("room/2", "room", "nowhere@ben")
    ben.engine.draining = True
    with pytest.raises(HostFailed, match="node ben shuts down"):
        await ann.get_or_spawn_async("room/2", "room", "processes@ben")
    ben.engine.draining = False
    with pytest.raises(UnknownHost, match="nowhere"):
        await ann.get_or_spawn_async("room/2", "room", "nowhere")
    with pytest.raises(UnknownHost, match="processes@ben"):
        ann.get_or_spawn("local/1", "room", "processes@ben")
    assert not ann.workers
    assert len(cluster.keys) == 1


@BOTH
async def test_a_host_of_this_node_is_no_host_of_another(cluster: Shared, face: Face) -> None:
    ann = cluster["ann"]
    await ann.get_or_spawn_async("small/1", "small", "small@ann")
    with pytest.raises(HostFull):
        await ann.get_or_spawn_async("small/2", "small", "small@ann")
    starts(
        [await seen_by(ann, face(naming_handlers.ask_for_small), "small/2", "small@ann")],
        "HostFull",
    )
    answer = RelayResponse(target="small", name="small/2", host="small@ann")
    async with serving(WebSocketRelay(endpoint(lambda _: answer), node=ann)) as url:
        with pytest.raises(InvalidStatus) as refused:
            async with client(url):
                pass
    assert refused.value.response.status_code == 503
    assert len(cluster.keys) == 1


async def test_clients_of_all_nodes_meet_in_the_room_that_the_header_names(
    cluster: Shared,
) -> None:
    answer = RelayResponse(target="room", name="room/1")
    async with contextlib.AsyncExitStack() as stack:
        for node in cluster.nodes.values():
            app = WebSocketRelay(endpoint(lambda _: answer), node=node)
            websocket = await stack.enter_async_context(
                client(await stack.enter_async_context(serving(app)))
            )
            await websocket.send(node.name)
            assert await received(websocket) == node.name
        assert sum(len(node.workers) for node in cluster.nodes.values()) == 1


async def test_an_upgrade_for_a_name_that_nobody_decides_gets_503_and_when_to_come_again(
    hurried: Shared,
) -> None:
    ann = hurried["ann"]

    async def ask(_: Request) -> RelayResponse:
        return RelayResponse(await process.get_or_spawn("room/1", "room"))

    hurried.seat("ann").allow(allowed=False)
    for answer in (ask, lambda _: RelayResponse(target="room", name="room/1")):
        app = WebSocketRelay(endpoint(answer), node=ann)
        async with serving(app) as url:
            with pytest.raises(InvalidStatus) as refused:
                async with client(url):
                    pass
        response = refused.value.response
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


GARBAGE = [
    NamesFrame([Named("room/1", "{ann@processes|1}", 1)]),
    NamesFrame([Named("room/1", "room/2", 1)]),
    NamesFrame([Named("local/1", "{cyd@processes|1}", 1)]),
    NamesFrame([Named("", "{cyd@processes|1}", 1)]),
    AskNameFrame(1, "local/1", "find"),
    AskNameFrame(1, "room/1", "find", "{ann@processes|1}"),
    RegisterNameFrame(1, "room/1", "{ben@processes|1}"),
    RegisterNameFrame(1, "local/1", "{ann@processes|1}"),
    UnregisterNameFrame(1, "local/1", "{ann@processes|1}"),
    UnregisterNameFrame(1, "room/1", "{ben@processes|1}"),
]


@pytest.mark.parametrize("frame", GARBAGE)
async def test_what_no_node_says_of_names_ends_its_link_and_harms_nobody(
    cluster: Shared, frame: PeerFrame
) -> None:
    ann = cluster["ann"]
    pid = await ann.get_or_spawn_async("room/1", "room")
    await cluster["cyd"].get_or_spawn_async("room/2", "room")
    await until(lambda: cluster.seat("ann").find("room/2"))
    cluster.ways["cyd", "ann"].write(pack(frame))
    await until(lambda: cluster.ways["cyd", "ann"].ended)
    assert ann.lookup("room/1") == pid
    with pytest.raises(NameNotFound):
        ann.lookup("room/2")
    cluster.exchange("cyd").down(cluster.peer("ann"))
    cluster.connect("ann", "cyd")
    await until(lambda: cluster.seat("ann").find("room/2"))


async def test_wrong_requests_about_names_are_refused(cluster: Shared) -> None:
    ann, cyd = cluster.exchange("ann"), cluster.exchange("cyd")
    there, before = cyd.neighbours["ann"], cluster.server.sequence
    wrong = [
        (AskNameFrame(0, "{", "find"), "is not a name"),
        (AskNameFrame(0, "room/1", "place", host="nowhere", target="room"), "nowhere"),
        (AskNameFrame(0, "room/1", "place", host="processes", target="os:abort"), "no entry"),
        (AskNameFrame(0, "room/1", "place", host="processes"), "no entry None"),
        (UnregisterNameFrame(0, "nobody", "{ann@processes|1}"), "no process is registered"),
        (RegisterNameFrame(0, "label", "{ann@processes|1}"), "is not alive"),
    ]
    for frame, why in wrong:
        with pytest.raises((WsrelayError, ValueError), match=why):
            await cyd.ask(there, frame)
    assert not ann.node.workers
    assert cluster.server.sequence == before


async def test_a_node_that_was_declared_dead_has_no_names_when_it_joins_again(
    cluster: Shared,
) -> None:
    ann, ben = cluster["ann"], cluster["ben"]
    first = await ann.get_or_spawn_async("room/1", "room")
    former, seat = cluster.peer("ann"), cluster.seat("ann")
    cluster.declare_dead("ann")
    assert (await ben.get_or_spawn_async("room/1", "room")).node == "ben"
    seat.own.forget()
    ann.terminate_all()
    await until(lambda: first not in ann.workers)
    cluster.network.off.discard("ann")
    cluster.meet_again("ann")
    seat.me = cluster.peer("ann")
    assert seat.me != former
    await until(lambda: seat.find("room/1"))
    assert (await ann.get_or_spawn_async("room/1", "room")).node == "ben"
    assert (await ann.get_or_spawn_async("room/2", "room")).node == "ann"


@BOTH
async def test_a_walled_in_process_may_find_names_of_other_nodes_and_no_more(
    cluster: Shared, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the process that it may find has ended, of which this node has not been told yet."""
    ann, ben, _ = [*cluster.nodes.values()]
    options = ann.engine.templates.options
    walled = msgspec.structs.replace(options["processes"], isolation=Isolation(network="none"))
    monkeypatch.setitem(options, "processes", walled)
    pid = await ben.get_or_spawn_async("theirs", "small")
    await until(lambda: cluster.seat("ann").find("theirs"))
    cluster.ways["ben", "ann"].stop()
    ben.terminate(pid)
    await until(lambda: not ben.workers and not cluster.keys)
    seen = await seen_by(ann, face(naming_handlers.trespass), "theirs")
    assert seen[0] == pid
    starts(seen[1:], "NotAllowed", "NotAllowed", "NotAllowed")
    assert not cluster.keys


@pytest.mark.parametrize("arguments", [(), (1,)])
async def test_what_another_node_starts_under_a_name_belongs_to_who_has_asked(
    cluster: Shared, spans: Spans, arguments: tuple[int, ...]
) -> None:
    ann = cluster.nodes["ann"]
    with outside():
        pid = await ann.get_or_spawn_async("its name", "room", "processes@ben", *arguments)
    assert pid.node == "ben"
    began = await spans.one("spawn room")
    assert began.is_child_of(await spans.one("outside"))
    assert began.about["wsrelay.pid"] == pid
