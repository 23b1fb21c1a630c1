from __future__ import annotations

from collections.abc import Callable
from typing import Any

import harsh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsrelay.cluster.members
from wsrelay.cluster.frames import HelloFrame
from wsrelay.cluster.lease import Floor, Lease, LeaseRecord, LeaseState, key_of_node
from wsrelay.cluster.members import (
    DeclareDead,
    ForgetKey,
    KeyWatch,
    MemberEffect,
    Members,
    Misfit,
    NodeDown,
    NodeUp,
    WritesLost,
)
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Entry

ME = Peer("me", "mine")
A, A2, A3 = Peer("a", "one"), Peer("a", "two"), Peer("a", "three")
NAMES = {A: "one", A2: "two", A3: "three"}


def alive(peer: Peer, *, lease: float = 6.0, protocol: int = 1, seen: int = 0) -> LeaseRecord:
    return LeaseRecord(peer.incarnation, LeaseState.ALIVE, lease, protocol=protocol, seen=seen)


def gone(peer: Peer) -> LeaseRecord:
    return LeaseRecord(peer.incarnation, LeaseState.GONE, 6.0)


def dead(peer: Peer) -> LeaseRecord:
    return alive(peer).declared_dead("b")


class Watching:
    """Members that have found the key of `a`, and readings of it, one each second."""

    def __init__(self, members: Members | None = None) -> None:
        self.members = members or Members(ME, 6.0)
        self.now = 0.0
        self.members.found(0.0, "a")

    def read(self, record: LeaseRecord | bytes | None, revision: int = 0) -> list[MemberEffect]:
        self.now += 1.0
        assert self.members.reads(self.now) in ([], ["a"])
        value = record.encode() if isinstance(record, LeaseRecord) else record
        entry = None if value is None else Entry(key_of_node("a"), value, revision)
        return self.members.read("a", entry, issued=self.now, now=self.now)

    def until_declared(self, record: LeaseRecord | None, revision: int) -> DeclareDead:
        """Read the same until that is a reason to declare it dead: for a lease."""
        start = self.now
        for _ in range(20):
            for effect in self.read(record, revision):
                if isinstance(effect, DeclareDead):
                    assert self.now - start in (6.0, 7.0)  # it may have been read once before
                    return effect
        raise AssertionError("never declared dead")

    def declare(self, effect: DeclareDead) -> list[MemberEffect]:
        return self.members.declared(self.now, effect.peer)


def test_a_node_is_up_once_its_lease_was_read_and_each_incarnation_once() -> None:
    watching = Watching()
    members = watching.members
    assert (members.up, members.is_up(A), members.is_down(A)) == ([], False, False)
    assert watching.read(alive(A), 5) == [NodeUp(A)]
    assert watching.read(alive(A), 6) == []
    assert (members.up, members.is_up(A), members.is_up(A2)) == ([A], True, False)


def test_leases_are_read_each_sixth_of_a_lease_and_at_once_after_a_hello_that_says_news() -> None:
    members = Members(ME, 6.0)
    assert members.reads(0.0) == []
    members.heard(0.5, HelloFrame("a", "one"))
    assert (members.due, members.reads(0.5)) == (0.5, ["a"])
    members.read("a", Entry("lease.a", alive(A).encode(), 5), issued=0.5, now=0.6)
    assert (members.due, members.reads(1.4)) == (1.5, [])
    members.heard(0.7, HelloFrame("a", "one"))
    assert members.due == 1.5
    members.heard(0.8, HelloFrame("a", "one", leaving=True))
    assert (members.due, members.reads(0.8)) == (0.8, ["a"])
    members.heard(0.9, HelloFrame("a", "two"))
    assert members.due == 0.9
    members.heard(0.9, HelloFrame("me", "other"))
    assert members.reads(0.9) == ["a"]


def test_a_hello_alone_makes_nobody_a_member() -> None:
    watching = Watching(Members(ME, 6.0))
    watching.members.heard(0.0, HelloFrame("a", "one"))
    for _ in range(5):
        assert watching.read(None) == []
    assert watching.members.up == []
    assert watching.read(None) == []
    assert watching.read(None) == []
    assert watching.members.status(watching.now) == []  # it is silent, and has no key


def test_who_does_not_renew_for_a_lease_is_declared_dead_and_down_when_that_is_written() -> None:
    watching = Watching()
    watching.read(alive(A), 5)
    effect = watching.until_declared(alive(A), 6)
    assert effect == DeclareDead(A, alive(A).declared_dead("me"), 6)
    assert watching.members.is_up(A)
    assert watching.declare(effect) == [NodeDown(A, "me has declared it dead")]
    assert (watching.members.up, watching.members.is_down(A)) == ([], True)
    assert watching.declare(effect) == []
    assert watching.read(dead(A), 7) == []


def test_the_floor_in_a_key_is_learnt_and_stays_in_it_when_its_node_is_declared_dead() -> None:
    floor = Floor()
    watching = Watching(Members(ME, 6.0, floor))
    record = LeaseRecord(A.incarnation, LeaseState.ALIVE, 6.0, floor=50)
    watching.read(record, 5)
    assert floor.value == 50
    assert watching.until_declared(record, 6).value.floor == 50


def test_who_renews_at_the_last_moment_lives() -> None:
    watching = Watching()
    for revision in range(5, 9):
        for _ in range(6):
            assert [e for e in watching.read(alive(A), revision) if e != NodeUp(A)] == []


def test_the_wait_begins_anew_when_something_could_not_be_read_or_renewed() -> None:
    watching = Watching()
    for _ in range(5):
        watching.read(alive(A), 5)
    watching.members.hindered()
    effect = watching.until_declared(alive(A), 5)
    assert effect.expected == 5


def test_the_wait_begins_anew_after_a_gap_in_the_readings() -> None:
    watching = Watching()
    for _ in range(5):
        watching.read(alive(A), 5)
    watching.now += 2.0
    assert watching.until_declared(alive(A), 5).expected == 5


def test_a_watch_counts_from_the_first_answer_and_begins_anew_after_a_gap() -> None:
    watch = KeyWatch(2.0)
    assert watch.unchanged is None
    assert watch.seen(1, 0.0, 0.9) == 0.9
    assert watch.seen(1, 1.5, 1.9) == 0.9
    assert watch.seen(1, 3.9, 5.0) == 0.9
    assert watch.unchanged == pytest.approx(4.1)
    assert watch.seen(1, 7.1, 7.2) == 7.2
    assert watch.seen(2, 7.3, 7.4) == 7.4
    watch.anew()
    assert watch.unchanged is None


def test_a_key_is_read_as_soon_as_its_owner_may_be_declared_dead() -> None:
    members = Members(ME, 6.0)
    members.found(0.0, "a")
    entry = Entry("lease.a", alive(A).encode(), 5)
    members.reads(0.0)
    members.read("a", entry, issued=0.0, now=0.25)
    dues = []
    effects: list[MemberEffect] = []
    while not effects:
        dues.append(now := members.due)
        assert members.reads(now) == ["a"]
        effects = members.read("a", entry, issued=now, now=now)
    assert dues == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.25]


def test_dead_in_the_store_is_the_one_decision_whoever_wrote_it() -> None:
    watching = Watching()
    watching.read(alive(A), 5)
    assert watching.read(dead(A), 6) == [NodeDown(A, "b has declared it dead")]
    assert watching.read(dead(A), 6) == []


def test_a_node_that_has_left_is_down_at_once() -> None:
    watching = Watching()
    watching.read(alive(A), 5)
    assert watching.read(gone(A), 6) == [NodeDown(A, "it has left")]
    assert watching.members.status(watching.now)[0].state == "gone"


def test_the_next_incarnation_is_up_after_the_one_before_is_down() -> None:
    watching = Watching()
    watching.read(alive(A), 5)
    assert watching.read(alive(A2), 6) == [NodeDown(A, "a (two) has its name"), NodeUp(A2)]
    assert watching.members.up == [A2]


def test_a_key_that_is_gone_or_garbage_or_of_one_before_is_death_only_after_a_lease() -> None:
    for found, revision in ((None, 0), (b"what", 6), (gone(A3), 6)):
        watching = Watching()
        watching.read(alive(A), 5)
        for _ in range(6):
            assert watching.read(found, revision) == []
        [effect] = watching.read(found, revision)
        assert isinstance(effect, DeclareDead)
        assert (effect.peer, effect.expected) == (A, revision)
        assert watching.declare(effect) == [NodeDown(A, "me has declared it dead")]


def test_an_incarnation_that_a_key_names_is_down_if_another_is_in_its_place() -> None:
    for found, others in ((alive(A2), [NodeUp(A2)]), (dead(A2), []), (gone(A2), [])):
        watching = Watching(Members(ME, 6.0))
        watching.members.named(0.0, A)
        effects = watching.read(found, 5)
        assert effects == [NodeDown(A, "a (two) has its name"), *others]
        assert watching.members.is_down(A)


def test_what_was_read_before_an_incarnation_was_named_says_nothing_of_it() -> None:
    members = Members(ME, 6.0)
    members.found(0.0, "a")
    assert members.reads(1.0) == ["a"]
    members.named(1.1, A2)
    before = Entry("lease.a", alive(A).encode(), 5)
    assert members.read("a", before, issued=1.0, now=1.2) == [NodeUp(A)]
    assert (members.is_down(A2), members.due) == (False, 1.1)
    assert members.reads(1.2) == ["a"]
    after = Entry("lease.a", alive(A2).encode(), 6)
    down = NodeDown(A, "a (two) has its name")
    assert members.read("a", after, issued=1.2, now=1.3) == [down, NodeUp(A2)]


def test_an_incarnation_that_a_key_names_and_that_has_no_key_is_declared_dead() -> None:
    watching = Watching(Members(ME, 6.0))
    watching.members.named(0.0, A)
    effect = watching.until_declared(None, 0)
    assert (effect.peer, effect.expected) == (A, 0)
    assert watching.declare(effect) == [NodeDown(A, "me has declared it dead")]


def test_what_cannot_be_the_name_of_a_node_is_never_read() -> None:
    members = Members(ME, 6.0)
    members.named(0.0, ("a.>", "one"))
    members.found(0.0, "*")
    assert members.reads(0.0) == []


def test_own_incarnations_of_before_are_down() -> None:
    members = Members(ME, 6.0)
    assert members.is_down(("me", "before"))
    assert not members.is_down(ME)
    members.named(0.0, ("me", "before"))
    members.found(0.0, "me")
    assert members.reads(0.0) == []


def test_a_decision_that_the_store_has_lost_is_made_again() -> None:
    watching = Watching()
    watching.read(alive(A), 5)
    watching.read(dead(A), 6)
    watching.members.heard(watching.now, HelloFrame("a", "one"))  # it believes that it lives
    effects = watching.read(alive(A), 5)
    assert effects == [DeclareDead(A, dead(A).declared_dead("me"), 5)]
    assert watching.members.declared(watching.now, A) == []
    assert watching.members.up == []


def test_a_node_with_another_lease_or_protocol_is_no_member_and_told_once() -> None:
    for record, why in (
        (alive(A, lease=9.0), "a lease of 9 s, here 6 s"),
        (alive(A, protocol=99), "version 99 of the protocol between nodes, here 1"),
    ):
        watching = Watching()
        assert watching.read(record, 5) == [Misfit(A, why)]
        assert watching.read(record, 6) == []
        assert watching.members.up == []
        assert watching.members.status(watching.now)[0].state == "misfit"


def test_a_longer_lease_is_waited_for_to_its_end() -> None:
    watching = Watching()
    for _ in range(9):
        assert not any(isinstance(e, DeclareDead) for e in watching.read(alive(A, lease=9.0), 5))
    assert isinstance(watching.read(alive(A, lease=9.0), 5)[0], DeclareDead)


def test_a_lease_that_has_seen_more_than_there_is_says_that_writes_were_lost() -> None:
    watching = Watching()
    assert watching.read(alive(A, seen=4), 5) == [NodeUp(A)]
    assert watching.read(alive(A, seen=9), 6) == [WritesLost(9)]


def test_the_key_of_a_node_that_is_gone_is_read_seldom_and_deleted_after_an_hour() -> None:
    watching = Watching()
    members = watching.members
    watching.read(gone(A), 5)
    times = []
    effects: list[MemberEffect] = []
    while not effects:
        watching.now = members.due - 1.0
        times.append(members.due)
        effects = watching.read(gone(A), 5)
    assert times == [601.0 + 600.0 * turn for turn in range(6)]
    assert effects == [ForgetKey("a", 5)]
    assert watching.read(None) == []
    assert members.status(watching.now) == []


def test_a_node_that_comes_back_is_read_as_soon_as_it_says_hello() -> None:
    watching = Watching()
    watching.read(gone(A), 5)
    watching.members.heard(watching.now, HelloFrame("a", "two"))
    assert watching.members.due == watching.now
    assert watching.read(alive(A2), 6) == [NodeUp(A2)]


def test_loads_are_those_of_members_that_have_said_hello_lately() -> None:
    watching = Watching()
    hello = HelloFrame("a", "one", draining=True)
    watching.members.heard(0.0, hello)
    assert watching.members.loads(0.0) == {}
    watching.read(alive(A), 5)
    assert watching.members.loads(1.0) == {A: hello}
    assert watching.members.status(1.0)[0].hello is hello
    assert watching.members.loads(3.0) == {}
    watching.members.heard(3.0, HelloFrame("a", "two"))
    assert watching.members.loads(3.0) == {}


def test_what_strangers_say_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsrelay.cluster.members, "_MOST", 10)
    monkeypatch.setattr(wsrelay.cluster.members, "_REMEMBERED", 20)
    members = Members(ME, 6.0)
    for number in range(50):
        members.named(0.0, ("a", f"named-{number}"))
        members.heard(0.0, HelloFrame(f"node-{number}", "one"))
    assert len(members.reads(0.0)) == 10
    for number in range(50):
        record = alive(Peer("a", f"next-{number}"))
        entry = Entry("lease.a", record.encode(), 6 + number)
        downs = [
            effect
            for effect in members.read("a", entry, issued=1.0, now=1.0)
            if isinstance(effect, NodeDown)
        ]
        assert len(downs) == (1 if number else 10)
    assert len(members._down) == 20


# Anything that the key may hold, at any time.
READINGS = st.lists(
    st.tuples(
        st.sampled_from([None, *(f(m) for f in (alive, gone, dead) for m in (A, A2, A3))]),
        st.integers(1, 3),
        st.sampled_from([0.0, 0.0, 0.0, 6.0]),
        st.sampled_from([None, None, None, A, A2, A3]),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(READINGS)
def test_whatever_is_read_each_incarnation_is_up_once_and_down_once_and_last(
    readings: list[tuple[LeaseRecord | None, int, float, Peer | None, bool]],
) -> None:
    watching = Watching()
    told: list[Any] = []
    for record, revision, pause, named, succeeds in readings:
        watching.now += pause
        if named is not None:
            watching.members.named(watching.now, named)
        effects = watching.read(record, revision)
        for effect in list(effects):
            if isinstance(effect, DeclareDead) and succeeds:
                effects += watching.declare(effect)
        told += [effect for effect in effects if isinstance(effect, NodeUp | NodeDown)]
    for peer in NAMES:
        of_it = [type(effect) for effect in told if effect.peer == peer]
        assert of_it in ([], [NodeUp], [NodeDown], [NodeUp, NodeDown])
        assert watching.members.is_up(peer) is (of_it == [NodeUp])
        assert watching.members.is_down(peer) or NodeDown not in of_it
    assert len(watching.members.up) <= 1


# Two nodes in a harsh world


class FromTheAnswer(Lease):
    def renewed(self, now: float, revision: int) -> bool:
        self._issued = now
        return super().renewed(now, revision)


class Unhindered(Members):
    def hindered(self) -> None:
        pass


class Hasty(KeyWatch):
    def seen(self, revision: int, issued: float, now: float) -> float:
        return super().seen(revision, issued, now) - 3.0


class Unblinking(KeyWatch):
    def __init__(self, gap: float) -> None:
        super().__init__(1e9 * gap)


def harshly(seed: int, **mutation: Any) -> harsh.Outcome:
    return harsh.run(seed, harsh.a_harsh_schedule(seed), **mutation)


def fairly(seed: int, **mutation: Any) -> harsh.Outcome:
    return harsh.run(seed, harsh.a_fair_schedule(seed), **mutation)


def first(found: Callable[[int], bool]) -> int | None:
    """Return the first seed of which that is so."""
    return next((seed for seed in range(400) if found(seed)), None)


def test_nobody_runs_while_another_has_declared_it_dead() -> None:
    outcomes = {seed: harshly(seed) for seed in range(150)}
    assert {seed: o.overlap for seed, o in outcomes.items() if o.overlap} == {}
    died = [o for o in outcomes.values() if o.dead is not None]
    assert len(died) > 20
    for outcome in outcomes.values():
        expected = [NodeUp, NodeDown] if outcome.dead is not None else [NodeUp]
        # An answer that was lost at the end of the time is not told.
        assert [type(effect) for effect in outcome.told] in (expected, [NodeUp])
    assert sum(o.noticed for o in died) > 20


def test_a_connected_node_whose_stalls_are_short_is_never_declared_dead() -> None:
    assert [seed for seed in range(100) if fairly(seed).dead is not None] == []


def test_deadlines_that_count_from_the_answer_would_be_noticed() -> None:
    assert first(lambda seed: harshly(seed, lease_of=FromTheAnswer).overlap > 0) is not None


def test_waits_shorter_than_a_lease_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsrelay.cluster.members, "KeyWatch", Hasty)
    assert first(lambda seed: harshly(seed).overlap > 0) is not None


def test_waits_that_do_not_begin_anew_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first(lambda seed: fairly(seed, members_of=Unhindered).dead is not None) is not None
    monkeypatch.setattr(wsrelay.cluster.members, "KeyWatch", Unblinking)
    assert first(lambda seed: fairly(seed).dead is not None) is not None
