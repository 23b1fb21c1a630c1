"""A process's life in the kernel, its host, its names, and how it is found."""

from __future__ import annotations

import re

import pytest
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

from wsrelay.errors import HostFull, NameNotFound, NameTaken, UnknownHost
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
from wsrelay.values.pid import PID

THREE = PID("{local@small|k.1-3}")
FORMER = PID("{local@large|k.1-0}")
CLIENT = PID("{local@gateway|k.1-9}")


def _in_state(state: ProcessState) -> Kernel:
    """A kernel with the process ONE, named `name`, in that state."""
    kernel = a_kernel()
    if state is WAITING:
        kernel.spawn(FORMER, "name")
        kernel.signal(FORMER, Signal.CANCEL)
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
    if signal is Signal.DUE:  # what follows from another's exit
        return kernel.exited(FORMER, Result())[1:]
    return kernel.signal(ONE, signal, reason="why", sender=TWO)


_EFFECTS: dict[Action | None, list[Effect]] = {
    None: [],
    Action.LAUNCH: [LaunchEffect(ONE)],
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
        effects = _give(kernel, signal)
        if state is WAITING and action is Action.CLEAN_UP and signal is not Signal.EXIT:
            (exited,) = effects  # it ends by the signal itself, and so with what that says
            assert isinstance(exited, ExitedEffect)
        else:
            assert effects == _EFFECTS[action], signal
        process = kernel.processes.get(ONE)
        assert (EXITED if process is None else process.state) is after, signal


@pytest.mark.parametrize("state", ProcessState)
def test_only_the_cancelled_and_the_dead_have_lost_their_names(state: ProcessState) -> None:
    for signal, (after, _) in LIFE[state].items():
        kernel = _in_state(state)
        _give(kernel, signal)
        keeps = after in (WAITING, STARTING, RUNNING)
        assert kernel.names.get("name") == (ONE if keeps else None), signal
        assert kernel.names.of(ONE) == (frozenset({"name"}) if keeps else frozenset()), signal


def test_nothing_leaves_the_dead() -> None:
    assert {after for after, _ in TABLE[EXITED].values()} == {EXITED}
    assert {action for _, action in TABLE[EXITED].values()} == {None}


def test_every_process_that_lives_can_exit() -> None:
    for state in (WAITING, STARTING, RUNNING, CANCELLING):
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
    kernel = a_kernel(small=2)
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
    kernel = a_kernel(small=1)
    kernel.connect(CLIENT)
    kernel.spawn(ONE)
    kernel.exited(CLIENT, Result())
    assert kernel.count("small") == 1


def test_an_unknown_host_is_named_together_with_those_that_there_are() -> None:
    with pytest.raises(UnknownHost, match=r"'other'.*large, small.*the target's arguments"):
        a_kernel().spawn(PID("{local@other|1}"), "name")


def test_a_pid_is_used_once() -> None:
    kernel = a_kernel()
    kernel.spawn(ONE)
    with pytest.raises(ValueError, match="in use"):
        kernel.spawn(ONE, "name")
    assert kernel.count("small") == 1
    assert kernel.names.get("name") is None


# Names


def test_whoever_comes_second_gets_the_process_that_is_there() -> None:
    kernel = a_kernel()
    assert kernel.get_or_spawn("room", ONE) == (ONE, [LaunchEffect(ONE)])
    assert kernel.get_or_spawn("room", TWO) == (ONE, [])
    assert TWO not in kernel.processes


def test_a_room_that_is_there_is_found_on_a_full_host() -> None:
    kernel = a_kernel(small=1)
    kernel.get_or_spawn("room", ONE)
    assert kernel.get_or_spawn("room", TWO) == (ONE, [])
    with pytest.raises(HostFull):
        kernel.get_or_spawn("another room", TWO)


def test_a_taken_name_is_refused_and_its_owner_named() -> None:
    kernel = a_kernel()
    kernel.spawn(ONE, "room")
    with pytest.raises(NameTaken, match=re.escape(f"'room' belongs to {ONE}")):
        kernel.spawn(TWO, "room")
    assert TWO not in kernel.processes
    assert kernel.count("small") == 1
    kernel.spawn(TWO)
    with pytest.raises(NameTaken):
        kernel.register("room", TWO)


def test_registering_a_name_again_changes_nothing() -> None:
    kernel = a_kernel()
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
    kernel = a_kernel()
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
    kernel = a_kernel()
    kernel.spawn(ONE, "room")
    for to in (ONE, str(ONE), "{small|k.1-1}", "room"):
        process = kernel.find(to, "local")
        assert process is not None, to
        assert process.pid == ONE


@pytest.mark.parametrize(
    "to", ["", "{", "{}", "{@small|k.1-1}", "{far@small|k.1-1}", "{small|k.1-2}", "hall", "small"]
)
def test_what_names_no_process_here_finds_none(to: str) -> None:
    kernel = a_kernel()
    kernel.spawn(ONE, "room")
    assert kernel.find(to, "local") is None
    assert kernel.find("{small|k.1-1}", "far") is None


def test_a_target_is_a_living_worker_and_otherwise_the_reason_is_given() -> None:
    kernel = a_kernel()
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
