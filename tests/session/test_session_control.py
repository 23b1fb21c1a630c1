"""What is changed of an open connection: its target, metadata, heartbeats, its outbox."""

from __future__ import annotations

from sessions import (
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
from wsrelay.session.command import ControlCommand
from wsrelay.session.effects import (
    AttachMetadata,
    CloseClient,
    Effect,
    JoinTarget,
    LeaveTarget,
    PauseSender,
    RejectCommand,
    ResumeSender,
    SendToTarget,
    SetHeartbeat,
)
from wsrelay.session.machine import Session
from wsrelay.session.outbox import Overflow
from wsrelay.values.message import ExitKind
from wsrelay.values.pid import PID
from wsrelay.values.sizes import ITEM

OTHER = PID("{local@app:processes|k.0-6}")


# Control


def test_earlier_messages_go_to_the_old_target_and_later_ones_to_the_new() -> None:
    session = a_session(OPEN, metadata=METADATA)
    told = session.message("one") + control(session, target_pid=B) + session.message("two")
    assert told == [
        SendToTarget(A, "ws.message", {"type": "text", "data": "one"}),
        LeaveTarget(A, 1000, "transferred"),
        JoinTarget(B, METADATA),
        SendToTarget(B, "ws.message", {"type": "text", "data": "two"}),
    ]
    assert session.message_count == 2


def test_a_transfer_brings_its_own_metadata_and_topic_before_the_join() -> None:
    session = a_session(OPEN, metadata=METADATA)
    effects = control(session, target_pid=B, metadata={"b": 2}, message_topic="chat")
    assert effects == [LeaveTarget(A, 1000, "transferred"), JoinTarget(B, {"b": 2})]
    assert session.message("x") == [SendToTarget(B, "chat", {"type": "text", "data": "x"})]


def test_a_new_target_without_node_part_is_on_this_node() -> None:
    session = a_session(OPEN)
    control(session, target_pid=PID("{app:processes|k.0-3}"))
    assert session.target == B


def test_the_same_target_again_is_no_transfer_and_needs_not_be_asked_after() -> None:
    def never(pid: PID) -> str | None:
        raise AssertionError(f"asked after {pid}")

    for pid in (A, PID("{app:processes|k.0-2}")):
        session = a_session(OPEN)
        assert session.command(ControlCommand(target_pid=pid), SENDER, never) == []
        assert session.target == A


def test_a_refused_transfer_changes_nothing_at_all() -> None:
    session = a_session(OPEN, metadata=METADATA)
    everything = ControlCommand(
        target_pid=B,
        message_topic="chat",
        heartbeat_interval=1.0,
        metadata={},
        cancel_on_leave=True,
    )
    effects = session.command(everything, SENDER, lambda pid: f"{pid} is not alive")
    assert effects == [RejectCommand(SENDER, "ws.control", f"{B} is not alive")]
    assert session.message("x") == [SendToTarget(A, "ws.message", {"type": "text", "data": "x"})]
    assert session.client_gone(1000) == [LeaveTarget(A, 1000, ""), ended_with(1000)]


def test_metadata_is_replaced_and_not_merged() -> None:
    session = a_session(OPEN, metadata=METADATA)
    tell = SendToTarget(A, "ws.message", {"type": "text", "data": "x"})
    assert control(session, metadata={"b": 2}) == []
    assert session.message("x") == [AttachMetadata(A, {"b": 2}), tell]
    assert session.message("x") == [tell]
    assert control(session, metadata=None) == []
    assert control(session, target_pid=B) == [
        AttachMetadata(A, None),
        LeaveTarget(A, 1000, "transferred"),
        JoinTarget(B, None),
    ]


def test_of_metadata_sent_again_and_again_the_target_gets_the_newest_alone() -> None:
    session = a_session(OPEN, metadata=METADATA)
    for number in range(1000):
        assert control(session, metadata={"n": number}) == []
    leave = LeaveTarget(A, 1001, "")
    assert session.client_gone(1001) == [AttachMetadata(A, {"n": 999}), leave, ended_with(1001)]


def test_what_a_control_does_not_name_stays_as_it_is() -> None:
    session = a_session(OPEN, message_topic="chat", metadata=METADATA, heartbeat_interval=30.0)
    assert control(session) == []
    assert session.message("x") == [SendToTarget(A, "chat", {"type": "text", "data": "x"})]


def test_the_exit_of_a_former_target_is_of_no_concern() -> None:
    session = a_session(OPEN)
    control(session, target_pid=B)
    assert session.target_exited(A, exit_of(ExitKind.ERROR), join_read=True) == []
    assert session.state is OPEN
    assert session.target_exited(B, RETURNED, join_read=True) == [
        CloseClient(1000, "target process exited")
    ]


# Heartbeats


def test_heartbeats_begin_with_the_join_and_stop_with_the_end() -> None:
    session = a_session(HANDSHAKING, heartbeat_interval=30.0)
    assert session.opened(0.0) == [JoinTarget(A, None), SetHeartbeat(30.0)]
    for end in ("the client is gone", "ws.close", "the target returned", "cancel"):
        assert SetHeartbeat(None) in INPUTS[end](a_session(OPEN, heartbeat_interval=30.0)), end


def test_without_an_interval_there_are_no_heartbeats() -> None:
    session = a_session(HANDSHAKING)
    assert session.opened(0.0) == [JoinTarget(A, None)]
    assert not any(isinstance(effect, SetHeartbeat) for effect in session.client_gone(1000))


def test_heartbeats_can_be_set_and_turned_off() -> None:
    session = a_session(OPEN)
    assert control(session, heartbeat_interval=5.0) == [SetHeartbeat(5.0)]
    assert control(session, heartbeat_interval=None) == [SetHeartbeat(None)]


def test_a_heartbeat_tells_the_uptime_and_counts_on_across_transfers() -> None:
    session = a_session(OPEN)
    session.message("one")
    control(session, target_pid=B)
    session.message(b"two")
    (tell,) = session.heartbeat(102.25)
    assert tell == SendToTarget(B, "ws.heartbeat", {"uptime": 2.25, "message_count": 2})


# The outbox


def _send(session: Session, data: str | bytes, sender: PID = SENDER) -> list[Effect]:
    return session.command(command.SendCommand(data), sender, fine)


def test_a_slow_client_is_closed_with_1013_and_what_waited_is_dropped() -> None:
    session = a_session(OPEN, limit=10)
    assert _send(session, b"123456") == []
    assert _send(session, b"123456") == [
        LeaveTarget(A, 1013, "slow client"),
        CloseClient(1013, "slow client", lingering=True),
    ]
    assert not session.outbox
    assert session.client_gone(1006) == [ended_with(1013, "slow client")]


def test_under_drop_what_is_newest_is_dropped_and_counted() -> None:
    session = a_session(OPEN, limit=10 + 2 * ITEM, overflow=Overflow.DROP)
    assert _send(session, b"12345") == []
    assert _send(session, b"12345") == []
    assert _send(session, b"1") == []
    assert (session.dropped, session.outbox.size) == (1, 10 + 2 * ITEM)
    assert session.outbox.get().data == b"12345"
    assert session.wrote() == []
    assert _send(session, b"1") == []
    assert (session.dropped, len(session.outbox)) == (1, 2)


def test_under_pause_the_sender_waits_until_half_of_the_limit_is_free() -> None:
    session = a_session(OPEN, limit=10 + 2 * ITEM, overflow=Overflow.PAUSE)
    assert _send(session, b"12345") == []
    assert _send(session, b"12345") == []
    assert _send(session, b"1") == [PauseSender(SENDER)]
    session.outbox.get()
    assert session.wrote() == []
    session.outbox.get()
    assert session.wrote() == [ResumeSender(SENDER)]
    assert session.wrote() == []


def test_under_pause_nothing_is_dropped() -> None:
    session = a_session(OPEN, limit=1, overflow=Overflow.PAUSE)
    for number in range(5):
        _send(session, str(number))
    assert [session.outbox.get().data for _ in range(5)] == ["0", "1", "2", "3", "4"]


def test_every_sender_that_waits_is_released() -> None:
    session = a_session(OPEN, limit=1, overflow=Overflow.PAUSE)
    _send(session, "x")
    assert _send(session, "x", SENDER) == [PauseSender(SENDER)]
    assert _send(session, "x", OTHER) == [PauseSender(OTHER)]
    released = session.client_gone(1006)[1:-1]
    assert {effect.sender for effect in released if isinstance(effect, ResumeSender)} == {
        SENDER,
        OTHER,
    }


def test_senders_wait_on_while_a_closing_connection_drains() -> None:
    session = a_session(OPEN, limit=2, overflow=Overflow.PAUSE)
    for _ in range(3):
        _send(session, "xx")
    assert not any(isinstance(effect, ResumeSender) for effect in session.cancel(""))
    released: list[Effect] = []
    while session.outbox:
        session.outbox.get()
        released += session.wrote()
    assert released == [ResumeSender(SENDER)]
