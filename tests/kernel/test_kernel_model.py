"""Any history of processes, connections and transfers, against a model of dicts and sets."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from modelled import GROUPS, LIMITS, Client, ModelledNode

from wsrelay import kernel as k
from wsrelay.errors import HostFull, NameNotFound, NameTaken
from wsrelay.session import command
from wsrelay.session import machine as session
from wsrelay.session.header import RelayHeader
from wsrelay.session.outbox import Overflow
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID

FEW: Final = 3
"""Workers up to which nobody is ended, so that those who end leave somebody behind."""

NAMES: Final = ("red", "green")
MOST_CLIENTS: Final = 5
EXAMPLES: Final = 400
STEPS: Final = 60

PICK = st.integers(0, 99)
PAIRS = st.lists(st.tuples(PICK, PICK), min_size=1, max_size=5)
NAME = st.sampled_from(NAMES)
GROUP = st.sampled_from(GROUPS)
JOINS = st.lists(st.tuples(PICK, st.sampled_from([b"", b"1", b"2"])), min_size=1, max_size=5)
HOST = st.sampled_from(sorted(LIMITS))
NORMAL = Result("value")
KILLED = Result(error=ExitError(ExitKind.KILLED, "SIGKILL"))
CRASHED = Result(error=ExitError(ExitKind.ERROR, "it raised"))
FULL = ExitError(ExitKind.HOST_FULL, "full")
OVERFLOW = ExitError(ExitKind.MAILBOX_OVERFLOW, "too much mail")


class History(ModelledNode):
    """What may happen to it, in any order."""

    steps = 0
    """Of all runs together."""
    waits = 0
    """How often one of them was seen that waits."""

    # Processes begin and end

    @initialize()
    def a_few_run(self) -> None:
        for number in range(FEW + 1):
            self.spawn_one("large", None, None, monitored=False, linked=False)
            self.signal_to(self.pids[number], k.Signal.READY)
            self.trap(self.pids[number], number % 2 == 1)

    @rule(
        host=HOST,
        name=st.none() | NAME,
        parent=st.none() | PICK,
        monitored=st.booleans(),
        linked=st.booleans(),
    )
    def spawn(
        self, host: str, name: str | None, parent: int | None, monitored: bool, linked: bool
    ) -> None:
        workers = self.living_workers()
        father = workers[parent % len(workers)] if workers and parent is not None else None
        self.spawn_one(host, name, father, monitored=monitored, linked=linked)

    def spawn_one(
        self, host: str, name: str | None, father: PID | None, *, monitored: bool, linked: bool
    ) -> None:
        pid = self.source.next(host)
        if self.model.full(host, name):
            with pytest.raises(HostFull):
                self.kernel.spawn(pid, name, parent=father, monitored=monitored, linked=linked)
            self.pids.append(pid)
            if father is not None:
                if monitored:
                    self.owed[father, pid] += 1
                expected = self.model.spawn_failed(pid, father, monitored=monitored, linked=linked)
                effects = self.kernel.spawn_failed(
                    pid, FULL, father, monitored=monitored, linked=linked
                )
                self.do(effects, expected)
        elif name in self.model.names:
            with pytest.raises(NameTaken):
                self.kernel.spawn(pid, name, parent=father, monitored=monitored, linked=linked)
        else:
            self.pids.append(pid)
            self.inboxes[pid] = []
            if father is not None and monitored:
                self.owed[father, pid] += 1
            expected = self.model.spawn(pid, name, father, monitored=monitored, linked=linked)
            effects = self.kernel.spawn(
                pid, name, parent=father, monitored=monitored, linked=linked
            )
            self.do(effects, expected)

    @rule(host=HOST, name=NAME)
    def get_or_spawn(self, host: str, name: str) -> None:
        pid = self.source.next(host)
        if name in self.model.names:
            assert self.kernel.get_or_spawn(name, pid) == (self.model.names[name], [])
        elif self.model.full(host, name):
            with pytest.raises(HostFull):
                self.kernel.get_or_spawn(name, pid)
        else:
            self.pids.append(pid)
            self.inboxes[pid] = []
            there, effects = self.kernel.get_or_spawn(name, pid)
            assert there == pid
            self.do(effects, self.model.spawn(pid, name, None, monitored=False, linked=False))

    @precondition(lambda self: self.model.names and len(self.living_workers()) > FEW)
    @rule(pick=PICK, host=HOST)
    def cancel_and_come_again(self, pick: int, host: str) -> None:
        names = sorted(self.model.names)
        name = names[pick % len(names)]
        self.signal_to(self.model.names[name], k.Signal.CANCEL)
        self.get_or_spawn(host, name)

    @precondition(lambda self: self.living_workers())
    @rule(pick=PICK)
    def gets_ready(self, pick: int) -> None:
        self.signal_to(self.worker(pick), k.Signal.READY)

    @precondition(lambda self: len(self.living_workers()) > FEW)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        self.signal_to(self.anyone(pick), k.Signal.CANCEL)

    @precondition(lambda self: len(self.living_workers()) > FEW)
    @rule(pick=PICK, because=st.sampled_from([None, OVERFLOW]))
    def terminate(self, pick: int, because: ExitError | None) -> None:
        self.signal_to(self.anyone(pick), k.Signal.TERMINATE, because)

    @precondition(lambda self: self.living_workers())
    @rule(pick=PICK, signal=st.sampled_from([k.Signal.START_TIMEOUT, k.Signal.STOP_TIMEOUT]))
    def a_time_is_over(self, pick: int, signal: k.Signal) -> None:
        self.signal_to(self.worker(pick), signal)

    @precondition(lambda self: len(self.living_workers()) > FEW)
    @rule(pick=PICK, result=st.sampled_from([NORMAL, CRASHED, KILLED]), join_read=st.booleans())
    def ends(self, pick: int, result: Result, join_read: bool) -> None:
        self.exit(self.worker(pick), result, join_read=join_read)

    @precondition(lambda self: self.doomed)
    @rule(pick=PICK)
    def dies_of_a_kill(self, pick: int) -> None:
        self.exit(self.doomed[pick % len(self.doomed)], KILLED)

    @precondition(lambda self: len(self.pids) > len(self.model.state))
    @rule(pick=PICK, result=st.sampled_from([NORMAL, KILLED]))
    def a_second_end_means_nothing(self, pick: int, result: Result) -> None:
        dead = [pid for pid in self.pids if pid not in self.model.state]
        assert self.kernel.exited(dead[pick % len(dead)], result) == []

    # Relations

    @precondition(lambda self: self.living_workers())
    @rule(pairs=PAIRS)
    def monitor(self, pairs: list[tuple[int, int]]) -> None:
        for one, other in pairs:
            me, it = self.worker(one), self.anyone(other)
            if me != it and (me, it) not in self.model.monitors:
                self.owed[me, it] += 1
            self.do(self.kernel.monitor(me, it), self.model.monitor(me, it))

    @precondition(lambda self: self.living_workers())
    @rule(one=PICK, other=PICK)
    def unmonitor(self, one: int, other: int) -> None:
        me, it = self.worker(one), self.anyone(other)
        if me != it and (me, it) in self.model.monitors:
            self.owed[me, it] -= 1
        self.kernel.relations.unmonitor(me, it)
        self.model.monitors.discard((me, it))

    @precondition(lambda self: self.living_workers())
    @rule(pairs=PAIRS)
    def link(self, pairs: list[tuple[int, int]]) -> None:
        for one, other in pairs:
            me, it = self.worker(one), self.anyone(other)
            self.do(self.kernel.link(me, it), self.model.link(me, it))

    @precondition(lambda self: self.living_workers())
    @rule(one=PICK, other=PICK)
    def unlink(self, one: int, other: int) -> None:
        me, it = self.worker(one), self.anyone(other)
        self.kernel.relations.unlink(me, it)
        self.model.links.discard(frozenset((me, it)))

    @precondition(lambda self: self.living_workers())
    @rule(pick=PICK, trap=st.booleans())
    def trap_links(self, pick: int, trap: bool) -> None:
        self.trap(self.worker(pick), trap)

    def trap(self, pid: PID, trap: bool) -> None:
        self.kernel.trap_links(pid, trap=trap)
        (self.model.traps.add if trap else self.model.traps.discard)(pid)

    # Names and groups

    @precondition(lambda self: self.everyone())
    @rule(pick=PICK, name=NAME)
    def register(self, pick: int, name: str) -> None:
        pid = self.anyone(pick)
        if not self.model.reachable(pid):
            with pytest.raises(ValueError, match="not alive"):
                self.kernel.register(name, pid)
        elif (self.model.names.get(name) or self.model.holders.get(name, pid)) != pid:
            with pytest.raises(NameTaken):
                self.kernel.register(name, pid)
        else:
            self.kernel.register(name, pid)
            self.model.names[name] = pid

    @rule(name=NAME, pick=st.none() | PICK, by_holder=st.booleans())
    def unregister(self, name: str, pick: int | None, by_holder: bool) -> None:
        workers = self.living_workers()
        asker = workers[pick % len(workers)] if workers and pick is not None else None
        if by_holder:
            asker = self.model.holders.get(name, asker)
        expected = self.model.unregister(name, asker)
        if expected is None:
            with pytest.raises(NameNotFound):
                self.kernel.unregister(name, asker)
        else:
            self.do(self.kernel.unregister(name, asker), expected)

    @precondition(lambda self: self.everyone())
    @rule(joins=JOINS, group=GROUP)
    def join_group(self, joins: list[tuple[int, bytes]], group: str) -> None:
        for pick, meta in joins:
            pid = self.anyone(pick)
            effects = self.kernel.join_group(group, pid, meta=meta)
            self.do(effects, self.model.join(group, pid, meta))

    @precondition(lambda self: self.everyone())
    @rule(pick=PICK, group=GROUP)
    def leave_group(self, pick: int, group: str) -> None:
        pid = self.anyone(pick)
        self.do(self.kernel.leave_group(group, pid), self.model.leave(group, pid))

    @precondition(lambda self: self.living_workers())
    @rule(pick=PICK, group=GROUP)
    def watch_group(self, pick: int, group: str) -> None:
        pid, number = self.worker(pick), next(self.numbers)
        self.views[group, pid, number] = {}
        effects = self.kernel.watch_group(group, pid, number)
        self.do(effects, self.model.watch(group, pid, number))

    @precondition(lambda self: self.views)
    @rule(pick=PICK)
    def unwatch_group(self, pick: int) -> None:
        """Of any that has ever been, also if it has ended or another has taken its place."""
        group, pid, number = list(self.views)[pick % len(self.views)]
        self.kernel.groups.unwatch(group, pid, number)
        self.model.unwatch(group, pid, number)

    # Connections

    @precondition(lambda self: self.living_workers() and len(self.model.clients) < MOST_CLIENTS)
    @rule(pick=PICK, cancels=st.booleans(), waits=st.booleans())
    def connect(self, pick: int, cancels: bool, waits: bool) -> None:
        target = self.worker(pick)
        refused = self.kernel.why_no_target(target) is not None
        assert refused is not self.model.reachable(target)
        if refused:
            return
        pid = self.source.next("gateway")
        self.pids.append(pid)
        self.kernel.connect(pid)
        self.model.state[pid] = "running"
        self.model.clients[pid] = Client(target, cancels)
        relay = RelayHeader(target_pid=target, cancel_on_leave=cancels)
        self.sessions[pid] = session.Session(pid, relay, limit=100, overflow=Overflow.CLOSE)
        self.bound[pid] = target
        if not waits:
            self.upgrade_of(pid)

    def upgrade_of(self, pid: PID) -> None:
        self.relay(pid, self.sessions[pid].opened(0.0), self.model.upgraded(pid))

    @precondition(lambda self: any(map(self.is_new, self.sessions)))
    @rule(pick=PICK, comes_about=st.sampled_from([True, True, True, False]))
    def upgrade(self, pick: int, comes_about: bool) -> None:
        new = [pid for pid in self.sessions if self.is_new(pid)]
        pid = new[pick % len(new)]
        if comes_about:
            self.upgrade_of(pid)
        else:
            self.relay(pid, self.sessions[pid].refused(), self.model.refused(pid))

    @precondition(lambda self: self.sessions)
    @rule(pick=PICK, count=st.integers(1, 3))
    def client_says(self, pick: int, count: int) -> None:
        pid = self.client(pick)
        for _ in range(count):
            number = self.model.clients[pid].messages + 1
            self.relay(pid, self.sessions[pid].message(str(number)), self.model.say(pid))

    @precondition(lambda self: self.sessions and self.living_workers())
    @rule(pick=PICK, to=PICK)
    def transfer(self, pick: int, to: int) -> None:
        self.control(self.client(pick), self.worker(to))

    @precondition(lambda self: self.sessions and self.everyone())
    @rule(pick=PICK, to=PICK)
    def transfer_to_anyone(self, pick: int, to: int) -> None:
        self.control(self.client(pick), self.anyone(to))

    def control(self, pid: PID, target: PID) -> None:
        given = command.ControlCommand(target_pid=target)
        expected = self.model.transfer(pid, target)
        effects = self.sessions[pid].command(given, target, self.kernel.why_no_target)
        self.relay(pid, effects, expected)

    @precondition(lambda self: len(self.sessions) > 1)
    @rule(pick=PICK, code=st.sampled_from([1000, 4000, 1011]))
    def ws_close(self, pick: int, code: int) -> None:
        pid = self.client(pick)
        given = command.CloseCommand(code, "over")
        effects = self.sessions[pid].command(given, pid, self.kernel.why_no_target)
        self.end(pid, effects, code)

    @precondition(lambda self: len(self.sessions) > 1)
    @rule(pick=PICK, code=st.sampled_from([1000, 1001, 1005, 1006, 1009, 4001]))
    def client_goes(self, pick: int, code: int) -> None:
        pid = self.client(pick)
        if not self.is_new(pid):
            self.client_gone(pid, code)

    # What is so after every step

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        History.steps += 1
        self.the_living_are_those_of_the_model()
        self.names_show_nobody_who_is_dead_or_cancelled()
        self.under_an_exclusive_name_one_runs_and_whoever_waits_waits_for_it()
        self.groups_show_nobody_who_is_dead_or_cancelled()
        self.a_watch_shows_its_group_as_it_is()
        self.relations_are_between_the_living()
        self.every_monitor_hears_of_one_end_and_nobody_else_of_any()
        self.hosts_count_their_workers_and_are_never_too_full()
        self.every_stay_at_a_target_has_one_join_and_one_leave_around_its_messages()
        self.a_connection_is_bound_to_its_target_alone()

    def the_living_are_those_of_the_model(self) -> None:
        living = {pid: row.state.value for pid, row in self.kernel.processes.items()}
        assert living == self.model.state
        connections = {pid for pid, row in self.kernel.processes.items() if row.connection}
        assert connections == set(self.model.clients)

    def names_show_nobody_who_is_dead_or_cancelled(self) -> None:
        names = self.kernel.names
        shown = {name: pid for name in NAMES if (pid := names.get(name)) is not None}
        assert shown == self.model.names
        assert len(names) == len(shown)
        assert all(self.model.reachable(pid) for pid in shown.values())
        for pid in self.pids:
            assert names.of(pid) == {name for name, owner in shown.items() if owner == pid}

    def under_an_exclusive_name_one_runs_and_whoever_waits_waits_for_it(self) -> None:
        names, state = self.kernel.names, self.model.state
        assert names._exclusive == self.model.exclusive
        assert names._holders == self.model.holders
        assert all(state[pid] == "cancelling" for pid in names._holders.values())
        runs = [name for pid, name in names._exclusive.items() if state[pid] != "waiting"]
        assert len(runs) == len(set(runs))
        for pid in state:
            former = names.awaited(pid)
            assert (former is not None) is (state[pid] == "waiting")
            History.waits += former is not None

    def groups_show_nobody_who_is_dead_or_cancelled(self) -> None:
        groups = self.kernel.groups
        shown = {group: groups.members(group) for group in GROUPS}
        assert shown == {group: list(members) for group, members in self.model.groups.items()}
        assert len(groups) == sum(bool(members) for members in shown.values())
        assert all(self.model.reachable(pid) for members in shown.values() for pid in members)

    def a_watch_shows_its_group_as_it_is(self) -> None:
        groups = self.kernel.groups
        watchers = {(g, pid): n for g, them in groups._watchers.items() for pid, n in them.items()}
        watched = {(g, pid) for pid, them in groups._watched.items() for g in them}
        assert watchers == self.model.watches
        assert set(watchers) == watched
        for (group, pid), number in watchers.items():
            assert self.model.reachable(pid)
            view = list(self.views[group, pid, number].items())
            assert view == groups.roster(group) == list(self.model.groups[group].items())

    def relations_are_between_the_living(self) -> None:
        relations = self.kernel.relations
        watchers = {(w, t) for t, them in relations._watchers.items() for w in them}
        watched = {(w, t) for w, them in relations._watched.items() for t in them}
        links = {frozenset((a, b)) for a, them in relations._links.items() for b in them}
        assert watchers == watched == self.model.monitors
        assert links == self.model.links
        assert all(a in relations._links[b] for link in links for a in link for b in link - {a})
        assert {pid for pair in watchers | links for pid in pair} <= set(self.kernel.processes)
        edges = (relations._watchers, relations._watched, relations._links)
        assert all(them for kind in edges for them in kind.values())

    def every_monitor_hears_of_one_end_and_nobody_else_of_any(self) -> None:
        waiting = Counter(pair for pair in self.model.monitors if pair[0] != pair[1])
        assert self.heard + waiting == +self.owed

    def hosts_count_their_workers_and_are_never_too_full(self) -> None:
        for host, limit in LIMITS.items():
            assert self.kernel.count(host) == self.model.workers(host) <= limit

    def every_stay_at_a_target_has_one_join_and_one_leave_around_its_messages(self) -> None:
        assert self.inboxes == self.model.mail
        here = {pid: client.target for pid, client in self.model.clients.items()}
        everything: Counter[tuple[object, object]] = Counter()
        for target, inbox in self.inboxes.items():
            stays: dict[object, bool] = {}
            for what, client, *number in inbox:
                assert stays.get(client, False) is (what != "join"), inbox
                stays[client] = what != "leave"
                if what == "message":
                    everything[client, number[0]] += 1
            if self.model.reachable(target):
                # Nobody is left in a room but those who are in it.
                left = {client for client, inside in stays.items() if inside}
                assert left <= {pid for pid, where in here.items() if where == target}
        assert all(count == 1 for count in everything.values())

    def a_connection_is_bound_to_its_target_alone(self) -> None:
        assert set(self.bound) <= set(self.sessions)
        for pid, target in self.bound.items():
            assert self.sessions[pid].target == target == self.model.clients[pid].target

    def teardown(self) -> None:
        """Nothing is left of anything once everything has ended."""
        for pid in list(self.sessions):
            if pid not in self.sessions:
                continue
            if self.is_new(pid):
                self.relay(pid, self.sessions[pid].refused(), self.model.refused(pid))
            else:
                self.client_gone(pid, 1000)
        for pid in self.living_workers():
            self.exit(pid, NORMAL)
        kernel, relations = self.kernel, self.kernel.relations
        assert not kernel.processes
        assert [relations._watchers, relations._watched, relations._links] == [{}] * 3
        names = kernel.names
        assert [names._pids, names._names, names._exclusive, names._holders] == [{}] * 4
        assert [kernel.groups._members, kernel.groups._groups] == [{}] * 2
        assert [kernel.groups._watchers, kernel.groups._watched] == [{}] * 2
        assert [kernel.count(host) for host in LIMITS] == [0] * len(LIMITS)
        assert self.heard == +self.owed
        assert not self.bound


def test_any_history_of_processes_and_transfers_is_that_of_the_model() -> None:
    History.steps = History.waits = 0
    run_state_machine_as_test(
        History,
        settings=settings(
            deadline=None,
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            # Shrinking every way in which one defect shows takes minutes; one is enough.
            report_multiple_bugs=False,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert History.steps > 1000
    assert History.waits > 100
