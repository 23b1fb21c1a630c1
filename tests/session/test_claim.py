"""A connection whose named target ends without having read its join: the next one gets it all."""

from __future__ import annotations

import pytest
from sessions import (
    CLOSED,
    CLOSING,
    HANDSHAKING,
    METADATA,
    OPEN,
    RETURNED,
    SENDER,
    A,
    B,
    a_session,
    control,
    ended_with,
    exit_of,
    fine,
)

from wsrelay import wire
from wsrelay.session import command
from wsrelay.session.claim import MOST_REJOINS
from wsrelay.session.effects import (
    CloseClient,
    Effect,
    FindTarget,
    JoinTarget,
    LeaveTarget,
    SendToTarget,
    SetHeartbeat,
)
from wsrelay.session.ends import RESTARTS, SHUT_DOWN
from wsrelay.session.header import TargetSpec
from wsrelay.session.machine import Session
from wsrelay.values.message import ExitKind
from wsrelay.values.pid import PID

FIND = FindTarget(TargetSpec(target="app:room", name="blue"))
CANCELLED = exit_of(ExitKind.CANCELLED)
CAME_IN_VAIN = CloseClient(1013, "target process exited")


def text(to: PID, data: str, topic: str = "ws.message") -> Effect:
    return SendToTarget(to, topic, {"type": "text", "data": data})


def named(**fields: object) -> Session:
    return a_session(OPEN, name="blue", **fields)  # type: ignore[arg-type]


def lost() -> Session:
    """One that has sent a message and waits for the next process."""
    session = named(metadata=METADATA, heartbeat_interval=30.0)
    session.message("one")
    assert session.target_exited(A, RETURNED, join_read=False) == [FIND]
    return session


def test_the_join_of_a_named_target_asks_for_a_receipt_and_others_do_not() -> None:
    for name, wanted in (("blue", True), (None, False)):
        session = a_session(HANDSHAKING, name=name)
        assert session.opened(0.0) == [JoinTarget(A, None, wanted)]


def test_what_a_client_sends_before_its_join_is_read_goes_to_the_next_process_in_order() -> None:
    session = lost()
    assert session.message("two") == []
    assert session.found(B) == [
        JoinTarget(B, METADATA, receipt=True),
        text(B, "one"),
        text(B, "two"),
    ]
    assert session.message("three") == [text(B, "three")]
    assert session.target_exited(B, RETURNED, join_read=False) == [FIND]
    assert session.found(A)[1:] == [text(A, "one"), text(A, "two"), text(A, "three")]
    assert session.message_count == 3
    assert session.state is OPEN


def test_once_the_join_is_read_its_messages_are_passed_on_and_its_target_s_end_is_its_own() -> None:
    session = named()
    session.message("one")
    assert session.head == b""
    session.join_read()
    assert session.message("two") == [text(A, "two")]
    assert session.head
    assert session.target_exited(A, RETURNED, join_read=True) == [
        CloseClient(1000, "target process exited")
    ]


@pytest.mark.parametrize("kind", sorted(set(ExitKind) - {ExitKind.CANCELLED, ExitKind.NODE_DOWN}))
def test_a_target_that_crashes_or_is_killed_is_not_replaced(kind: ExitKind) -> None:
    (close,) = named().target_exited(A, exit_of(kind), join_read=False)
    assert isinstance(close, CloseClient)
    assert close.code == 1011


def test_a_target_that_is_cancelled_is_replaced_whoever_cancels_it_and_if_it_has_to_be_killed() -> (
    None
):
    for result in (RETURNED, CANCELLED):
        for instead in (None, RESTARTS):
            session = named()
            assert session.target_exited(A, result, join_read=False, instead=instead) == [FIND]
            session = named()
            session.join_read()
            (close,) = session.target_exited(A, RETURNED, join_read=True, instead=RESTARTS)
            assert close == CloseClient(1012, "target process restarts")


def test_a_target_whose_node_is_gone_is_replaced() -> None:
    gone = exit_of(ExitKind.NODE_DOWN)
    assert named().target_exited(A, gone, join_read=False) == [FIND]
    session = named()
    session.join_read()
    (close,) = session.target_exited(A, gone, join_read=True)
    assert close == CloseClient(1012, "target's node is gone")


def test_a_target_that_ends_as_the_node_shuts_down_is_not_replaced() -> None:
    session = named()
    assert session.target_exited(A, RETURNED, join_read=False, instead=SHUT_DOWN) == [
        CloseClient(1012, "node shuts down")
    ]


def test_a_target_without_a_name_is_not_replaced() -> None:
    assert a_session(OPEN).target_exited(A, RETURNED, join_read=False) == [CAME_IN_VAIN]


def test_after_three_processes_in_vain_the_client_is_told_to_come_again() -> None:
    session = named()
    for target in (A, B, A):
        assert session.target_exited(target, RETURNED, join_read=False) == [FIND]
        session.found(B if target == A else A)
    assert MOST_REJOINS == 3
    assert session.target_exited(B, RETURNED, join_read=False) == [CAME_IN_VAIN]


def test_a_process_that_ends_before_it_is_joined_counts_as_one_in_vain() -> None:
    session = lost()
    assert session.not_found(None) == [FIND], "it has been cancelled meanwhile"
    assert session.not_found(RETURNED) == [FIND]
    assert session.not_found(CANCELLED) == [SetHeartbeat(None), CAME_IN_VAIN]


def test_why_there_is_no_next_process_is_what_the_client_is_told() -> None:
    session = lost()
    failed = exit_of(ExitKind.START_FAILED)
    assert session.not_found(failed)[-1] == CloseClient(1011, "target process failed to start")
    session = lost()
    assert session.not_found(None, (1013, "full"))[-1] == CloseClient(1013, "full")
    assert session.not_found(None, (1013, "full")) == []


def test_a_target_that_ends_or_takes_no_mail_before_the_upgrade_is_through_is_replaced() -> None:
    session = a_session(HANDSHAKING, name="blue", heartbeat_interval=30.0)
    assert session.target_exited(A, RETURNED, join_read=False) == []
    assert session.opened(0.0) == [FIND, SetHeartbeat(30.0)]
    assert session.found(B) == [JoinTarget(B, None, receipt=True)]
    session = a_session(HANDSHAKING, name="blue")
    assert session.opened(0.0, takes_mail=False) == [FIND]
    session = a_session(HANDSHAKING, name="blue")
    session.target_exited(A, exit_of(ExitKind.ERROR), join_read=False)
    assert session.opened(0.0) == [CloseClient(1011, "target process crashed")]
    session = a_session(HANDSHAKING)
    assert session.opened(0.0, takes_mail=False) == [JoinTarget(A, None)]


def test_while_it_waits_a_connection_is_sent_to_closed_and_has_no_heartbeats() -> None:
    session = lost()
    assert session.command(command.SendCommand("hello"), SENDER, fine) == []
    assert session.outbox
    assert session.heartbeat(103.5) == []
    assert session.target_exited(A, RETURNED, join_read=False) == []
    closed = session.command(command.CloseCommand(4000, "over"), SENDER, fine)
    assert closed == [SetHeartbeat(None), CloseClient(4000, "over")]
    assert session.found(B) == []
    assert session.state is CLOSING


def test_a_client_that_goes_meanwhile_ends_it_without_a_leave() -> None:
    session = lost()
    assert session.client_gone(1001) == [SetHeartbeat(None), ended_with(1001)]
    assert session.not_found(RETURNED) == session.found(B) == []
    assert session.state is CLOSED


def test_a_node_that_shuts_down_meanwhile_ends_it_without_a_leave() -> None:
    session = lost()
    assert session.shut_down() == [
        SetHeartbeat(None),
        CloseClient(1012, "node shuts down", lingering=True),
    ]
    assert session.message("late") == []


def test_metadata_that_is_replaced_meanwhile_comes_with_the_next_join() -> None:
    session = lost()
    assert control(session, metadata={"b": 2}) == []
    assert session.found(B)[0] == JoinTarget(B, {"b": 2}, receipt=True)
    assert session.message("two") == [text(B, "two")]


def test_each_message_keeps_the_topic_under_which_it_was_sent() -> None:
    session = lost()
    control(session, message_topic="chat")
    session.message("two")
    assert session.found(B)[1:] == [text(B, "one"), text(B, "two", "chat")]


def test_a_transfer_ends_the_claim_of_the_name() -> None:
    session = named()
    session.message("one")
    assert control(session, target_pid=A) == [], "the same target again is no transfer"
    assert control(session, target_pid=B) == [
        LeaveTarget(A, 1000, "transferred"),
        JoinTarget(B, None),
    ]
    assert session.target_exited(B, RETURNED, join_read=False) == [CAME_IN_VAIN]


def test_a_transfer_of_a_client_that_waits_takes_along_what_nobody_has_read() -> None:
    session = lost()
    session.message("two")
    assert control(session, target_pid=B) == [
        JoinTarget(B, METADATA),
        text(B, "one"),
        text(B, "two"),
    ]
    assert session.found(A) == []
    session.message("three")
    assert session.head


def test_a_client_is_held_while_128_kilobytes_of_it_are_kept() -> None:
    session = named()
    held = [session.holds]
    session.message(b"x" * wire.WINDOW)
    held.append(session.holds)
    session.target_exited(A, RETURNED, join_read=False)
    session.found(B)
    held.append(session.holds)  # they are kept until the next process has read the join
    session.join_read()
    held.append(session.holds)
    assert held == [False, True, True, False]


def test_a_client_is_held_while_it_has_no_target_so_that_what_it_sends_is_not_kept() -> None:
    session = named()
    session.target_exited(A, RETURNED, join_read=False)
    assert session.holds
    session.found(B)
    assert not session.holds


def test_messages_without_content_count_too() -> None:
    session, count = named(), 0
    while not session.holds:
        session.message("")
        count += 1
    assert count == wire.WINDOW // 128


def test_a_client_of_a_target_without_a_name_is_never_held() -> None:
    session = a_session(OPEN)
    session.message(b"x" * wire.WINDOW)
    assert not session.holds
