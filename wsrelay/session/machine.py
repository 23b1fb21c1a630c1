"""One connection of the relay, as a pure state machine (`docs/architecture.md`).

    HANDSHAKING --opened--> OPEN --an end begins--> CLOSING --client_gone--> CLOSED

A connection to the process of a name may lose it in OPEN and be without a target for a while: see
`claim`. A transfer to another node takes its time: see `transfer`.

What happens goes in and effects come out, which the driver executes in order. Messages for the
client go to `outbox`; the driver takes them from there at the client's pace and calls `wrote` after
each.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import UNSET

from wsrelay.values.message import HEARTBEAT, Result
from wsrelay.values.numbers import Numbers
from wsrelay.values.pid import PID
from wsrelay.wire import MAX_FRAME
from wsrelay.wire.relayed import relay_head

from .claim import MOST_REJOINS, Claim
from .command import CloseCommand, Command, ControlCommand, SendCommand
from .effects import (
    AskTarget,
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
from .ends import (
    LAST,
    SHUT_DOWN,
    UNFINISHED,
    Closing,
    close_for,
    cut,
    ended_in_order,
    result_of,
)
from .header import RelayHeader
from .outbox import Outbox, Overflow
from .transfer import MOST_WAITING, Order, Transfer

__all__ = ["ConnectionState", "Session"]


LARGEST: Final = MAX_FRAME
"""Bytes of a client's message at most: more passes neither a pipe nor between nodes."""

_CHARACTER: Final = 4
"""The most bytes that a character of a text has."""


class ConnectionState(enum.Enum):
    """The stage of a connection's life."""

    HANDSHAKING = "handshaking"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


_Unread = tuple[str, dict[str, Any]]
"""Topic and payload of a client's message."""


class Session:
    """The state machine. `pid` is the connection's; `limit` and `overflow` are the outbox's.

    What happens is counted in `numbers`, its node's.
    """

    def __init__(
        self,
        pid: PID,
        relay: RelayHeader,
        *,
        limit: int,
        overflow: Overflow,
        numbers: Numbers | None = None,
    ) -> None:
        assert relay.target_pid is not None  # noqa: S101 - it has been started
        self.pid = pid
        self.state = ConnectionState.HANDSHAKING
        self.target = relay.target_pid
        self.outbox = Outbox(limit)
        self.message_count = 0
        self.sent = 0
        """Messages that have been written for the client; whoever writes counts them."""
        self._numbers = numbers or Numbers()
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
        self._opened_at: float | None = None
        self._end: tuple[int, str] = (1006, "")
        """The code and reason with which closing began."""
        self.closing: tuple[Closing, str] = Closing.CLIENT, ""
        """What began to close it, and who wanted that."""
        self._hear: Callable[[str, str | bytes], None] | None = None
        self._early: CloseClient | None = None
        """What ended the connection while HANDSHAKING; the close frame follows the upgrade."""
        self._claim: Claim | None = None
        if relay.spec is not None and relay.spec.name is not None:
            self._claim = Claim(relay.spec)
        self._transfer: Transfer | None = None
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
        self._numbers.opened += 1
        self.state = ConnectionState.OPEN
        effects: list[Effect] = []
        is_late = self._target_gone or not takes_mail
        if is_late and self._early is None and self._claim is not None:
            effects = self._find_next(self._claim)
        elif not self._target_gone:
            effects = self._join(self.target)
        if (early := self._early) is not None:
            return effects + self._close(
                early.code, early.reason, *self.closing, lingering=early.lingering
            )
        if self._interval is not None:
            effects.append(SetHeartbeat(self._interval))
        return effects

    def refused(self) -> list[Effect]:
        """End before the upgrade, which does not take place."""
        if self.state is not ConnectionState.HANDSHAKING:
            return []
        self._numbers.refused["client_gone"] += 1
        self._leave_open(ConnectionState.CLOSED)
        self.closing = Closing.REFUSED, ""
        return [*self._cancel(), ConnectionEnded(result_of(1006, "the upgrade did not come about"))]

    def message(self, data: str | bytes) -> list[Effect]:
        """Accept a message from the client."""
        if self.state is not ConnectionState.OPEN and not self._parting:
            return []
        if len(data) > LARGEST // _CHARACTER and (size := _bytes_of(data)) > LARGEST:
            self._numbers.hit["message_size"] += 1
            why = f"message of {size} bytes exceeds the {LARGEST} of a process"
            return self._close(1009, why, Closing.RELAY)
        self.message_count += 1
        self._numbers.messages_from_clients += 1
        self._numbers.bytes_from_clients += _bytes_of(data)
        if self._hear is not None:
            self._hear(self._topic, data)
        content = {"type": "text" if isinstance(data, str) else "binary", "data": data}
        if self._transfer is not None:
            self._transfer.waiting.append(content)
            return []
        return self._pass_on(content)

    def hear(self, listener: Callable[[str, str | bytes], None] | None) -> None:
        """Call a listener with the topic and data of each message of the client.

        All of them come to `message` then.
        """
        self._hear = listener
        self.head = b""

    def _pass_on(self, content: dict[str, Any]) -> list[Effect]:
        if (claim := self._claim) is not None:
            claim.keep(self._topic, content)
            if self._is_searching:
                return []
        effects = [*self._attach(), SendToTarget(self.target, self._topic, content)]
        if self.state is ConnectionState.OPEN and claim is None and self._hear is None:
            self.head = relay_head(self._topic, self.pid)
        return effects

    def client_gone(
        self,
        code: int,
        reason: str = "",
        *,
        known: bool = True,
        closing: Closing = Closing.CLIENT,
        by: str = "",
    ) -> list[Effect]:
        """Record that the transport is closed; the code is the client's, or 1006 if it vanished.

        `known` is false if the server does not say how the client went; then it is not an error.
        `closing` says whose doing it is, and `by`, who wanted it.
        """
        if self.state is ConnectionState.CLOSED:
            return []
        if self.state is ConnectionState.HANDSHAKING:
            return self.refused()
        is_open = self.state is ConnectionState.OPEN
        effects: list[Effect] = []
        if is_open:
            self.closing = closing, by
            effects = self._leave(code, reason)
        elif self._parting:
            effects = self._leave(*self._end)
        self._parting = False
        code, closed = self._end[0], self._numbers.closed
        closed[code if code in closed else 0] += 1
        self._leave_open(ConnectionState.CLOSED)
        self.outbox.clear()
        result = result_of(*self._end)
        if is_open and not known:
            result = Result(result.value)
        return [*effects, *self._release(), ConnectionEnded(result)]

    def heartbeat(self, now: float) -> list[Effect]:
        """Send the heartbeat that is due."""
        if self.state is not ConnectionState.OPEN or self._is_searching or self._transfer:
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
                return self.close(given.code, given.reason, sender)
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

        `instead` is the code and reason of the close frame if they do not follow from the result;
        with those of `LAST`, no next process may have the client.
        """
        if target != self.target or self._target_gone:
            return []
        self._target_gone = True
        self._parting = False
        if self._transfer is not None:  # a room may return as soon as it has moved its clients
            self._transfer.exit = result, join_read, instead
            return []
        return self._bereft(result, join_read, instead)

    def _bereft(
        self, result: Result, join_read: bool, instead: tuple[int, str] | None
    ) -> list[Effect]:
        """Go on without the target, which has ended like this, or close."""
        if self._claim is not None and ended_in_order(result) and instead not in LAST:
            # Before the upgrade, `opened` looks for the next one.
            is_open = self.state is ConnectionState.OPEN
            return self._find_next(self._claim) if is_open else []
        return self._lose(*(instead or close_for(result, join_read=join_read)))

    def _lose(self, code: int, reason: str) -> list[Effect]:
        """Close because there is no target any more."""
        is_over = (code, reason) == SHUT_DOWN
        return self._close(code, reason, Closing.SHUTDOWN if is_over else Closing.TARGET)

    def join_read(self) -> None:
        """Record that the target has read this connection's `ws.join`."""
        self._claim = None

    @property
    def holds(self) -> bool:
        """Whether the client should not be read: it has no target, or too much of it is kept."""
        if self._transfer is not None:
            return True
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
        if self._transfer is not None:
            self._transfer.exit = result or Result(), False, instead
            return []
        if instead is None and ended_in_order(result):
            return self._find_next(self._claim)
        return self._lose(*(instead or close_for(result or Result(), join_read=False)))

    def answered(self, why: str | None, why_no_target: Callable[[PID], str | None]) -> list[Effect]:
        """Carry out the transfer that was asked for, or refuse it; `why` says why not.

        The target, if it can be, takes messages. What has waited for the answer follows.
        """
        if (transfer := self._transfer) is None:
            return []
        self._transfer = None
        given, sender = transfer.order
        if why is None:
            effects = self._change(given, transfer.target)
        else:
            effects = [RejectCommand(sender, "ws.control", why)]
            if transfer.exit is not None:
                effects += self._bereft(*transfer.exit)
        for one in transfer.waiting:
            effects += self._follow(one, why_no_target)
        return effects

    def _follow(
        self, one: dict[str, Any] | Order, why_no_target: Callable[[PID], str | None]
    ) -> list[Effect]:
        """Do what has waited for a transfer."""
        if self.state is not ConnectionState.OPEN:
            return []
        if isinstance(one, tuple):
            return self._control(*one, why_no_target)
        if self._transfer is None:
            return self._pass_on(one)
        self._transfer.waiting.append(one)  # an order before it has to be asked for too
        return []

    def cancel(self, reason: str, by: str = "") -> list[Effect]:
        """Close normally: `process.cancel` on the connection's PID."""
        return self.close(1000, reason, by)

    def close(self, code: int, reason: str, by: str = "") -> list[Effect]:
        """Close because a process, `by`, or an operator wants that."""
        return self._close(code, reason, Closing.CLOSED, by)

    def refuse_more(self) -> list[Effect]:
        """Close because the node holds too much unfinished client data."""
        return self._close(*UNFINISHED, Closing.RELAY)

    def link_down(self) -> list[Effect]:
        """Close because a linked process ended with an error."""
        return self._close(1011, "linked process ended", Closing.LINK)

    def uptime(self, now: float) -> float:
        """Return the seconds since the upgrade, 0 before it."""
        return 0.0 if self._opened_at is None else now - self._opened_at

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
            return self._close(*SHUT_DOWN, Closing.SHUTDOWN, lingering=True)
        self._end, self.closing = SHUT_DOWN, (Closing.SHUTDOWN, "")
        self._parting = not self._is_searching
        effects = self._unsent()
        self._leave_open(ConnectionState.CLOSING)
        if self._interval is not None:
            effects.append(SetHeartbeat(None))
        return [*effects, CloseClient(*SHUT_DOWN, lingering=True)]

    # Inside

    def _send(self, message: SendCommand, sender: PID) -> list[Effect]:
        if self.outbox.put(message):
            return []
        self._numbers.hit["outbox"] += 1
        if self._overflow is Overflow.PAUSE:
            self._held.add(sender)
            return [PauseSender(sender)]
        if self._overflow is Overflow.DROP:
            self.outbox.drop_newest()
            self.dropped += 1
            return []
        return self._too_slow()

    def _too_slow(self) -> list[Effect]:
        self._numbers.hit["slow_client"] += 1
        self.outbox.clear()
        return self._close(1013, "slow client", Closing.RELAY, lingering=True)

    def _close(
        self, code: int, reason: str, closing: Closing, by: str = "", *, lingering: bool = False
    ) -> list[Effect]:
        """Begin the closing handshake; before the upgrade, note the first such end for later."""
        close = CloseClient(code, cut(reason), lingering)
        if self.state is ConnectionState.HANDSHAKING and self._early is None:
            self._early, self.closing = close, (closing, by)
        if self.state is not ConnectionState.OPEN:
            return []
        self.closing = closing, by
        effects = self._leave(code, close.reason)
        self._leave_open(ConnectionState.CLOSING)
        return [*effects, close]

    def _leave_open(self, state: ConnectionState) -> None:
        self.state = state
        self.head = b""
        self._claim = self._transfer = None

    def _leave(self, code: int, reason: str) -> list[Effect]:
        """Leave the target for good."""
        self._end = code, reason
        effects: list[Effect] = []
        if not self._target_gone:
            effects = [*self._unsent(), *self._attach(), LeaveTarget(self.target, code, reason)]
        if self._interval is not None:
            effects.append(SetHeartbeat(None))
        return effects + self._cancel()

    def _unsent(self) -> list[Effect]:
        """Return what goes to the target because the transfer does not come about."""
        if self._transfer is None or self._target_gone:
            return []
        sends = [SendToTarget(self.target, self._topic, one) for one in self._transfer.messages()]
        return [*self._attach(), *sends] if sends else []

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
            return self._lose(*close_for(Result(), join_read=False))
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
        if self._transfer is not None:
            if self._transfer.add((given, sender)):
                return []
            why = f"{MOST_WAITING} of them wait already until a transfer to another node is through"
            return [RejectCommand(sender, "ws.control", why)]
        target = self.target
        if given.target_pid is not UNSET:
            target = given.target_pid.on(str(self.pid.node))
        moves = target != self.target
        if moves and (reason := why_no_target(target)) is not None:
            return [RejectCommand(sender, "ws.control", reason)]
        self.head = b""
        if moves and target.node != self.pid.node:
            self._transfer = Transfer((given, sender), target)
            return [AskTarget(target)]
        return self._change(given, target)

    def _change(self, given: ControlCommand, target: PID) -> list[Effect]:
        """Carry out a control; the target is the new one if that is another."""
        moves = target != self.target
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


def _bytes_of(data: str | bytes) -> int:
    if isinstance(data, str) and not data.isascii():
        return len(data.encode())
    return len(data)
