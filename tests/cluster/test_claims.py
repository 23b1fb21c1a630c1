"""Claims of names, against a store whose answers are lost and whose writes are late."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Callable, Generator
from typing import Any

import pytest
from explored import Choose, explore
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.cluster import claims
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Conflict, Entry, Unavailable
from wsrelay.errors import NameTaken, WireError

NAME = "room/1"
KEY = claims.key_of(NAME)
MOST_STEPS = 100


class ModelStore:
    """One key, with a revision of the whole store, as JetStream has it."""

    def __init__(self) -> None:
        self.sequence = 0
        self.revision = 0
        self.value: bytes | None = None

    def do(self, operation: claims.Operation) -> Entry | int | None:
        # By attributes, since a module that has been mutated has classes of its own.
        if not hasattr(operation, "expected"):
            return self.entry()
        if operation.expected != (0 if self.value is None else self.revision):
            raise Conflict("another revision")
        self.sequence += 1
        self.revision = self.sequence
        self.value = getattr(operation, "value", None)
        return self.revision

    def entry(self) -> Entry | None:
        return None if self.value is None else Entry(KEY, self.value, self.revision)


@dataclasses.dataclass
class World:
    """Some claimers of one name, and what each has won."""

    module: Any
    choose: Choose
    faults: int
    deaths: int = 0

    def __post_init__(self) -> None:
        self.store = ModelStore()
        self.late: list[claims.Operation] = []
        self.owners: set[int] = set()
        self.dead: set[Peer] = set()
        self.fences: list[int] = []
        self.doubtful: dict[int, bool] = {}

    def peer(self, number: int) -> Peer:
        return Peer(f"node-{number}", "i")

    def visit(self, number: int, times: int) -> Generator[claims.Operation | None, Any, None]:
        """NameClaim the name, have it, and release it, some times."""
        me = self.peer(number)
        for time in range(times):
            claim = self.module.NameClaim(NAME, *me, f"{number}.{time}")
            outcome = yield from self.module.claimed(claim, self.dead.__contains__)
            self.doubtful[number] = outcome.doubtful or self.doubtful.get(number, False)
            if isinstance(outcome, self.module.Owned):
                assert outcome.owner != me
                continue
            assert outcome.claim == claim
            if me in self.dead:
                return  # what it runs is frozen, and it will learn why
            self.owners.add(number)
            living = {one for one in self.owners if self.peer(one) not in self.dead}
            assert living == {number}, "two owners at a time"
            self.fences.append(self.module.fence(0, outcome.revision, 0))
            assert self.fences == sorted(set(self.fences)), "a fence that does not grow"
            yield None  # others may act while it is the owner
            self.owners.discard(number)
            yield from self.module.released(outcome)

    def run(self, *times: int) -> None:
        """Run a claimer for each of `times`, in an order and with faults that are chosen."""
        running = {number: self.visit(number, most) for number, most in enumerate(times)}
        asked = {number: next(one) for number, one in running.items()}
        for _ in range(MOST_STEPS):
            if not asked:
                break
            options: list[Callable[[], None]] = [
                *(functools.partial(self.step, running, asked, number) for number in asked),
                *(functools.partial(self.land, index) for index in range(len(self.late))),
            ]
            if self.deaths and self.peer(0) not in self.dead:
                options.append(functools.partial(self.dead.add, self.peer(0)))
            options[self.choose(len(options))]()
        assert not asked, "some never end"
        while self.late:
            self.land(0)
        self.clear_up(len(times))

    def step(self, running: dict[int, Any], asked: dict[int, Any], number: int) -> None:
        operation, generator = asked.pop(number), running[number]
        if operation is None:
            asked[number] = next(generator)
            return
        writes = hasattr(operation, "expected")
        fate = self.choose(4 if writes else 2) if self.faults else 0
        try:
            if fate:
                self.faults -= 1
                if fate == 2:
                    self.carry_out(operation)
                if fate == 3:
                    self.late.append(operation)
                asked[number] = generator.throw(Unavailable("no answer"))
                return
            try:
                answer = self.store.do(operation)
            except Conflict as error:
                asked[number] = generator.throw(error)
            else:
                asked[number] = generator.send(answer)
        except StopIteration:
            pass

    def land(self, index: int) -> None:
        self.carry_out(self.late.pop(index))

    def carry_out(self, operation: claims.Operation) -> None:
        with contextlib.suppress(Conflict):
            self.store.do(operation)

    def clear_up(self, claimers: int) -> None:
        """Nothing is left once those whose writes were doubtful have looked again."""
        assert not {one for one in self.owners if self.peer(one) not in self.dead}
        entry = self.store.entry()
        if entry is None:
            return
        owner = claims.NameClaim.of(entry).owner
        if owner in self.dead:
            return  # whoever wants the name takes it over
        number = [self.peer(one) for one in range(claimers)].index(owner)
        assert self.doubtful[number], "a key is left, and its owner does not know"
        deleted = drive(self.store, self.module.cleared(NAME, owner, lambda _: False))
        assert deleted == self.store.sequence
        assert self.store.entry() is None


def drive(store: ModelStore, generator: Generator[claims.Operation, Any, Any]) -> Any:
    """Carry out a generator's operations without faults; returns what it returns."""
    try:
        step = next(generator)
        while True:
            try:
                answer = store.do(step)
            except Conflict as error:
                step = generator.throw(error)
            else:
                step = generator.send(answer)
    except StopIteration as end:
        return end.value


def claim(number: int = 0, nonce: str = "n", floor: int = 0) -> claims.NameClaim:
    return claims.NameClaim(NAME, f"node-{number}", "i", nonce, floor)


def nobody(_: Peer) -> bool:
    return False


SCENARIOS = {
    "two claimers, a fault": ((1, 1), 1, 0),
    "one claimer, two faults": ((2,), 2, 0),
    "three claimers": ((1, 1, 1), 0, 0),
    "the owner dies, a fault": ((1, 1), 1, 1),
}


def try_all(module: Any, scenario: str) -> int:
    times, faults, deaths = SCENARIOS[scenario]
    return explore(lambda choose: World(module, choose, faults, deaths).run(*times))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_name_has_one_owner_at_a_time_in_whatever_order_the_store_is_asked(scenario: str) -> None:
    assert try_all(claims, scenario) > 10


@given(st.data(), st.lists(st.integers(1, 3), min_size=2, max_size=4), st.integers(0, 6))
def test_a_name_has_one_owner_at_a_time_whatever_many_nodes_do_for_long(
    data: st.DataObject, times: list[int], faults: int
) -> None:
    def choose(options: int) -> int:
        return data.draw(st.integers(0, options - 1))

    World(claims, choose, faults, deaths=1).run(*times)


MUTATIONS = {
    "a claim that lost believes that it won": (
        "if there.nonce == claim.nonce and there.owner == claim.owner:",
        "if True:",
    ),
    "a living owner's key is taken": (
        "if there.owner != claim.owner and not dead(there.owner):",
        "if False:",
    ),
    "no answer counts as done": (
        "                doubtful = True\n            else:",
        "                return Won(claim, expected + 1, True)\n            else:",
    ),
    "the write after a failed one is blind": (
        "expected = entry.revision\n\n\ndef",
        "pass\n\n\ndef",
    ),
    "nobody remembers that a write may be late": ("doubtful = True", "doubtful = False"),
    "a release without an answer is done": (
        "        except (Conflict, Unavailable):\n            pass\n        else:",
        "        except (Conflict, Unavailable):\n            return 0\n        else:",
    ),
    "the fence is the count": (
        "return (floor + revision) * SUCCESSORS + count",
        "return floor * SUCCESSORS + count",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_exploration_notices_each_mistake(mutation: str) -> None:
    source, (right, wrong) = inspect.getsource(claims), MUTATIONS[mutation]
    assert source.count(right) == 1
    module = types.ModuleType(claims.__name__)
    module.__package__ = claims.__package__
    exec(source.replace(right, wrong), module.__dict__)  # noqa: S102 - our own source
    with pytest.raises(AssertionError):
        collections.deque((try_all(module, scenario) for scenario in SCENARIOS), maxlen=0)


def test_an_owner_that_claims_again_with_its_revision_needs_one_write() -> None:
    store = ModelStore()
    first = drive(store, claims.claimed(claim(nonce="1"), nobody))
    second = drive(store, claims.claimed(claim(nonce="2"), nobody, first.revision))
    assert (first.revision, second.revision, store.sequence) == (1, 2, 2)


def test_a_claim_over_a_release_that_is_under_way_wins_and_the_late_deletion_changes_nothing() -> (
    None
):
    store = ModelStore()
    first = drive(store, claims.claimed(claim(nonce="1"), nobody))
    deletion = next(claims.released(first))
    second = drive(store, claims.claimed(claim(nonce="2"), nobody, first.revision))
    with pytest.raises(Conflict):
        store.do(deletion)
    assert store.revision == second.revision
    assert isinstance(second, claims.Won)


def test_what_a_store_has_lost_is_claimed_again_under_the_same_nonce_unless_it_is_still_there() -> (
    None
):
    store = ModelStore()
    first = drive(store, claims.claimed(claim(), nobody))
    kept = drive(store, claims.claimed(claim(floor=9), nobody, known=False))
    assert kept == first
    lost = ModelStore()
    again = drive(lost, claims.claimed(claim(floor=9), nobody, known=False))
    assert again.claim.floor == 9
    assert claims.fence(again.claim.floor, again.revision, 0) > claims.fence(0, 9, 0)


def test_who_takes_a_name_over_has_at_least_the_floor_of_the_one_before() -> None:
    store = ModelStore()
    first = drive(store, claims.claimed(claim(floor=9), nobody))
    taken = drive(store, claims.claimed(claim(1), lambda _: True))
    assert taken.claim.floor == 9
    fences = [claims.fence(one.claim.floor, one.revision, 0) for one in (first, taken)]
    assert fences == sorted(fences)
    assert drive(store, claims.claimed(claim(floor=20), lambda _: True)).claim.floor == 20


def test_a_release_of_a_key_that_has_another_owner_by_now_leaves_it_alone() -> None:
    store = ModelStore()
    first = drive(store, claims.claimed(claim(), nobody))
    taken = drive(store, claims.claimed(claim(1), lambda _: True))
    assert drive(store, claims.released(first)) == 0
    assert store.revision == taken.revision


def test_clearing_leaves_alone_what_belongs_to_others_and_what_this_node_has_claimed() -> None:
    store = ModelStore()
    assert drive(store, claims.cleared(NAME, Peer("node-0", "i"), lambda _: False)) == 0
    drive(store, claims.claimed(claim(nonce="mine"), nobody))
    assert drive(store, claims.cleared(NAME, Peer("node-1", "i"), lambda _: False)) == 0
    assert drive(store, claims.cleared(NAME, Peer("node-0", "i"), lambda one: one == "mine")) == 0
    assert drive(store, claims.cleared(NAME, Peer("node-0", "i"), lambda _: False)) == 2


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1000)


@given(NAMES, NAMES)
def test_a_key_is_one_that_nats_takes_and_each_name_has_one_of_its_own(
    name: str, other: str
) -> None:
    key = claims.key_of(name)
    assert re.fullmatch(r"name\.[-/_=A-Za-z0-9]+", key)
    assert len(key) <= 210
    assert (key == claims.key_of(other)) == (name == other)


def test_the_key_of_a_plain_name_can_be_read() -> None:
    assert claims.key_of("chat/lobby-1") == "name.chat/lobby-1"
    assert claims.key_of("a.b=") == "name.a=2Eb=3D"
    long = claims.key_of("ü" * 1000)
    assert long.startswith("name.=C3=BC")
    assert "==" in long


def test_two_names_with_one_key_are_told_apart_by_the_name_in_the_value() -> None:
    store = ModelStore()
    drive(store, claims.claimed(claim(), nobody))
    store.value = claims.NameClaim("another", "node-0", "i", "n").encode()
    with pytest.raises(NameTaken, match="'room/1' has the same key as 'another'"):
        drive(store, claims.claimed(claim(1), nobody))


def test_a_key_that_no_node_has_written_is_named() -> None:
    store = ModelStore()
    drive(store, claims.claimed(claim(), nobody))
    for value in (b"", b"\xff", b"[]", b'{"name": 1}'):
        store.value = value
        with pytest.raises(WireError, match=r"name\.room/1 of the cluster's bucket"):
            drive(store, claims.claimed(claim(1), nobody))


def test_a_name_that_begins_with_local_stays_on_its_node() -> None:
    assert claims.is_local("local/ticker")
    assert not claims.is_local("locality")
