from __future__ import annotations

import copy
import operator
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from wsrelay.errors import HostFull, NameNotFound, NameTaken, TooMany, UnknownHost, WsrelayError
from wsrelay.kernel import (
    Action,
    Effect,
    ExitedEffect,
    Kernel,
    KillEffect,
    LaunchEffect,
    Names,
    ProcessState,
    Signal,
    StartedEffect,
    StopEffect,
)
from wsrelay.kernel.lifecycle import TABLE
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID, PIDSource

ONE = PID("{local@small|k.1-1}")
TWO = PID("{local@small|k.1-2}")
THREE = PID("{local@small|k.1-3}")
CLIENT = PID("{local@gateway|k.1-9}")
KILLED = Result(error=ExitError(ExitKind.KILLED, "SIGKILL"))

STARTING, RUNNING, CANCELLING, EXITED = ProcessState

# The whole life once more, so that a change of the table is made twice and on purpose.
LIFE: dict[ProcessState, dict[Signal, tuple[ProcessState, Action | None]]] = {
    STARTING: {
        Signal.READY: (RUNNING, Action.START),
        Signal.CANCEL: (CANCELLING, Action.STOP),
        Signal.TERMINATE: (STARTING, Action.KILL),
        Signal.START_TIMEOUT: (STARTING, Action.KILL),
        Signal.STOP_TIMEOUT: (STARTING, None),
        Signal.EXIT: (EXITED, Action.CLEAN_UP),
    },
    RUNNING: {
        Signal.READY: (RUNNING, None),
        Signal.CANCEL: (CANCELLING, Action.STOP),
        Signal.TERMINATE: (RUNNING, Action.KILL),
        Signal.START_TIMEOUT: (RUNNING, None),
        Signal.STOP_TIMEOUT: (RUNNING, None),
        Signal.EXIT: (EXITED, Action.CLEAN_UP),
    },
    CANCELLING: {
        Signal.READY: (CANCELLING, None),
        Signal.CANCEL: (CANCELLING, None),
        Signal.TERMINATE: (CANCELLING, Action.KILL),
        Signal.START_TIMEOUT: (CANCELLING, None),
        Signal.STOP_TIMEOUT: (CANCELLING, Action.KILL),
        Signal.EXIT: (EXITED, Action.CLEAN_UP),
    },
    EXITED: {
        Signal.READY: (EXITED, None),
        Signal.CANCEL: (EXITED, None),
        Signal.TERMINATE: (EXITED, None),
        Signal.START_TIMEOUT: (EXITED, None),
        Signal.STOP_TIMEOUT: (EXITED, None),
        Signal.EXIT: (EXITED, None),
    },
}


def _kernel(small: int = 2) -> Kernel:
    return Kernel({"small": small, "large": 100})


def _in_state(state: ProcessState) -> Kernel:
    """A kernel with the process ONE, named `name`, in that state."""
    kernel = _kernel()
    kernel.spawn(ONE, "name")
    if state is RUNNING:
        kernel.signal(ONE, Signal.READY)
    elif state is CANCELLING:
        kernel.signal(ONE, Signal.CANCEL)
    elif state is EXITED:
        kernel.exited(ONE, Result())
    return kernel


def _give(kernel: Kernel, signal: Signal) -> list[Effect]:
    if signal is Signal.EXIT:
        return kernel.exited(ONE, Result("value"))
    return kernel.signal(ONE, signal, reason="why", sender=TWO)


_EFFECTS: dict[Action | None, list[Effect]] = {
    None: [],
    Action.START: [StartedEffect(ONE)],
    Action.STOP: [StopEffect(ONE, "why", TWO)],
    Action.KILL: [KillEffect(ONE)],
    Action.CLEAN_UP: [ExitedEffect(ONE, Result("value"))],
}


def test_the_table_has_a_row_for_every_state_and_signal() -> None:
    assert set(TABLE) == set(ProcessState)
    for row in TABLE.values():
        assert set(row) == set(Signal)


@pytest.mark.parametrize("state", ProcessState)
def test_every_signal_does_in_every_state_what_the_life_says(state: ProcessState) -> None:
    for signal, (after, action) in LIFE[state].items():
        assert TABLE[state][signal] == (after, action), signal
        kernel = _in_state(state)
        assert _give(kernel, signal) == _EFFECTS[action], signal
        process = kernel.processes.get(ONE)
        assert (EXITED if process is None else process.state) is after, signal


@pytest.mark.parametrize("state", ProcessState)
def test_only_the_cancelled_and_the_dead_have_lost_their_names(state: ProcessState) -> None:
    for signal, (after, _) in LIFE[state].items():
        kernel = _in_state(state)
        _give(kernel, signal)
        keeps = after in (STARTING, RUNNING)
        assert kernel.names.get("name") == (ONE if keeps else None), signal
        assert kernel.names.of(ONE) == (frozenset({"name"}) if keeps else frozenset()), signal


def test_nothing_leaves_the_dead() -> None:
    assert {after for after, _ in TABLE[EXITED].values()} == {EXITED}
    assert {action for _, action in TABLE[EXITED].values()} == {None}


def test_every_process_that_lives_can_exit() -> None:
    for state in (STARTING, RUNNING, CANCELLING):
        assert TABLE[state][Signal.EXIT] == (EXITED, Action.CLEAN_UP)


def test_a_process_that_gets_ready_after_it_was_cancelled_still_has_its_stop_timeout() -> None:
    kernel = _in_state(STARTING)
    kernel.signal(ONE, Signal.CANCEL)
    # `StartedEffect` would end the wait for the timeout that `StopEffect` began.
    assert kernel.signal(ONE, Signal.READY) == []
    assert kernel.signal(ONE, Signal.STOP_TIMEOUT) == [KillEffect(ONE)]


# What a process ends with


@pytest.mark.parametrize(
    ("state", "signal", "kind"),
    [
        (STARTING, Signal.START_TIMEOUT, ExitKind.START_FAILED),
        (CANCELLING, Signal.STOP_TIMEOUT, ExitKind.CANCELLED),
        (STARTING, Signal.TERMINATE, ExitKind.TERMINATED),
        (RUNNING, Signal.TERMINATE, ExitKind.TERMINATED),
        (CANCELLING, Signal.TERMINATE, ExitKind.TERMINATED),
    ],
)
def test_a_process_that_was_killed_from_here_says_why_instead_of_the_bare_signal(
    state: ProcessState, signal: Signal, kind: ExitKind
) -> None:
    kernel = _in_state(state)
    kernel.signal(ONE, signal)
    (exited,) = kernel.exited(ONE, KILLED)
    assert isinstance(exited, ExitedEffect)
    assert exited.result.error is not None
    assert exited.result.error.kind is kind


def test_the_first_reason_to_kill_it_stays() -> None:
    kernel = _in_state(STARTING)
    kernel.signal(ONE, Signal.START_TIMEOUT)
    kernel.signal(ONE, Signal.TERMINATE)
    (exited,) = kernel.exited(ONE, KILLED)
    assert isinstance(exited, ExitedEffect)
    assert exited.result.error is not None
    assert exited.result.error.kind is ExitKind.START_FAILED


def test_a_reason_that_comes_with_the_signal_goes_before_the_signals_own() -> None:
    overflow = ExitError(ExitKind.MAILBOX_OVERFLOW, "too much mail")
    kernel = _in_state(RUNNING)
    kernel.signal(ONE, Signal.TERMINATE, because=overflow)
    assert kernel.exited(ONE, KILLED) == [ExitedEffect(ONE, Result(error=overflow))]


def test_a_process_that_ended_by_itself_before_it_could_be_killed_keeps_its_result() -> None:
    crashed = Result(error=ExitError(ExitKind.ERROR, "ValueError: text", "Traceback"))
    for result in (Result("value"), crashed):
        kernel = _in_state(RUNNING)
        kernel.signal(ONE, Signal.TERMINATE)
        assert kernel.exited(ONE, result) == [ExitedEffect(ONE, result)]


def test_a_process_that_somebody_else_killed_was_killed() -> None:
    for state in (STARTING, RUNNING, CANCELLING):
        assert _in_state(state).exited(ONE, KILLED) == [ExitedEffect(ONE, KILLED)]


def test_without_a_sender_a_cancelled_process_hears_from_itself() -> None:
    assert _in_state(RUNNING).signal(ONE, Signal.CANCEL) == [StopEffect(ONE, "", ONE)]


# Hosts


def test_a_full_host_takes_nobody_until_one_has_exited() -> None:
    kernel = _kernel(small=2)
    kernel.spawn(ONE)
    kernel.spawn(TWO)
    for state_of_two in (Signal.READY, Signal.CANCEL, Signal.TERMINATE):
        kernel.signal(TWO, state_of_two)
        with pytest.raises(HostFull, match="small is full: 2 of 2"):
            kernel.spawn(THREE, "name")
    assert kernel.names.get("name") is None
    kernel.exited(TWO, Result())
    assert kernel.spawn(THREE, "name") == [LaunchEffect(THREE)]


def test_a_connection_takes_no_place_on_a_host() -> None:
    kernel = _kernel(small=1)
    kernel.connect(CLIENT)
    kernel.spawn(ONE)
    kernel.exited(CLIENT, Result())
    assert kernel.count("small") == 1


def test_an_unknown_host_is_named_together_with_those_that_there_are() -> None:
    with pytest.raises(UnknownHost, match=r"'other'.*large, small.*the target's arguments"):
        _kernel().spawn(PID("{local@other|1}"), "name")


def test_a_pid_is_used_once() -> None:
    kernel = _kernel()
    kernel.spawn(ONE)
    with pytest.raises(ValueError, match="in use"):
        kernel.spawn(ONE, "name")
    assert kernel.count("small") == 1
    assert kernel.names.get("name") is None


# Names


def test_whoever_comes_second_gets_the_process_that_is_there() -> None:
    kernel = _kernel()
    assert kernel.get_or_spawn("room", ONE) == (ONE, [LaunchEffect(ONE)])
    assert kernel.get_or_spawn("room", TWO) == (ONE, [])
    assert TWO not in kernel.processes


def test_whoever_comes_while_a_room_closes_gets_a_new_room() -> None:
    kernel = _kernel()
    kernel.get_or_spawn("room", ONE)
    kernel.signal(ONE, Signal.CANCEL)
    assert kernel.get_or_spawn("room", TWO) == (TWO, [LaunchEffect(TWO)])
    kernel.exited(ONE, Result())
    assert kernel.names.lookup("room") == TWO


def test_a_room_that_is_there_is_found_on_a_full_host() -> None:
    kernel = _kernel(small=1)
    kernel.get_or_spawn("room", ONE)
    assert kernel.get_or_spawn("room", TWO) == (ONE, [])
    with pytest.raises(HostFull):
        kernel.get_or_spawn("another room", TWO)


def test_a_taken_name_is_refused_and_its_owner_named() -> None:
    kernel = _kernel()
    kernel.spawn(ONE, "room")
    with pytest.raises(NameTaken, match=re.escape(f"'room' belongs to {ONE}")):
        kernel.spawn(TWO, "room")
    assert TWO not in kernel.processes
    assert kernel.count("small") == 1
    kernel.spawn(TWO)
    with pytest.raises(NameTaken):
        kernel.register("room", TWO)


def test_registering_a_name_again_changes_nothing() -> None:
    kernel = _kernel()
    kernel.spawn(ONE, "room")
    kernel.register("room", ONE)
    kernel.register("hall", ONE)
    assert kernel.names.of(ONE) == {"room", "hall"}
    assert len(kernel.names) == 2


@pytest.mark.parametrize("state", [CANCELLING, EXITED])
def test_a_process_that_is_not_alive_gets_no_name(state: ProcessState) -> None:
    kernel = _in_state(state)
    with pytest.raises(ValueError, match="is not alive"):
        kernel.register("room", ONE)
    assert len(kernel.names) == 0


@pytest.mark.parametrize("name", ["", "{local@small|k.1-1}", "{"])
def test_a_name_is_not_empty_and_looks_like_no_pid(name: str) -> None:
    kernel = _kernel()
    for attempt in (
        lambda: kernel.spawn(ONE, name),
        lambda: kernel.get_or_spawn(name, ONE),
    ):
        with pytest.raises(ValueError, match="is not a name"):
            attempt()
    assert not kernel.processes
    assert kernel.count("small") == 0
    kernel.spawn(ONE)
    with pytest.raises(ValueError, match="is not a name"):
        kernel.register(name, ONE)


def test_a_name_that_nobody_has_is_not_found_and_named() -> None:
    with pytest.raises(NameNotFound, match="'room'"):
        Names().lookup("room")


def test_releasing_frees_the_names_of_one_process_alone() -> None:
    names = Names()
    names.register("a", ONE)
    names.register("b", ONE)
    names.register("c", TWO)
    names.release(ONE)
    names.release(ONE)
    assert (names.get("a"), names.get("b"), names.get("c")) == (None, None, TWO)
    names.register("a", TWO)
    assert names.of(TWO) == {"a", "c"}


# Finding


def test_a_process_is_found_by_pid_with_and_without_node_and_by_name() -> None:
    kernel = _kernel()
    kernel.spawn(ONE, "room")
    for to in (ONE, str(ONE), "{small|k.1-1}", "room"):
        process = kernel.find(to, "local")
        assert process is not None, to
        assert process.pid == ONE


@pytest.mark.parametrize(
    "to", ["", "{", "{}", "{@small|k.1-1}", "{far@small|k.1-1}", "{small|k.1-2}", "hall", "small"]
)
def test_what_names_no_process_here_finds_none(to: str) -> None:
    kernel = _kernel()
    kernel.spawn(ONE, "room")
    assert kernel.find(to, "local") is None
    assert kernel.find("{small|k.1-1}", "far") is None


def test_a_target_is_a_living_worker_and_otherwise_the_reason_is_given() -> None:
    kernel = _kernel()
    kernel.connect(CLIENT)
    kernel.spawn(ONE)
    assert kernel.why_no_target(ONE) is None
    kernel.signal(ONE, Signal.READY)
    assert kernel.why_no_target(ONE) is None
    kernel.signal(ONE, Signal.CANCEL)
    assert "has been cancelled" in (kernel.why_no_target(ONE) or "")
    kernel.exited(ONE, Result())
    assert "is not alive" in (kernel.why_no_target(ONE) or "")
    assert "is a connection" in (kernel.why_no_target(CLIENT) or "")


# Any history against a model


_LIMITS = {"small": 2, "large": 5}
_NAMES = st.sampled_from(["red", "green", "blue"])
_HOSTS = st.sampled_from(sorted(_LIMITS))
_SIGNALS = st.sampled_from([signal for signal in Signal if signal is not Signal.EXIT])
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
        self.launched: Counter[PID] = Counter()
        self.exits: Counter[PID] = Counter()
        self.ended: set[PID] = set()

    def _workers(self, host: str) -> int:
        return sum(pid.host == host for pid in self.alive)

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
        if self._workers(host) >= _LIMITS[host]:
            with pytest.raises(HostFull):
                self.kernel.spawn(pid, name)
        elif name in self.names:
            with pytest.raises(NameTaken):
                self.kernel.spawn(pid, name)
        else:
            self._do(self.kernel.spawn(pid, name))
            self._born(pid, STARTING)
            if name is not None:
                self.names[name] = pid
        return pid

    def _born(self, pid: PID, state: ProcessState) -> None:
        self.alive[pid] = state

    @rule(target=pids, host=_HOSTS, name=_NAMES)
    def get_or_spawn(self, host: str, name: str) -> PID:
        pid = self.source.next(host)
        if name in self.names:
            assert self.kernel.get_or_spawn(name, pid) == (self.names[name], [])
        elif self._workers(host) >= _LIMITS[host]:
            with pytest.raises(HostFull):
                self.kernel.get_or_spawn(name, pid)
        else:
            there, effects = self.kernel.get_or_spawn(name, pid)
            assert there == pid
            self._do(effects)
            self._born(pid, STARTING)
            self.names[name] = pid
        return pid

    @rule(target=pids)
    def connect(self) -> PID:
        pid = self.source.next("gateway")
        self.kernel.connect(pid)
        self._born(pid, RUNNING)
        return pid

    @rule(pid=pids, name=_NAMES)
    def register(self, pid: PID, name: str) -> None:
        if self.alive.get(pid) not in (STARTING, RUNNING):
            with pytest.raises(ValueError, match="is not alive"):
                self.kernel.register(name, pid)
        elif self.names.get(name, pid) != pid:
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
        kinds = {Action.START: StartedEffect, Action.STOP: StopEffect, Action.KILL: KillEffect}
        assert [type(effect) for effect in effects] == ([kinds[action]] if action else [])
        if action is Action.STOP:
            self._forget_names(pid)
        if action is Action.KILL:
            self.doomed.add(pid)
        if pid in self.alive:
            self.alive[pid] = after

    @rule(pid=pids, result=_RESULTS)
    def exited(self, pid: PID, result: Result) -> None:
        effects = self.kernel.exited(pid, result)
        self._do(effects)
        if pid not in self.alive:
            assert effects == []
            return
        (exited,) = effects
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
        del self.alive[pid]
        self.ended.add(pid)
        self._forget_names(pid)

    @invariant()
    def the_living_are_those_of_the_model(self) -> None:
        assert {pid: process.state for pid, process in self.kernel.processes.items()} == self.alive

    @invariant()
    def every_name_shows_a_process_that_is_neither_dead_nor_cancelled(self) -> None:
        assert len(self.kernel.names) == len(self.names)
        for name in ("red", "green", "blue"):
            owner = self.kernel.names.get(name)
            assert owner == self.names.get(name)
            found = self.kernel.find(name, "local")
            assert (found and found.pid) == owner
            assert owner is None or self.alive[owner] in (STARTING, RUNNING)

    @invariant()
    def the_hosts_count_their_workers_and_are_never_over_their_limit(self) -> None:
        for host, limit in _LIMITS.items():
            assert self.kernel.count(host) == self._workers(host) <= limit

    @invariant()
    def everyone_was_launched_once_and_everyone_gone_has_exited_once(self) -> None:
        workers = {pid for pid in {*self.alive, *self.ended} if pid.host != "gateway"}
        assert self.launched == dict.fromkeys(workers, 1)
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
    st.tuples(st.sampled_from(["names.unregister", "names.lookup"]), st.sampled_from(_GIVEN)),
    st.tuples(
        st.just("signal"),
        st.sampled_from(_PIDS),
        st.sampled_from([signal for signal in Signal if signal is not Signal.EXIT]),
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
    kernel = _kernel(small=3)
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
    kernel = _kernel()
    kernel.spawn(ONE)
    before = _all_of(kernel)
    with pytest.raises(TooMany):
        kernel.spawn(TWO, "name", parent=ONE, **{relation: True})
    assert _all_of(kernel) == before
    assert kernel.spawn(TWO, "name", parent=ONE) == [LaunchEffect(TWO)]
