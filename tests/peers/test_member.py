from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from doubles import BusDouble, Network, Server, StoreDouble, virtually

from wsrelay.cluster.frames import HelloFrame, HostLoad
from wsrelay.cluster.lease import Hold, LeaseRecord, LeaseState
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Entry
from wsrelay.errors import CannotJoin
from wsrelay.peers.listener import NodeLoad
from wsrelay.peers.member import ClusterMember

LEASE = 6.0


class Recorder:
    """A listener that writes down what it is told, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, str, Any]] = []
        self.deadline = 0.0
        self.fails = False
        self.ending = asyncio.Event()
        """When what ran has ended, after it was declared dead."""
        self.ending.set()
        self._loop = asyncio.get_running_loop()

    def _note(self, what: str, about: Any = None) -> None:
        self.told.append((self._loop.time(), what, about))
        if self.fails:
            raise RuntimeError("the listener fails")

    def load(self) -> NodeLoad:
        if self.fails:
            raise RuntimeError("the listener fails")
        return NodeLoad({"app:processes": HostLoad(1, 10)}, ["chat"])

    async def on_joining(self, me: Peer) -> None:
        self.told.append((self._loop.time(), "joining", me))

    def on_joined(self, me: Peer) -> None:
        self._note("joined", me)

    def on_up(self, member: Peer) -> None:
        self._note("up", member)

    def on_down(self, member: Peer, why: str) -> None:
        self._note("down", (member, why))

    def on_deadline(self, deadline: float) -> None:
        assert deadline >= self.deadline
        self.deadline = deadline

    def on_frozen(self) -> None:
        self._note("frozen")

    def on_thawed(self) -> None:
        self._note("thawed")

    def on_writes_lost(self) -> None:
        self._note("writes lost")

    async def on_dead(self, why: str) -> None:
        await self.ending.wait()
        self._note("dead", why)

    def all(self, what: str) -> list[Any]:
        return [about for _, kind, about in self.told if kind == what]

    def when(self, what: str) -> float:
        return next(time for time, kind, _ in self.told if kind == what)


class Machine:
    """One node's membership, with its own connections."""

    def __init__(self, world: World, name: str, lease: float = LEASE) -> None:
        self.world = world
        self.name = name
        self.told = Recorder()
        self.store = StoreDouble(world.server, name)
        self.bus = BusDouble(world.network, name)
        self.member = ClusterMember(
            name,
            "test",
            self.store,
            self.bus,
            self.told,
            lease=lease,
            clock=asyncio.get_running_loop().time,
        )

    @property
    def me(self) -> Peer:
        assert self.member.me is not None
        return self.member.me

    async def kill(self) -> None:
        """End it as SIGKILL does: nothing is said."""
        life = self.member._life
        assert life is not None
        life.cancel()
        await asyncio.wait([life])
        await self.bus.aclose()
        self.member._life = self.member._keeper = None

    def record(self) -> LeaseRecord:
        entry = self.world.server.get(f"lease.{self.name}")
        assert entry is not None
        return LeaseRecord.of(entry)


class World:
    """The network, the store, and nodes that have joined."""

    def __init__(self) -> None:
        self.network = Network()
        self.server = Server(self.network)
        self.machines: list[Machine] = []

    def machine(self, name: str, lease: float = LEASE) -> Machine:
        self.machines.append(machine := Machine(self, name, lease))
        return machine

    async def joined(self, *names: str) -> list[Machine]:
        machines = [self.machine(name) for name in names]
        for machine in machines:
            await machine.member.join()
        await asyncio.sleep(1.5)
        for machine in machines:
            assert len(machine.told.all("up")) == len(names) - 1
        return machines


@contextlib.asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    world = World()
    try:
        yield world
    finally:
        for machine in world.machines:
            await machine.member.leave()
            await machine.bus.aclose()
            await machine.store.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert world.network.buses == []


def test_nodes_that_join_know_each_other_within_a_second() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = world.machine("a"), world.machine("b")
            await a.member.join()
            assert a.told.all("joining") == a.told.all("joined") == [a.me]
            assert (a.member.hold, a.member.may_claim()) == (Hold.HOLDING, True)
            assert a.told.deadline == a.member.freeze_deadline == 4.0
            await asyncio.sleep(10.5)
            assert 13.9 < a.member.freeze_deadline < 14.1
            await b.member.join()
            await asyncio.sleep(0.1)
            assert a.told.all("up") == a.member.up == [b.me]
            assert b.told.all("up") == b.member.up == [a.me]
            assert a.member.is_up(b.me)
            await asyncio.sleep(0.5)
            load = b.member.loads()[a.me]
            assert (load.hosts, load.entries) == ({"app:processes": HostLoad(1, 10)}, ["chat"])
            assert b.me in a.member.loads()
            status = b.member.status()
            assert (status.node, status.incarnation, status.state) == ("b", b.me[1], "holding")
            assert (status.members[0].node, status.members[0].state) == ("a", "up")

    virtually(main())


def test_a_node_that_leaves_is_down_at_once_and_may_start_again_at_once() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            left, loop = b.me, asyncio.get_running_loop()
            await b.member.leave()
            assert b.member.status().state == "left"
            assert b.record().state is LeaseState.GONE
            await asyncio.sleep(0.1)
            assert a.told.all("down") == [(left, "it has left")]
            assert a.member.is_down(left)
            start = loop.time()
            again = world.machine("b")
            await again.member.join()
            assert loop.time() - start < 0.1
            await asyncio.sleep(0.1)
            assert a.member.up == [again.me] != [left]

    virtually(main())


def test_a_node_that_was_killed_is_down_within_a_lease_and_a_bit() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b, c = await world.joined("a", "b", "c")
            dead, loop = b.me, asyncio.get_running_loop()
            start = loop.time()
            await b.kill()
            await asyncio.sleep(LEASE + 1.5)
            for other in (a, c):
                assert [member for member, _ in other.told.all("down")] == [dead]
                assert LEASE - 1.1 < other.told.when("down") - start < LEASE + 1.2
                assert other.member.is_down(dead)
            assert b.record().state is LeaseState.DEAD
            assert b.record().by in {"a", "c"}

    virtually(main())


def test_a_node_that_starts_again_after_a_kill_waits_for_the_rest_of_its_lease() -> None:
    async def main() -> None:
        async with a_world() as world:
            [b] = await world.joined("b")
            dead, deadline = b.me, b.member.freeze_deadline
            await b.kill()
            again = world.machine("b")
            start = asyncio.get_running_loop().time()
            await again.member.join()
            waited = asyncio.get_running_loop().time() - start
            assert LEASE <= waited < LEASE + 1.1
            assert deadline < again.told.when("joined")
            assert again.member.is_down(dead)

    virtually(main())


def test_the_floor_of_fences_outlives_the_nodes_and_who_joins_has_it_at_once() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            a.member.floor.learn(5_000_000)
            await asyncio.sleep(2 * LEASE / 6)
            await a.kill()
            await asyncio.sleep(2 * LEASE)
            assert a.record().state is LeaseState.DEAD
            assert a.record().floor == b.record().floor == 5_000_000
            await b.member.leave()
            assert b.record().state is LeaseState.GONE
            for name in ("a", "b"):  # each writes over what one of those before has left
                entry = world.server.get(f"lease.{name}")
                assert entry is not None
                world.server.write(entry.key, None, entry.revision)
                again = world.machine("c" + name)
                await again.member.join()
                assert again.member.floor.value == 5_000_000
                assert again.record().floor == 5_000_000

    virtually(main())


def test_a_node_that_others_have_declared_dead_starts_again_at_once() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            dead = b.me
            await b.kill()
            again = world.machine("b")
            await again.member.join()
            await asyncio.sleep(0.1)
            changes = [about for _, kind, about in a.told.told if kind in ("up", "down")]
            assert changes[0] == dead
            assert changes[1][0] == dead
            assert changes[2] == again.me

    virtually(main())


async def refused(machine: Machine) -> str:
    with pytest.raises(CannotJoin) as refusal:
        await machine.member.join()
    assert machine.member.me is None
    assert asyncio.get_running_loop().time() < 10
    return str(refusal.value)


def test_a_second_node_of_the_same_name_is_refused() -> None:
    async def main() -> None:
        async with a_world() as world:
            [a] = await world.joined("a")
            why = await refused(world.machine("a"))
            assert why == (
                f"a node named 'a' is in the cluster already (incarnation {a.me.incarnation}): "
                "each node needs a name of its own"
            )
            assert a.member.hold is Hold.HOLDING

    virtually(main())


def test_two_nodes_of_one_name_that_start_together_do_not_both_join() -> None:
    async def main() -> None:
        async with a_world() as world:
            one, other = world.machine("a"), world.machine("a")
            ends = await asyncio.gather(
                one.member.join(), other.member.join(), return_exceptions=True
            )
            assert [type(end) for end in ends] == [type(None), CannotJoin]
            assert one.record().incarnation == one.me.incarnation

    virtually(main())


def test_another_lease_or_protocol_is_refused_while_such_a_node_is_alive() -> None:
    async def main() -> None:
        async with a_world() as world:
            await world.joined("a")
            why = await refused(world.machine("b", 9.0))
            assert why == (
                "node 'a' of the cluster has a lease of 6 s, here 9 s: all nodes need the same; "
                "to change it, stop them all first"
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("wsrelay.cluster.lease.PROTOCOL", 99)
                why = await refused(world.machine("b"))
            assert why.startswith(
                "node 'a' of the cluster has version 1 of the protocol between nodes, here 99: "
            )

    virtually(main())


def test_a_cluster_that_was_killed_can_start_with_another_lease() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            await a.kill()
            await b.kill()
            start = asyncio.get_running_loop().time()
            again = world.machine("a", 9.0)
            await again.member.join()
            assert 9.0 <= asyncio.get_running_loop().time() - start < 11.0
            assert b.record().state is LeaseState.DEAD

    virtually(main())


def test_a_store_that_has_lost_writes_admits_nobody_until_its_nodes_are_back() -> None:
    async def main() -> None:
        async with a_world() as world:
            await world.joined("a")
            record = LeaseRecord("x", LeaseState.ALIVE, LEASE, seen=100)

            async def renew() -> None:
                while True:
                    entry = world.server.get("lease.c")
                    world.server.write("lease.c", record.encode(), entry.revision if entry else 0)
                    await asyncio.sleep(1)

            renewing = asyncio.ensure_future(renew())
            try:
                with pytest.raises(CannotJoin, match="has lost writes: node 'c' has seen its rev"):
                    await world.machine("b").member.join()
            finally:
                renewing.cancel()

    virtually(main())


def test_a_key_of_its_own_that_is_no_lease_is_said_clearly() -> None:
    async def main() -> None:
        async with a_world() as world:
            world.server.write("lease.a", b"what", 0)
            assert "the key lease.a of the cluster's bucket holds no lease" in await refused(
                world.machine("a")
            )

    virtually(main())


def test_a_start_without_the_store_waits_and_says_so_every_few_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with a_world() as world:
            world.network.cut()
            a = world.machine("a")
            joining = asyncio.ensure_future(a.member.join())
            await asyncio.sleep(12)
            assert not joining.done()
            waiting = [text for text in caplog.messages if text.startswith("waiting for")]
            assert waiting[0] == (
                "waiting for the cluster's store, for 1.0 s: no answer within 1 s"
            )
            assert len(waiting) == 2
            world.network.heal()
            await joining
            assert caplog.messages[-2].startswith("the cluster's store answers again, after 1")
            assert caplog.messages[-1] == f"node a ({a.me.incarnation}) has joined the cluster"

    virtually(main())


def test_a_start_that_is_cancelled_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with a_world() as world:
            world.network.lose_answer = lambda _node, key: key == "lease.a"
            a = world.machine("a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await a.member.join()
            assert a.record().state is LeaseState.ALIVE  # its answer was lost
            world.network.lose_answer = lambda _node, _key: False
            await a.member.leave()
            assert a.record().state is LeaseState.GONE
            assert world.server.list("") == [Entry("lease.a", a.record().encode(), 2)]

    virtually(main())


def test_a_store_away_for_less_than_half_a_lease_is_noticed_by_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            machines = await world.joined("a", "b")
            before = [list(machine.told.told) for machine in machines]
            world.network.cut()
            await asyncio.sleep(1.9)
            assert all(machine.member.may_claim() for machine in machines)
            world.network.heal()
            await asyncio.sleep(20)
            assert [machine.told.told for machine in machines] == before
            assert [r.message for r in caplog.records if r.levelno > logging.INFO] == []

    virtually(main())


def test_a_store_away_for_longer_freezes_all_and_kills_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            loop = asyncio.get_running_loop()
            deadline = a.member.freeze_deadline
            world.network.cut()
            await asyncio.sleep(deadline - 1.0 - loop.time() + 0.01)
            assert (a.member.hold, a.member.may_claim()) == (Hold.NO_NEW_NAMES, False)
            await asyncio.sleep(12)
            assert a.told.when("frozen") == pytest.approx(deadline, abs=0.001)
            assert (a.member.hold, a.told.deadline) == (Hold.FROZEN, deadline)
            assert sum("waiting for the cluster's store" in text for text in caplog.messages) > 3
            world.network.heal()
            await asyncio.sleep(LEASE + 3)
            for machine in (a, b):
                assert machine.member.may_claim()
                assert len(machine.told.all("thawed")) == 1
                assert machine.told.all("down") == machine.told.all("dead") == []

    virtually(main())


def test_a_node_cut_off_is_frozen_before_it_is_dead_and_joins_again_as_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            dead = a.me
            world.network.cut("a")
            await asyncio.sleep(9)
            assert b.told.all("down") == [(dead, "b has declared it dead")]
            assert a.told.when("frozen") + LEASE / 3 - 0.1 < b.told.when("down")
            assert a.told.deadline < b.told.when("down")
            a.told.ending.clear()
            world.network.heal("a")
            await asyncio.sleep(3)
            assert (a.member.me, a.member.hold) == (None, Hold.DEAD)
            assert (a.member.freeze_deadline < 0, a.member.may_claim()) == (True, False)
            assert a.record().state is LeaseState.DEAD  # it waits for what runs to end
            a.told.ending.set()
            await asyncio.sleep(1.5)
            assert a.told.all("dead") == ["b has declared it dead"]
            assert a.me != dead
            assert a.told.all("up") == [b.me, b.me]
            assert b.told.all("up") == [dead, a.me]
            assert "is not a member of the cluster any more: b has declared it dead" in caplog.text

    virtually(main())


def test_answers_that_are_lost_cost_a_node_nothing() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            lost = 0

            def lose(node: str, key: str) -> bool:
                nonlocal lost
                lost += (node, key) == ("a", "lease.a")
                return (node, key) == ("a", "lease.a") and lost % 3 == 1

            world.network.lose_answer = lose
            await asyncio.sleep(60)
            assert lost > 30
            assert a.told.all("frozen") == a.told.all("dead") == b.told.all("down") == []

    virtually(main())


def test_a_store_that_loses_writes_stops_claims_for_a_lease_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            await asyncio.sleep(5)
            world.server.lose(3)
            await asyncio.sleep(2.1)
            for machine in (a, b):
                assert len(machine.told.all("writes lost")) == 1
                assert (machine.member.hold, machine.member.may_claim()) == (Hold.HOLDING, False)
            await asyncio.sleep(LEASE)
            for machine in (a, b):
                assert len(machine.told.all("writes lost")) == 1
                assert machine.member.may_claim()
                assert machine.told.all("down") == []
            assert caplog.text.count("the cluster's store has lost writes") == 2

    virtually(main())


def test_a_node_whose_key_was_lost_is_dead_and_down_elsewhere_only_as_it_joins_again() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            dead, entry = a.me, world.server.get("lease.a")
            assert entry is not None
            world.server.write("lease.a", None, entry.revision)
            await asyncio.sleep(2)
            assert a.told.all("dead") == ["its key is gone"]
            assert b.told.all("down") == [(dead, f"{a.me} has its name")]
            assert b.member.up == [a.me]

    virtually(main())


def test_who_joins_again_since_its_key_was_lost_claims_nothing_for_a_lease() -> None:
    async def main() -> None:
        async with a_world() as world:
            [a] = await world.joined("a")
            await asyncio.sleep(5)
            former = a.me
            world.server.lose(world.server.sequence)
            while a.member.me in {former, None}:  # noqa: ASYNC110 - time is virtual
                await asyncio.sleep(0.01)
            assert (a.member.hold, a.member.may_claim()) == (Hold.HOLDING, False)
            await asyncio.sleep(LEASE - 0.2)
            assert not a.member.may_claim()
            await asyncio.sleep(0.4)
            assert a.member.may_claim()
            assert a.told.all("dead") == ["its key is gone"]

    virtually(main())


def test_an_incarnation_that_a_key_names_is_found_out_about() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            former, stranger = Peer("b", "former"), Peer("c", "former")
            assert not a.member.is_down(former)
            assert not a.member.is_down(stranger)
            await asyncio.sleep(1.1)
            assert a.told.all("down") == [(former, f"{b.me} has its name")]
            await asyncio.sleep(LEASE)
            assert a.member.is_down(former)
            assert a.member.is_down(stranger)
            assert a.told.all("down")[1] == (stranger, "a has declared it dead")

    virtually(main())


def test_a_leave_without_the_store_takes_half_a_lease_and_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            [a] = await world.joined("a")
            world.network.cut()
            start = asyncio.get_running_loop().time()
            await a.member.leave()
            assert asyncio.get_running_loop().time() - start == pytest.approx(LEASE / 2)
            assert "the other nodes could not be told that node a has left" in caplog.text

    virtually(main())


def test_what_a_listener_or_a_store_raises_is_logged_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            a.told.fails = True
            await b.member.leave()
            await asyncio.sleep(1.5)
            assert "Recorder.on_down has failed" in caplog.text
            assert "the load of this node is not known" in caplog.text

            async def broken(*_arguments: object) -> None:
                raise ValueError("a fault of the client library")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(a.store, "get", broken)
                patch.setattr(a.store, "put", broken)
                await asyncio.sleep(2)
            assert "a fault of the client library" in caplog.text
            assert a.member.hold is Hold.HOLDING

    virtually(main())


def test_an_error_of_the_membership_itself_ends_and_begins_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            before = a.me
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("wsrelay.peers.keeper.LeaseStep", None)
                await asyncio.sleep(1.1)
            assert "an error of the membership itself" in caplog.text
            assert a.told.all("dead") == ["an error of its own"]
            await asyncio.sleep(LEASE + 2)
            assert a.me != before
            assert b.me in a.member.up

    virtually(main())


def test_hellos_that_are_none_are_said_once_and_change_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            [a] = await world.joined("a")
            stranger = BusDouble(world.network, "x")
            encode = msgspec.msgpack.encode
            for garbage in (
                b"",
                b"\xc1",
                encode({}),
                encode(["a.>", "one"]),
                encode(HelloFrame("x" * 64, "one")),
                encode(["x", "one", 1, {}, [], False, False, False, "more"]),
            ):
                stranger.publish("wsr.test.hello.x", garbage)
            stranger.publish("wsr.test.hello.ghost", encode(HelloFrame("ghost", "one")))
            await asyncio.sleep(LEASE + 2)
            assert caplog.text.count("a hello that no node of this version has said") == 1
            assert a.told.all("up") == []
            assert a.member.status().members == []
            await stranger.aclose()

    virtually(main())


def test_a_hello_counts_only_on_the_subject_of_who_says_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            liar = BusDouble(world.network, "x")
            lie = msgspec.msgpack.encode(HelloFrame(*b.me, draining=True, leaving=True))
            for _ in range(3):
                liar.publish("wsr.test.hello.x", lie)
            await asyncio.sleep(0.5)
            assert not a.member.loads()[b.me].draining
            told = "dropped: who may say hello on wsr.test.hello.x has said it for node b"
            assert [told for _ in (a, b)] == [r.message for r in caplog.records if r.levelno > 20]
            await liar.aclose()

    virtually(main())


def test_whoever_comes_back_to_the_bus_asks_the_others_for_their_hello() -> None:
    async def main() -> None:
        async with a_world() as world:
            a, b = await world.joined("a", "b")
            heard: list[HelloFrame] = []
            decoder = msgspec.msgpack.Decoder(HelloFrame)
            ear = BusDouble(world.network, "x")
            await ear.subscribe(
                "wsr.test.hello.*", lambda _subject, data: heard.append(decoder.decode(data))
            )
            world.network.cut("a")
            await asyncio.sleep(1.5)
            heard.clear()
            world.network.heal("a")
            await asyncio.sleep(0.25)
            assert {hello.node for hello in heard} == {"a", "b"}
            assert {hello.ask for hello in heard if hello.node == "a"} == {True}
            assert a.member.loads().keys() == {b.me}
            await ear.aclose()

    virtually(main())
