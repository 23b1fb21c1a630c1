"""What workers request of their node: one method for each frame that a worker can write."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from wsrelay import wire
from wsrelay.errors import (
    HostFull,
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
from wsrelay.values.printable import shortened
from wsrelay.values.sizes import show
from wsrelay.values.timer import Timer, cost
from wsrelay.wire import payload
from wsrelay.wire.logrecord import fields

from . import walls
from .calls import Calls
from .connections import Connections
from .endpoint import Mail
from .engine import Engine, FrameHandler
from .process import WorkerProcess
from .router import MessageRouter
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
        self._execs: dict[PID, tuple[WorkerProcess, int]] = {}
        """Processes that run for an `exec`, each with its caller and the request's number."""
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
            if (
                type(frame) is wire.SendFrame
                and frame.topic == SEND
                and type(frame.to) is str
                and (endpoint := endpoints.get(frame.to)) is not None  # type: ignore[call-overload]
                and (data := frame_of(frame.payload))
                and endpoint.write_through(data)
            ):
                return None
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
        if (waiting := self._execs.pop(process.pid, None)) is not None:
            caller, ref = waiting
            caller.pipe.post(wire.FinishedFrame(ref, wire.PackedResult.of(result)))
        for pid, (caller, _) in list(self._execs.items()):
            if caller is process:
                self._engine.signal(pid, Signal.TERMINATE)
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
        """Return the host of a living process (for a connection, its target's), or None."""
        if (process := self._kernel.find(to, self._engine.name)) is None:
            return None
        connection = self._connections.connections.get(process.pid)
        return (process.pid if connection is None else connection.target).host

    def is_connection(self, to: str) -> bool:
        """Whether it is a living connection."""
        process = self._kernel.find(to, self._engine.name)
        return process is not None and process.connection

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry with that id, None if there is none."""
        return self._engine.home(target)

    def is_registered(self, name: str) -> bool:
        """Whether a process is registered under the name."""
        return self._kernel.names.get(name) is not None

    def holds(self, caller: PID, name: str) -> bool:
        """Whether the caller has been cancelled and still holds that exclusive name."""
        return self._kernel.names.holder(name) == caller

    def awaits(self, caller: PID, pid: str) -> bool:
        """Whether the process was started by an `exec` of the caller that still waits."""
        process = self._kernel.find(pid, self._engine.name)
        waiting = None if process is None else self._execs.get(process.pid)
        return waiting is not None and waiting[0].pid == caller

    def _refuse(self, process: WorkerProcess, frame: wire.FromWorker, error: NotAllowed) -> None:
        """Report to a process, and once to the log, that its frame was refused."""
        if isinstance(frame, wire.SpawnFrame):
            self._own_pid(process, frame)
        elif isinstance(frame, wire.ExecFrame | wire.GetOrSpawnFrame):
            self._own_pid(process, frame.spawn)
        call = _call(frame)
        if self._engine.mistakes.first(process.pid, f"{call}: {error}"):
            about = self._engine.about(process)
            logger.warning("%s called %s: %s (told once)", process.pid, call, error, extra=about)
        match frame:
            case wire.SpawnFrame():
                self._spawn_failed(process, frame, error)
            case wire.ExecFrame():
                result = Result(error=_not_started(error))
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
        for to in receivers:
            try:
                reach(to)
            except NotAllowed as error:
                if (there := self._kernel.find(to, self._engine.name)) is not None:
                    self._connections.refuse(there.pid, sender.pid, frame.topic, str(error))
            else:
                self._router.route(mail, (to,))
            yield

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
        connection = self._connections.connections.get(client := self._pid(frame.client))
        if connection is not None and client in process.clients:
            connection.join_read()

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
        match frame.kind:
            case "monitor":
                self._engine.execute(kernel.monitor(me, other))
            case "unmonitor":
                kernel.relations.unmonitor(me, other)
            case "link":
                self._engine.execute(kernel.link(me, other))
            case "unlink":
                kernel.relations.unlink(me, other)

    def _options(self, process: WorkerProcess, frame: wire.OptionsFrame) -> None:
        seconds = frame.end_when_empty
        if seconds is not None and not 0 <= seconds <= durations.LONGEST:
            raise WireError(f"end_when_empty is {seconds}")
        self._kernel.trap_links(process.pid, trap=frame.trap_links)
        process.set_end_when_empty(frame.end_when_empty)

    def _join_group(self, process: WorkerProcess, frame: wire.JoinGroupFrame) -> None:
        joining = self._pid(frame.to)
        effects = self._kernel.join_group(frame.group, joining, process.pid, frame.meta)
        self._engine.execute(effects)

    def _leave_group(self, _: WorkerProcess, frame: wire.LeaveGroupFrame) -> None:
        self._engine.execute(self._kernel.leave_group(frame.group, self._pid(frame.to)))

    def _watch(self, process: WorkerProcess, frame: wire.WatchFrame) -> None:
        effects = self._kernel.watch_group(frame.group, process.pid, frame.number)
        self._engine.execute(effects)

    def _unwatch(self, process: WorkerProcess, frame: wire.UnwatchFrame) -> None:
        self._kernel.groups.unwatch(frame.group, process.pid, frame.number)

    def _broadcast(self, process: WorkerProcess, frame: wire.BroadcastFrame) -> Iterator[None]:
        members = self._kernel.groups.members(frame.group)
        mail = Mail(process.pid, frame.topic, frame.payload)
        return self._router.route_in_portions(mail, members)

    # Starting processes

    def _own_pid(self, process: WorkerProcess, frame: wire.SpawnFrame) -> PID:
        """Return the PID that the worker has made for a new process."""
        pid = self._pid(frame.pid)
        if not self._engine.ids(process.incarnation).made(pid) or pid.host != frame.host:
            raise WireError(f"it may not give {pid} to a process of {frame.host!r}")
        return pid

    def _launch(
        self, process: WorkerProcess, pid: PID, frame: wire.SpawnFrame, name: str | None = None
    ) -> PID:
        return self._engine.launch(
            pid,
            frame.target,
            frame.code,
            name,
            process.pid,
            frame.monitored,
            frame.linked,
            plain=frame.plain,
        )

    def _spawn(self, process: WorkerProcess, frame: wire.SpawnFrame) -> None:
        pid = self._own_pid(process, frame)
        try:
            self._launch(process, pid, frame)
        except (WsrelayError, ValueError) as error:
            end = _not_started(error)
            self._log_refusal(process, pid, frame, end)
            self._spawn_failed(process, frame, error)

    def _spawn_failed(
        self, process: WorkerProcess, frame: wire.SpawnFrame, error: Exception
    ) -> None:
        """Tell the parent that a process was not started."""
        pid, end = self._own_pid(process, frame), _not_started(error)
        monitored, linked = frame.monitored, frame.linked
        effects = self._kernel.spawn_failed(
            pid, end, process.pid, monitored=monitored, linked=linked
        )
        self._engine.execute(effects)

    def _log_refusal(
        self, process: WorkerProcess, pid: PID, frame: wire.SpawnFrame, end: ExitError
    ) -> None:
        """Log that a process was not started, unless that has just been logged many times."""
        unlogged = self._engine.mistakes.again(process.pid, time.monotonic())
        if unlogged is not None:
            about = fields(pid=pid, target=frame.target, host=pid.host, exit=end.kind.value)
            more = f" (nor were {unlogged} others that {process.pid} spawned)" if unlogged else ""
            logger.error("%s was not started: %s%s", pid, shortened(end.message), more, extra=about)

    def _exec(self, process: WorkerProcess, frame: wire.ExecFrame) -> None:
        pid = self._own_pid(process, frame.spawn)
        try:
            self._execs[self._launch(process, pid, frame.spawn)] = process, frame.ref
        except (WsrelayError, ValueError) as error:
            result = Result(error=_not_started(error))
            process.pipe.post(wire.FinishedFrame(frame.ref, wire.PackedResult.of(result)))

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
        self, process: WorkerProcess, frame: wire.Request, answer: Awaitable[Any]
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

    def _get_or_spawn(self, process: WorkerProcess, frame: wire.GetOrSpawnFrame) -> PID:
        pid = self._own_pid(process, frame.spawn)
        return self._launch(process, pid, frame.spawn, frame.name)

    def _register(self, process: WorkerProcess, frame: wire.RegisterFrame) -> None:
        self._kernel.register(frame.name, self._pid(frame.pid), process.pid)

    def _lookup(self, _: WorkerProcess, frame: wire.LookupFrame) -> PID:
        return self._kernel.names.lookup(frame.name)

    def _unregister(self, process: WorkerProcess, frame: wire.UnregisterFrame) -> None:
        self._engine.execute(self._kernel.unregister(frame.name, process.pid))

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

    def _check_pending(self, process: WorkerProcess, frame: wire.Request) -> None:
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
        connection = self._connections.connections.get(self._pid(frame.to))
        if connection is None:
            return None  # a connection that is gone has nothing left to drain
        token = process.pid, frame.ref
        future = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not future.done():
                future.set_result(None)

        connection.when_drained(token, tell)
        if future.done():
            return None
        future.add_done_callback(lambda _: connection.forget_drain(token))
        return future


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


def _not_started(error: Exception) -> ExitError:
    kind = ExitKind.HOST_FULL if isinstance(error, HostFull) else ExitKind.START_FAILED
    return ExitError(kind, str(error))
