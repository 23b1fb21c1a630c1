"""Any history of a connection, against a model."""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sessions import CLIENT, CLOSED, CLOSING, HANDSHAKING, OPEN, RETURNED, SENDER, A, B, exit_of

from wsrelay import wire
from wsrelay.session import command
from wsrelay.session.claim import MOST_REJOINS
from wsrelay.session.command import ControlCommand
from wsrelay.session.effects import (
    AttachMetadata,
    CancelTarget,
    CloseClient,
    ConnectionEnded,
    Effect,
    FindTarget,
    JoinTarget,
    LeaveTarget,
    PauseSender,
    RejectCommand,
    ResumeSender,
    SendToTarget,
    SetHeartbeat,
)
from wsrelay.session.ends import close_for
from wsrelay.session.header import RelayHeader, TargetSpec
from wsrelay.session.machine import Session
from wsrelay.session.outbox import Overflow
from wsrelay.values.message import ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.sizes import ITEM
from wsrelay.wire.relayed import relayed

C = PID("{local@app:processes|k.0-4}")

_TARGETS = st.sampled_from([A, B, C])
_SENDERS = st.sampled_from([A, B, SENDER])
_DATA = st.text("aé", max_size=6) | st.binary(max_size=6)
_ENDS = st.sampled_from([RETURNED, exit_of(ExitKind.ERROR), exit_of(ExitKind.KILLED, "SIGKILL")])


class SessionHistory(RuleBasedStateMachine):
    """A session, driven as a transport and a node drive it, beside a model of what it owes."""

    @initialize(
        overflow=st.sampled_from(Overflow),
        limit=st.integers(0, 3 * ITEM),
        cancel=st.booleans(),
        interval=st.sampled_from([None, 30.0]),
        named=st.booleans(),
    )
    def begin(
        self, overflow: Overflow, limit: int, cancel: bool, interval: float | None, named: bool
    ) -> None:
        cancel = cancel and not named
        spec = TargetSpec(target="app:room", name="blue") if named else None
        relay = RelayHeader(
            target_pid=A, spec=spec, cancel_on_leave=cancel, heartbeat_interval=interval
        )
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
        self.sent: list[str | bytes] = []
        """The client's messages, as far as they were accepted."""
        self.told: list[str | bytes] = []
        """Those that the target was told since it was joined."""
        self.before = 0
        """How many of them are the affair of processes from which the client was moved away."""
        self.claims = named
        """The name's next process is joined if the target ends in order now."""
        self.finds = 0
        self.searching = False
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
                    assert effect.receipt is self.claims
                    assert self.close is None
                    self.searching = False
                    self.told = []
                    self.joined = effect.target
                    self.attached = effect.metadata
                    self.joins += 1
                case FindTarget():
                    assert self.claims
                    assert self.close is None
                    self.finds += 1
                    assert self.finds <= MOST_REJOINS
                    self.searching = True
                    self.joined = None
                case LeaveTarget():
                    assert effect.target == self.joined, "a leave follows its join"
                    assert self.attached == self.metadata
                    self.joined = None
                    self.news = False
                    self.leaves += 1
                case SendToTarget():
                    assert effect.target == self.joined, "told between join and leave alone"
                    if effect.topic == "ws.message":
                        self.told.append(effect.payload["data"])
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
                    self.claims = self.searching = False
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
        elif self.searching:
            assert self.early is None
            assert self.target in self.dead
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
        if self.session.state is OPEN or self.parting:
            self.sent.append(data)
        if self.session.head:
            assert self.session.state is OPEN
            assert not self.claims
            is_text = isinstance(data, str)
            content = data.encode() if isinstance(data, str) else data
            kind = "text" if is_text else "binary"
            frame = wire.RelayFrame("ws.message", str(CLIENT), {"type": kind, "data": data})
            assert relayed(self.session.head, content, is_text) == wire.pack(frame)
            [only] = effects = self.session.message(data)
            assert isinstance(only, SendToTarget), "there is nothing else to do"
        else:
            effects = self.session.message(data)
        self._do(effects)
        if self.searching:
            assert effects == []
            assert self.session.message_count == before + 1
        elif self.session.state is OPEN or self.parting:
            kind = "text" if isinstance(data, str) else "binary"
            assert effects[-1:] == [
                SendToTarget(self.target, "ws.message", {"type": kind, "data": data})
            ]
            assert self.session.message_count == before + 1
        else:
            assert effects == []

    @precondition(lambda self: self.claims and self.joined is not None)
    @rule()
    def the_target_reads_the_join(self) -> None:
        self.claims = False
        self.session.join_read()

    @rule(pid=_TARGETS)
    def the_name_s_next_process_is_found(self, pid: PID) -> None:
        if not self.searching or pid not in self.dead:
            was_searching = self.searching
            if was_searching:
                self.target = pid
            self._do(self.session.found(pid))
            assert self.joined is None or self.joined == self.target
            assert not (was_searching and self.joined != pid)

    @rule(result=st.none() | _ENDS)
    def no_next_process_is_found(self, result: Result | None) -> None:
        before, finds = self.searching, self.finds
        effects = self.session.not_found(result)
        self._do(effects)
        assert before or effects == []
        if before and self.finds == finds:
            ended = RETURNED if result is None else result
            assert self.close == CloseClient(*close_for(ended, join_read=False))
            assert finds == MOST_REJOINS or ended is not RETURNED

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
        moves = to is not None and to != self.target
        if before is OPEN and moves and to not in self.dead:
            self.claims = False
            if not self.searching:
                self.before = len(self.sent)
        effects = self.session.command(ControlCommand(**fields), SENDER, self._why_not)
        self._do(effects)
        if before is not OPEN:
            assert effects == []
            return
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
        assert self.session.target == self.target
        assert self.joined == (None if self.searching else self.target)

    @rule(pid=_TARGETS, result=_ENDS, join_read=st.booleans())
    def a_process_exits(self, pid: PID, result: Result, join_read: bool) -> None:
        if pid in self.dead:
            return
        self.dead.add(pid)
        self.parting = self.parting and pid != self.target
        before = self.session.state
        finds, claims = self.finds, self.claims
        self._do(self.session.target_exited(pid, result, join_read=join_read))
        if pid == self.target and claims and result is RETURNED and before is HANDSHAKING:
            return
        if pid == self.target and self.finds > finds:
            assert claims
            assert result is RETURNED
        elif pid == self.target and claims and before is OPEN and result is RETURNED:
            assert finds == MOST_REJOINS
            assert self.close == CloseClient(1013, "target process exited")
        elif before is OPEN and pid == self.target:
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
        if self.session.state is OPEN and not self.searching:
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
            assert self.joined == (None if self.searching else self.target)
            assert self.close is None
        if self.session.state is CLOSING:
            assert self.close is not None
        assert len(self.sent) == self.session.message_count
        if self.joined is not None:
            assert self.told == self.sent[self.before :], "none lost, none doubled, in order"
        assert not (self.beating and self.session.state in (CLOSING, CLOSED))

    def teardown(self) -> None:
        if not hasattr(self, "session"):
            return
        self._do(self.session.client_gone(1006))
        self.waiting.clear()
        assert self.ended is not None, "exactly one end"
        assert not self.held
        # A dead target needs no leave; every other join has its own.
        lost = self.finds + 1 if self.target in self.dead else self.finds
        assert 0 <= self.joins - self.leaves <= lost
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
