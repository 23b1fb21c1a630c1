"""One connection of the relay, as a pure state machine (`docs/architecture.md`).

    HANDSHAKING --opened--> OPEN --an end begins--> CLOSING --client_gone--> CLOSED

What happens goes in and effects come out, which the driver executes in order. Messages for the
client go to `outbox`; the driver takes them from there at the client's pace and calls `wrote` after
each.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

from msgspec import UNSET, Struct

from wsrelay.values.message import HEARTBEAT, ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.wire.relayed import relay_head

from .command import CloseCommand, Command, ControlCommand, SendCommand
from .header import RelayHeader
from .outbox import Outbox, Overflow

__all__ = [
    "RESTARTS",
    "SHUT_DOWN",
    "UNFINISHED",
    "AttachMetadata",
    "CancelTarget",
    "CloseClient",
    "ConnectionEnded",
    "ConnectionState",
    "Effect",
    "JoinTarget",
    "LeaveTarget",
    "PauseSender",
    "RejectCommand",
    "ResumeSender",
    "SendToTarget",
    "Session",
    "SetHeartbeat",
    "close_for",
]


class ConnectionState(enum.Enum):
    """The stage of a connection's life."""

    HANDSHAKING = "handshaking"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class JoinTarget(Struct, frozen=True):
    """Bind the connection to the target and send it `ws.join`."""

    target: PID
    metadata: dict[str, Any] | None


class AttachMetadata(Struct, frozen=True):
    """Attach new metadata to what follows."""

    target: PID
    metadata: dict[str, Any] | None


class SendToTarget(Struct, frozen=True):
    """Send the target a message; `payload` lacks `client_pid` and `metadata`."""

    target: PID
    topic: str
    payload: dict[str, Any]


class LeaveTarget(Struct, frozen=True):
    """Send the target `ws.leave` and unbind the connection from it."""

    target: PID
    code: int
    reason: str


class CancelTarget(Struct, frozen=True):
    """Cancel a target that lived for this connection alone."""

    target: PID


class RejectCommand(Struct, frozen=True):
    """Send `ws.error` to the sender of an unusable command."""

    to: PID
    topic: str
    error: str


class PauseSender(Struct, frozen=True):
    """Make the sender wait until `ResumeSender`; if it cannot, the driver calls `cannot_wait`."""

    sender: PID


class ResumeSender(Struct, frozen=True):
    """Let a sender that waits for this connection continue."""

    sender: PID


class SetHeartbeat(Struct, frozen=True):
    """Call `heartbeat` at this interval (seconds) from now on; None: stop calling it."""

    interval: float | None


class CloseClient(Struct, frozen=True):
    """Send what is in the outbox, then the close frame.

    `lingering`: the client gets no more time than the linger to read them.
    """

    code: int
    reason: str
    lingering: bool = False


class ConnectionEnded(Struct, frozen=True):
    """The connection is over: its process has exited with this result."""

    result: Result


Effect = (
    JoinTarget
    | AttachMetadata
    | SendToTarget
    | LeaveTarget
    | CancelTarget
    | RejectCommand
    | PauseSender
    | ResumeSender
    | SetHeartbeat
    | CloseClient
    | ConnectionEnded
)

UNFINISHED: Final = (1013, "too much is unfinished at this node")
SHUT_DOWN: Final = (1012, "node shuts down")
RESTARTS: Final = (1012, "target process restarts")
"""Code and reason of close frames after which the client should connect again."""

_LONGEST_REASON: Final = 123
"""Bytes of a close reason (RFC 6455 section 5.5: a control frame's 125 minus the code's 2)."""


class Session:
    """The state machine. `pid` is the connection's; `limit` and `overflow` are the outbox's."""

    def __init__(self, pid: PID, relay: RelayHeader, *, limit: int, overflow: Overflow) -> None:
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
        self._target_gone = False
        self._parting = False
        """The target has not been told of the client's end yet; until then it gets its messages."""
        self._is_news = False
        """The target does not have the metadata yet; it goes with whatever is sent next."""

    # The client's side

    def opened(self, now: float) -> list[Effect]:
        """Continue after the upgrade; `now` is in seconds of any monotonic clock."""
        if self.state is not ConnectionState.HANDSHAKING:
            return []
        self._opened_at = now
        self.state = ConnectionState.OPEN
        effects: list[Effect] = (
            [] if self._target_gone else [JoinTarget(self.target, self.metadata)]
        )
        if (early := self._early) is not None:
            return effects + self._close(early.code, early.reason, lingering=early.lingering)
        if self._interval is not None:
            effects.append(SetHeartbeat(self._interval))
        return effects

    def refused(self) -> list[Effect]:
        """End before the upgrade, which does not take place."""
        if self.state is not ConnectionState.HANDSHAKING:
            return []
        self.state = ConnectionState.CLOSED
        return [*self._cancel(), ConnectionEnded(_result(1006, "the upgrade did not come about"))]

    def message(self, data: str | bytes) -> list[Effect]:
        """Accept a message from the client."""
        if self.state is not ConnectionState.OPEN and not self._parting:
            return []
        self.message_count += 1
        kind = "text" if isinstance(data, str) else "binary"
        effects = [
            *self._attach(),
            SendToTarget(self.target, self._topic, {"type": kind, "data": data}),
        ]
        if self.state is ConnectionState.OPEN:
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
        if self.state is not ConnectionState.OPEN:
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
        if target != self.target:
            return []
        self._target_gone = True
        self._parting = False
        return self._close(*(instead or close_for(result, join_read=join_read)))

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
        self._parting = True
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

    def _leave(self, code: int, reason: str) -> list[Effect]:
        """Leave the target for good."""
        self._end = code, reason
        effects: list[Effect] = []
        if not self._target_gone:
            effects = [*self._attach(), LeaveTarget(self.target, code, reason)]
        if self._interval is not None:
            effects.append(SetHeartbeat(None))
        return effects + self._cancel()

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
        effects: list[Effect] = []
        target = self.target
        if given.target_pid is not UNSET:
            target = given.target_pid.on(str(self.pid.node))
        moves = target != self.target
        if moves and (why := why_no_target(target)) is not None:
            return [RejectCommand(sender, "ws.control", why)]
        self.head = b""
        if moves:
            effects += [
                *self._attach(),
                LeaveTarget(self.target, 1000, "transferred"),
                *self._cancel(),
            ]
            # This applied to the old target; the new one may serve others too.
            self._cancel_on_leave = False
            self.target = target
        if given.cancel_on_leave is not UNSET:
            self._cancel_on_leave = given.cancel_on_leave
        if given.message_topic is not UNSET:
            self._topic = given.message_topic
        if given.metadata is not UNSET:
            self.metadata = given.metadata
            self._is_news = not moves
        if moves:
            effects.append(JoinTarget(target, self.metadata))
        if given.heartbeat_interval is not UNSET:
            self._interval = given.heartbeat_interval
            effects.append(SetHeartbeat(self._interval))
        return effects


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
