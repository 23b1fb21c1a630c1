from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from wsrelay.session import command
from wsrelay.session.command import ControlCommand, InvalidCommand
from wsrelay.session.header import RelayHeader
from wsrelay.session.machine import (
    AttachMetadata,
    CancelTarget,
    CloseClient,
    ConnectionEnded,
    ConnectionState,
    Effect,
    JoinTarget,
    LeaveTarget,
    PauseSender,
    RejectCommand,
    ResumeSender,
    SendToTarget,
    Session,
    SetHeartbeat,
    close_for,
)
from wsrelay.session.outbox import Overflow
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.sizes import ITEM

CLIENT = PID("{local@gateway|k.0-1}")
A = PID("{local@app:processes|k.0-2}")
B = PID("{local@app:processes|k.0-3}")
C = PID("{local@app:processes|k.0-4}")
SENDER = PID("{local@app:processes|k.0-5}")
OTHER = PID("{local@app:processes|k.0-6}")

HANDSHAKING, OPEN, CLOSING, CLOSED = ConnectionState
RETURNED = Result("value")


def _fine(_: PID) -> str | None:
    return None


def _session(
    state: ConnectionState = OPEN,
    *,
    limit: int = 100,
    overflow: Overflow = Overflow.CLOSE,
    **fields: Any,
) -> Session:
    """A session in that state; CLOSING and CLOSED by way of a close with 4000 `over`."""
    relay = RelayHeader(target_pid=A, **fields)
    session = Session(CLIENT, relay, limit=limit, overflow=overflow)
    if state is not HANDSHAKING:
        session.opened(100.0)
    if state in (CLOSING, CLOSED):
        session.command(command.CloseCommand(4000, "over"), SENDER, _fine)
    if state is CLOSED:
        session.client_gone(1006)
    assert session.state is state
    return session


def _control(session: Session, **fields: Any) -> list[Effect]:
    return session.command(ControlCommand(**fields), SENDER, _fine)


def _ended(code: int, reason: str = "") -> ConnectionEnded:
    """What a connection that was closed with this code ends with."""
    value = {"code": code, "reason": reason}
    if code in (1000, 1001, 1005) or 3000 <= code <= 4999:
        return ConnectionEnded(Result(value))
    kind = ExitKind.DISCONNECTED if code == 1006 else ExitKind.ERROR
    return ConnectionEnded(Result(value, ExitError(kind, f"closed with {code} {reason}".rstrip())))


# Every input in every state

Input = Callable[[Session], list[Effect]]

INPUTS: dict[str, Input] = {
    "a client's text": lambda s: s.message("text"),
    "a client's bytes": lambda s: s.message(b"bytes"),
    "the client is gone": lambda s: s.client_gone(1001, "bye"),
    "a heartbeat is due": lambda s: s.heartbeat(103.5),
    "a message was written": lambda s: s.wrote(),
    "ws.send": lambda s: s.command(command.SendCommand("text"), SENDER, _fine),
    "ws.close": lambda s: s.command(command.CloseCommand(3000, "bye"), SENDER, _fine),
    "ws.control, a transfer": lambda s: s.command(ControlCommand(target_pid=B), SENDER, _fine),
    "ws.control, metadata": lambda s: s.command(ControlCommand(metadata={"b": 2}), SENDER, _fine),
    "an unusable command": lambda s: s.command(InvalidCommand("ws.send", "wrong"), SENDER, _fine),
    "the target returned": lambda s: s.target_exited(A, RETURNED, join_read=True),
    "another process exited": lambda s: s.target_exited(B, RETURNED, join_read=True),
    "cancel": lambda s: s.cancel("enough"),
    "the node shuts down": lambda s: s.shut_down(),
}

METADATA = {"a": 1}

IN_OPEN: dict[str, tuple[ConnectionState, list[Effect]]] = {
    "a client's text": (OPEN, [SendToTarget(A, "chat", {"type": "text", "data": "text"})]),
    "a client's bytes": (OPEN, [SendToTarget(A, "chat", {"type": "binary", "data": b"bytes"})]),
    "the client is gone": (CLOSED, [LeaveTarget(A, 1001, "bye"), _ended(1001, "bye")]),
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
        session = _session(OPEN, message_topic="chat", metadata=METADATA)
        assert INPUTS[name](session) == effects, name
        assert session.state is after, name


def test_nothing_but_its_own_end_leaves_the_handshake() -> None:
    for name, give in INPUTS.items():
        session = _session(HANDSHAKING, metadata=METADATA)
        if name == "the client is gone":
            assert give(session) == [_ended(1006, "the upgrade did not come about")]
            assert session.state is CLOSED
        else:
            assert give(session) == [], name
            assert session.state is HANDSHAKING, name


def test_a_connection_that_closes_hears_nothing_but_the_end_of_the_client() -> None:
    for name, give in INPUTS.items():
        session = _session(CLOSING)
        if name == "the client is gone":
            assert give(session) == [_ended(4000, "over")]
            assert session.state is CLOSED
        else:
            assert give(session) == [], name
            assert session.state is CLOSING, name
            assert not session.outbox, name


def test_a_closed_connection_hears_nothing() -> None:
    for name, give in INPUTS.items():
        session = _session(CLOSED)
        assert give(session) == [], name
        assert session.state is CLOSED, name
        assert not session.outbox, name


# The handshake


def test_the_target_hears_of_the_client_once_the_upgrade_is_through() -> None:
    session = _session(HANDSHAKING, metadata=METADATA)
    assert session.opened(0.0) == [JoinTarget(A, METADATA)]
    assert session.state is OPEN


def test_an_upgrade_that_does_not_come_about_ends_without_join_and_leave() -> None:
    session = _session(HANDSHAKING, heartbeat_interval=30.0)
    assert session.refused() == [_ended(1006, "the upgrade did not come about")]
    assert session.state is CLOSED


def test_an_upgrade_that_does_not_come_about_cancels_a_target_that_lives_for_it() -> None:
    session = _session(HANDSHAKING, cancel_on_leave=True)
    assert CancelTarget(A) in session.refused()
    session = _session(HANDSHAKING, cancel_on_leave=True)
    assert CancelTarget(A) in session.client_gone(1006)


def test_a_connection_that_ended_in_the_handshake_is_not_opened_any_more() -> None:
    session = _session(HANDSHAKING, heartbeat_interval=30.0)
    session.client_gone(1006)
    assert session.opened(0.0) == []
    assert session.state is CLOSED


def test_a_connection_that_ended_in_the_handshake_does_not_end_again_when_it_is_refused() -> None:
    session = _session(HANDSHAKING, cancel_on_leave=True)
    session.client_gone(1006)
    assert session.refused() == []


def test_a_target_that_ends_during_the_handshake_closes_the_connection_as_it_opens() -> None:
    session = _session(HANDSHAKING)
    assert session.target_exited(A, RETURNED, join_read=False) == []
    assert session.opened(0.0) == [CloseClient(1013, "target process exited")]
    assert session.client_gone(1006) == [_ended(1013, "target process exited")]


def test_a_cancel_during_the_handshake_closes_the_connection_as_it_opens() -> None:
    session = _session(HANDSHAKING)
    session.cancel("enough")
    assert CloseClient(1000, "enough") in session.opened(0.0)
    assert session.state is CLOSING


def test_a_shutdown_during_the_handshake_closes_the_connection_as_it_opens() -> None:
    session = _session(HANDSHAKING)
    session.shut_down()
    (close,) = (effect for effect in session.opened(0.0) if isinstance(effect, CloseClient))
    assert (close.code, close.reason) == (1012, "node shuts down")


def test_of_several_ends_during_the_handshake_the_first_counts() -> None:
    session = _session(HANDSHAKING)
    session.shut_down()
    session.target_exited(A, RETURNED, join_read=False)
    (close,) = (effect for effect in session.opened(0.0) if isinstance(effect, CloseClient))
    assert (close.code, close.reason) == (1012, "node shuts down")


def test_an_accepted_connection_that_a_shutdown_ends_was_there_for_its_target() -> None:
    session = _session(HANDSHAKING)
    session.shut_down()
    effects = session.opened(0.0)
    seen = [effect for effect in effects if isinstance(effect, JoinTarget | LeaveTarget)]
    assert seen == [JoinTarget(A, None), LeaveTarget(A, 1012, "node shuts down")]


def test_a_client_is_heard_until_the_close_frame_of_a_shutdown_is_written() -> None:
    session = _session(OPEN, cancel_on_leave=True, heartbeat_interval=30.0)
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
    assert gone[-2:] == [CancelTarget(A), _ended(1012, "node shuts down")]
    assert session.message("too late") == []


def test_a_target_that_ends_before_that_hears_nothing_more() -> None:
    session = _session(OPEN)
    session.shut_down()
    assert session.target_exited(A, RETURNED, join_read=True) == []
    assert session.message("late") == []
    assert session.client_gone(1006) == [_ended(1012, "node shuts down")]


# Ends


def _exit(kind: ExitKind, message: str = "message") -> Result:
    return Result(error=ExitError(kind, message, "Traceback: secret"))


@pytest.mark.parametrize("join_read", [True, False])
@pytest.mark.parametrize("kind", ExitKind)
def test_the_clients_of_a_target_that_ended_badly_see_1011_and_no_traceback(
    kind: ExitKind, join_read: bool
) -> None:
    code, reason = close_for(_exit(kind), join_read=join_read)
    assert code == 1011
    assert reason.startswith("target process ")
    assert "secret" not in reason
    if kind in (ExitKind.ERROR, ExitKind.EXIT):
        assert reason == "target process crashed"


def test_the_clients_of_a_target_that_returned_come_again_if_it_never_read_their_join() -> None:
    assert close_for(RETURNED, join_read=True) == (1000, "target process exited")
    assert close_for(RETURNED, join_read=False) == (1013, "target process exited")


def test_the_clients_of_a_killed_target_see_the_signal() -> None:
    killed = _exit(ExitKind.KILLED, "SIGKILL")
    assert close_for(killed, join_read=True) == (1011, "target process killed (SIGKILL)")
    for kind in (ExitKind.TERMINATED, ExitKind.CANCELLED):
        assert close_for(_exit(kind), join_read=True)[1] == "target process killed (SIGKILL)"


def test_a_dead_target_is_told_nothing() -> None:
    for result in (RETURNED, _exit(ExitKind.ERROR)):
        session = _session(OPEN, heartbeat_interval=30.0)
        effects = session.target_exited(A, result, join_read=True)
        assert not any(isinstance(effect, LeaveTarget | SendToTarget) for effect in effects)


def test_what_waits_is_still_delivered_when_the_target_ends() -> None:
    session = _session(OPEN)
    session.command(command.SendCommand("last words"), A, _fine)
    session.target_exited(A, RETURNED, join_read=True)
    assert session.outbox.get().data == "last words"


def test_the_first_end_is_the_one_that_counts() -> None:
    session = _session(OPEN)
    session.shut_down()
    session.target_exited(A, _exit(ExitKind.ERROR), join_read=True)
    session.cancel("later")
    assert session.client_gone(1000) == [_ended(1012, "node shuts down")]


def test_the_result_is_an_error_for_every_code_but_the_normal_ones() -> None:
    for code in range(1000, 5000):
        *_, ended = _session(OPEN).client_gone(code, "why")
        assert ended == _ended(code, "why")


def test_a_client_that_vanished_is_disconnected() -> None:
    leave, ended = _session(OPEN).client_gone(1006)
    assert leave == LeaveTarget(A, 1006, "")
    assert isinstance(ended, ConnectionEnded)
    assert ended.result.value == {"code": 1006, "reason": ""}
    assert ended.result.error is not None
    assert ended.result.error.kind is ExitKind.DISCONNECTED


def test_what_waits_for_a_client_that_is_gone_is_dropped() -> None:
    session = _session(OPEN)
    session.command(command.SendCommand("text"), SENDER, _fine)
    session.client_gone(1006)
    assert not session.outbox


@settings(deadline=None)
@given(st.text(alphabet="aé€🙂", min_size=20, max_size=140) | st.text())
def test_a_reason_is_cut_to_123_bytes_at_a_character(reason: str) -> None:
    session = _session(OPEN)
    leave, close = session.cancel(reason)
    assert isinstance(close, CloseClient)
    assert len(close.reason.encode()) <= 123
    assert reason.startswith(close.reason)
    if close.reason != reason:
        following = reason[len(close.reason)]
        assert len((close.reason + following).encode()) > 123
    assert leave == LeaveTarget(A, 1000, close.reason)


def test_a_reason_with_surrogates_can_still_be_sent() -> None:
    _, close = _session(OPEN).cancel("\ud800" * 200)
    assert isinstance(close, CloseClient)
    assert len(close.reason.encode()) <= 123


# A target that lives for this connection


@pytest.mark.parametrize("end", ["the client is gone", "ws.close", "cancel", "the node shuts down"])
def test_a_target_that_lives_for_the_connection_is_cancelled_after_its_leave(end: str) -> None:
    session = _session(OPEN, cancel_on_leave=True)
    effects = INPUTS[end](session) + session.client_gone(1006)
    ends = [effect for effect in effects if isinstance(effect, LeaveTarget | CancelTarget)]
    assert [type(effect) for effect in ends] == [LeaveTarget, CancelTarget]


def test_a_target_that_does_not_live_for_the_connection_is_never_cancelled() -> None:
    for name, give in INPUTS.items():
        effects = give(_session(OPEN)) + give(_session(HANDSHAKING))
        assert not any(isinstance(effect, CancelTarget) for effect in effects), name


def test_it_is_said_of_one_target_and_not_of_the_next() -> None:
    session = _session(OPEN, cancel_on_leave=True)
    assert CancelTarget(A) in _control(session, target_pid=B)
    assert CancelTarget(B) not in session.client_gone(1000)
    session = _session(OPEN)
    assert CancelTarget(A) not in _control(session, target_pid=B, cancel_on_leave=True)
    assert CancelTarget(B) in session.client_gone(1000)


def test_it_can_be_said_and_taken_back_later() -> None:
    session = _session(OPEN)
    _control(session, cancel_on_leave=True)
    assert CancelTarget(A) in session.client_gone(1000)
    session = _session(OPEN, cancel_on_leave=True)
    _control(session, cancel_on_leave=False)
    assert CancelTarget(A) not in session.client_gone(1000)


# Control


def test_earlier_messages_go_to_the_old_target_and_later_ones_to_the_new() -> None:
    session = _session(OPEN, metadata=METADATA)
    told = session.message("one") + _control(session, target_pid=B) + session.message("two")
    assert told == [
        SendToTarget(A, "ws.message", {"type": "text", "data": "one"}),
        LeaveTarget(A, 1000, "transferred"),
        JoinTarget(B, METADATA),
        SendToTarget(B, "ws.message", {"type": "text", "data": "two"}),
    ]
    assert session.message_count == 2


def test_a_transfer_brings_its_own_metadata_and_topic_before_the_join() -> None:
    session = _session(OPEN, metadata=METADATA)
    effects = _control(session, target_pid=B, metadata={"b": 2}, message_topic="chat")
    assert effects == [LeaveTarget(A, 1000, "transferred"), JoinTarget(B, {"b": 2})]
    assert session.message("x") == [SendToTarget(B, "chat", {"type": "text", "data": "x"})]


def test_a_new_target_without_node_part_is_on_this_node() -> None:
    session = _session(OPEN)
    _control(session, target_pid=PID("{app:processes|k.0-3}"))
    assert session.target == B


def test_the_same_target_again_is_no_transfer_and_needs_not_be_asked_after() -> None:
    def never(pid: PID) -> str | None:
        raise AssertionError(f"asked after {pid}")

    for pid in (A, PID("{app:processes|k.0-2}")):
        session = _session(OPEN)
        assert session.command(ControlCommand(target_pid=pid), SENDER, never) == []
        assert session.target == A


def test_a_refused_transfer_changes_nothing_at_all() -> None:
    session = _session(OPEN, metadata=METADATA)
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
    assert session.client_gone(1000) == [LeaveTarget(A, 1000, ""), _ended(1000)]


def test_metadata_is_replaced_and_not_merged() -> None:
    session = _session(OPEN, metadata=METADATA)
    tell = SendToTarget(A, "ws.message", {"type": "text", "data": "x"})
    assert _control(session, metadata={"b": 2}) == []
    assert session.message("x") == [AttachMetadata(A, {"b": 2}), tell]
    assert session.message("x") == [tell]
    assert _control(session, metadata=None) == []
    assert _control(session, target_pid=B) == [
        AttachMetadata(A, None),
        LeaveTarget(A, 1000, "transferred"),
        JoinTarget(B, None),
    ]


def test_of_metadata_sent_again_and_again_the_target_gets_the_newest_alone() -> None:
    session = _session(OPEN, metadata=METADATA)
    for number in range(1000):
        assert _control(session, metadata={"n": number}) == []
    leave = LeaveTarget(A, 1001, "")
    assert session.client_gone(1001) == [AttachMetadata(A, {"n": 999}), leave, _ended(1001)]


def test_what_a_control_does_not_name_stays_as_it_is() -> None:
    session = _session(OPEN, message_topic="chat", metadata=METADATA, heartbeat_interval=30.0)
    assert _control(session) == []
    assert session.message("x") == [SendToTarget(A, "chat", {"type": "text", "data": "x"})]


def test_the_exit_of_a_former_target_is_of_no_concern() -> None:
    session = _session(OPEN)
    _control(session, target_pid=B)
    assert session.target_exited(A, _exit(ExitKind.ERROR), join_read=True) == []
    assert session.state is OPEN
    assert session.target_exited(B, RETURNED, join_read=True) == [
        CloseClient(1000, "target process exited")
    ]


# Heartbeats


def test_heartbeats_begin_with_the_join_and_stop_with_the_end() -> None:
    session = _session(HANDSHAKING, heartbeat_interval=30.0)
    assert session.opened(0.0) == [JoinTarget(A, None), SetHeartbeat(30.0)]
    for end in ("the client is gone", "ws.close", "the target returned", "cancel"):
        assert SetHeartbeat(None) in INPUTS[end](_session(OPEN, heartbeat_interval=30.0)), end


def test_without_an_interval_there_are_no_heartbeats() -> None:
    session = _session(HANDSHAKING)
    assert session.opened(0.0) == [JoinTarget(A, None)]
    assert not any(isinstance(effect, SetHeartbeat) for effect in session.client_gone(1000))


def test_heartbeats_can_be_set_and_turned_off() -> None:
    session = _session(OPEN)
    assert _control(session, heartbeat_interval=5.0) == [SetHeartbeat(5.0)]
    assert _control(session, heartbeat_interval=None) == [SetHeartbeat(None)]


def test_a_heartbeat_tells_the_uptime_and_counts_on_across_transfers() -> None:
    session = _session(OPEN)
    session.message("one")
    _control(session, target_pid=B)
    session.message(b"two")
    (tell,) = session.heartbeat(102.25)
    assert tell == SendToTarget(B, "ws.heartbeat", {"uptime": 2.25, "message_count": 2})


# The outbox


def _send(session: Session, data: str | bytes, sender: PID = SENDER) -> list[Effect]:
    return session.command(command.SendCommand(data), sender, _fine)


def test_a_slow_client_is_closed_with_1013_and_what_waited_is_dropped() -> None:
    session = _session(OPEN, limit=10)
    assert _send(session, b"123456") == []
    assert _send(session, b"123456") == [
        LeaveTarget(A, 1013, "slow client"),
        CloseClient(1013, "slow client", lingering=True),
    ]
    assert not session.outbox
    assert session.client_gone(1006) == [_ended(1013, "slow client")]


def test_under_drop_what_is_newest_is_dropped_and_counted() -> None:
    session = _session(OPEN, limit=10 + 2 * ITEM, overflow=Overflow.DROP)
    assert _send(session, b"12345") == []
    assert _send(session, b"12345") == []
    assert _send(session, b"1") == []
    assert (session.dropped, session.outbox.size) == (1, 10 + 2 * ITEM)
    assert session.outbox.get().data == b"12345"
    assert session.wrote() == []
    assert _send(session, b"1") == []
    assert (session.dropped, len(session.outbox)) == (1, 2)


def test_under_pause_the_sender_waits_until_half_of_the_limit_is_free() -> None:
    session = _session(OPEN, limit=10 + 2 * ITEM, overflow=Overflow.PAUSE)
    assert _send(session, b"12345") == []
    assert _send(session, b"12345") == []
    assert _send(session, b"1") == [PauseSender(SENDER)]
    session.outbox.get()
    assert session.wrote() == []
    session.outbox.get()
    assert session.wrote() == [ResumeSender(SENDER)]
    assert session.wrote() == []


def test_under_pause_nothing_is_dropped() -> None:
    session = _session(OPEN, limit=1, overflow=Overflow.PAUSE)
    for number in range(5):
        _send(session, str(number))
    assert [session.outbox.get().data for _ in range(5)] == ["0", "1", "2", "3", "4"]


def test_every_sender_that_waits_is_released() -> None:
    session = _session(OPEN, limit=1, overflow=Overflow.PAUSE)
    _send(session, "x")
    assert _send(session, "x", SENDER) == [PauseSender(SENDER)]
    assert _send(session, "x", OTHER) == [PauseSender(OTHER)]
    released = session.client_gone(1006)[1:-1]
    assert {effect.sender for effect in released if isinstance(effect, ResumeSender)} == {
        SENDER,
        OTHER,
    }


def test_senders_wait_on_while_a_closing_connection_drains() -> None:
    session = _session(OPEN, limit=2, overflow=Overflow.PAUSE)
    for _ in range(3):
        _send(session, "xx")
    assert not any(isinstance(effect, ResumeSender) for effect in session.cancel(""))
    released: list[Effect] = []
    while session.outbox:
        session.outbox.get()
        released += session.wrote()
    assert released == [ResumeSender(SENDER)]


# Any history against a model

_TARGETS = st.sampled_from([A, B, C])
_SENDERS = st.sampled_from([A, B, SENDER])
_DATA = st.text("aé", max_size=6) | st.binary(max_size=6)
_ENDS = st.sampled_from([RETURNED, _exit(ExitKind.ERROR), _exit(ExitKind.KILLED, "SIGKILL")])


class SessionHistory(RuleBasedStateMachine):
    """A session, driven as a transport and a node drive it, beside a model of what it owes."""

    @initialize(
        overflow=st.sampled_from(Overflow),
        limit=st.integers(0, 3 * ITEM),
        cancel=st.booleans(),
        interval=st.sampled_from([None, 30.0]),
    )
    def begin(self, overflow: Overflow, limit: int, cancel: bool, interval: float | None) -> None:
        relay = RelayHeader(target_pid=A, cancel_on_leave=cancel, heartbeat_interval=interval)
        self.session = Session(CLIENT, relay, limit=limit, overflow=overflow)
        self.limit = limit
        self.overflow = overflow
        self.decided = False
        """Whether the upgrade has succeeded or failed: each transport says so once."""
        self.target = A
        self.dead: set[PID] = set()
        self.joined: PID | None = None
        self.joins = 0
        self.leaves = 0
        self.told = 0
        self.close: CloseClient | None = None
        self.ended: ConnectionEnded | None = None
        self.client_code: int | None = None
        self.early: tuple[int, str] | None = None
        """Code and reason of the first end that came before the upgrade was through."""
        self.held: set[PID] = set()
        self.owed_cancels: set[PID] = {A} if cancel else set()
        self.waiting: deque[str | bytes] = deque()
        self.beating = False
        self.metadata: dict[str, Any] | None = None
        self.attached: dict[str, Any] | None = None
        """What the target has been given."""
        self.news = False
        """An `AttachMetadata` came, and what it was for has yet to follow."""
        self.parting = False
        """A shutdown's close frame is to be written: until then the target hears the client."""

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            assert self.ended is None, "nothing follows the end"
            assert not self.news or isinstance(effect, SendToTarget | LeaveTarget)
            match effect:
                case JoinTarget():
                    assert self.joined is None
                    assert effect.target not in self.dead
                    assert effect.target == self.session.target
                    assert self.close is None
                    self.joined = effect.target
                    self.attached = effect.metadata
                    self.joins += 1
                case LeaveTarget():
                    assert effect.target == self.joined, "a leave follows its join"
                    assert self.attached == self.metadata
                    self.joined = None
                    self.news = False
                    self.leaves += 1
                case SendToTarget():
                    assert effect.target == self.joined, "told between join and leave alone"
                    self.told += effect.topic == "ws.message"
                    assert self.attached == self.metadata
                    self.news = False
                case AttachMetadata():
                    assert effect.target == self.joined
                    self.attached, self.news = effect.metadata, True
                case CancelTarget():
                    assert effect.target in self.owed_cancels
                    self.owed_cancels.discard(effect.target)
                case PauseSender():
                    assert self.overflow is Overflow.PAUSE
                    self.held.add(effect.sender)
                case ResumeSender():
                    assert effect.sender in self.held
                    self.held.discard(effect.sender)
                case SetHeartbeat():
                    self.beating = effect.interval is not None
                case CloseClient():
                    assert self.close is None, "one close at most"
                    if self.joined in self.dead:
                        self.joined = None
                    self.parting = self.joined is not None
                    shutdown = CloseClient(1012, "node shuts down", lingering=True)
                    assert effect == shutdown or not self.parting, "the target heard of the end"
                    self.close = effect
                case ConnectionEnded():
                    self.ended = effect
        assert not self.news, "metadata goes with what it is for"

    @precondition(lambda self: not self.decided)
    @rule()
    def the_upgrade_succeeds(self) -> None:
        self.decided = True
        before = self.session.state
        self._do(self.session.opened(0.0))
        if before is CLOSED:
            assert self.session.state is CLOSED
        elif self.early is not None:
            assert self.session.state is CLOSING
            assert self.close is not None
            assert (self.close.code, self.close.reason) == self.early
        else:
            assert self.session.state is OPEN

    @precondition(lambda self: not self.decided)
    @rule()
    def the_upgrade_fails(self) -> None:
        self.decided = True
        self._do(self.session.refused())
        assert self.session.state is CLOSED

    @rule(data=_DATA)
    def the_client_sends(self, data: str | bytes) -> None:
        before = self.session.message_count
        effects = self.session.message(data)
        self._do(effects)
        if self.session.state is OPEN or self.parting:
            kind = "text" if isinstance(data, str) else "binary"
            assert effects[-1:] == [
                SendToTarget(self.target, "ws.message", {"type": kind, "data": data})
            ]
            assert self.session.message_count == before + 1
        else:
            assert effects == []

    @rule(code=st.sampled_from([1000, 1001, 1005, 1006, 4000]))
    def the_client_goes(self, code: int) -> None:
        if self.session.state is OPEN:
            self.client_code = code
        self._do(self.session.client_gone(code))
        assert self.session.state is CLOSED
        self.parting = False
        self.waiting.clear()

    @rule(data=_DATA, sender=_SENDERS)
    def a_process_sends(self, data: str | bytes, sender: PID) -> None:
        before, dropped = self.session.state, self.session.dropped
        effects = self.session.command(command.SendCommand(data), sender, self._why_not)
        if self.session.dropped > dropped:
            assert self.overflow is Overflow.DROP
            assert self.waiting, "a message that nothing waits before is never dropped"
        elif before is OPEN:
            self.waiting.append(data)
            if self.session.state is CLOSING:
                self.waiting.clear()
        self._do(effects)
        if before is OPEN and self.session.state is CLOSING:
            assert self.overflow is Overflow.CLOSE
            assert self.close == CloseClient(1013, "slow client", lingering=True)

    @rule(code=st.sampled_from([1000, 1011, 4000]), sender=_SENDERS)
    def a_process_closes(self, code: int, sender: PID) -> None:
        before = self.session.state
        self._do(self.session.command(command.CloseCommand(code), sender, self._why_not))
        if before is OPEN:
            assert self.close == CloseClient(code, "")

    def _end_early(self, code: int, reason: str) -> None:
        if self.session.state is HANDSHAKING and self.early is None:
            self.early = code, reason

    def _why_not(self, pid: PID) -> str | None:
        return f"{pid} is not alive" if pid in self.dead else None

    @rule(
        to=st.none() | _TARGETS,
        cancel=st.none() | st.booleans(),
        interval=st.sampled_from(["as it is", None, 5.0]),
        metadata=st.sampled_from(["as it is", None, {"a": 1}, {"b": 2}]),
    )
    def a_process_controls(
        self, to: PID | None, cancel: bool | None, interval: Any, metadata: Any
    ) -> None:
        fields: dict[str, Any] = {}
        if to is not None:
            fields["target_pid"] = to
        if cancel is not None:
            fields["cancel_on_leave"] = cancel
        if interval != "as it is":
            fields["heartbeat_interval"] = interval
        if metadata != "as it is":
            fields["metadata"] = metadata
        before = self.session.state
        effects = self.session.command(ControlCommand(**fields), SENDER, self._why_not)
        self._do(effects)
        if before is not OPEN:
            assert effects == []
            return
        moves = to is not None and to != self.target
        if moves and to in self.dead:
            assert effects == [RejectCommand(SENDER, "ws.control", f"{to} is not alive")]
            return
        if metadata != "as it is":
            self.metadata = metadata
        if moves and to is not None:
            assert self.attached == self.metadata, "its join brings the metadata"
            assert not self.owed_cancels, "the old target is cancelled as it is left"
            self.target = to
        if cancel is not None:
            self.owed_cancels = {self.target} if cancel else set()
        assert self.session.target == self.target == self.joined

    @rule(pid=_TARGETS, result=_ENDS, join_read=st.booleans())
    def a_process_exits(self, pid: PID, result: Result, join_read: bool) -> None:
        if pid in self.dead:
            return
        self.dead.add(pid)
        self.parting = self.parting and pid != self.target
        before = self.session.state
        self._do(self.session.target_exited(pid, result, join_read=join_read))
        if before is OPEN and pid == self.target:
            assert self.close == CloseClient(*close_for(result, join_read=join_read))
        else:
            assert self.session.state is before
        if pid == self.target:
            self._end_early(*close_for(result, join_read=join_read))

    @rule()
    def it_is_cancelled(self) -> None:
        before = self.session.state
        self._do(self.session.cancel("enough"))
        if before is OPEN:
            assert self.close == CloseClient(1000, "enough")
        self._end_early(1000, "enough")

    @rule()
    def the_node_shuts_down(self) -> None:
        before = self.session.state
        self._do(self.session.shut_down())
        if before is OPEN:
            assert self.close == CloseClient(1012, "node shuts down", lingering=True)
        self._end_early(1012, "node shuts down")

    @rule(now=st.floats(0, 1e6))
    def a_heartbeat_is_due(self, now: float) -> None:
        effects = self.session.heartbeat(now)
        self._do(effects)
        if self.session.state is OPEN:
            payload = {"uptime": now, "message_count": self.session.message_count}
            assert effects[-1:] == [SendToTarget(self.target, "ws.heartbeat", payload)]
        else:
            assert effects == []

    @precondition(lambda self: bool(self.waiting))
    @rule()
    def the_client_takes_a_message(self) -> None:
        assert self.session.outbox.get().data == self.waiting.popleft()
        self._do(self.session.wrote())

    @invariant()
    def what_waits_is_what_was_sent_and_within_the_limit(self) -> None:
        outbox = self.session.outbox
        assert len(outbox) == len(self.waiting)
        if self.overflow is Overflow.CLOSE:
            assert outbox.size <= self.limit or len(outbox) == 1

    @invariant()
    def nobody_waits_for_an_empty_outbox_or_for_a_connection_that_is_over(self) -> None:
        if not self.waiting or self.ended is not None:
            assert not self.held

    @invariant()
    def the_state_is_what_has_happened(self) -> None:
        assert (self.session.state is CLOSED) is (self.ended is not None)
        if self.session.state is OPEN:
            assert self.joined == self.target
            assert self.close is None
        if self.session.state is CLOSING:
            assert self.close is not None
        assert self.told == self.session.message_count
        assert not (self.beating and self.session.state in (CLOSING, CLOSED))

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        self._do(self.session.client_gone(1006))
        self.waiting.clear()
        assert self.ended is not None, "exactly one end"
        assert not self.held
        # A dead target needs no leave; every other join has its own.
        assert self.joins - self.leaves in ((0, 1) if self.target in self.dead else (0,))
        assert self.owed_cancels <= self.dead
        code = self.ended.result.value["code"]
        if self.close is not None:
            assert code == self.close.code
        elif self.client_code is not None:
            assert code == self.client_code
        else:
            assert code in (1006, self.early[0] if self.early else 1006)


def test_any_history_of_a_connection_keeps_its_promises() -> None:
    run_state_machine_as_test(
        SessionHistory,
        settings=settings(
            deadline=None,
            max_examples=150,
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
