"""Groups in the kernel: members with their metadata, and what those who watch are told."""

from __future__ import annotations

import pytest
from kernels import ONE, TWO, a_kernel

from wsrelay.errors import InvalidName, TooMany
from wsrelay.kernel import ExitedEffect, Kernel, PresenceEffect, Signal, StopEffect
from wsrelay.values.message import Result
from wsrelay.values.pid import PID
from wsrelay.values.presence import Kind
from wsrelay.values.sizes import ITEM

CLIENT = PID("{local@gateway|k.1-9}")
HOST_ENTRY = 2 * ITEM


@pytest.fixture
def kernel() -> Kernel:
    """A kernel with two workers and a client, where ONE watches `g` with the number 7."""
    kernel = a_kernel()
    kernel.spawn(ONE)
    kernel.spawn(TWO)
    kernel.connect(CLIENT)
    assert kernel.watch_group("g", ONE, 7) == []
    return kernel


def told(kind: Kind, *members: tuple[PID, bytes], watch: int = 7) -> PresenceEffect:
    return PresenceEffect(ONE, "g", watch, kind, list(members))


# Metadata


def test_joining_again_replaces_the_metadata_and_keeps_the_place(kernel: Kernel) -> None:
    assert kernel.join_group("g", TWO, meta=b"a") == [told("joined", (TWO, b"a"))]
    assert kernel.join_group("g", CLIENT) == [told("joined", (CLIENT, b""))]
    assert kernel.join_group("g", TWO, meta=b"b") == [told("changed", (TWO, b"b"))]
    assert kernel.groups.roster("g") == [(TWO, b"b"), (CLIENT, b"")]


@pytest.mark.parametrize("meta", [b"", b"a"])
def test_joining_again_without_metadata_or_with_the_same_changes_nothing(
    kernel: Kernel, meta: bytes
) -> None:
    kernel.join_group("g", TWO, meta=b"a")
    assert kernel.join_group("g", TWO, meta=meta) == []
    assert kernel.groups.roster("g") == [(TWO, b"a")]


def test_who_leaves_and_joins_again_is_the_last_and_has_no_metadata(kernel: Kernel) -> None:
    kernel.join_group("g", TWO, meta=b"a")
    kernel.join_group("g", CLIENT)
    assert kernel.leave_group("g", TWO) == [told("left", (TWO, b"a"))]
    assert kernel.leave_group("g", TWO) == []
    kernel.join_group("g", TWO)
    assert kernel.groups.roster("g") == [(CLIENT, b""), (TWO, b"")]


# Watches


def test_a_watch_begins_with_those_who_are_there(kernel: Kernel) -> None:
    kernel.join_group("g", CLIENT, meta=b"a")
    kernel.join_group("g", TWO)
    begin = PresenceEffect(TWO, "g", 1, "joined", [(CLIENT, b"a"), (TWO, b"")])
    assert kernel.watch_group("g", TWO, 1) == [begin]
    assert [effect.pid for effect in kernel.leave_group("g", CLIENT)] == [ONE, TWO]


def test_a_second_watch_of_a_group_takes_the_place_of_the_first(kernel: Kernel) -> None:
    kernel.join_group("g", TWO)
    assert kernel.watch_group("g", ONE, 8) == [told("joined", (TWO, b""), watch=8)]
    kernel.groups.unwatch("g", ONE, 7)  # late, of the first
    assert kernel.leave_group("g", TWO) == [told("left", (TWO, b""), watch=8)]
    kernel.groups.unwatch("g", ONE, 8)
    assert kernel.join_group("g", TWO) == []


def test_watches_of_other_groups_and_of_nobody_are_told_nothing(kernel: Kernel) -> None:
    assert kernel.join_group("h", TWO) == []
    kernel.groups.unwatch("h", ONE, 7)
    kernel.groups.unwatch("g", TWO, 7)
    assert kernel.join_group("g", TWO) == [told("joined", (TWO, b""))]


def test_the_cancelled_have_left_before_they_are_asked_to_stop(kernel: Kernel) -> None:
    kernel.join_group("g", TWO, meta=b"a")
    stop = StopEffect(TWO, "why", TWO)
    assert kernel.signal(TWO, Signal.CANCEL, reason="why") == [told("left", (TWO, b"a")), stop]
    assert kernel.join_group("g", TWO, meta=b"b") == []
    assert kernel.exited(TWO, Result()) == [ExitedEffect(TWO, Result())]


def test_the_dead_have_left_before_their_exit_is_told_to_anybody(kernel: Kernel) -> None:
    kernel.join_group("g", CLIENT, meta=b"a")
    kernel.monitor(ONE, CLIENT)
    exited, left, _ = kernel.exited(CLIENT, Result())
    assert isinstance(exited, ExitedEffect)
    assert left == told("left", (CLIENT, b"a"))


@pytest.mark.parametrize("end", ["cancel", "exit"])
def test_who_ends_is_told_of_nobody_any_more_itself_included(kernel: Kernel, end: str) -> None:
    kernel.join_group("g", ONE)
    effects = kernel.signal(ONE, Signal.CANCEL) if end == "cancel" else kernel.exited(ONE, Result())
    assert not any(isinstance(effect, PresenceEffect) for effect in effects)
    assert kernel.watch_group("g", ONE, 8) == []
    assert kernel.join_group("g", TWO) == []
    assert not kernel.groups._watchers
    assert not kernel.groups._watched


# Bounds


@pytest.mark.parametrize("name", ["", "{local", "x" * 1001])
def test_what_is_no_name_is_watched_by_nobody(kernel: Kernel, name: str) -> None:
    with pytest.raises(InvalidName):
        kernel.watch_group(name, TWO, 1)


def test_metadata_is_charged_to_the_host_that_has_given_it_last(kernel: Kernel) -> None:
    kernel.join_group("g", TWO, TWO, b"x" * 10)
    assert kernel.ledger == {"small": HOST_ENTRY + 10}
    kernel.join_group("g", TWO, PID("{local@large|1}"), b"y" * 20)
    assert kernel.ledger == {"large": HOST_ENTRY + len("g") + 20}
    kernel.join_group("g", TWO, meta=b"z")  # the node
    assert not kernel.ledger
    kernel.join_group("h", TWO, TWO)
    assert not kernel.ledger, "by number alone"


def test_metadata_for_which_there_is_no_room_is_refused_and_changes_nothing(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.kernel.ledger.MOST_FOR_OTHERS", HOST_ENTRY + 10)
    kernel.join_group("g", TWO, TWO, b"x" * 9)
    kernel.join_group("g", TWO, TWO, b"x" * 10)  # what it takes the place of makes room
    said = r"group \(metadata, host small\) limit of 266B reached"
    with pytest.raises(TooMany, match=said):
        kernel.join_group("g", TWO, TWO, b"x" * 11)
    with pytest.raises(TooMany, match=said):
        kernel.join_group("g", ONE, ONE, b"x")
    assert kernel.groups.roster("g") == [(TWO, b"x" * 10)]
    assert kernel.ledger == {"small": HOST_ENTRY + 10}
    kernel.leave_group("g", TWO)
    assert not kernel.ledger
    kernel.join_group("g", ONE, ONE, b"x")
