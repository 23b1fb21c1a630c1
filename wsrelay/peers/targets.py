"""Processes of other nodes as the targets of this node's clients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable
from typing import Any

from wsrelay import wire
from wsrelay.cluster.credits import Credit
from wsrelay.cluster.frames import (
    CreditFrame,
    GuestAttachFrame,
    GuestBeatFrame,
    GuestCloseFrame,
    GuestJoinFrame,
    GuestLeaveFrame,
    GuestMessageFrame,
    GuestReadFrame,
    PeerFrame,
    PeerReplyFrame,
    ReleaseFrame,
    TargetExitedFrame,
    VisitedFrame,
    VisitFrame,
)
from wsrelay.errors import HostFull
from wsrelay.node.arrival import Arrival, NoTarget
from wsrelay.node.connections import Connections
from wsrelay.node.process import SpawnOrder
from wsrelay.session.ends import NODE_GONE
from wsrelay.values.message import HEARTBEAT, ExitError, Result
from wsrelay.values.pid import PID
from wsrelay.wire import payload

from .exchange import Exchange, gone, not_a_member, opened
from .neighbour import Neighbour, Way

__all__ = ["RemoteTarget", "RemoteTargets"]


class RemoteLane:
    """The way of clients' messages to a process of another node: by credits of that."""

    def __init__(self, ref: int, way: Way) -> None:
        self._ref = ref
        self._way = way
        self._credit = Credit()
        self._when_room: dict[Hashable, Callable[[], None]] = {}
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether the target's clients should wait, for itself or for the way to its node."""
        return not self._closed and (self._credit.is_used or self._way.full)

    @property
    def backlog(self) -> int:
        """Bytes that are known to wait for the target."""
        return 0 if self._closed else self._credit.waiting

    def relay(self, data: bytes) -> bool:
        """Send a client's message; returns whether there is room for more."""
        self._credit.sent(len(data))
        self._way.send(GuestMessageFrame(self._ref, data))
        return not self.full

    def granted(self, total: int) -> None:
        """Handle a credit."""
        self._credit.granted(total)
        self._tell_room()

    def when_room(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back once, when there is room for clients' messages or the target is gone."""
        self._when_room[token] = callback
        self._tell_room()

    def forget(self, token: Hashable) -> None:
        """Drop the callback that has that token."""
        self._when_room.pop(token, None)

    def close(self) -> None:
        """Send nothing any more; nobody must wait for room."""
        self._closed = True
        self._way.forget(self)
        self._tell_room()

    def _tell_room(self) -> None:
        if not self._when_room:
            return
        if not self.full:
            callbacks, self._when_room = self._when_room, {}
            for callback in callbacks.values():
                callback()
        elif not self._credit.is_used:
            self._way.when_room(self, self._tell_room)


class RemoteTarget:
    """A process of another node, while clients of this one are bound to it or on their way.

    `released` is called once when they no longer are.
    """

    died = 0.0
    """No time of this node's clock."""

    def __init__(
        self,
        pid: PID,
        ref: int,
        neighbour: Neighbour,
        clients: Connections,
        released: Callable[[RemoteTarget], None],
    ) -> None:
        self.pid = pid
        self.names: list[str] = []
        self.ref = ref
        self.neighbour = neighbour
        self.pipe = RemoteLane(ref, neighbour.way)
        self.arrivals = 0
        self.takes_mail = True
        self.clients: dict[PID, int] = {}
        """Connections bound to it, each with the number of its join among all; 0 before that."""
        self._joins = 0
        self._sent: dict[PID, int] = {}
        """By which frame on the way each connection has joined it."""
        self._connections = clients
        self._released = released

    @property
    def row(self) -> RemoteTarget:
        """Itself, for `takes_mail`."""
        return self

    # Bindings

    def occupied(self) -> None:
        """Do nothing: the process is kept by its own node."""

    def left(self) -> None:
        """Have the process's node keep it no longer if nobody needs it any more."""
        if not self.arrivals and not self.clients:
            self._released(self)

    def bind(self, client: PID) -> None:
        """Report its exit to that connection, as one whose `ws.join` it has not read."""
        self.clients[client] = 0

    def unbind(self, client: PID) -> bool:
        """Undo `bind` and `join`."""
        self._sent.pop(client, None)
        if self.clients.pop(client, None) is not None:
            self.pipe.forget(client)
            self.left()
        return False

    # What the relay sends it

    def join(
        self,
        client: PID,
        metadata: dict[str, Any] | None,
        *,
        receipt: bool = False,
        trace: str = "",
    ) -> bool:
        """Send it `ws.join` and bind the connection."""
        if not self.takes_mail:
            return False
        self._joins += 1
        self.clients[client] = self._joins
        info = self._connections.connections[client].describe()
        self.neighbour.way.send(
            GuestJoinFrame(
                self.ref,
                client,
                payload.pack(metadata),
                receipt,
                info.client,
                info.path,
                info.subprotocol,
                info.user,
                trace,
            )
        )
        self._sent[client] = self.neighbour.way.sent
        return True

    def attach(self, client: PID, metadata: dict[str, Any] | None) -> None:
        """Set the metadata for a client's messages from now on."""
        if self.takes_mail:
            content = payload.pack(metadata)
            self.neighbour.way.send(GuestAttachFrame(self.ref, client, content))

    def tell(self, client: PID, topic: str, content: dict[str, Any]) -> bool:
        """Send it a message from the relay."""
        if self.takes_mail and topic == HEARTBEAT and "type" not in content:
            self.neighbour.way.send(GuestBeatFrame(self.ref, client, **content))
        elif self.takes_mail:
            self.pipe.relay(wire.pack(wire.RelayFrame(topic, str(client), content)))
        return self.takes_mail

    def leave(self, client: PID, code: int, reason: str) -> bool:
        """Send it `ws.leave`."""
        if self.takes_mail:
            self.neighbour.way.send(GuestLeaveFrame(self.ref, client, code, reason))
        return self.takes_mail

    # Its end

    def exited(
        self,
        result: Result,
        joins: int,
        unread: set[str],
        instead: tuple[int, str] | None = None,
    ) -> None:
        """Tell its clients that it has ended; `joins` and `unread` as in `TargetExitedFrame`."""

        def is_read(client: PID, join: int) -> bool:
            return 0 < join <= joins and client not in unread

        self._exited(result, lambda client, join: (is_read(client, join), instead))

    def lost(self, result: Result) -> None:
        """Tell its clients that its node is gone.

        Only whose join has not left this node cannot have been heard by it: others would be heard
        twice if the next process of the name got what they have sent.
        """
        sent, published = self._sent, self.neighbour.way.published

        def may_be_read(client: PID) -> bool:
            return sent.get(client, math.inf) <= published

        self._exited(result, lambda client, _: (False, NODE_GONE if may_be_read(client) else None))

    def _exited(
        self,
        result: Result,
        how: Callable[[PID, int], tuple[bool, tuple[int, str] | None]],
    ) -> None:
        self.takes_mail = False
        clients, self.clients = self.clients, {}
        self.pipe.close()
        for client, join in clients.items():
            read, instead = how(client, join)
            self._connections.target_exited(
                client, self.pid, result, join_read=read, instead=instead
            )
        self.left()


class RemoteTargets:
    """The targets of this node's clients on other nodes."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._clients = exchange.node.clients
        self._refs = itertools.count(1)
        self._targets: dict[PID, RemoteTarget] = {}
        self._numbered: dict[int, RemoteTarget] = {}
        exchange.on(VisitedFrame, self._visited)
        exchange.on(GuestReadFrame, self._join_read)
        exchange.on(TargetExitedFrame, self._exited)
        exchange.on(GuestCloseFrame, self._close)
        exchange.on(CreditFrame, self._granted)
        exchange.on_down.append(self._down)

    @property
    def serve(self) -> bool:
        """Whether any client is bound to one of them."""
        return any(target.clients for target in self._numbered.values())

    def target(self, pid: PID) -> RemoteTarget:
        """Return the target that a client has arrived at."""
        return self._targets[pid]

    async def arrive(self, pid: PID, *, waits: bool, start: SpawnOrder | None = None) -> Arrival:
        """Have the process's node keep it for a client; arguments and errors as in `Elsewhere`."""
        if start is not None and self._exchange.of(pid) is None:
            raise not_a_member(str(pid.node))
        if (target := self._targets.get(pid)) is None:
            target = self._open(pid)
        arrival = Arrival(target)
        try:
            frame = VisitFrame(target.ref, 0, pid, waits)
            if start is not None:
                frame.target, frame.code = start.target, start.code
            answer = await self._exchange.ask(target.neighbour, frame, _as_it_is)
            if start is not None and isinstance(answer, PeerReplyFrame):
                opened(answer)  # raises what has refused it
            _check(pid, answer)
            if not target.takes_mail:
                raise _not_alive(pid)  # noqa: TRY301 - what it leaves is the same
        except BaseException:
            arrival.over()
            raise
        return arrival

    def _open(self, pid: PID) -> RemoteTarget:
        if (neighbour := self._exchange.of(pid)) is None:
            raise _not_alive(pid)
        target = RemoteTarget(pid, next(self._refs), neighbour, self._clients, self._release)
        self._targets[pid] = self._numbered[target.ref] = target
        return target

    def _release(self, target: RemoteTarget) -> None:
        if self._numbered.pop(target.ref, None) is None:
            return
        self._forget(target)
        target.pipe.close()
        target.neighbour.way.send(ReleaseFrame(target.ref))
        self._exchange.engine.changed()

    # What their nodes write

    def _of(self, neighbour: Neighbour, ref: int) -> RemoteTarget | None:
        """Return the target of that number, unless it has been released in the meantime."""
        target = self._numbered.get(ref)
        return target if target is not None and target.neighbour is neighbour else None

    def _visited(self, neighbour: Neighbour, frame: VisitedFrame) -> None:
        asked = neighbour.asked.pop(frame.number, None)
        if asked is not None and not asked.future.done():
            asked.future.set_result(frame)

    def _join_read(self, neighbour: Neighbour, frame: GuestReadFrame) -> None:
        if (target := self._of(neighbour, frame.ref)) is not None:
            client = PID.trusted(frame.client)
            if client in target.clients and (reader := self._clients.connections.get(client)):
                reader.join_read()

    def _exited(self, neighbour: Neighbour, frame: TargetExitedFrame) -> None:
        if (target := self._of(neighbour, frame.ref)) is not None:
            error = None if frame.error is None else frame.error.told()
            self._forget(target)
            target.exited(Result(error=error), frame.joins, set(frame.unread), frame.instead)

    def _forget(self, target: RemoteTarget) -> None:
        """Let no client come to a target any more."""
        if self._targets.get(target.pid) is target:
            del self._targets[target.pid]

    def _close(self, neighbour: Neighbour, frame: GuestCloseFrame) -> None:
        target, client = self._of(neighbour, frame.ref), PID.trusted(frame.client)
        if target is not None and client in target.clients:
            self._clients.take_turn(client)

    def _granted(self, neighbour: Neighbour, frame: CreditFrame) -> None:
        if (target := self._of(neighbour, frame.ref)) is not None:
            target.pipe.granted(frame.total)

    def _down(self, neighbour: Neighbour) -> None:
        """Tell the clients of a node's processes that it is gone."""
        result = Result(error=gone(neighbour.node))
        for target in [one for one in self._numbered.values() if one.neighbour is neighbour]:
            del self._numbered[target.ref]  # nothing is to be released there
            self._forget(target)
            target.lost(result)
        self._exchange.engine.changed()


def _as_it_is(answer: PeerFrame | ExitError) -> PeerFrame | ExitError:
    return answer


def _not_alive(pid: PID) -> NoTarget:
    """Return that it has just ended: the next one of its name may serve."""
    return NoTarget(f"target_pid {pid} is not alive", is_missing=False, is_over=True)


def _check(pid: PID, answer: PeerFrame | ExitError) -> None:
    """Raise what the answer to a `VisitFrame` says, if it says that the client cannot come."""
    if isinstance(answer, ExitError):
        ended = Result(error=answer)
        problem = f"target_pid {pid} is not alive: {answer.message}"
        raise NoTarget(problem, ended, is_missing=False, is_over=True)
    if not isinstance(answer, VisitedFrame):
        raise NoTarget(f"target_pid {pid}: {getattr(answer, 'message', '')}", is_missing=False)
    if answer.full is not None:
        raise HostFull(pid.host, answer.full)
    if answer.problem is not None:
        error = None if answer.error is None else answer.error.told()
        raise NoTarget(
            answer.problem,
            Result(error=error) if answer.ended else None,
            is_missing=answer.is_missing,
            is_over=answer.is_over,
            is_crowded=answer.is_crowded,
        )
