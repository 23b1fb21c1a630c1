"""Any history of processes, against a model; what raises has changed nothing."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kernels import (
    CANCELLING,
    EXITED,
    KILLED,
    LIFE,
    ONE,
    RUNNING,
    STARTING,
    TWO,
    WAITING,
    a_kernel,
)

from wsrelay.errors import HostFull, NameTaken, TooMany, WsrelayError
from wsrelay.kernel import (
    Action,
    Effect,
    ExitedEffect,
    Kernel,
    KillEffect,
    LaunchEffect,
    ProcessState,
    Signal,
    StartedEffect,
    StopEffect,
)
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID, PIDSource

# Any history against a model

_LIMITS = {"small": 2, "large": 5}
_NAMES = st.sampled_from(["red", "green", "blue"])
_HOSTS = st.sampled_from(sorted(_LIMITS))
_FROM_WITHIN = (Signal.EXIT, Signal.DUE)
_SIGNALS = st.sampled_from([signal for signal in Signal if signal not in _FROM_WITHIN])
_RESULTS = st.sampled_from(
    [Result(), Result({"a": 1}), KILLED, Result(error=ExitError(ExitKind.ERROR, "it raised"))]
)


class KernelHistory(RuleBasedStateMachine):
    """A kernel beside a model of plain dicts."""

    pids: Bundle[PID] = Bundle("pids")

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel(_LIMITS)
        self.source = PIDSource("local", "k.1")
        self.alive: dict[PID, ProcessState] = {}
        self.doomed: set[PID] = set()
        self.names: dict[str, PID] = {}
        self.exclusive: dict[PID, str] = {}
        self.holders: dict[str, PID] = {}
        self.launched: Counter[PID] = Counter()
        self.exits: Counter[PID] = Counter()
        self.ended: set[PID] = set()

    def _workers(self, host: str) -> int:
        return sum(pid.host == host and s is not WAITING for pid, s in self.alive.items())

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, LaunchEffect):
                self.launched[effect.pid] += 1
            elif isinstance(effect, ExitedEffect):
                self.exits[effect.pid] += 1

    def _forget_names(self, pid: PID) -> None:
        self.names = {name: owner for name, owner in self.names.items() if owner != pid}

    @rule(target=pids, host=_HOSTS, name=st.none() | _NAMES)
    def spawn(self, host: str, name: str | None) -> PID:
        pid = self.source.next(host)
        if name not in self.holders and self._workers(host) >= _LIMITS[host]:
            with pytest.raises(HostFull):
                self.kernel.spawn(pid, name)
        elif name in self.names:
            with pytest.raises(NameTaken):
                self.kernel.spawn(pid, name)
        else:
            self._do(self.kernel.spawn(pid, name))
            self._spawned(pid, name)
        return pid

    def _spawned(self, pid: PID, name: str | None) -> None:
        self._born(pid, WAITING if name in self.holders else STARTING)
        if name is not None:
            self.names[name] = pid
            self.exclusive[pid] = name

    def _born(self, pid: PID, state: ProcessState) -> None:
        self.alive[pid] = state

    @rule(target=pids, host=_HOSTS, name=_NAMES)
    def get_or_spawn(self, host: str, name: str) -> PID:
        return self._come(host, name)

    def _come(self, host: str, name: str) -> PID:
        pid = self.source.next(host)
        if name in self.names:
            assert self.kernel.get_or_spawn(name, pid) == (self.names[name], [])
        elif name not in self.holders and self._workers(host) >= _LIMITS[host]:
            with pytest.raises(HostFull):
                self.kernel.get_or_spawn(name, pid)
        else:
            there, effects = self.kernel.get_or_spawn(name, pid)
            assert there == pid
            self._do(effects)
            self._spawned(pid, name)
        return pid

    @rule(target=pids)
    def connect(self) -> PID:
        pid = self.source.next("gateway")
        self.kernel.connect(pid)
        self._born(pid, RUNNING)
        return pid

    @rule(pid=pids, name=_NAMES)
    def register(self, pid: PID, name: str) -> None:
        if self.alive.get(pid) not in (WAITING, STARTING, RUNNING):
            with pytest.raises(ValueError, match="is not alive"):
                self.kernel.register(name, pid)
        elif (self.names.get(name) or self.holders.get(name, pid)) != pid:
            with pytest.raises(NameTaken):
                self.kernel.register(name, pid)
        else:
            self.kernel.register(name, pid)
            self.names[name] = pid

    @rule(pid=pids, signal=_SIGNALS)
    def signal(self, pid: PID, signal: Signal) -> None:
        before = self.alive.get(pid, EXITED)
        after, action = LIFE[before][signal]
        effects = self.kernel.signal(pid, signal)
        self._do(effects)
        kinds = {
            Action.START: StartedEffect,
            Action.STOP: StopEffect,
            Action.KILL: KillEffect,
            Action.CLEAN_UP: ExitedEffect,
        }
        assert [type(effect) for effect in effects] == ([kinds[action]] if action else [])
        if action is Action.STOP:
            self._forget_names(pid)
            if pid in self.exclusive:
                self.holders[self.exclusive[pid]] = pid
        if action is Action.KILL:
            self.doomed.add(pid)
        if action is Action.CLEAN_UP:
            self._gone(pid)
        elif pid in self.alive:
            self.alive[pid] = after

    @rule(pid=pids, result=_RESULTS)
    def exited(self, pid: PID, result: Result) -> None:
        effects = self.kernel.exited(pid, result)
        self._do(effects)
        if pid not in self.alive:
            assert effects == []
            return
        exited, *follows = effects
        assert isinstance(exited, ExitedEffect)
        # A connection has no signal to show: any error at the end of a doomed one is our doing.
        ours = result == KILLED or (pid.host == "gateway" and result.error is not None)
        if pid in self.doomed and ours:
            assert exited.result.value == result.value
            assert exited.result.error is not None
            assert exited.result.error.kind in (
                ExitKind.TERMINATED,
                ExitKind.CANCELLED,
                ExitKind.START_FAILED,
            )
        else:
            assert exited.result == result
        self._follows(self._gone(pid), follows)

    @rule(target=pids, host=_HOSTS, name=_NAMES)
    def cancel_and_come_again(self, host: str, name: str) -> PID:
        if name in self.names:
            self.signal(self.names[name], Signal.CANCEL)
        return self._come(host, name)

    @precondition(lambda self: self.holders)
    @rule(pick=st.integers(0, 9), result=_RESULTS)
    def one_that_was_cancelled_ends(self, pick: int, result: Result) -> None:
        holders = list(self.holders.values())
        self.exited(holders[pick % len(holders)], result)

    def _gone(self, pid: PID) -> PID | None:
        """Forget a process that has ended; returns the one that waited for it."""
        del self.alive[pid]
        self.ended.add(pid)
        self._forget_names(pid)
        name = self.exclusive.pop(pid, "")
        if self.holders.get(name) != pid:
            return None
        del self.holders[name]
        return self.names.get(name)

    def _follows(self, due: PID | None, effects: list[Effect]) -> None:
        """The process that waited starts, or ends where there is no place for it."""
        if due is None:
            assert effects == []
        elif self._workers(due.host) < _LIMITS[due.host]:
            assert effects == [LaunchEffect(due)]
            self.alive[due] = STARTING
        else:
            (exited,) = effects
            assert isinstance(exited, ExitedEffect)
            assert exited.pid == due
            assert exited.result.error is not None
            assert exited.result.error.kind is ExitKind.HOST_FULL
            self._gone(due)

    @invariant()
    def the_living_are_those_of_the_model(self) -> None:
        assert {pid: process.state for pid, process in self.kernel.processes.items()} == self.alive
        for process in self.kernel.processes.values():
            assert process.takes_mail is (process.state is not CANCELLING)

    @invariant()
    def every_name_shows_a_process_that_is_neither_dead_nor_cancelled(self) -> None:
        assert len(self.kernel.names) == len(self.names)
        for name in ("red", "green", "blue"):
            owner = self.kernel.names.get(name)
            assert owner == self.names.get(name)
            found = self.kernel.find(name, "local")
            assert (found and found.pid) == owner
            assert owner is None or self.alive[owner] in (WAITING, STARTING, RUNNING)

    @invariant()
    def whoever_waits_waits_for_a_cancelled_process_that_has_had_its_name(self) -> None:
        for pid, state in self.alive.items():
            former = self.kernel.names.awaited(pid)
            assert (former is not None) is (state is WAITING)
            assert former is None or self.alive[former] is CANCELLING

    @invariant()
    def the_hosts_count_their_workers_and_are_never_over_their_limit(self) -> None:
        for host, limit in _LIMITS.items():
            assert self.kernel.count(host) == self._workers(host) <= limit

    @invariant()
    def whoever_runs_was_launched_once_and_everyone_gone_has_exited_once(self) -> None:
        workers = {pid for pid in {*self.alive, *self.ended} if pid.host != "gateway"}
        assert set(self.launched) <= workers
        assert set(self.launched.values()) <= {1}
        runs = {pid for pid, state in self.alive.items() if state is not WAITING}
        assert {pid for pid in runs if pid.host != "gateway"} <= set(self.launched)
        assert self.exits == dict.fromkeys(self.ended, 1)


def test_any_history_of_processes_is_that_of_the_model() -> None:
    run_state_machine_as_test(
        KernelHistory,
        settings=settings(
            deadline=None,
            max_examples=80,
            stateful_step_count=40,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


# What raises has changed nothing

_PIDS = [PID(f"{{local@{host}|k.1-{i}}}") for i in range(3) for host in ("small", "large")]
_GIVEN = ["room", "hall", "door", "", "{room"]

_spawns = st.tuples(
    st.just("spawn"),
    st.sampled_from([*_PIDS, PID("{local@other|1}")]),
    st.sampled_from([None, *_GIVEN]),
    st.fixed_dictionaries(
        {
            "parent": st.sampled_from([None, *_PIDS]),
            "monitored": st.booleans(),
            "linked": st.booleans(),
        }
    ),
)
_calls = _spawns | st.one_of(
    st.tuples(st.just("get_or_spawn"), st.sampled_from(_GIVEN), st.sampled_from(_PIDS)),
    st.tuples(st.just("register"), st.sampled_from(_GIVEN), st.sampled_from(_PIDS)),
    st.tuples(st.just("join_group"), st.sampled_from(_GIVEN), st.sampled_from(_PIDS)),
    st.tuples(st.sampled_from(["monitor", "link"]), st.sampled_from(_PIDS), st.sampled_from(_PIDS)),
    st.tuples(st.sampled_from(["unregister", "names.lookup"]), st.sampled_from(_GIVEN)),
    st.tuples(st.just("unregister"), st.sampled_from(_GIVEN), st.sampled_from(_PIDS)),
    st.tuples(
        st.just("signal"),
        st.sampled_from(_PIDS),
        _SIGNALS,
    ),
    st.tuples(st.just("exited"), st.sampled_from(_PIDS), st.just(Result())),
)


def _all_of(kernel: Kernel) -> Any:
    """Everything that a kernel remembers, to be compared."""
    processes = {
        pid: (process.state, process.connection, process.ended_by, process.traps_links)
        for pid, process in kernel.processes.items()
    }
    parts = (kernel.names, kernel.groups, kernel.relations)
    counts = [kernel.count(host) for host in ("small", "large")]
    return copy.deepcopy((processes, counts, [vars(part) for part in parts]))


def _call(kernel: Kernel, name: str, *args: Any) -> object:
    options = args[-1] if isinstance(args[-1], dict) else {}
    plain = [value for value in args if value is not options]
    return operator.attrgetter(name)(kernel)(*plain, **options)


@example(
    0,
    [
        ("spawn", ONE, None, {}),
        ("spawn", TWO, "room", {"parent": ONE, "monitored": True, "linked": True}),
    ],
)
@given(st.integers(0, 1), st.lists(_calls, max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_raises_has_changed_nothing(
    monkeypatch: pytest.MonkeyPatch, most: int, calls: list[tuple[Any, ...]]
) -> None:
    for module in ("names", "groups", "relations"):
        monkeypatch.setattr(f"wsrelay.kernel.{module}.MOST", most)
    kernel = a_kernel(small=3)
    for call in calls:
        before = _all_of(kernel)
        try:
            _call(kernel, *call)
        except (WsrelayError, ValueError):
            assert _all_of(kernel) == before, call


@pytest.mark.parametrize("relation", ["monitored", "linked"])
def test_a_child_beyond_its_parent_s_bound_is_not_there_at_all(
    monkeypatch: pytest.MonkeyPatch, relation: str
) -> None:
    monkeypatch.setattr("wsrelay.kernel.relations.MOST", 0)
    kernel = a_kernel()
    kernel.spawn(ONE)
    before = _all_of(kernel)
    with pytest.raises(TooMany):
        kernel.spawn(TWO, "name", parent=ONE, **{relation: True})
    assert _all_of(kernel) == before
    assert kernel.spawn(TWO, "name", parent=ONE) == [LaunchEffect(TWO)]
