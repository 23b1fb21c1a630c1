"""A relayed connection as the node knows it: carries out the session's effects.

How messages come in and go out is up to the transport: `asgi_connection` or `direct_connection`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import Any, Final

from msgspec import Struct

from wsrelay import tracing
from wsrelay.errors import HostFull, NoQuorum, WsrelayError
from wsrelay.node import ConnectionInfo, Mail, Node, NoTarget, RelayTarget
from wsrelay.node.ends import EndRequest
from wsrelay.session import ends, machine
from wsrelay.session.command import SendCommand
from wsrelay.session.effects import (
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
from wsrelay.session.ends import Closing
from wsrelay.session.header import RelayHeader, TargetSpec
from wsrelay.session.outbox import Overflow
from wsrelay.values.buffered import Buffered
from wsrelay.values.message import Event, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import printable
from wsrelay.wire.logrecord import fields

from .asgi import Event as AsgiEvent
from .asgi import Scope, Send

__all__ = ["AHEAD", "ClientPeer", "ConnectionLimits", "RelayedConnection"]

logger = logging.getLogger(__name__)

_PATIENCE: Final = 10.0
"""Seconds without progress that a client gets to read what was sent before a close frame."""


AHEAD: Final = 64 * 1024
"""Bytes of a message that may be read ahead while the target has no room; a larger one waits."""

_SHOWN: Final = 200
"""Characters of a path, a subprotocol and a user's name that are kept and shown."""


class ConnectionLimits:
    """The outbox limit in bytes, the policy at the limit, and the linger in seconds."""

    def __init__(self, outbox: int, overflow: Overflow, linger: float) -> None:
        self.outbox = outbox
        self.overflow = overflow
        self.linger = linger


class ClientPeer(Struct, frozen=True, gc=False):
    """The other end of a connection, for operators.

    Every connection keeps one, so it is small: 0.3 KB, with the first 200 characters of each text.
    """

    address: tuple[str, int] | None
    path: str
    subprotocol: str | None
    trace: str = ""
    """The context of the upgrade, empty without traces."""

    @classmethod
    def of(cls, scope: Scope, subprotocol: str | None) -> ClientPeer:
        """Make it from a `websocket` scope, whose `client` is None over a Unix socket."""
        client = scope.get("client")
        address = None if client is None else (str(client[0]), int(client[1] or 0))
        shown = None if subprotocol is None else subprotocol[:_SHOWN]
        return cls(address, scope["path"][:_SHOWN], shown, tracing.here())


class RelayedConnection(ABC):
    """A connection from before the upgrade to its end."""

    __slots__ = (
        "_asking",
        "_beat",
        "_clients",
        "_closing",
        "_deadline",
        "_died",
        "_joined",
        "_limits",
        "_loop",
        "_node",
        "_peer",
        "_search",
        "_session",
        "_target",
        "_when_drained",
        "asked",
        "numbers",
        "pid",
    )

    def __init__(
        self, node: Node, relay: RelayHeader, limits: ConnectionLimits, peer: ClientPeer
    ) -> None:
        self._peer = peer
        self.pid = node.clients.new_pid()
        self.asked: EndRequest | None = None
        self._node = node
        self._clients = node.clients
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._session = machine.Session(
            self.pid, relay, limit=limits.outbox, overflow=limits.overflow, numbers=node.numbers
        )
        self.numbers = node.numbers
        """What the node counts."""
        self._died = self._joined = 0.0
        """When the target exited, until the close frame for that is written, and when it was sent a
        `ws.join` whose receipt is due; in seconds of `time.monotonic`, 0 for never."""
        self._closing: CloseClient | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._when_drained: dict[Hashable, Callable[[], None]] = {}
        assert relay.target_pid is not None  # noqa: S101 - it has been started
        self._target: RelayTarget = node.clients.connect(self, relay.target_pid)
        """The target, from the join until another one takes its place."""
        self._search: asyncio.Task[None] | None = None
        """Looks for the name's next process."""
        self._asking: asyncio.Task[None] | None = None
        """Asks another node for its process, to which the client is to be transferred."""

    # The transport's part

    @abstractmethod
    def _flush(self) -> None:
        """Write what is in the outbox, then the close frame, as far as the client takes it."""

    @abstractmethod
    def _transferred(self) -> None:
        """Handle a change of the target or of its room, after which there may be room."""

    @abstractmethod
    def _give_up(self) -> None:
        """Drop a client that does not read what it was sent, not even its close frame."""

    async def _upgrade(self, accept: AsgiEvent, send: Send) -> bool:
        """Accept the upgrade; returns whether it succeeded. If not, the connection is over."""
        try:
            await send(accept)
        except OSError:
            self.refused()  # servers raise it when the client is gone
            return False
        except BaseException:
            self.refused()
            raise
        takes_mail = self._target.takes_mail
        self._do(self._session.opened(self._loop.time(), takes_mail=takes_mail))
        return True

    def refused(self) -> None:
        """End before the upgrade, which does not take place."""
        self._do(self._session.refused())

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self._loop.call_later(seconds, self._give_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _wrote(self, message: SendCommand) -> None:
        """Record that a message taken from the outbox is on its way."""
        self._session.sent += 1
        self.numbers.messages_to_clients += 1
        self.numbers.bytes_to_clients += message.size
        self._do(self._session.wrote())
        if self._when_drained:
            self._notify_drained()
        if self._closing is not None and not self._closing.lingering:
            self._arm(_PATIENCE)

    def _wrote_close(self) -> None:
        """Record that the close frame is on its way."""
        if self._died:
            self.numbers.close_seconds.add(time.monotonic() - self._died)
            self._died = 0.0

    # What the node calls

    def describe(self) -> ConnectionInfo:
        """Return what an operator wants to know about the connection."""
        session, peer, now = self._session, self._peer, self._loop.time()
        return ConnectionInfo(
            pid=str(self.pid),
            target=str(session.target),
            client=peer.address,
            path=peer.path,
            subprotocol=peer.subprotocol,
            user=_user(session.metadata),
            uptime=round(session.uptime(now), 3),
            messages=session.message_count,
            sent=session.sent,
            outbox=self.outbox,
            dropped=session.dropped,
            unfinished=self.unfinished,
        )

    @property
    def closing(self) -> tuple[Closing, str]:
        """What began to close it, and who wanted that."""
        return self._session.closing

    def _asker(self) -> str:
        return "" if self.asked is None else self.asked.by

    @property
    @abstractmethod
    def unfinished(self) -> int:
        """Bytes that the client has sent and that have not become a message to its target yet."""

    @property
    def buffered(self) -> Buffered:
        """The node's account of unfinished client data."""
        return self._node.buffered

    def write_through(self, frame: bytes) -> bool:
        """Do nothing: messages for the client wait in the outbox."""
        del frame
        return False

    def deliver(self, mail: Mail) -> bool:
        """Carry out what a process sent."""
        effects = self._session.command(mail.command, mail.sender, self._clients.why_no_target)
        self._do(effects)
        if self._session.outbox:
            self._flush()
        return True

    @property
    def target(self) -> PID:
        """The process that the connection is bound to."""
        return self._session.target

    @property
    def outbox(self) -> int:
        """Bytes that wait for the client."""
        return self._session.outbox.size

    @property
    def message_count(self) -> int:
        """How many messages were accepted from the client."""
        return self._session.message_count

    @property
    def lags(self) -> bool:
        """Whether its target is behind with what clients have sent it."""
        return self._target.pipe.backlog > 0

    def target_exited(
        self, target: PID, result: Result, *, join_read: bool, instead: tuple[int, str] | None
    ) -> None:
        """Handle the exit of a target."""
        self._died = self._target.died
        exited = self._session.target_exited(target, result, join_read=join_read, instead=instead)
        self._do(exited)

    def join_read(self) -> None:
        """Note that the target has read this connection's `ws.join`."""
        if self._joined:
            self.numbers.join_seconds.add(time.monotonic() - self._joined)
            self._joined = 0.0
        held = self._session.holds
        self._session.join_read()
        if held:
            self._transferred()

    def stop(self, reason: str, sender: PID) -> None:
        """Close normally."""
        self._do(self._session.cancel(reason, self._asker() or sender))

    def notify(self, event: Event) -> None:  # noqa: B027 - no transport has anything to do
        """Ignore the event: a client hears about processes only from processes."""

    def break_link(self) -> None:
        """Close because a linked process ended with an error."""
        self._do(self._session.link_down())

    def when_drained(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back once, when most of what was sent is on its way or the connection is over."""
        self._when_drained[token] = callback
        self._notify_drained()

    def forget_drain(self, token: Hashable) -> None:
        """Cancel the callback registered under that token."""
        self._when_drained.pop(token, None)

    def _notify_drained(self) -> None:
        if self._session.drained:
            callbacks, self._when_drained = self._when_drained, {}
            for callback in callbacks.values():
                callback()

    def kill(self) -> None:
        """Drop the connection at once."""
        gone = self._session.client_gone(1006, closing=Closing.KILLED, by=self._asker())
        self._do(gone)
        self._give_up()

    def hear(self, listener: Callable[[str, str | bytes], None] | None) -> None:
        """Call a listener with the topic and data of each message of the client; None: nobody."""
        self._session.hear(listener)

    def close(self, code: int, reason: str, by: str) -> None:
        """Close with that code, because an operator wants that."""
        self._do(self._session.close(code, reason, by))

    def shut_down(self) -> None:
        """Close because the node is shutting down."""
        self._do(self._session.shut_down())

    # The session's effects

    def _do(self, effects: list[Effect]) -> None:  # noqa: C901, PLR0912 - a flat table
        clients, pid = self._clients, self.pid
        for effect in effects:
            match effect:
                case SendToTarget():
                    if not self._target.tell(pid, effect.topic, effect.payload):
                        clients.not_taken()
                case JoinTarget():
                    self._debug(f"joins {effect.target}")
                    self._died, self._joined = 0.0, time.monotonic() if effect.receipt else 0.0
                    self._target = clients.join(
                        pid,
                        effect.target,
                        effect.metadata,
                        receipt=effect.receipt,
                        trace=self._peer.trace,
                    )
                    self._transferred()
                case FindTarget():
                    clients.unbind(pid, self._target)
                    self._search = self._loop.create_task(self._find(effect.spec))
                case AskTarget():
                    self._asking = self._loop.create_task(self._ask(effect.target))
                case AttachMetadata():
                    self._target.attach(pid, effect.metadata)
                case LeaveTarget():
                    self._debug(f"leaves {effect.target}: {effect.code} {effect.reason}")
                    clients.leave(pid, self._target, effect.code, effect.reason)
                case CancelTarget():
                    self._node.cancel(effect.target, "the connection has ended")
                case RejectCommand():
                    clients.refuse(pid, effect.to, effect.topic, effect.error)
                case PauseSender():
                    if not clients.hold(effect.sender, pid):
                        self._do(self._session.cannot_wait(effect.sender))
                case ResumeSender():
                    clients.release(effect.sender, pid)
                case SetHeartbeat():
                    self._beat_every(effect.interval)
                case CloseClient():
                    self._closing = effect
                    self._notify_drained()
                    self._arm(self._limits.linger if effect.lingering else _PATIENCE)
                    self._flush()
                case ConnectionEnded():
                    end = effect.result.value
                    self._debug(f"is closed: {end['code']} {end['reason']}")
                    self._beat_every(None)
                    self._notify_drained()
                    for task in (self._search, self._asking):
                        if task is not None:
                            task.cancel()
                    clients.disconnect(pid, self._target, effect.result)

    async def _find(self, spec: TargetSpec) -> None:
        """Find the name's next process, in place of one that never read this client's join."""
        found, node = self._session, self._node
        try:
            arrival = await node.find_target(spec)
        except NoTarget as error:
            instead = ends.UNFINISHED if error.is_crowded else None
            self._not_found(error, error.result, instead)
        except HostFull as error:
            self._not_found(error, None, ends.FULL)
        except NoQuorum as error:
            self._not_found(error, None, ends.UNDECIDED)
        except (WsrelayError, ValueError) as error:
            instead = ends.SHUT_DOWN if node.draining else ends.NOT_STARTED
            self._not_found(error, None, instead)
        else:
            with arrival:
                if (crowd := self._clients.crowded(arrival.pid)) is None:
                    self._do(found.found(arrival.pid))
                else:
                    self._not_found(crowd, None, ends.UNFINISHED)

    async def _ask(self, target: PID) -> None:
        """Have a process of another node take the client, or tell why it cannot."""
        try:
            arrival = await self._node.arrive(target, waits=False)
        except (NoTarget, HostFull) as error:
            self._answered(str(error))
        else:
            with arrival:
                self._answered(None)

    def _answered(self, why: str | None) -> None:
        self._do(self._session.answered(why, self._clients.why_no_target))
        self._transferred()

    def _not_found(
        self, why: object, result: Result | None, instead: tuple[int, str] | None = None
    ) -> None:
        if instead is not None or not ends.ended_in_order(result):
            text = "%s finds no next process of the name of %s, which never read its join: %s"
            logger.warning(text, self.pid, self.target, why, extra=fields(pid=self.pid))
        self._do(self._session.not_found(result, instead))

    def _debug(self, what: str) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s %s", self.pid, printable(what.rstrip()), extra=fields(pid=self.pid))

    def _beat_every(self, interval: float | None, due: float | None = None) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if interval is not None:
            due = self._loop.time() + interval if due is None else due
            self._beat = self._loop.call_at(due, self._heartbeat, interval, due)

    def _heartbeat(self, interval: float, due: float) -> None:
        now = self._loop.time()
        # A heartbeat is skipped if the target has no room: the next says all that it would say.
        if not self._target.pipe.full:
            self._do(self._session.heartbeat(now))
        self._beat_every(interval, max(due + interval, now))


def _user(metadata: dict[str, Any] | None) -> str | None:
    """Return whom metadata names: by `user`, possibly an object with `name` or `id`, or `name`."""
    if metadata is None:
        return None
    user = metadata.get("user", metadata.get("name"))
    if isinstance(user, dict):
        user = user.get("name", user.get("id"))
    return str(user)[:_SHOWN] if isinstance(user, str | int) else None
