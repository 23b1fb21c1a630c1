"""A transfer to a process of another node, which is asked first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sessions import (
    CLOSED,
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

from wsrelay.session.command import CloseCommand, ControlCommand, SendCommand
from wsrelay.session.effects import (
    AskTarget,
    AttachMetadata,
    CancelTarget,
    CloseClient,
    Effect,
    FindTarget,
    JoinTarget,
    LeaveTarget,
    RejectCommand,
    SendToTarget,
)
from wsrelay.session.header import TargetSpec
from wsrelay.session.machine import Session
from wsrelay.session.transfer import MOST_WAITING
from wsrelay.values.message import ExitKind
from wsrelay.values.pid import PID

FAR = PID("{other@app:processes|x.0-1}")
FARTHER = PID("{third@app:processes|y.0-1}")
MOVED = LeaveTarget(A, 1000, "transferred")


def text(to: PID, data: str, topic: str = "ws.message") -> Effect:
    return SendToTarget(to, topic, {"type": "text", "data": data})


def asked(**fields: object) -> Session:
    """One whose transfer to a process of another node has been asked for."""
    session = a_session(OPEN, **fields)  # type: ignore[arg-type]
    assert control(session, target_pid=FAR) == [AskTarget(FAR)]
    return session


def taken(session: Session) -> list[Effect]:
    return session.answered(None, fine)


def refused(session: Session) -> list[Effect]:
    return session.answered("it is not alive", fine)


REFUSAL = RejectCommand(SENDER, "ws.control", "it is not alive")


def test_nothing_changes_before_the_answer() -> None:
    session = asked(metadata=METADATA)
    assert session.target == A
    assert session.holds
    assert session.heartbeat(1.0) == []
    assert taken(session) == [MOVED, JoinTarget(FAR, METADATA)]
    assert session.target == FAR
    assert not session.holds


def test_a_process_that_is_known_not_to_be_there_is_not_asked_for() -> None:
    session = a_session(OPEN)
    order = ControlCommand(target_pid=FAR)
    assert session.command(order, SENDER, lambda _: "gone") == [
        RejectCommand(SENDER, "ws.control", "gone")
    ]
    assert not session.holds


def test_a_message_that_was_read_ahead_goes_to_the_one_that_has_the_client_then() -> None:
    for answer, to in ((taken, FAR), (refused, A)):
        session = asked()
        assert session.message("ahead") == []
        assert session.head == b""
        assert answer(session)[-1] == text(to, "ahead")
        assert session.message("next") == [text(to, "next")]
        assert session.head
        assert session.message_count == 2


def test_a_transfer_that_is_refused_changes_nothing() -> None:
    session = a_session(OPEN, metadata=METADATA)
    control(session, target_pid=FAR, metadata={"b": 2}, message_topic="other")
    session.message("ahead")
    assert refused(session) == [REFUSAL, text(A, "ahead")]
    assert session.metadata == METADATA


def test_what_goes_along_with_a_transfer_counts_from_the_join_on() -> None:
    session = a_session(OPEN, cancel_on_leave=True)
    control(session, target_pid=FAR, metadata={"b": 2}, message_topic="other", cancel_on_leave=True)
    session.message("ahead")
    assert taken(session) == [
        MOVED,
        CancelTarget(A),
        JoinTarget(FAR, {"b": 2}),
        text(FAR, "ahead", "other"),
    ]
    assert session.client_gone(1000)[:2] == [LeaveTarget(FAR, 1000, ""), CancelTarget(FAR)]


def test_further_orders_wait_in_turn_with_what_the_client_has_sent() -> None:
    session = asked()
    session.message("one")
    assert control(session, message_topic="other") == []
    session.message("two")
    assert control(session, target_pid=FARTHER, metadata={"c": 3}) == []
    session.message("three")
    assert control(session, target_pid=B) == []
    assert taken(session) == [
        MOVED,
        JoinTarget(FAR, None),
        text(FAR, "one"),
        text(FAR, "two", "other"),
        AskTarget(FARTHER),
    ]
    assert session.holds
    assert taken(session) == [
        LeaveTarget(FAR, 1000, "transferred"),
        JoinTarget(FARTHER, {"c": 3}),
        text(FARTHER, "three", "other"),
        LeaveTarget(FARTHER, 1000, "transferred"),
        JoinTarget(B, {"c": 3}),
    ]


def test_more_orders_than_may_wait_are_refused() -> None:
    session = asked()
    for _ in range(MOST_WAITING):
        assert control(session, metadata={}) == []
    [refusal] = control(session, metadata={"too": "many"})
    assert isinstance(refusal, RejectCommand)
    assert "16 of them wait already" in refusal.error
    taken(session)
    assert session.metadata == {}


def test_a_target_that_returns_as_soon_as_it_has_moved_its_client_does_not_close_it() -> None:
    session = asked()
    assert session.target_exited(A, RETURNED, join_read=True) == []
    session.message("ahead")
    assert taken(session) == [JoinTarget(FAR, None), text(FAR, "ahead")]


def test_if_it_is_refused_then_the_client_is_closed_as_it_would_have_been() -> None:
    session = asked()
    assert session.target_exited(A, exit_of(ExitKind.ERROR), join_read=True) == []
    session.message("lost")
    assert refused(session) == [REFUSAL, CloseClient(1011, "target process crashed")]


def test_a_client_whose_join_was_not_read_is_searched_for_only_once_the_transfer_is_refused() -> (
    None
):
    find = FindTarget(TargetSpec(target="app:room", name="blue"))
    for answer in (taken, refused):
        session = a_session(OPEN, name="blue")
        session.message("one")
        control(session, target_pid=FAR)
        session.message("two")
        assert session.target_exited(A, RETURNED, join_read=False) == []
        if answer is taken:
            expected = [JoinTarget(FAR, None), text(FAR, "one"), text(FAR, "two")]
            assert answer(session) == expected
            continue
        assert answer(session) == [REFUSAL, find]
        assert session.found(B)[1:] == [text(B, "one"), text(B, "two")]


def test_a_search_that_fails_does_not_close_a_client_who_is_being_transferred() -> None:
    session = a_session(OPEN, name="blue")
    session.message("one")
    session.target_exited(A, RETURNED, join_read=False)
    control(session, target_pid=FAR)
    assert session.not_found(exit_of(ExitKind.ERROR)) == []
    assert taken(session) == [JoinTarget(FAR, None), text(FAR, "one")]


def test_a_client_that_goes_meanwhile_leaves_with_all_that_it_has_sent() -> None:
    session = asked()
    session.message("ahead")
    assert session.client_gone(1000) == [
        text(A, "ahead"),
        LeaveTarget(A, 1000, ""),
        ended_with(1000),
    ]
    assert taken(session) == []
    assert session.state is CLOSED


def test_a_shutdown_meanwhile_gives_the_target_all_that_the_client_has_sent() -> None:
    session = asked()
    session.message("ahead")
    assert session.shut_down()[0] == text(A, "ahead")
    assert session.message("last") == [text(A, "last")]
    assert taken(session) == []
    assert session.client_gone(1006)[0] == LeaveTarget(A, 1012, "node shuts down")


def test_the_client_hears_of_processes_and_can_be_closed_meanwhile() -> None:
    session = asked()
    assert session.command(SendCommand("hello"), SENDER, fine) == []
    assert session.outbox.get().data == "hello"
    assert session.command(CloseCommand(4000, "over"), SENDER, fine) == [
        LeaveTarget(A, 4000, "over"),
        CloseClient(4000, "over"),
    ]
    assert taken(session) == []


def test_metadata_that_the_target_lacks_goes_with_what_waits() -> None:
    session = a_session(OPEN)
    control(session, metadata={"b": 2})
    control(session, target_pid=FAR)
    session.message("ahead")
    assert session.client_gone(1006)[:3] == [
        AttachMetadata(A, {"b": 2}),
        text(A, "ahead"),
        LeaveTarget(A, 1006, ""),
    ]


def test_clients_of_a_process_whose_node_is_gone_are_told_to_come_again() -> None:
    gone = exit_of(ExitKind.NODE_DOWN)
    for join_read in (True, False):
        session = a_session(OPEN)
        assert session.target_exited(A, gone, join_read=join_read) == [
            CloseClient(1012, "target's node is gone")
        ]


STEPS = st.lists(
    st.sampled_from([A, B, FAR, FARTHER])
    | st.sampled_from(["message", "taken", "refused", "exit", "metadata"]),
    max_size=30,
)


@given(steps=STEPS, named=st.booleans(), end=st.sampled_from(["gone", "close", "shut down"]))
def test_every_message_goes_to_one_target_in_order_between_its_join_and_its_leave(
    steps: list[str], named: bool, end: str
) -> None:
    session = a_session(OPEN, name="blue" if named else None)
    if named:
        session.join_read()
    joined: PID | None = A
    told: list[int] = []
    dead: set[PID] = set()
    sent = 0

    def do(effects: list[Effect]) -> None:
        nonlocal joined
        for effect in effects:
            match effect:
                case JoinTarget():
                    assert joined is None
                    joined = effect.target
                case LeaveTarget():
                    assert joined == effect.target
                    joined = None
                case SendToTarget():
                    assert joined == effect.target
                    told.append(int(effect.payload["data"]))

    def why(pid: PID) -> str | None:
        return "dead" if pid in dead else None

    for step in steps:
        if session.state is not OPEN:
            break
        match step:
            case "message":
                sent += 1
                do(session.message(str(sent)))
            case "taken" | "refused":
                if session.holds:
                    do(session.answered(None if step == "taken" else "no", why))
            case "exit":
                if joined is not None:
                    gone, joined = joined, None
                    dead.add(gone)
                    do(session.target_exited(gone, RETURNED, join_read=True))
            case "metadata":
                do(session.command(ControlCommand(metadata={"m": 1}), SENDER, why))
            case PID() if step not in dead:
                do(session.command(ControlCommand(target_pid=step), SENDER, why))
    if session.state is OPEN:
        if end == "close":
            do(session.command(CloseCommand(), SENDER, why))
        elif end == "shut down":
            do(session.shut_down())
    do(session.client_gone(1006))
    assert joined is None
    assert told == list(range(1, len(told) + 1))
    if not dead:  # else the last ones may have had no target any more
        assert len(told) == sent


def test_an_answer_that_comes_too_late_has_no_effect() -> None:
    assert taken(a_session(CLOSED)) == []
    assert taken(a_session(OPEN)) == []
