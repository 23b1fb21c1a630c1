"""A connection's states, from the handshake to its end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import (
    CLOSED,
    CLOSING,
    HANDSHAKING,
    INPUTS,
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

from wsrelay.session import command
from wsrelay.session.effects import (
    CancelTarget,
    CloseClient,
    ConnectionEnded,
    Effect,
    JoinTarget,
    LeaveTarget,
    RejectCommand,
    SendToTarget,
    SetHeartbeat,
)
from wsrelay.session.ends import close_for
from wsrelay.session.machine import ConnectionState
from wsrelay.values.message import ExitKind

IN_OPEN: dict[str, tuple[ConnectionState, list[Effect]]] = {
    "a client's text": (OPEN, [SendToTarget(A, "chat", {"type": "text", "data": "text"})]),
    "a client's bytes": (OPEN, [SendToTarget(A, "chat", {"type": "binary", "data": b"bytes"})]),
    "the client is gone": (CLOSED, [LeaveTarget(A, 1001, "bye"), ended_with(1001, "bye")]),
    "a heartbeat is due": (
        OPEN,
        [SendToTarget(A, "ws.heartbeat", {"uptime": 3.5, "message_count": 0})],
    ),
    "a message was written": (OPEN, []),
    "ws.send": (OPEN, []),
    "ws.close": (CLOSING, [LeaveTarget(A, 3000, "bye"), CloseClient(3000, "bye")]),
    "ws.control, a transfer": (
        OPEN,
        [LeaveTarget(A, 1000, "transferred"), JoinTarget(B, METADATA)],
    ),
    "ws.control, metadata": (OPEN, []),
    "an unusable command": (OPEN, [RejectCommand(SENDER, "ws.send", "wrong")]),
    "the target returned": (CLOSING, [CloseClient(1000, "target process exited")]),
    "another process exited": (OPEN, []),
    "cancel": (CLOSING, [LeaveTarget(A, 1000, "enough"), CloseClient(1000, "enough")]),
    "the node shuts down": (
        CLOSING,
        [CloseClient(1012, "node shuts down", lingering=True)],
    ),
}


def test_every_input_while_open() -> None:
    assert set(IN_OPEN) == set(INPUTS)
    for name, (after, effects) in IN_OPEN.items():
        session = a_session(OPEN, message_topic="chat", metadata=METADATA)
        assert INPUTS[name](session) == effects, name
        assert session.state is after, name


def test_messages_that_only_have_to_be_passed_on_need_no_call_until_something_changes() -> None:
    for name, give in INPUTS.items():
        session = a_session(OPEN, metadata=METADATA)
        heads = [session.head]
        session.message("text")
        heads.append(session.head)
        give(session)
        keeps = session.state is OPEN and "ws.control" not in name
        assert [bool(head) for head in (*heads, session.head)] == [False, True, keeps], name


def test_a_topic_of_its_own_is_that_of_the_messages_that_are_passed_on() -> None:
    session = a_session(OPEN)
    session.message("text")
    before = session.head
    control(session, message_topic="chat")
    session.message("text")
    assert b"chat" in session.head
    assert b"chat" not in before


def test_nothing_but_its_own_end_leaves_the_handshake() -> None:
    for name, give in INPUTS.items():
        session = a_session(HANDSHAKING, metadata=METADATA)
        if name == "the client is gone":
            assert give(session) == [ended_with(1006, "the upgrade did not come about")]
            assert session.state is CLOSED
        else:
            assert give(session) == [], name
            assert session.state is HANDSHAKING, name


def test_a_connection_that_closes_hears_nothing_but_the_end_of_the_client() -> None:
    for name, give in INPUTS.items():
        session = a_session(CLOSING)
        if name == "the client is gone":
            assert give(session) == [ended_with(4000, "over")]
            assert session.state is CLOSED
        else:
            assert give(session) == [], name
            assert session.state is CLOSING, name
            assert not session.outbox, name


def test_a_closed_connection_hears_nothing() -> None:
    for name, give in INPUTS.items():
        session = a_session(CLOSED)
        assert give(session) == [], name
        assert session.state is CLOSED, name
        assert not session.outbox, name


# The handshake


def test_the_target_hears_of_the_client_once_the_upgrade_is_through() -> None:
    session = a_session(HANDSHAKING, metadata=METADATA)
    assert session.opened(0.0) == [JoinTarget(A, METADATA)]
    assert session.state is OPEN


def test_an_upgrade_that_does_not_come_about_ends_without_join_and_leave() -> None:
    session = a_session(HANDSHAKING, heartbeat_interval=30.0)
    assert session.refused() == [ended_with(1006, "the upgrade did not come about")]
    assert session.state is CLOSED


def test_an_upgrade_that_does_not_come_about_cancels_a_target_that_lives_for_it() -> None:
    session = a_session(HANDSHAKING, cancel_on_leave=True)
    assert CancelTarget(A) in session.refused()
    session = a_session(HANDSHAKING, cancel_on_leave=True)
    assert CancelTarget(A) in session.client_gone(1006)


def test_a_connection_that_ended_in_the_handshake_is_not_opened_any_more() -> None:
    session = a_session(HANDSHAKING, heartbeat_interval=30.0)
    session.client_gone(1006)
    assert session.opened(0.0) == []
    assert session.state is CLOSED


def test_a_connection_that_ended_in_the_handshake_does_not_end_again_when_it_is_refused() -> None:
    session = a_session(HANDSHAKING, cancel_on_leave=True)
    session.client_gone(1006)
    assert session.refused() == []


def test_a_target_that_ends_during_the_handshake_closes_the_connection_as_it_opens() -> None:
    session = a_session(HANDSHAKING)
    assert session.target_exited(A, RETURNED, join_read=False) == []
    assert session.opened(0.0) == [CloseClient(1013, "target process exited")]
    assert session.client_gone(1006) == [ended_with(1013, "target process exited")]


def test_a_cancel_during_the_handshake_closes_the_connection_as_it_opens() -> None:
    session = a_session(HANDSHAKING)
    session.cancel("enough")
    assert CloseClient(1000, "enough") in session.opened(0.0)
    assert session.state is CLOSING


def test_a_shutdown_during_the_handshake_closes_the_connection_as_it_opens() -> None:
    session = a_session(HANDSHAKING)
    session.shut_down()
    (close,) = (effect for effect in session.opened(0.0) if isinstance(effect, CloseClient))
    assert (close.code, close.reason) == (1012, "node shuts down")


def test_of_several_ends_during_the_handshake_the_first_counts() -> None:
    session = a_session(HANDSHAKING)
    session.shut_down()
    session.target_exited(A, RETURNED, join_read=False)
    (close,) = (effect for effect in session.opened(0.0) if isinstance(effect, CloseClient))
    assert (close.code, close.reason) == (1012, "node shuts down")


def test_an_accepted_connection_that_a_shutdown_ends_was_there_for_its_target() -> None:
    session = a_session(HANDSHAKING)
    session.shut_down()
    effects = session.opened(0.0)
    seen = [effect for effect in effects if isinstance(effect, JoinTarget | LeaveTarget)]
    assert seen == [JoinTarget(A, None), LeaveTarget(A, 1012, "node shuts down")]


def test_a_client_is_heard_until_the_close_frame_of_a_shutdown_is_written() -> None:
    session = a_session(OPEN, cancel_on_leave=True, heartbeat_interval=30.0)
    assert session.shut_down() == [
        SetHeartbeat(None),
        CloseClient(1012, "node shuts down", lingering=True),
    ]
    assert session.message("late") == [
        SendToTarget(A, "ws.message", {"type": "text", "data": "late"})
    ]
    assert session.heartbeat(101.0) == []
    assert session.shut_down() == []
    gone = session.client_gone(1006)
    assert gone[0] == LeaveTarget(A, 1012, "node shuts down")
    assert gone[-2:] == [CancelTarget(A), ended_with(1012, "node shuts down")]
    assert session.message("too late") == []


def test_a_target_that_ends_before_that_hears_nothing_more() -> None:
    session = a_session(OPEN)
    session.shut_down()
    assert session.target_exited(A, RETURNED, join_read=True) == []
    assert session.message("late") == []
    assert session.client_gone(1006) == [ended_with(1012, "node shuts down")]


@pytest.mark.parametrize("join_read", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in ExitKind if kind is not ExitKind.NODE_DOWN])
def test_the_clients_of_a_target_that_ended_badly_see_1011_and_no_traceback(
    kind: ExitKind, join_read: bool
) -> None:
    code, reason = close_for(exit_of(kind), join_read=join_read)
    assert code == 1011
    assert reason.startswith("target process ")
    assert "secret" not in reason
    if kind in (ExitKind.ERROR, ExitKind.EXIT):
        assert reason == "target process crashed"


def test_the_clients_of_a_target_that_returned_come_again_if_it_never_read_their_join() -> None:
    assert close_for(RETURNED, join_read=True) == (1000, "target process exited")
    assert close_for(RETURNED, join_read=False) == (1013, "target process exited")


def test_the_clients_of_a_killed_target_see_the_signal() -> None:
    killed = exit_of(ExitKind.KILLED, "SIGKILL")
    assert close_for(killed, join_read=True) == (1011, "target process killed (SIGKILL)")
    for kind in (ExitKind.TERMINATED, ExitKind.CANCELLED):
        assert close_for(exit_of(kind), join_read=True)[1] == "target process killed (SIGKILL)"


def test_a_dead_target_is_told_nothing() -> None:
    for result in (RETURNED, exit_of(ExitKind.ERROR)):
        session = a_session(OPEN, heartbeat_interval=30.0)
        effects = session.target_exited(A, result, join_read=True)
        assert not any(isinstance(effect, LeaveTarget | SendToTarget) for effect in effects)


def test_what_waits_is_still_delivered_when_the_target_ends() -> None:
    session = a_session(OPEN)
    session.command(command.SendCommand("last words"), A, fine)
    session.target_exited(A, RETURNED, join_read=True)
    assert session.outbox.get().data == "last words"


def test_the_first_end_is_the_one_that_counts() -> None:
    session = a_session(OPEN)
    session.shut_down()
    session.target_exited(A, exit_of(ExitKind.ERROR), join_read=True)
    session.cancel("later")
    assert session.client_gone(1000) == [ended_with(1012, "node shuts down")]


def test_the_result_is_an_error_for_every_code_but_the_normal_ones() -> None:
    for code in range(1000, 5000):
        *_, ended = a_session(OPEN).client_gone(code, "why")
        assert ended == ended_with(code, "why")


def test_a_client_that_vanished_is_disconnected() -> None:
    leave, ended = a_session(OPEN).client_gone(1006)
    assert leave == LeaveTarget(A, 1006, "")
    assert isinstance(ended, ConnectionEnded)
    assert ended.result.value == {"code": 1006, "reason": ""}
    assert ended.result.error is not None
    assert ended.result.error.kind is ExitKind.DISCONNECTED


def test_what_waits_for_a_client_that_is_gone_is_dropped() -> None:
    session = a_session(OPEN)
    session.command(command.SendCommand("text"), SENDER, fine)
    session.client_gone(1006)
    assert not session.outbox


@settings(deadline=None)
@given(st.text(alphabet="aé€🙂", min_size=20, max_size=140) | st.text())
def test_a_reason_is_cut_to_123_bytes_at_a_character(reason: str) -> None:
    session = a_session(OPEN)
    leave, close = session.cancel(reason)
    assert isinstance(close, CloseClient)
    assert len(close.reason.encode()) <= 123
    assert reason.startswith(close.reason)
    if close.reason != reason:
        following = reason[len(close.reason)]
        assert len((close.reason + following).encode()) > 123
    assert leave == LeaveTarget(A, 1000, close.reason)


def test_a_reason_with_surrogates_can_still_be_sent() -> None:
    _, close = a_session(OPEN).cancel("\ud800" * 200)
    assert isinstance(close, CloseClient)
    assert len(close.reason.encode()) <= 123


# A target that lives for this connection


@pytest.mark.parametrize("end", ["the client is gone", "ws.close", "cancel", "the node shuts down"])
def test_a_target_that_lives_for_the_connection_is_cancelled_after_its_leave(end: str) -> None:
    session = a_session(OPEN, cancel_on_leave=True)
    effects = INPUTS[end](session) + session.client_gone(1006)
    ends = [effect for effect in effects if isinstance(effect, LeaveTarget | CancelTarget)]
    assert [type(effect) for effect in ends] == [LeaveTarget, CancelTarget]


def test_a_target_that_does_not_live_for_the_connection_is_never_cancelled() -> None:
    for name, give in INPUTS.items():
        effects = give(a_session(OPEN)) + give(a_session(HANDSHAKING))
        assert not any(isinstance(effect, CancelTarget) for effect in effects), name


def test_it_is_said_of_one_target_and_not_of_the_next() -> None:
    session = a_session(OPEN, cancel_on_leave=True)
    assert CancelTarget(A) in control(session, target_pid=B)
    assert CancelTarget(B) not in session.client_gone(1000)
    session = a_session(OPEN)
    assert CancelTarget(A) not in control(session, target_pid=B, cancel_on_leave=True)
    assert CancelTarget(B) in session.client_gone(1000)


def test_it_can_be_said_and_taken_back_later() -> None:
    session = a_session(OPEN)
    control(session, cancel_on_leave=True)
    assert CancelTarget(A) in session.client_gone(1000)
    session = a_session(OPEN, cancel_on_leave=True)
    control(session, cancel_on_leave=False)
    assert CancelTarget(A) not in session.client_gone(1000)
