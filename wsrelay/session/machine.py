"""One connection of the relay, as a pure state machine (`docs/architecture.md`).

    HANDSHAKING --opened--> OPEN --an end begins--> CLOSING --client_gone--> CLOSED

A connection to the process of a name may lose it in OPEN and be without a target for a while: see
`claim`.

What happens goes in and effects come out, which the driver executes in order. Messages for the
client go to `outbox`; the driver takes them from there at the client's pace and calls `wrote` after
each.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import UNSET

from wsrelay.values.message import HEARTBEAT, ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.wire.relayed import relay_head

from .claim import MOST_REJOINS, Claim
from .command import CloseCommand, Command, ControlCommand, SendCommand
from .effects import (
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
from .header import RelayHeader
from .outbox import Outbox, Overflow

__all__ = [
    "FULL",
    "NOT_STARTED",
    "RESTARTS",
    "SHUT_DOWN",
    "UNFINISHED",
    "ConnectionState",
    "Session",
    "close_for",
    "ended_in_order",
]


class ConnectionState(enum.Enum):
    """The stage of a connection's life."""

    HANDSHAKING = "handshaking"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


UNFINISHED: Final = (1013, "too much is unfinished at this node")
SHUT_DOWN: Final = (1012, "node shuts down")
RESTARTS: Final = (1012, "target process restarts")
FULL: Final = (1013, "process host is full")
"""Code and reason of close frames after which the client should connect again."""

NOT_STARTED: Final = (1011, "target process failed to start")

_LONGEST_REASON: Final = 123
"""Bytes of a close reason (RFC 6455 section 5.5: a control frame's 125 minus the code's 2)."""


_Unread = tuple[str, dict[str, Any]]
"""Topic and payload of a client's message."""


class Session:
    """The state machine. `pid` is the connection's; `limit` and `overflow` are the outbox's."""

    def __init__(self, pid: PID, relay: RelayHeader, *, limit: int, overflow: Overflow) -> None:
        assert relay.target_pid is not None  # noqa: S101 - it has been started
        self.pid = pid
        self.state = ConnectionState.HANDSHAKING
        self.target = relay.target_pid
        self.outbox = Outbox(limit)
        self.message_count = 0
        self.head = b""
        """For `relayed`, while the client's messages only have to be passed on to the target.

        Whoever does that counts them. It is empty while `message` has to be called instead.
        """
        self.dropped = 0
        """Messages that the client never got because it reads too slowly."""
        self._topic = relay.message_topic
        self._interval = relay.heartbeat_interval
        self.metadata = relay.metadata
        self._cancel_on_leave = relay.cancel_on_leave
        self._overflow = overflow
        self._held: set[PID] = set()
        self._opened_at = 0.0
        self._end: tuple[int, str] = (1006, "")
        """The code and reason with which closing began."""
        self._early: CloseClient | None = None
        """What ended the connection while HANDSHAKING; the close frame follows the upgrade."""
        self._claim: Claim | None = None
        if relay.spec is not None and relay.spec.name is not None:
            self._claim = Claim(relay.spec)
        self._target_gone = False
        self._parting = False
        """The target has not been told of the client's end yet; until then it gets its messages."""
        self._is_news = False
        """The target does not have the metadata yet; it goes with whatever is sent next."""

    # The client's side

    def opened(self, now: float, *, takes_mail: bool = True) -> list[Effect]:
        """Continue after the upgrade; `now` is in seconds of any monotonic clock.

        `takes_mail` is false if the target takes no more messages.
        """
        if self.state is not ConnectionState.HANDSHAKING:
            return []
        self._opened_at = now
        self.state = ConnectionState.OPEN
        effects: list[Effect] = []
        is_late = self._target_gone or not takes_mail
        if is_late and self._early is None and self._claim is not None:
            effects = self._find_next(self._claim)
        elif not self._target_gone:
            effects = self._join(self.target)
        if (early := self._early) is not None:
            return effects + self._close(early.code, early.reason, lingering=early.lingering)
        if self._interval is not None:
            effects.append(SetHeartbeat(self._interval))
        return effects

    def refused(self) -> list[Effect]:
        """End before the upgrade, which does not take place."""
        if self.state is not ConnectionState.HANDSHAKING:
            return []
        self._leave_open(ConnectionState.CLOSED)
        return [*self._cancel(), ConnectionEnded(_result(1006, "the upgrade did not come about"))]

    def message(self, data: str | bytes) -> list[Effect]:
        """Accept a message from the client."""
        if self.state is not ConnectionState.OPEN and not self._parting:
            return []
        self.message_count += 1
        content = {"type": "text" if isinstance(data, str) else "binary", "data": data}
        if (claim := self._claim) is not None:
            claim.keep(self._topic, content)
            if self._is_searching:
                return []
        effects = [*self._attach(), SendToTarget(self.target, self._topic, content)]
        if self.state is ConnectionState.OPEN and claim is None:
            self.head = relay_head(self._topic, self.pid)
        return effects

    def client_gone(self, code: int, reason: str = "", *, known: bool = True) -> list[Effect]:
        """Record that the transport is closed; the code is the client's, or 1006 if it vanished.

        `known` is false if the server does not say how the client went; then it is not an error.
        """
        if self.state is ConnectionState.CLOSED:
            return []
        if self.state is ConnectionState.HANDSHAKING:
            return self.refused()
        is_open = self.state is ConnectionState.OPEN
        effects: list[Effect] = []
        if is_open:
            effects = self._leave(code, reason)
        elif self._parting:
            effects = self._leave(*self._end)
        self._parting = False
        self._leave_open(ConnectionState.CLOSED)
        self.outbox.clear()
        result = _result(*self._end)
        if is_open and not known:
            result = Result(result.value)
        return [*effects, *self._release(), ConnectionEnded(result)]

    def heartbeat(self, now: float) -> list[Effect]:
        """Send the heartbeat that is due."""
        if self.state is not ConnectionState.OPEN or self._is_searching:
            return []
        payload = {"uptime": self.uptime(now), "message_count": self.message_count}
        return [*self._attach(), SendToTarget(self.target, HEARTBEAT, payload)]

    def wrote(self) -> list[Effect]:
        """Record that a message taken from the outbox is on its way."""
        if self._held and self.outbox.size <= self.outbox.limit // 2:
            return self._release()
        return []

    def cannot_wait(self, sender: PID) -> list[Effect]:
        """Record that a sender cannot wait: such senders have as much room again as the limit.

        Senders that do wait keep the outbox at its limit for as long as the client is slow; that
        must not close it at the first message from another sender.
        """
        self._held.discard(sender)
        return self._too_slow() if self.outbox.size > 2 * self.outbox.limit else []

    # The processes' side

    def command(
        self, given: Command, sender: PID, why_no_target: Callable[[PID], str | None]
    ) -> list[Effect]:
        """Carry out what a process sent; has no effect once the connection is closing."""
        if self.state is not ConnectionState.OPEN:
            return []
        match given:
            case SendCommand():
                return self._send(given, sender)
            case CloseCommand():
                return self._close(given.code, given.reason)
            case ControlCommand():
                return self._control(given, sender, why_no_target)
        return [RejectCommand(sender, given.topic, given.error)]

    def target_exited(
        self,
        target: PID,
        result: Result,
        *,
        join_read: bool,
        instead: tuple[int, str] | None = None,
    ) -> list[Effect]:
        """Handle the exit of a target; `join_read`: it had read this connection's `ws.join`.

        `instead` is the code and reason of the close frame if they do not follow from the result.
        """
        if target != self.target or self._target_gone:
            return []
        self._target_gone = True
        self._parting = False
        if self._claim is not None and ended_in_order(result) and instead != SHUT_DOWN:
            # Before the upgrade, `opened` looks for the next one.
            is_open = self.state is ConnectionState.OPEN
            return self._find_next(self._claim) if is_open else []
        return self._close(*(instead or close_for(result, join_read=join_read)))

    def join_read(self) -> None:
        """Record that the target has read this connection's `ws.join`."""
        self._claim = None

    @property
    def holds(self) -> bool:
        """Whether the client should not be read: it has no target, or too much of it is kept."""
        return self._claim is not None and (self._target_gone or self._claim.is_full)

    def found(self, target: PID) -> list[Effect]:
        """Join the name's next process, which takes messages, with what the client has sent."""
        claim = self._claim if self._is_searching else None
        return [] if claim is None else self._join(target, claim.kept)

    def not_found(
        self, result: Result | None, instead: tuple[int, str] | None = None
    ) -> list[Effect]:
        """Look again, or close, because there is no next process, or it has ended like this.

        `instead` as in `target_exited`.
        """
        if self._claim is None or not self._is_searching:
            return []
        if instead is None and ended_in_order(result):
            return self._find_next(self._claim)
        return self._close(*(instead or close_for(result or Result(), join_read=False)))

    def cancel(self, reason: str) -> list[Effect]:
        """Close normally: `process.cancel` on the connection's PID."""
        return self._close(1000, reason)

    def refuse_more(self) -> list[Effect]:
        """Close because the node holds too much unfinished client data."""
        return self._close(*UNFINISHED)

    def link_down(self) -> list[Effect]:
        """Close because a linked process ended with an error."""
        return self._close(1011, "linked process ended")

    def uptime(self, now: float) -> float:
        """Return the seconds since the upgrade."""
        return now - self._opened_at

    @property
    def drained(self) -> bool:
        """Whether most of what was sent to the connection is on its way, or it is ending."""
        return self.state is not ConnectionState.OPEN or self.outbox.size <= self.outbox.limit // 4

    def shut_down(self) -> list[Effect]:
        """Close because the node shuts down.

        The client is heard until the close frame is written, so the target's `ws.leave` comes with
        `client_gone`.
        """
        if self.state is not ConnectionState.OPEN:
            return self._close(*SHUT_DOWN, lingering=True)
        self._end = SHUT_DOWN
        self._parting = not self._is_searching
        self._leave_open(ConnectionState.CLOSING)
        effects: list[Effect] = [] if self._interval is None else [SetHeartbeat(None)]
        return [*effects, CloseClient(*SHUT_DOWN, lingering=True)]

    # Inside

    def _send(self, message: SendCommand, sender: PID) -> list[Effect]:
        if self.outbox.put(message):
            return []
        if self._overflow is Overflow.PAUSE:
            self._held.add(sender)
            return [PauseSender(sender)]
        if self._overflow is Overflow.DROP:
            self.outbox.drop_newest()
            self.dropped += 1
            return []
        return self._too_slow()

    def _too_slow(self) -> list[Effect]:
        self.outbox.clear()
        return self._close(1013, "slow client", lingering=True)

    def _close(self, code: int, reason: str, *, lingering: bool = False) -> list[Effect]:
        """Begin the closing handshake; before the upgrade, note the first such end for later."""
        close = CloseClient(code, _cut(reason), lingering)
        if self.state is ConnectionState.HANDSHAKING:
            self._early = self._early or close
        if self.state is not ConnectionState.OPEN:
            return []
        effects = self._leave(code, close.reason)
        self._leave_open(ConnectionState.CLOSING)
        return [*effects, close]

    def _leave_open(self, state: ConnectionState) -> None:
        self.state = state
        self.head = b""
        self._claim = None

    def _leave(self, code: int, reason: str) -> list[Effect]:
        """Leave the target for good."""
        self._end = code, reason
        effects: list[Effect] = []
        if not self._target_gone:
            effects = [*self._attach(), LeaveTarget(self.target, code, reason)]
        if self._interval is not None:
            effects.append(SetHeartbeat(None))
        return effects + self._cancel()

    @property
    def _is_searching(self) -> bool:
        """Whether the target has ended and the next one of its name is being looked for."""
        return self._target_gone and self.state is ConnectionState.OPEN

    def _join(self, target: PID, unread: Sequence[_Unread] = ()) -> list[Effect]:
        """Join a target, with the messages that none before it has read."""
        self.target = target
        self._target_gone = self._is_news = False
        sends = [SendToTarget(target, topic, content) for topic, content in unread]
        return [JoinTarget(target, self.metadata, self._claim is not None), *sends]

    def _part(self) -> tuple[list[Effect], Sequence[_Unread]]:
        """Leave the target for another one; returns also the messages that follow the client."""
        claim, self._claim = self._claim, None
        left: list[Effect] = []
        if not self._is_searching:
            left = [*self._attach(), LeaveTarget(self.target, 1000, "transferred"), *self._cancel()]
        # This applied to the old target; the new one may serve others too.
        self._cancel_on_leave = False
        return left, claim.kept if claim is not None and self._is_searching else ()

    def _find_next(self, claim: Claim) -> list[Effect]:
        """Look for the name's next process, unless that has been done too often."""
        self._target_gone = True
        if claim.rejoins >= MOST_REJOINS:
            return self._close(*close_for(Result(), join_read=False))
        claim.rejoins += 1
        return [FindTarget(claim.spec)]

    def _attach(self) -> list[Effect]:
        """Give the target metadata that it does not have yet.

        This waits until something is sent to the target: otherwise a process that sends
        `ws.control` again and again would fill the queue with metadata that nobody looks at.
        """
        if not self._is_news:
            return []
        self._is_news = False
        return [AttachMetadata(self.target, self.metadata)]

    def _cancel(self) -> list[Effect]:
        return [CancelTarget(self.target)] if self._cancel_on_leave else []

    def _release(self) -> list[Effect]:
        effects: list[Effect] = [ResumeSender(sender) for sender in self._held]
        self._held.clear()
        return effects

    def _control(
        self, given: ControlCommand, sender: PID, why_no_target: Callable[[PID], str | None]
    ) -> list[Effect]:
        target = self.target
        if given.target_pid is not UNSET:
            target = given.target_pid.on(str(self.pid.node))
        moves = target != self.target
        if moves and (why := why_no_target(target)) is not None:
            return [RejectCommand(sender, "ws.control", why)]
        self.head = b""
        left, unread = self._part() if moves else ([], [])
        if given.cancel_on_leave is not UNSET:
            self._cancel_on_leave = given.cancel_on_leave
        if given.message_topic is not UNSET:
            self._topic = given.message_topic
        if given.metadata is not UNSET:
            self.metadata = given.metadata
            self._is_news = not self._is_searching
        effects = [*left, *self._join(target, unread)] if moves else []
        if given.heartbeat_interval is not UNSET:
            self._interval = given.heartbeat_interval
            effects.append(SetHeartbeat(self._interval))
        return effects


def ended_in_order(result: Result | None) -> bool:
    """Whether a process has returned, has been cancelled, or (None) has been and still runs."""
    return result is None or result.error is None or result.error.kind is ExitKind.CANCELLED


def close_for(result: Result, *, join_read: bool) -> tuple[int, str]:
    """Return the code and reason with which a target's clients are closed when it ends."""
    error = result.error
    if error is None:
        return (1000 if join_read else 1013), "target process exited"
    match error.kind:
        case ExitKind.ERROR | ExitKind.EXIT:
            how = "crashed"
        case ExitKind.LIMIT:
            limit, _, _ = error.message.partition(" of ")
            how = f"crashed ({limit})" if error.traceback else f"killed ({limit})"
        case ExitKind.START_FAILED:
            how = "failed to start"
        case ExitKind.KILLED:
            how = f"killed ({error.message})"
        case ExitKind.TERMINATED | ExitKind.CANCELLED:
            how = "killed (SIGKILL)"
        case _:
            how = f"killed ({error.kind.replace('_', ' ')})"
    return 1011, f"target process {how}"


def _result(code: int, reason: str) -> Result:
    """Return the exit result of a connection that was closed with this code."""
    value = {"code": code, "reason": reason}
    if code in (1000, 1001, 1005) or 3000 <= code <= 4999:  # noqa: PLR2004 - `docs/semantics.md`
        return Result(value)
    kind = ExitKind.DISCONNECTED if code == 1006 else ExitKind.ERROR  # noqa: PLR2004 - RFC 6455
    return Result(value, ExitError(kind, f"closed with {code} {reason}".rstrip()))


def _cut(reason: str) -> str:
    """Cut a reason to the size of a close frame, at a character boundary."""
    return reason.encode(errors="replace")[:_LONGEST_REASON].decode(errors="ignore")
