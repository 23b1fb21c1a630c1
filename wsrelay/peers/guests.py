"""Clients of other nodes whose targets are processes of this one."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from wsrelay.cluster.credits import Receipts
from wsrelay.cluster.frames import (
    CreditFrame,
    GuestAttachFrame,
    GuestBeatFrame,
    GuestCloseFrame,
    GuestJoinFrame,
    GuestLeaveFrame,
    GuestMessageFrame,
    GuestReadFrame,
    ReleaseFrame,
    TargetExitedFrame,
    Text,
    VisitedFrame,
    VisitFrame,
)
from wsrelay.errors import HostFull, TooMany, UnknownHost, WireError
from wsrelay.kernel import Signal
from wsrelay.node import Arrival, ConnectionInfo, NoTarget, WorkerProcess
from wsrelay.node.process import SpawnOrder
from wsrelay.values.message import HEARTBEAT, ExitError, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import shortened
from wsrelay.values.trace_context import parse
from wsrelay.wire import MAX_RECEIVERS, WorkerError, payload

from .exchange import Exchange
from .lives import check_entry
from .neighbour import Neighbour

__all__ = ["MOST_VISITS", "Guests"]

MOST_VISITS: Final = 100_000
"""Processes that may be kept for the clients of one node."""

_GONE: Final = (1006, "client's node is gone")
"""Code and reason with which a client leaves whose node is gone."""

_PREFIX: Final = 4
"""Bytes of the length of a worker's frame."""


class _GuestText(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    data: str


class _GuestBinary(Struct, forbid_unknown_fields=True, tag_field="type", tag="binary"):
    data: memoryview


class _GuestMessage(Struct, array_like=True, forbid_unknown_fields=True, tag=3):
    """What a `wire.RelayFrame` is, as far as other nodes may send it."""

    topic: Text
    client: Text
    payload: _GuestText | _GuestBinary


_decode = msgspec.msgpack.Decoder(_GuestMessage).decode


class Guest:
    """A client of another node, which is bound to a process of this one."""

    __slots__ = ("_info", "_since", "_visit", "message_count", "pid")

    def __init__(self, pid: PID, visit: Visit, info: ConnectionInfo) -> None:
        self.pid = pid
        self.message_count = 0
        self._visit = visit
        self._info = info
        self._since = time.monotonic()

    @property
    def target(self) -> PID:
        """The process that it is bound to."""
        return self._visit.pid

    @property
    def lags(self) -> bool:
        """Whether its target is behind with what clients have sent it."""
        process = self._visit.process
        return process is not None and process.pipe.backlog > 0

    def describe(self) -> ConnectionInfo:
        """Return what is known of it here; the rest is known to its own node."""
        uptime = round(time.monotonic() - self._since, 3)
        return replace(self._info, uptime=uptime, messages=self.message_count)

    def target_exited(
        self, target: PID, result: Result, *, join_read: bool, instead: tuple[int, str] | None
    ) -> None:
        """Note whether its join was read; its node is told of all its clients at once."""
        del target, result, instead
        if not join_read:
            self._visit.unread.append(str(self.pid))

    def join_read(self) -> None:
        """Tell its node that the target has read its `ws.join`."""
        self._visit.neighbour.way.send(GuestReadFrame(self._visit.ref, str(self.pid)))

    def shut_down(self) -> None:
        """Have its node close it because this one shuts down."""
        self._visit.neighbour.way.send(GuestCloseFrame(self._visit.ref, str(self.pid)))


class Visit:
    """All clients of one other node at one process of this one.

    The process is kept for them from the answer to the first `VisitFrame` to the `ReleaseFrame`.
    """

    def __init__(self, neighbour: Neighbour, ref: int, pid: PID) -> None:
        self.neighbour = neighbour
        self.ref = ref
        self.pid = pid
        self.process: WorkerProcess | None = None
        """None before it is kept, and again when it has ended."""
        self.is_begun = False
        """Whether it has been kept, so that clients may come."""
        self.arrival: Arrival | None = None
        self.guests: dict[PID, Guest] = {}
        self.joins = 0
        self.unread: list[str] = []
        """Clients whose join it has not read, once it has ended."""
        self.is_released = False
        self.is_started = False
        """Whether the process was started for a client of that node alone."""
        self._receipts = Receipts()

    def passed_on(self, size: int, *, has_room: bool) -> None:
        """Count what was passed on; give credit for it when there is room."""
        self._receipts.received(size)
        if has_room or self.process is None:
            self._grant()
        else:
            self.process.pipe.when_room(self, self._grant)

    def _grant(self) -> None:
        if (total := self._receipts.due()) is not None and not self.is_released:
            self.neighbour.way.send(CreditFrame(self.ref, total))

    def tell_exit(self, result: Result, instead: tuple[int, str] | None) -> None:
        """Tell the clients' node that the process has ended."""
        unread, joins = self.unread, self.joins
        if len(unread) > MAX_RECEIVERS:  # it never ran
            unread, joins = [], 0
        self.neighbour.way.send(
            TargetExitedFrame(self.ref, _told(result.error), joins, unread, instead)
        )


class Guests:
    """The clients of other nodes at processes of this one."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._node = exchange.node
        self._clients = exchange.node.clients
        self._visits: dict[Neighbour, dict[int, Visit]] = {}
        self._at: dict[PID, set[Visit]] = {}
        """Those at each process that is kept."""
        exchange.answer(VisitFrame, self._visit, _packed)
        exchange.on(GuestJoinFrame, self._join)
        exchange.on(GuestMessageFrame, self._message)
        exchange.on(GuestAttachFrame, self._attach)
        exchange.on(GuestBeatFrame, self._beat)
        exchange.on(GuestLeaveFrame, self._leave)
        exchange.on(ReleaseFrame, self._release)
        exchange.on_down.append(self._down)
        exchange.engine.on_exit.append(self._exited)

    # On the way

    def _visit(self, neighbour: Neighbour, frame: VisitFrame) -> Awaitable[VisitedFrame]:
        pid = self._exchange.own(frame.pid)
        visits = self._visits.setdefault(neighbour, {})
        if len(visits) >= MOST_VISITS and frame.ref not in visits:
            raise TooMany("target of clients elsewhere", MOST_VISITS)
        visit = visits.setdefault(frame.ref, Visit(neighbour, frame.ref, pid))
        if visit.pid != pid:
            raise WireError(f"{frame.ref} is the number of {visit.pid} and not of {pid}")
        return self._arrive(visit, frame)

    async def _arrive(self, visit: Visit, frame: VisitFrame) -> VisitedFrame:
        number, pid = frame.number, visit.pid
        try:
            if frame.target is not None:
                self._start(visit, frame.target, bytes(frame.code))
            arrival = await self._node.arrive(pid, waits=frame.waits)
        except HostFull as error:
            return VisitedFrame(number, str(error), full=self._node.kernel.limit(pid.host))
        except NoTarget as error:
            result = error.result
            return VisitedFrame(
                number,
                shortened(str(error)),
                result is not None,
                _told(None if result is None else result.error),
                is_missing=error.is_missing,
                is_over=error.is_over,
            )
        process = self._node.engine.processes[pid]
        if (crowd := self._why_not_now(pid, is_transfer=not frame.waits)) is not None:
            arrival.over()
            return VisitedFrame(number, crowd, is_crowded=True)
        if visit.process is not None or visit.is_released:
            arrival.over()
        else:
            visit.process, visit.arrival, visit.is_begun = process, arrival, True
            self._at.setdefault(pid, set()).add(visit)
        return VisitedFrame(number)

    def _start(self, visit: Visit, target: str, code: bytes) -> None:
        """Start the process that a client is on its way to; raises as `Engine.launch` does."""
        engine, pid = self._exchange.engine, visit.pid
        check_entry(engine, target)
        if pid.host not in engine.templates.names:
            raise UnknownHost(f"{pid.host}@{pid.node}", engine.templates.names)
        engine.launch(pid, SpawnOrder(target, code, plain=True))
        visit.is_started = True

    def _why_not_now(self, pid: PID, *, is_transfer: bool) -> str | None:
        """Return why no more clients can come for now, or None."""
        if self._node.draining:
            return self._node.engine.why_closed
        return self._clients.why_no_target(pid) if is_transfer else self._clients.crowded(pid)

    def _release(self, neighbour: Neighbour, frame: ReleaseFrame) -> None:
        visits = self._visits.get(neighbour, {})
        if (visit := visits.get(frame.ref)) is None or visit.guests:
            raise WireError(f"{frame.ref} is released, which has no process or still has clients")
        del visits[frame.ref]
        visit.is_released = True
        self._end(visit)

    def _end(self, visit: Visit) -> None:
        """Keep the process no longer."""
        process, visit.process = visit.process, None
        if process is None or visit.arrival is None:
            return
        process.pipe.forget(visit)
        visit.arrival.over()
        self._at[visit.pid].discard(visit)
        if not self._at[visit.pid]:
            del self._at[visit.pid]

    # There

    def _of(self, neighbour: Neighbour, ref: int) -> Visit:
        """Return what has been begun under that number."""
        visit = self._visits.get(neighbour, {}).get(ref)
        if visit is None or not visit.is_begun:
            raise WireError(f"{ref} is the number of no process that is kept for it")
        return visit

    def _join(self, neighbour: Neighbour, frame: GuestJoinFrame) -> None:
        visit = self._of(neighbour, frame.ref)
        client, metadata = self._exchange.theirs(neighbour, frame.client), _metadata(frame.metadata)
        visit.joins += 1
        if visit.process is None:  # it has just ended, as the client's node is about to hear
            self._clients.not_taken()
        elif client in self._clients.guests:
            raise WireError(f"{client} joins {visit.pid} and has left no other")
        else:
            visit.guests[client] = guest = Guest(client, visit, _info(visit, frame))
            trace = parse(*frame.trace.split(" ", 1)) if frame.trace else ""
            self._clients.welcome(
                guest, visit.process, metadata, receipt=frame.receipt, trace=trace
            )

    def _message(self, neighbour: Neighbour, frame: GuestMessageFrame) -> None:
        visit, data = self._of(neighbour, frame.ref), frame.frame
        client, process = _client(data), visit.process
        if process is None or not process.takes_mail:
            self._clients.not_taken()
            visit.passed_on(len(data), has_room=True)
            return
        if (guest := visit.guests.get(client)) is None:
            raise WireError(f"a message of {client} for {visit.pid}, which it has not joined")
        guest.message_count += 1
        visit.passed_on(len(data), has_room=process.pipe.relay(data))

    def _beat(self, neighbour: Neighbour, frame: GuestBeatFrame) -> None:
        visit = self._of(neighbour, frame.ref)
        client = self._exchange.theirs(neighbour, frame.client)
        # As for a connection here: it is skipped if the process has no room.
        if visit.process is not None and client in visit.guests and not visit.process.pipe.full:
            content = {"uptime": frame.uptime, "message_count": frame.message_count}
            visit.process.tell(client, HEARTBEAT, content)

    def _attach(self, neighbour: Neighbour, frame: GuestAttachFrame) -> None:
        visit = self._of(neighbour, frame.ref)
        client, metadata = self._exchange.theirs(neighbour, frame.client), _metadata(frame.metadata)
        if visit.process is not None and client in visit.guests:
            visit.process.attach(client, metadata)

    def _leave(self, neighbour: Neighbour, frame: GuestLeaveFrame) -> None:
        visit = self._of(neighbour, frame.ref)
        self._part(visit, self._exchange.theirs(neighbour, frame.client), frame.code, frame.reason)

    def _part(self, visit: Visit, client: PID, code: int, reason: str) -> None:
        """Have a guest leave, unless the process has ended."""
        if visit.process is not None and visit.guests.pop(client, None) is not None:
            self._clients.part(client)
            self._clients.leave(client, visit.process, code, reason)

    # Ends

    def _exited(self, process: WorkerProcess, result: Result) -> None:
        for visit in list(self._at.get(process.pid, ())):
            for client in visit.guests:
                self._clients.part(client)
            visit.guests.clear()
            self._end(visit)
            visit.tell_exit(result, self._clients.close_instead(process, result))

    def _down(self, neighbour: Neighbour) -> None:
        """Have all clients of a node leave that is gone."""
        for visit in self._visits.pop(neighbour, {}).values():
            for client in list(visit.guests):
                self._part(visit, client, *_GONE)
            visit.is_released = True
            self._end(visit)
            process = self._node.engine.processes.get(visit.pid)
            if visit.is_started and process is not None and not process.clients:
                self._node.engine.signal(visit.pid, Signal.CANCEL, _GONE[1])


def _packed(_: Neighbour, __: VisitFrame, answer: VisitedFrame) -> VisitedFrame:
    return answer


def _info(visit: Visit, frame: GuestJoinFrame) -> ConnectionInfo:
    return ConnectionInfo(
        pid=frame.client,
        target=str(visit.pid),
        client=frame.address,
        path=frame.path,
        subprotocol=frame.subprotocol,
        user=frame.user,
        uptime=0.0,
        messages=0,
        outbox=0,
        dropped=0,
    )


def _metadata(data: bytes | memoryview) -> dict[str, Any] | None:
    """Return a client's metadata; raises `WireError` for what no node sends as such."""
    try:
        metadata = payload.decode_bounded(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"metadata that cannot be decoded: {error}") from None
    if metadata is not None and not isinstance(metadata, dict):
        raise WireError(f"metadata of the type {type(metadata).__name__}")
    return metadata


def _client(data: bytes | memoryview) -> PID:
    """Return whose message it is; raises `WireError` for what no process could read."""
    try:
        frame = _decode(memoryview(data)[_PREFIX:])
    except ValueError as error:
        raise WireError(f"no message of a client: {error}") from None
    if int.from_bytes(data[:_PREFIX], "big") != len(data) - _PREFIX:
        raise WireError("a client's message does not have the length that it says")
    return PID.trusted(frame.client)


def _told(error: ExitError | None) -> WorkerError | None:
    """Return an error as other nodes are told of it: of its traceback only that there is one."""
    if error is None:
        return None
    trace = error.traceback and error.traceback[:1]
    return WorkerError(error.kind, shortened(error.message), trace)
