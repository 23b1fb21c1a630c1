"""One process at a time under an exclusive name: its successor waits until it has ended."""

from __future__ import annotations

import itertools
import re

import pytest
from kernels import CANCELLING, KILLED, ONE, STARTING, TWO, WAITING, a_kernel

from wsrelay.errors import HostFull, InvalidName, NameNotFound, NameTaken, UnknownHost
from wsrelay.kernel import (
    BreakEffect,
    Effect,
    ExitedEffect,
    Kernel,
    LaunchEffect,
    NotifyEffect,
    Signal,
    StopEffect,
)
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID

NEXT = PID("{local@small|k.1-3}")
OTHER = PID("{local@large|k.1-4}")


@pytest.fixture
def kernel() -> Kernel:
    """ONE, which has been cancelled, and TWO, which waits to be the room."""
    kernel = a_kernel(small=1)
    assert kernel.get_or_spawn("room", ONE) == (ONE, [LaunchEffect(ONE)])
    kernel.signal(ONE, Signal.CANCEL)
    assert kernel.get_or_spawn("room", TWO) == (TWO, [])
    return kernel


def kind_of(effect: Effect) -> ExitKind | None:
    assert isinstance(effect, ExitedEffect)
    return effect.result.error.kind if effect.result.error else None


def test_whoever_comes_while_a_room_closes_gets_a_room_that_waits_for_its_end(
    kernel: Kernel,
) -> None:
    assert kernel.processes[TWO].state is WAITING
    assert kernel.get_or_spawn("room", NEXT) == (TWO, [])
    assert kernel.names.lookup("room") == TWO
    assert kernel.exited(ONE, Result()) == [ExitedEffect(ONE, Result()), LaunchEffect(TWO)]
    assert kernel.processes[TWO].state is STARTING
    assert kernel.names.lookup("room") == TWO


def test_a_successor_starts_after_the_end_before_it_was_told(kernel: Kernel) -> None:
    kernel.spawn(OTHER)
    kernel.monitor(OTHER, ONE)
    kernel.link(OTHER, ONE)
    effects = kernel.exited(ONE, KILLED)
    assert [type(effect) for effect in effects] == [
        ExitedEffect,
        NotifyEffect,
        BreakEffect,
        LaunchEffect,
    ]


def test_without_a_successor_a_room_that_closes_is_nobody_s(kernel: Kernel) -> None:
    kernel.signal(TWO, Signal.CANCEL)
    assert kernel.find("room", "local") is None
    with pytest.raises(NameNotFound):
        kernel.names.lookup("room")


def test_a_process_that_waits_is_found_and_can_be_a_target(kernel: Kernel) -> None:
    for to in (TWO, "{small|k.1-2}", "room"):
        found = kernel.find(to, "local")
        assert found is not None, to
        assert (found.pid, found.takes_mail) == (TWO, True)
    assert kernel.why_no_target(TWO) is None


def test_a_process_that_waits_takes_no_place(kernel: Kernel) -> None:
    assert kernel.count("small") == 1
    kernel.signal(TWO, Signal.CANCEL)
    assert kernel.count("small") == 1
    kernel.get_or_spawn("room", NEXT)
    kernel.exited(ONE, Result())
    assert kernel.count("small") == 1
    with pytest.raises(HostFull):
        kernel.spawn(TWO)


def test_a_successor_that_is_cancelled_while_it_waits_ends_at_once_and_normally(
    kernel: Kernel,
) -> None:
    kernel.spawn(OTHER)
    kernel.monitor(OTHER, TWO)
    kernel.link(OTHER, TWO)
    exited, told = kernel.signal(TWO, Signal.CANCEL)
    assert exited == ExitedEffect(TWO, Result())
    assert isinstance(told, NotifyEffect)
    # The next one waits for the same process.
    assert kernel.get_or_spawn("room", NEXT) == (NEXT, [])
    assert kernel.exited(ONE, Result())[1:] == [LaunchEffect(NEXT)]


def test_a_successor_that_is_terminated_while_it_waits_says_so(kernel: Kernel) -> None:
    (exited,) = kernel.signal(TWO, Signal.TERMINATE)
    assert kind_of(exited) is ExitKind.TERMINATED
    assert kernel.exited(ONE, Result()) == [ExitedEffect(ONE, Result())]


def test_a_successor_whose_mailbox_overflows_while_it_waits_says_so(kernel: Kernel) -> None:
    overflow = ExitError(ExitKind.MAILBOX_OVERFLOW, "too much mail")
    (exited,) = kernel.signal(TWO, Signal.TERMINATE, because=overflow)
    assert exited == ExitedEffect(TWO, Result(error=overflow))


def test_a_broken_link_ends_a_successor_that_waits(kernel: Kernel) -> None:
    kernel.spawn(OTHER)
    kernel.link(OTHER, TWO)
    _, exited = kernel.exited(OTHER, KILLED)
    assert kind_of(exited) is ExitKind.LINK_DOWN
    assert TWO not in kernel.processes
    assert kernel.get_or_spawn("room", NEXT) == (NEXT, [])


def test_a_link_to_the_one_before_it_ends_a_successor_instead_of_starting_it(
    kernel: Kernel,
) -> None:
    kernel.link(ONE, TWO)
    _, exited = kernel.exited(ONE, KILLED)
    assert kind_of(exited) is ExitKind.LINK_DOWN
    assert not kernel.processes


def test_the_end_of_one_may_be_that_of_many_who_wait_in_a_chain() -> None:
    kernel = Kernel({"large": 5000})
    former = [PID(f"{{local@large|f.{i}}}") for i in range(2000)]
    waiting = [PID(f"{{local@large|w.{i}}}") for i in range(2000)]
    for i, (one, other) in enumerate(zip(former, waiting, strict=True)):
        kernel.spawn(one, f"room {i}")
        kernel.signal(one, Signal.CANCEL)
        kernel.spawn(other, f"room {i}")
    for one, other in itertools.pairwise(waiting):
        kernel.link(one, other)
    effects = kernel.signal(waiting[0], Signal.TERMINATE)
    assert [effect.pid for effect in effects] == waiting


def test_a_host_that_is_full_when_a_successor_is_due_ends_it(kernel: Kernel) -> None:
    kernel.spawn(OTHER, "hall")
    kernel.signal(OTHER, Signal.CANCEL)
    kernel.get_or_spawn("hall", NEXT)
    kernel.spawn(PID("{local@large|k.1-9}"))
    kernel.monitor(PID("{local@large|k.1-9}"), NEXT)
    _, exited, told = kernel.exited(OTHER, Result())
    assert kind_of(exited) is ExitKind.HOST_FULL
    assert isinstance(exited, ExitedEffect)
    assert exited.result.error is not None
    assert exited.result.error.message == "process host small is full: 1 of 1 processes run"
    assert isinstance(told, NotifyEffect)
    assert kernel.count("small") == 1
    assert kernel.names.get("hall") is None
    assert kernel.names.holder("hall") is None


def test_a_host_that_is_gone_when_a_successor_is_due_ends_it(kernel: Kernel) -> None:
    kernel.set_hosts({"large": 1})
    _, exited = kernel.exited(ONE, Result())
    assert kind_of(exited) is ExitKind.START_FAILED


def test_a_successor_s_host_must_exist_from_the_beginning(kernel: Kernel) -> None:
    kernel.signal(TWO, Signal.CANCEL)
    with pytest.raises(UnknownHost):
        kernel.get_or_spawn("room", PID("{local@other|1}"))


def test_a_successor_that_runs_and_is_cancelled_has_a_successor_itself(kernel: Kernel) -> None:
    kernel.exited(ONE, Result())
    assert kernel.signal(TWO, Signal.CANCEL) == [StopEffect(TWO, "", TWO)]
    assert kernel.get_or_spawn("room", NEXT) == (NEXT, [])
    assert kernel.exited(TWO, Result())[1:] == [LaunchEffect(NEXT)]


def test_a_process_that_died_uncancelled_frees_its_name_by_its_exit() -> None:
    kernel = a_kernel()
    kernel.spawn(ONE, "room")
    kernel.signal(ONE, Signal.TERMINATE)
    assert kernel.get_or_spawn("room", TWO) == (ONE, []), "its name is its own until it has ended"
    kernel.exited(ONE, KILLED)
    assert kernel.get_or_spawn("room", TWO) == (TWO, [LaunchEffect(TWO)])


# What `register` gives, beside it


def test_names_of_register_are_free_at_the_cancel_beside_an_exclusive_one() -> None:
    kernel = a_kernel()
    kernel.spawn(ONE, "room")
    kernel.register("hall", ONE)
    kernel.register("room", ONE)  # which changes nothing
    kernel.spawn(TWO)
    kernel.signal(ONE, Signal.CANCEL)
    kernel.register("hall", TWO)
    taken = (
        f"the name 'room' belongs to {ONE}, which has been cancelled, until it has ended; "
        "get_or_spawn starts its successor then"
    )
    with pytest.raises(NameTaken, match=re.escape(taken)):
        kernel.register("room", TWO)
    kernel.exited(ONE, Result())
    kernel.register("room", TWO)
    assert kernel.names.of(TWO) == {"hall", "room"}


def test_the_name_of_a_successor_is_taken_too(kernel: Kernel) -> None:
    kernel.spawn(OTHER)
    with pytest.raises(NameTaken, match=re.escape(f"'room' belongs to {TWO}")):
        kernel.register("room", OTHER)
    kernel.register("room", TWO)  # which changes nothing
    assert kernel.processes[TWO].state is WAITING


def test_who_waits_may_be_given_other_names(kernel: Kernel) -> None:
    kernel.register("hall", TWO)
    assert kernel.unregister("hall") == []
    assert kernel.processes[TWO].state is WAITING


def test_who_has_unregistered_its_name_has_no_successor() -> None:
    kernel = a_kernel()
    kernel.spawn(ONE, "room")
    kernel.unregister("room", ONE)
    kernel.register("room", ONE)  # as any other name
    kernel.signal(ONE, Signal.CANCEL)
    assert kernel.get_or_spawn("room", TWO) == (TWO, [LaunchEffect(TWO)])


def test_a_cancelled_process_that_unregisters_its_name_lets_its_successor_start(
    kernel: Kernel,
) -> None:
    kernel.set_hosts({"small": 2})
    assert kernel.unregister("room", ONE) == [LaunchEffect(TWO)]
    assert kernel.processes[ONE].state is CANCELLING
    assert kernel.names.lookup("room") == TWO
    assert kernel.exited(ONE, Result()) == [ExitedEffect(ONE, Result())]


def test_a_cancelled_process_without_a_successor_can_give_its_name_up_once(kernel: Kernel) -> None:
    kernel.signal(TWO, Signal.CANCEL)
    with pytest.raises(NameNotFound):
        kernel.unregister("room", OTHER)
    assert kernel.unregister("room", ONE) == []
    with pytest.raises(NameNotFound):
        kernel.unregister("room", ONE)
    kernel.set_hosts({"small": 2})
    assert kernel.get_or_spawn("room", NEXT) == (NEXT, [LaunchEffect(NEXT)])


def test_a_successor_that_loses_its_name_starts_at_once_and_the_next_one_waits(
    kernel: Kernel,
) -> None:
    kernel.set_hosts({"small": 3})
    assert kernel.unregister("room") == [LaunchEffect(TWO)]
    assert kernel.get_or_spawn("room", NEXT) == (NEXT, [])
    assert kernel.exited(ONE, Result())[1:] == [LaunchEffect(NEXT)]


def test_a_successor_that_loses_its_name_ends_where_there_is_no_place(kernel: Kernel) -> None:
    (exited,) = kernel.unregister("room")
    assert kind_of(exited) is ExitKind.HOST_FULL


def test_no_more_wait_than_are_being_cancelled() -> None:
    """So what waits is bounded by the places of the hosts, although it takes none itself."""
    kernel = a_kernel(small=2)
    for name, pid in (("red", ONE), ("green", TWO)):
        kernel.spawn(pid, name)
        kernel.register(f"{name}-too", pid)
        kernel.signal(pid, Signal.CANCEL)
    for number in range(20):
        for name in ("red", "green", "red-too", "green-too"):
            pid = PID(f"{{local@small|w.{number}.{name}}}")
            try:
                kernel.get_or_spawn(name, pid)
            except HostFull:
                continue
            if number % 2:
                kernel.unregister(name)
    waiting = [row for row in kernel.processes.values() if row.state is WAITING]
    assert len(waiting) <= 2
    assert kernel.count("small") == 2


def test_each_owner_of_a_name_has_a_greater_number(kernel: Kernel) -> None:
    names = kernel.names
    first, second = names.own_fence(ONE, None), names.own_fence(TWO, "room")
    assert first < second == names.fence("room")
    assert names.own_fence(ONE, "room") == first, "it still holds the name"
    kernel.unregister("room", ONE)
    assert names.own_fence(ONE, None) == first, "it writes until it has ended"
    kernel.exited(ONE, Result())
    with pytest.raises(InvalidName, match="was started under no name"):
        names.own_fence(ONE, None)
    kernel.spawn(OTHER)
    kernel.register("label", OTHER)
    assert names.own_fence(OTHER, "label") > second
    with pytest.raises(NameNotFound, match="is not registered as 'room'"):
        names.own_fence(OTHER, "room")
    with pytest.raises(NameNotFound):
        names.fence("nobody")


def test_numbers_of_owners_may_come_from_elsewhere() -> None:
    kernel = a_kernel()
    kernel.names.numbering = {"room": 7}.get
    kernel.spawn(ONE, "room")
    kernel.register("label", ONE)
    assert kernel.names.own_fence(ONE, None) == 7
    assert kernel.names.own_fence(ONE, "label") == 1
    kernel.exited(ONE, Result())
    assert not kernel.names._fences
    assert not kernel.names._first
