"""Copies of other nodes' memberships: they agree with what is there, whatever has happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.cluster import memberships
from wsrelay.cluster.frames import MAX_MEMBERSHIPS, Membership
from wsrelay.cluster.memberships import Memberships
from wsrelay.errors import WireError
from wsrelay.kernel import PresenceEffect
from wsrelay.kernel.groups import Groups
from wsrelay.values.pid import PID
from wsrelay.values.presence import Kind

NODES = "abc"
GROUPS = ("g", "h")


class Side:
    """One node: its groups, what it has told each other, and what one of its processes watches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.groups = Groups()
        self.memberships = Memberships(name, self.groups)
        self.watcher = PID(f"{{{name}@x|watcher}}")
        self.shown: dict[str, dict[PID, bytes]] = {group: {} for group in GROUPS}
        self.told: dict[str, deque[Membership]] = {}
        """What is under way, by the node that reads it."""
        self.groups.observer = self.changed
        for number, group in enumerate(GROUPS):
            self.groups.watch(group, self.watcher, number)

    def changed(self, kind: Kind, group: str, pid: PID, meta: bytes) -> None:
        if (told := self.memberships.changed(kind, group, pid, meta)) is not None:
            for way in self.told.values():
                way.append(told)

    def meet(self, other: Side) -> None:
        self.told[other.name] = deque(one for some in self.memberships.all() for one in some)

    def read(self, other: Side, count: int) -> None:
        """Take what another has told."""
        way = other.told.get(self.name, deque[Membership]())
        some = [way.popleft() for _ in range(min(count, len(way)))]
        for effects in self.memberships.learn(other.name, some):
            self.show(effects)

    def lose(self, other: Side) -> None:
        """Learn that another is gone."""
        del other.told[self.name]
        self.show(self.memberships.drop(other.name))

    def show(self, effects: list[PresenceEffect]) -> None:
        for effect in effects:
            shown = self.shown[effect.group]
            for pid, meta in effect.members:
                match effect.kind:
                    case "joined":
                        assert pid not in shown
                        shown[pid] = meta
                    case "changed":
                        assert shown[pid] != meta
                        shown[pid] = meta
                    case "left":
                        assert shown.pop(pid) == meta

    def roster(self, group: str, node: str = "") -> dict[PID, bytes]:
        return {
            pid: meta
            for pid, meta in self.groups.roster(group)
            if pid.startswith(f"{{{node}@" if node else "{")
        }


numbers = st.integers(0, 2)
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("join"),
            st.sampled_from(NODES),
            st.sampled_from(GROUPS),
            numbers,
            st.binary(max_size=1),
        ),
        st.tuples(st.just("leave"), st.sampled_from(NODES), st.sampled_from(GROUPS), numbers),
        st.tuples(st.just("end"), st.sampled_from(NODES), numbers),
        st.tuples(st.just("read"), st.sampled_from(NODES), st.sampled_from(NODES), numbers),
        st.tuples(st.just("lose"), st.sampled_from(NODES), st.sampled_from(NODES)),
    ),
    max_size=40,
)


@given(steps)
def test_after_any_history_each_copy_is_what_its_node_has_and_so_is_what_was_shown(
    history: list[tuple[str, ...]],
) -> None:
    sides = {name: Side(name) for name in NODES}
    others = [(one, other) for one in NODES for other in NODES if one != other]
    for one, other in others:
        sides[one].meet(sides[other])

    def join(name: str, group: str, number: int, meta: bytes) -> None:
        sides[name].show(sides[name].groups.join(group, pid(name, number), None, meta))

    def leave(name: str, group: str, number: int) -> None:
        sides[name].show(sides[name].groups.leave(group, pid(name, number)))

    def end(name: str, number: int) -> None:
        sides[name].show(sides[name].groups.release(pid(name, number)))

    def read(name: str, of: str, count: int) -> None:
        sides[name].read(sides[of], count)

    def lose(name: str, other: str) -> None:
        """A node is lost and meets the other again: what was under way is dropped."""
        if name != other:
            sides[name].lose(sides[other])
            sides[other].meet(sides[name])

    do: dict[str, Callable[..., None]] = {
        "join": join,
        "leave": leave,
        "end": end,
        "read": read,
        "lose": lose,
    }
    for what, *args in history:
        do[what](*args)
    for one, other in others:
        sides[one].read(sides[other], 1_000)
    for group in GROUPS:
        there = {
            who: meta for name in NODES for who, meta in sides[name].roster(group, name).items()
        }
        for side in sides.values():
            assert side.roster(group) == there
            assert side.shown[group] == there
    for one, other in others:
        sides[one].lose(sides[other])
    for side in sides.values():
        assert not side.memberships._kept
        assert all(pid.node == side.name for _, pid, _ in side.groups)


def pid(node: str, number: int) -> PID:
    return PID(f"{{{node}@x|{number}}}")


def test_all_memberships_are_told_in_portions() -> None:
    side = Side("a")
    for number in range(MAX_MEMBERSHIPS // 2):
        for group in GROUPS:
            side.groups.join(group, pid("a", number), None, b"m")
    side.groups.join("g", pid("a", 0), None, b"x" * 64_000)
    side.groups.join("g", pid("b", 0))
    portions = [*side.memberships.all()]
    assert len(portions) > 1
    assert max(map(len, portions)) <= MAX_MEMBERSHIPS
    told = [(one.group, PID(one.pid), one.meta) for portion in portions for one in portion]
    assert sorted(told) == sorted(one for one in side.groups if one[1].node == "a")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Membership("g", "{c@x|1}", b""), r"node b may not let \{c@x\|1\} join or leave"),
        (Membership("g", "{x|1}", b""), "may not let"),
        (Membership("g", "x", b""), "a membership that is none"),
        (Membership("{g}", "{b@x|1}", b""), "a membership that is none"),
        (Membership("", "{b@x|1}", b""), "a membership that is none"),
    ],
)
def test_what_no_node_tells_is_refused_and_what_came_before_it_is_taken(
    wrong: Membership, said: str
) -> None:
    side = Side("a")
    with pytest.raises(WireError, match=said):
        for _ in side.memberships.learn("b", [Membership("g", "{b@x|1}", b"1"), wrong]):
            pass
    assert side.groups.roster("g") == [(pid("b", 1), b"1")]


def test_a_process_of_another_node_is_in_no_more_groups_than_one_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsrelay.kernel.groups.MOST", 2)
    side = Side("a")
    told = [Membership(group, "{b@x|1}", b"") for group in "xyz"]
    with pytest.raises(WireError, match="group limit of 2 reached"):
        for _ in side.memberships.learn("b", told):
            pass


def test_what_a_node_makes_others_keep_is_bounded_and_counted_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side = Side("a")

    def learn(*told: Membership, of: str = "b") -> None:
        for _ in side.memberships.learn(of, told):
            pass

    one = Membership("g", "{b@x|1}", b"1" * 1_000)
    learn(one)
    size = side.memberships._kept["b"]
    assert size > 1_000
    monkeypatch.setattr(memberships, "MOST_OF_A_NODE", size)
    learn(one, Membership("g", "{b@x|1}", b"2" * 1_000))
    learn(Membership("g", "{b@x|1}", None), Membership("g", "{b@x|1}", None))
    assert side.memberships._kept["b"] == 0
    learn(one)
    learn(Membership("g", "{c@x|1}", b""), of="c")
    with pytest.raises(WireError, match="the memberships of its processes take more than"):
        learn(Membership("h", "{b@x|1}", b""))
    side.memberships.drop("b")
    learn(one)
