"""What workers request of their node: one method for each frame that a worker can write."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from wsrelay import wire
from wsrelay.errors import (
    InvalidName,
    InvalidPID,
    NotAllowed,
    TooMany,
    WireError,
    WsrelayError,
)
from wsrelay.kernel import Signal
from wsrelay.kernel.names import MOST
from wsrelay.session import command
from wsrelay.values import durations
from wsrelay.values.message import ERROR, SEND, ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.sizes import show
from wsrelay.values.timer import Timer, cost
from wsrelay.wire import payload

from . import walls
from .calls import Calls
from .connections import GATEWAY, Connections
from .endpoint import Mail
from .engine import Engine, FrameHandler
from .process import NamedOrder, WorkerProcess
from .router import MessageRouter
from .starts import Starts, not_started
from .timers import Later, Timers

__all__ = ["Requests"]

logger = logging.getLogger(__name__)

_MOST_METADATA: Final = 8 * 1024 * 1024
"""Bytes of metadata in one answer: a process that asks in several threads is not ended for it."""

Sender = WorkerProcess | Later
"""Whose message is routed: a process, or what it has left to be sent."""


class Requests:
    """Handles the frames of all workers.

    A well-formed frame that our own worker code would never write raises `WireError`.
    """

    def __init__(
        self, engine: Engine, router: MessageRouter, connections: Connections, calls: Calls
    ) -> None:
        self._engine = engine
        self._calls = calls
        self._kernel = engine.kernel
        self._router = router
        self._connections = connections
        self.starts = Starts(engine)
        self.timers = Timers(self._send_now)
        self._methods: dict[type[Any], Callable[[WorkerProcess, Any], Iterator[None] | None]] = {
            wire.SendFrame: self._send,
            wire.AckFrame: self._ack,
            wire.ReadyFrame: self._ready,
            wire.LogFrame: self._log,
            wire.DoneFrame: self._done,
            wire.SpawnFrame: self._spawn,
            wire.ExecFrame: self._exec,
            wire.CancelFrame: self._cancel,
            wire.TerminateFrame: self._terminate,
            wire.RelateFrame: self._relate,
            wire.OptionsFrame: self._options,
            wire.JoinGroupFrame: self._join_group,
            wire.LeaveGroupFrame: self._leave_group,
            wire.BroadcastFrame: self._broadcast,
            wire.JoinReadFrame: self._join_read,
            wire.WatchFrame: self._watch,
            wire.UnwatchFrame: self._unwatch,
            wire.AnswerFrame: calls.answer,
            wire.ForgetFrame: self._forget,
            wire.SendAfterFrame: self._send_after,
            wire.CancelTimerFrame: self._cancel_timer,
        }
        self._answers: dict[type[Any], Callable[[WorkerProcess, Any], Any]] = {}
        self.answer(wire.GetOrSpawnFrame, self._get_or_spawn)
        self.answer(wire.RegisterFrame, self._register)
        self.answer(wire.LookupFrame, self._lookup)
        self.answer(wire.UnregisterFrame, self._unregister)
        self.answer(wire.MembersFrame, self._members)
        self.answer(wire.DrainFrame, self._drained)
        self.answer(wire.RosterFrame, self._roster)
        self.answer(wire.FenceFrame, self._fence)
        self.answer(wire.CallFrame, self._called)
        engine.receiver = self._receiver
        engine.on_exit.append(self._on_exit)

    def answer(self, kind: type[Any], method: Callable[[WorkerProcess, Any], Any]) -> None:
        """Have a method answer requests of that kind.

        It returns the answer, or an awaitable of it, or raises `WsrelayError` or `ValueError`,
        which the call in the worker then raises.
        """
        self._answers[kind] = method
        self._methods.setdefault(kind, self._answer)

    def _receiver(self, process: WorkerProcess) -> FrameHandler:
        """Return the handler of a process's frames."""
        handle = self.handle if process.rights is None else self.handle_walled
        endpoints, frame_of = self._engine.endpoints, command.frame_of

        def receive(frame: wire.FromWorker) -> Iterator[None] | None:
            # Most frames are messages for one client, which everybody may send.
            if type(frame) is wire.SendFrame:
                process.sent += 1
                if (
                    frame.topic == SEND
                    and type(frame.to) is str
                    and (endpoint := endpoints.get(frame.to)) is not None  # type: ignore[call-overload]
                    and (data := frame_of(frame.payload))
                    and endpoint.write_through(data)
                ):
                    return None
            elif type(frame) is wire.BroadcastFrame or type(frame) is wire.CallFrame:
                process.sent += 1
            return handle(process, frame)

        return receive

    def handle(self, process: WorkerProcess, frame: wire.FromWorker) -> Iterator[None] | None:
        """Do what a worker requests; a worker that requests too much is ended.

        Long work is returned as an iterator, each step of which does a part of it.
        """
        try:
            return self._methods[type(frame)](process, frame)
        except (TooMany, InvalidName) as error:  # from a frame that gets no answer
            self._end(process, error)
            return None

    def _end(self, process: WorkerProcess, error: TooMany | InvalidName) -> None:
        kind = ExitKind.LIMIT if isinstance(error, TooMany) else ExitKind.ERROR
        because = ExitError(kind, str(error))
        self._engine.signal(process.pid, Signal.TERMINATE, because=because)

    def handle_walled(
        self, process: WorkerProcess, frame: wire.FromWorker
    ) -> Iterator[None] | None:
        """Do what a worker of a walled-in host requests, as far as its host's rights allow."""
        rule, rights = walls.RULES[type(frame)], process.rights
        assert rights is not None  # noqa: S101 - `_receiver` chose this method by that
        try:
            reach = rule(frame, process.pid, rights, self) if rule is not None else None
        except NotAllowed as error:
            self._refuse(process, frame, error)
            return None
        if reach is not None and isinstance(frame, wire.SendFrame | wire.BroadcastFrame):
            return self._route_within(process, frame, reach)
        return self.handle(process, frame)

    def _on_exit(self, process: WorkerProcess, result: Result) -> None:
        """Answer the `exec` that it ran for and the calls of it, and end what it ran by `exec`."""
        if process.pid in self._calls.waiting:
            self._calls.ended(process, result)
        if self.starts.execs:
            self.starts.ended(process, result)
        pending, process.pending = process.pending, {}
        for future in pending.values():
            future.cancel()

    def _pid(self, text: str) -> PID:
        """Return the PID in full; the worker checked its form before writing it."""
        try:
            return PID(text).on(self._engine.name)
        except InvalidPID as error:
            raise WireError(str(error)) from None

    # What the rules of `walls` look at (`NodeView`)

    def host_of(self, to: str) -> str | None:
        """Return the host of a living process (for a connection, its target's), or None.

        Of a process elsewhere it is the host of its PID, unless that is a client of one here.
        """
        process = self._kernel.find(to, self._engine.name)
        there = self._engine.elsewhere.find(to) if process is None else process.pid
        if there is None:
            return None
        client = self._connections.client(there)
        return (there if client is None else client.target).host

    def is_connection(self, to: str) -> bool:
        """Whether it is a living connection."""
        if (process := self._kernel.find(to, self._engine.name)) is None:
            there = self._engine.elsewhere.find(to)
            return there is not None and there.host == GATEWAY
        return process.connection

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry with that id, None if there is none."""
        return self._engine.home(target)

    def is_registered(self, name: str) -> bool:
        """Whether a process is registered under the name."""
        return (self._kernel.names.get(name) or self._engine.elsewhere.find(name)) is not None

    def holds(self, caller: PID, name: str) -> bool:
        """Whether the caller has been cancelled and still holds that exclusive name."""
        return self._kernel.names.holder(name) == caller

    def awaits(self, caller: PID, pid: str) -> bool:
        """Whether the process was started by an `exec` of the caller that still waits."""
        process = self._kernel.find(pid, self._engine.name)
        there = self._engine.elsewhere.find(pid) if process is None else process.pid
        return self.starts.awaits(caller, there)

    def _refuse(self, process: WorkerProcess, frame: wire.FromWorker, error: NotAllowed) -> None:
        """Report to a process, and once to the log, that its frame was refused."""
        if isinstance(frame, wire.SpawnFrame):
            self.starts.own_pid(process, frame)
        elif isinstance(frame, wire.ExecFrame | wire.GetOrSpawnFrame):
            self.starts.own_pid(process, frame.spawn)
        call = _call(frame)
        if self._engine.mistakes.first(process.pid, f"{call}: {error}"):
            about = self._engine.about(process)
            logger.warning("%s called %s: %s (told once)", process.pid, call, error, extra=about)
        match frame:
            case wire.SpawnFrame():
                self.starts.failed(process, frame, error)
            case wire.ExecFrame():
                result = Result(error=not_started(error))
                process.pipe.post(wire.FinishedFrame(frame.ref, wire.PackedResult.of(result)))
            case wire.GetOrSpawnFrame() | wire.RegisterFrame() | wire.UnregisterFrame():
                process.pipe.post(_answer_with(frame.ref, error))
            case (
                wire.CancelFrame()
                | wire.TerminateFrame()
                | wire.RelateFrame()
                | wire.JoinGroupFrame()
                | wire.LeaveGroupFrame()
                | wire.CancelTimerFrame()
            ):
                to = "" if isinstance(frame, wire.CancelTimerFrame) else frame.to
                client = to if self.is_connection(to) else None
                content = payload.pack({"client_pid": client, "topic": call, "error": str(error)})
                self._router.route(Mail(self._router.pid, ERROR, content), [process.pid])

    def _route_within(
        self,
        sender: Sender,
        frame: wire.SendFrame | wire.BroadcastFrame,
        reach: walls.Reach,
    ) -> Iterator[None]:
        """Deliver a message to the receivers it may reach, and report the others to its sender."""
        if isinstance(frame, wire.BroadcastFrame):
            receivers: Sequence[str] = self._kernel.groups.members(frame.group)
        else:
            receivers = [frame.to] if isinstance(frame.to, str) else frame.to
        mail = Mail(sender.pid, frame.topic, frame.payload)
        away: list[str] = []
        for to in receivers:
            try:
                reach(to)
            except NotAllowed as error:
                process = self._kernel.find(to, self._engine.name)
                there = self._engine.elsewhere.find(to) if process is None else process.pid
                if there is not None:
                    self._connections.refuse(there, sender.pid, frame.topic, str(error))
            else:
                self._router.route(mail, (to,), away)
            yield
        self._router.route_away(mail, away)

    # Without an answer

    def _send(self, sender: Sender, frame: wire.SendFrame) -> Iterator[None] | None:
        mail = Mail(sender.pid, frame.topic, frame.payload)
        if not isinstance(frame.to, str):
            return self._router.route_in_portions(mail, frame.to)
        self._router.route(mail, (frame.to,))
        return None

    def _send_after(
        self, process: WorkerProcess, frame: wire.SendAfterFrame
    ) -> Iterator[None] | None:
        self._check_timer(process, frame.timer)
        size = cost(frame.to, frame.topic, len(frame.payload))
        message = wire.SendFrame(frame.to, frame.topic, frame.payload)
        later = Later(process.pid, message, size, process.rights)
        refuse = functools.partial(self._end, process)
        return self.timers.request(frame.timer, frame.due, later, refuse)

    def _check_timer(self, process: WorkerProcess, timer: str) -> None:
        """Raise `WireError` unless the process may make that timer."""
        try:
            owner = Timer(timer).owner
        except ValueError as error:
            raise WireError(str(error)) from None
        if not self._engine.ids(process.incarnation).made(owner) or owner.host != process.pid.host:
            raise WireError(f"it may not make the timer {timer}")

    def _send_now(self, later: Later) -> Iterator[None] | None:
        """Send a message that is due, as far as the rights of its sender's host allow."""
        message = later.message
        if later.rights is not None:
            rule = walls.RULES[wire.SendFrame]
            assert rule is not None  # noqa: S101 - the table has one
            if (reach := rule(message, later.pid, later.rights, self)) is not None:
                return self._route_within(later, message, reach)
        return self._send(later, message)

    def _cancel_timer(self, _: WorkerProcess, frame: wire.CancelTimerFrame) -> None:
        self.timers.cancel(frame.timer)

    def _ack(self, process: WorkerProcess, frame: wire.AckFrame) -> None:
        process.pipe.taken(frame.total)

    def _ready(self, process: WorkerProcess, _: wire.ReadyFrame) -> None:
        self._engine.signal(process.pid, Signal.READY)

    def _join_read(self, process: WorkerProcess, frame: wire.JoinReadFrame) -> None:
        reader = self._connections.client(client := self._pid(frame.client))
        if reader is not None and client in process.clients:
            reader.join_read()

    def _log(self, process: WorkerProcess, frame: wire.LogFrame) -> None:
        process.incarnation.log(frame)

    def _done(self, process: WorkerProcess, frame: wire.DoneFrame) -> None:
        process.incarnation.says_done(frame)

    def _cancel(self, process: WorkerProcess, frame: wire.CancelFrame) -> None:
        self._router.ask(process.pid, frame.to, Signal.CANCEL, frame.reason)

    def _terminate(self, process: WorkerProcess, frame: wire.TerminateFrame) -> None:
        self._router.ask(process.pid, frame.to, Signal.TERMINATE)

    def _relate(self, process: WorkerProcess, frame: wire.RelateFrame) -> None:
        kernel, me = self._kernel, process.pid
        other = self._pid(frame.to)
        away = other not in kernel.processes and self._engine.elsewhere.find(other) is not None
        match frame.kind:
            case "monitor":
                effects = kernel.monitor(me, other, elsewhere=away)
            case "unmonitor":
                effects = kernel.unmonitor(me, other)
            case "link":
                effects = kernel.link(me, other, elsewhere=away)
            case "unlink":
                effects = kernel.unlink(me, other)
        self._engine.execute(effects)

    def _options(self, process: WorkerProcess, frame: wire.OptionsFrame) -> None:
        seconds = frame.end_when_empty
        if seconds is not None and not 0 <= seconds <= durations.LONGEST:
            raise WireError(f"end_when_empty is {seconds}")
        self._kernel.trap_links(process.pid, trap=frame.trap_links)
        process.set_end_when_empty(frame.end_when_empty)

    def _join_group(self, process: WorkerProcess, frame: wire.JoinGroupFrame) -> None:
        joining, engine = self._pid(frame.to), self._engine
        if engine.is_away(joining):
            engine.elsewhere.join_group(process.pid, frame.group, joining, frame.meta)
            return
        engine.execute(self._kernel.join_group(frame.group, joining, process.pid, frame.meta))
        engine.elsewhere.pace(process.pid)

    def _leave_group(self, process: WorkerProcess, frame: wire.LeaveGroupFrame) -> None:
        leaving, engine = self._pid(frame.to), self._engine
        if engine.is_away(leaving):
            engine.elsewhere.leave_group(process.pid, frame.group, leaving)
            return
        engine.execute(self._kernel.leave_group(frame.group, leaving))
        engine.elsewhere.pace(process.pid)

    def _watch(self, process: WorkerProcess, frame: wire.WatchFrame) -> None:
        effects = self._kernel.watch_group(frame.group, process.pid, frame.number)
        self._engine.execute(effects)

    def _unwatch(self, process: WorkerProcess, frame: wire.UnwatchFrame) -> None:
        self._kernel.groups.unwatch(frame.group, process.pid, frame.number)

    def _broadcast(self, process: WorkerProcess, frame: wire.BroadcastFrame) -> Iterator[None]:
        mail = Mail(process.pid, frame.topic, frame.payload)
        members = self._kernel.groups.members(frame.group)
        here = self._engine.elsewhere.broadcast(mail, frame.group, members)
        return self._router.route_in_portions(mail, here)

    # Starting processes

    def _spawn(self, process: WorkerProcess, frame: wire.SpawnFrame) -> None:
        self.starts.spawn(process, frame)

    def _exec(self, process: WorkerProcess, frame: wire.ExecFrame) -> None:
        if (future := self.starts.exec(process, frame)) is not None:
            self._answer_later(process, frame, future)

    # With an answer

    def _answer(self, process: WorkerProcess, frame: wire.Request) -> None:
        """Answer a request, now or when the answer is ready."""
        try:
            value = self._answers[type(frame)](process, frame)
        except WireError:
            raise
        except (WsrelayError, ValueError) as error:
            process.pipe.post(_answer_with(frame.ref, error))
            return
        if isinstance(value, Awaitable):
            self._answer_later(process, frame, value)
        else:
            process.pipe.post(wire.ReplyFrame(frame.ref, value))

    def _answer_later(
        self, process: WorkerProcess, frame: wire.Request | wire.ExecFrame, answer: Awaitable[Any]
    ) -> None:
        future = asyncio.ensure_future(answer)
        try:
            self._check_pending(process, frame)
        except TooMany as error:
            future.cancel()
            process.pipe.post(_answer_with(frame.ref, error))
            return
        process.pending[frame.ref] = future
        future.add_done_callback(functools.partial(self._answered, process, frame.ref))

    def _answered(self, process: WorkerProcess, ref: int, future: asyncio.Future[Any]) -> None:
        """Pass an answer on, unless nobody waits for it any more."""
        if future.cancelled() or process.pending.pop(ref, None) is None:
            return
        error = future.exception()
        if error is None:
            answer = future.result()
            is_frame = isinstance(answer, wire.FinishedFrame)
            process.pipe.post(answer if is_frame else wire.ReplyFrame(ref, answer))
            return
        if not isinstance(error, WsrelayError | ValueError):
            logger.error("a request of %s failed", process.pid, exc_info=error)
        process.pipe.post(_answer_with(ref, error))

    def _get_or_spawn(
        self, process: WorkerProcess, frame: wire.GetOrSpawnFrame
    ) -> PID | Awaitable[PID]:
        pid, spawn = self.starts.own_pid(process, frame.spawn), frame.spawn
        order = self.starts.order(spawn)
        if process.rights is not None and self._engine.elsewhere.decides(frame.name):
            try:
                walls.check_start_as(frame, process.pid, process.rights, self)
            except NotAllowed:  # the process that there is may be gone when others are asked
                return self._engine.lookup(frame.name)
        return self._engine.get_or_spawn(
            NamedOrder(
                frame.name,
                pid,
                order,
                process.pid,
                spawn.monitored,
                spawn.linked,
                stays=frame.stays,
            )
        )

    def _register(
        self, process: WorkerProcess, frame: wire.RegisterFrame
    ) -> Awaitable[None] | None:
        return self._engine.register(frame.name, self._pid(frame.pid), process.pid)

    def _lookup(self, _: WorkerProcess, frame: wire.LookupFrame) -> PID:
        return self._engine.lookup(frame.name)

    def _unregister(
        self, process: WorkerProcess, frame: wire.UnregisterFrame
    ) -> Awaitable[None] | None:
        return self._engine.unregister(frame.name, process.pid)

    def _fence(self, process: WorkerProcess, frame: wire.FenceFrame) -> int:
        return self._kernel.names.own_fence(process.pid, frame.name)

    def _members(self, _: WorkerProcess, frame: wire.MembersFrame) -> list[PID]:
        return self._kernel.groups.members(frame.group)

    def _roster(self, _: WorkerProcess, frame: wire.RosterFrame) -> list[tuple[PID, bytes]]:
        there = self._kernel.groups.roster(frame.group)
        if sum(len(meta) for _, meta in there) > _MOST_METADATA:
            # Much more would not fit into a frame.
            raise TooMany("roster (metadata of the members)", show(_MOST_METADATA))
        return there

    def _forget(self, process: WorkerProcess, frame: wire.ForgetFrame) -> None:
        if (asked := process.pending.pop(frame.ref, None)) is not None:
            asked.cancel()

    def _check_pending(self, process: WorkerProcess, frame: wire.Request | wire.ExecFrame) -> None:
        """Raise `TooMany` if too many requests of the process wait for their answers already."""
        if len(process.pending) >= MOST or frame.ref in process.pending:
            raise TooMany(_CALLS[type(frame)], MOST)

    def _called(
        self, process: WorkerProcess, frame: wire.CallFrame
    ) -> asyncio.Future[wire.FinishedFrame]:
        self._check_pending(process, frame)
        return self._calls.call(process.pid, frame.ref, frame.to, frame.topic, frame.payload)

    def _drained(
        self, process: WorkerProcess, frame: wire.DrainFrame
    ) -> asyncio.Future[None] | None:
        client = self._pid(frame.to)
        if client not in self._connections.connections:
            elsewhere = self._engine.elsewhere
            return None if elsewhere.find(client) is None else elsewhere.drained(client)
        return self._connections.drained(client, (process.pid, frame.ref))


_CALLS: Final[dict[type[wire.Frame], str]] = {
    wire.SendFrame: "send",
    wire.BroadcastFrame: "broadcast",
    wire.SpawnFrame: "spawn",
    wire.GetOrSpawnFrame: "get_or_spawn",
    wire.ExecFrame: "exec",
    wire.CancelFrame: "cancel",
    wire.TerminateFrame: "terminate",
    wire.RegisterFrame: "registry.register",
    wire.UnregisterFrame: "registry.unregister",
    wire.JoinGroupFrame: "groups.join",
    wire.LeaveGroupFrame: "groups.leave",
    wire.LookupFrame: "lookup",
    wire.MembersFrame: "members",
    wire.RosterFrame: "groups.roster",
    wire.WatchFrame: "groups.watch",
    wire.UnwatchFrame: "unlisten",
    wire.DrainFrame: "drain",
    wire.FenceFrame: "fence",
    wire.CallFrame: "call",
    wire.SendAfterFrame: "send_after",
}
"""The function of `process` that writes each frame; users do not know the classes' names."""


def _call(frame: wire.FromWorker) -> str:
    """Return the name of the function that a handler calls to write such a frame."""
    match frame:
        case wire.CancelTimerFrame():
            return "Timer.cancel"
        case wire.RelateFrame():
            name: str = frame.kind
        case _:
            name = _CALLS[type(frame)]
    return f"process.{name}"


def _answer_with(ref: int, error: BaseException) -> wire.ReplyFrame:
    kind = type(error) if isinstance(error, WsrelayError) else WsrelayError
    return wire.ReplyFrame(ref, None, kind.__name__, str(error))
