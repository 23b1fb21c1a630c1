"""Monitors and links between nodes, however late frames arrive: none is lost or doubled.

Each node is its kernel and its exchange; what the engine would do with effects is counted instead.
"""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from wsrelay.cluster.frames import PeerFrame
from wsrelay.cluster.framing import pack, unpack
from wsrelay.cluster.peer import Peer
from wsrelay.errors import WireError
from wsrelay.kernel import BreakEffect, Effect, ExitedEffect, Kernel, NotifyEffect
from wsrelay.kernel.relations import Relations
from wsrelay.peers.exchange import Exchange
from wsrelay.peers.lives import Lives
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID, PIDSource

NAMES = ["a", "b", "c"]
CRASH = Result(error=ExitError(ExitKind.ERROR, "on purpose"))
RETURN = Result(1)
PICK = st.integers(0, 99)


class Way:
    """Frames on their way to another node."""

    full = busy = False
    backlog = 0

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()

    def send(self, frame: PeerFrame) -> None:
        self.frames.append(pack(frame))


class OneNode:
    """A node without anything that runs: `heard` counts the events of its processes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kernel = Kernel({"host": 1000})
        self.heard: Counter[tuple[str, PID, PID]] = Counter()
        self.pids = PIDSource(name, "x.1")
        self.life = 0
        self._effects: deque[Effect] = deque()
        self._executes = False
        engine = SimpleNamespace(
            kernel=self.kernel, execute=self.execute, processes={}, entries={}, name=name
        )
        self.exchange = Exchange(
            cast("Any", SimpleNamespace(engine=engine, router=None, name=name))
        )
        self.lives = Lives(self.exchange)

    @property
    def peer(self) -> Peer:
        return Peer(self.name, f"life{self.life}")

    def execute(self, effects: Any) -> None:
        self._effects.extend(effects)
        if self._executes:
            return
        self._executes = True
        while self._effects:
            effect = self._effects.popleft()
            is_here = effect.pid in self.kernel.processes
            match effect:
                case ExitedEffect():
                    pass
                case NotifyEffect() if is_here:
                    self.heard[effect.event.kind, effect.pid, effect.event.sender] += 1
                case BreakEffect() if is_here:
                    self._effects.extend(self.kernel.exited(effect.pid, CRASH))
                case _ if not is_here:
                    self.lives.carry_out(effect)
        self._executes = False


class History(RuleBasedStateMachine):
    """Processes of three nodes, frames under way between these, and who is owed an event."""

    events = 0

    @initialize()
    def three_nodes(self) -> None:
        self.nodes = {name: OneNode(name) for name in NAMES}
        self.ways: dict[tuple[str, str], Way] = {}
        self.all: list[PID] = []
        self.owed: Counter[tuple[str, PID, PID]] = Counter()
        for number, one in enumerate(NAMES):
            for other in NAMES[number + 1 :]:
                self.meet(one, other)
        for name in NAMES * 2:
            self.begin(name)

    def meet(self, one: str, other: str) -> None:
        for me, you in ((one, other), (other, one)):
            way = self.ways[me, you] = Way()
            self.nodes[me].exchange.up(self.nodes[you].peer, cast("Any", way))

    # What is done

    @rule(name=st.sampled_from(NAMES))
    def begin(self, name: str) -> None:
        node = self.nodes[name]
        pid = node.pids.next("host")
        node.kernel.spawn(pid)
        node.kernel.trap_links(pid, trap=True)
        self.all.append(pid)

    def pick(self, number: int) -> PID:
        """The process of that number, or another that is alive."""
        pid = self.all[number % len(self.all)]
        living = [pid for pid in self.all if self.is_alive(pid)]
        return pid if pid in living or not living else living[number % len(living)]

    def is_alive(self, pid: PID) -> bool:
        return pid in self.nodes[str(pid.node)].kernel.processes

    def both(self, pick: int, other: int) -> tuple[OneNode, PID, PID, bool] | None:
        me, it = self.pick(pick), self.all[other % len(self.all)]
        if me == it or not self.is_alive(me):
            return None
        node = self.nodes[str(me.node)]
        return node, me, it, node.exchange.find(it) is not None

    @rule(pairs=st.lists(st.tuples(PICK, PICK), min_size=1, max_size=8))
    def relate(self, pairs: list[tuple[int, int]]) -> None:
        for pick, other in pairs:
            self.monitor(pick, other)
            self.link(other, pick)

    @rule(pick=PICK, other=PICK)
    def monitor(self, pick: int, other: int) -> None:
        if (both := self.both(pick, other)) is not None:
            node, me, it, away = both
            if it not in node.kernel.relations._watched.get(me, ()):
                self.owed["EXIT", me, it] += 1
            node.execute(node.kernel.monitor(me, it, elsewhere=away))

    @rule(pick=PICK, other=PICK)
    def unmonitor(self, pick: int, other: int) -> None:
        if (both := self.both(pick, other)) is not None:
            node, me, it, _ = both
            if it in node.kernel.relations._watched.get(me, ()):
                self.owed["EXIT", me, it] -= 1
            node.execute(node.kernel.unmonitor(me, it))

    @rule(pick=PICK, other=PICK)
    def link(self, pick: int, other: int) -> None:
        if (both := self.both(pick, other)) is not None:
            node, me, it, away = both
            node.execute(node.kernel.link(me, it, elsewhere=away))

    @rule(pick=PICK, other=PICK)
    def unlink(self, pick: int, other: int) -> None:
        if (both := self.both(pick, other)) is not None:
            node, me, it, _ = both
            node.execute(node.kernel.unlink(me, it))

    @rule(
        pick=PICK,
        other=PICK,
        steps=st.lists(st.tuples(st.booleans(), st.sampled_from(["link", "unlink", "arrive"]))),
    )
    def quarrel(self, pick: int, other: int, steps: list[tuple[bool, str]]) -> None:
        """Two processes link and unlink each other while that is told."""
        for turned, what in steps:
            one, two = (other, pick) if turned else (pick, other)
            if what != "arrive":
                getattr(self, what)(one, two)
            elif self.both(one, two) is not None:
                nodes = [str(self.all[number % len(self.all)].node) for number in (one, two)]
                self.arrive(*nodes, 1)

    @rule(pick=PICK, result=st.sampled_from([CRASH, RETURN]))
    def end(self, pick: int, result: Result) -> None:
        if self.is_alive(pid := self.pick(pick)):
            self.end_of(pid, result)

    def end_of(self, pid: PID, result: Result) -> None:
        node = self.nodes[str(pid.node)]
        for watched in node.kernel.relations._watched.get(pid, ()):
            self.owed["EXIT", pid, watched] -= 1  # it cannot hear any more
        node.execute(node.kernel.exited(pid, result))

    @rule(one=st.sampled_from(NAMES), other=st.sampled_from(NAMES), count=st.integers(1, 5))
    def arrive(self, one: str, other: str, count: int) -> None:
        if (way := self.ways.get((one, other))) is None:
            return
        for _ in range(min(count, len(way.frames))):
            frame = unpack(way.frames.popleft())
            for _ in self.nodes[other].exchange.receive(self.nodes[one].peer, frame) or ():
                pass

    @rule(name=st.sampled_from(NAMES), again=st.integers(0, 3))
    def die(self, name: str, again: int) -> None:
        """The others learn that a node is gone, and then that it is there again."""
        if again:  # more often than not it lives
            self.begin(name)
            return
        node = self.nodes[name]
        for other in NAMES:
            if other != name:
                self.nodes[other].exchange.down(node.peer)
                node.exchange.down(self.nodes[other].peer)
        for pid in list(node.kernel.processes):
            self.end_of(pid, CRASH)
        node.life += 1
        for other in NAMES:
            if other != name:
                self.meet(name, other)

    # What is so

    @invariant()
    def nobody_hears_more_than_it_is_owed(self) -> None:
        if hasattr(self, "nodes"):
            for key, count in self.exits().items():
                assert count <= self.owed[key], key

    def exits(self) -> Counter[tuple[str, PID, PID]]:
        return Counter(
            {
                key: count
                for node in self.nodes.values()
                for key, count in node.heard.items()
                if key[0] == "EXIT"
            }
        )

    def quiet(self) -> None:
        while any(way.frames for way in self.ways.values()):
            for one, other in self.ways:
                self.arrive(one, other, 1000)

    def teardown(self) -> None:
        """Once all frames have arrived, both sides agree; once all have ended, nothing is left."""
        if not hasattr(self, "nodes"):
            return
        self.quiet()
        for node in self.nodes.values():
            relations = node.kernel.relations
            for one, others in relations._links.items():
                for other in others:
                    assert self.is_alive(one), "a link of the dead"
                    assert self.is_alive(other), "a link to the dead"
                    there = self.nodes[str(other.node)].kernel.relations
                    assert there.is_linked(other, one), "linked on one side"
            for watched, watchers in relations._watchers.items():
                assert self.is_alive(watched), "the dead are watched"
                if (home := self.nodes[str(watched.node)]) is not node:
                    assert node.peer.pid in home.kernel.relations._watchers[watched]
                for watcher in watchers:
                    if watcher.host == "peer":
                        kernel = self.nodes[str(watcher.node)].kernel
                        assert kernel.relations.is_watched(watched), "an interest of nobody"
            for neighbour in node.exchange.neighbours.values():
                assert not neighbour.unlinking
        waiting = Counter(
            ("EXIT", watcher, watched)
            for node in self.nodes.values()
            for watcher, them in node.kernel.relations._watched.items()
            for watched in them
            if watcher.host == "host"
        )
        assert self.exits() + waiting == +self.owed
        linked = {
            (one, other)
            for node in self.nodes.values()
            for one, others in node.kernel.relations._links.items()
            for other in others
        }
        before = self.links_down()
        for pid in [pid for pid in self.all if self.is_alive(pid)]:
            for other in [other for one, other in linked if one == pid and self.is_alive(other)]:
                before["LINK_DOWN", other, pid] += 1
            self.end_of(pid, CRASH)
            self.quiet()
        assert self.links_down() == before
        for node in self.nodes.values():
            assert not node.kernel.relations
        History.events += sum(self.exits().values())

    def links_down(self) -> Counter[tuple[str, PID, PID]]:
        return Counter(
            {
                key: count
                for node in self.nodes.values()
                for key, count in node.heard.items()
                if key[0] == "LINK_DOWN"
            }
        )


def run(examples: int = 60, *, shrink: bool = True) -> None:
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]
    run_state_machine_as_test(
        History,
        settings=settings(
            deadline=None,
            max_examples=examples,
            stateful_step_count=30,
            report_multiple_bugs=False,
            database=None,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_any_history_of_monitors_and_links_between_nodes_loses_and_doubles_nothing() -> None:
    History.events = 0
    run()
    assert History.events, "nothing has ended"


def _takes_links_that_cross(self: Lives, neighbour: Any, frame: Any) -> None:
    neighbour.unlinking.clear()
    linked(self, neighbour, frame)


def _forgets_no_interest(self: Lives, neighbour: Any, frame: Any) -> None:
    if frame.watched:
        watched(self, neighbour, frame)


linked, watched = Lives._linked, Lives._watched


MUTATIONS = {
    "a link that crosses its end is taken": (Lives, "_linked", _takes_links_that_cross),
    "whose end is awaited is not told": (Lives, "_unlinked", lambda *_: None),
    "an end is told to no other node": (Lives, "_tell", lambda *_: None),
    "a node forgets no interest": (Lives, "_watched", _forgets_no_interest),
    "who dies takes its links along silently": (Kernel, "_tell", lambda *_: []),
    "a node that is gone takes nobody along": (Relations, "of_node", lambda *_: []),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_protocol_that_is_wrong_is_noticed(
    mutation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, broken = MUTATIONS[mutation]
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, WireError)):
        run(400, shrink=False)
