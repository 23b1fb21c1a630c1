"""What workers ask of their node: one method for each frame that a worker can write."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

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
from wsrelay.values.message import ERROR, ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import shortened
from wsrelay.wire import payload
from wsrelay.wire.logrecord import fields

from . import walls
from .host import Worker

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Requests"]

logger = logging.getLogger(__name__)


class Requests:
    """Takes the frames of all workers.

    Those that no worker of ours writes, though they are well-formed, raise `WireError`.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._execs: dict[PID, tuple[Worker, int]] = {}
        """Processes that run for an `exec`: who waits, and the request's number."""
        self._methods: dict[type[Any], Callable[[Worker, Any], Iterator[None] | None]] = {
            wire.Send: self._send,
            wire.Taken: self._taken,
            wire.Ready: self._ready,
            wire.Log: self._log,
            wire.Done: self._done,
            wire.Spawn: self._spawn,
            wire.Exec: self._exec,
            wire.Cancel: self._cancel,
            wire.Terminate: self._terminate,
            wire.Relate: self._relate,
            wire.TrapLinks: self._trap_links,
            wire.Member: self._member,
            wire.Broadcast: self._broadcast,
            wire.Drain: self._drain,
            wire.GetOrSpawn: self._answered(self._get_or_spawn),
            wire.Register: self._answered(self._register),
            wire.Lookup: self._answered(self._lookup),
            wire.Unregister: self._answered(self._unregister),
            wire.Members: self._answered(self._members),
        }

    def handle(self, worker: Worker, frame: wire.FromWorker) -> Iterator[None] | None:
        """Do what a worker asks; one that asks for too much is ended.

        What takes long is returned: it goes on with each step of the iterator, to its end.
        """
        try:
            return self._methods[type(frame)](worker, frame)
        except (TooMany, InvalidName) as error:  # of what gets no answer
            kind = ExitKind.LIMIT if isinstance(error, TooMany) else ExitKind.ERROR
            because = ExitError(kind, str(error))
            terminate = self._node.kernel.signal(worker.pid, Signal.TERMINATE, because=because)
            self._node.execute(terminate)
            return None

    def handle_walled(self, worker: Worker, frame: wire.FromWorker) -> Iterator[None] | None:
        """Do what a worker of a walled-in host asks, as far as its host has the right to."""
        rule, rights = walls.RULES[type(frame)], worker.rights
        assert rights is not None  # noqa: S101 - that is who comes here
        try:
            reach = rule(frame, worker.pid, rights, self) if rule is not None else None
        except NotAllowed as error:
            self._refuse(worker, frame, error)
            return None
        if reach is not None and isinstance(frame, wire.Send | wire.Broadcast):
            return self._route_within(worker, frame, reach)
        return self.handle(worker, frame)

    def worker_ended(self, worker: Worker, result: Result) -> None:
        """Answer the `exec` that it ran for, and end what it ran by `exec` itself."""
        if (waiting := self._execs.pop(worker.pid, None)) is not None:
            caller, ref = waiting
            caller.pipe.post(wire.Finished(ref, wire.Ended.of(result)))
        for pid, (caller, _) in list(self._execs.items()):
            if caller is worker:
                self._node.signal(pid, Signal.TERMINATE)
        for ref, connection in worker.drains.items():
            connection.forget_drain((worker.pid, ref))
        worker.drains.clear()

    def _pid(self, text: str) -> PID:
        """Return the PID in full; a worker has looked at its form before it wrote it."""
        try:
            return PID(text).on(self._node.name)
        except InvalidPID as error:
            raise WireError(str(error)) from None

    # What walls look at

    def host_of(self, to: str) -> str | None:
        """Return the host of a living process, for a connection that of its target."""
        if (process := self._node.kernel.find(to, self._node.name)) is None:
            return None
        connection = self._node.connection(process.pid)
        return (process.pid if connection is None else connection.target).host

    def is_connection(self, to: str) -> bool:
        """Whether it is a living connection."""
        process = self._node.kernel.find(to, self._node.name)
        return process is not None and process.connection

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry of that id, None if there is none."""
        return self._node.home(target)

    def has_bearer(self, name: str) -> bool:
        """Whether a process has the name."""
        return self._node.kernel.names.get(name) is not None

    def awaits(self, caller: PID, pid: str) -> bool:
        """Whether the process runs for an `exec` of the caller."""
        process = self._node.kernel.find(pid, self._node.name)
        waiting = None if process is None else self._execs.get(process.pid)
        return waiting is not None and waiting[0].pid == caller

    def _refuse(self, worker: Worker, frame: wire.FromWorker, error: NotAllowed) -> None:
        """Tell a worker, and once the log, that nothing of a frame is done."""
        if isinstance(frame, wire.Spawn):
            self._own_pid(worker, frame)
        elif isinstance(frame, wire.Exec | wire.GetOrSpawn):
            self._own_pid(worker, frame.spawn)
        call = _call(frame)
        if self._node.mistakes.first(worker.pid, f"{call}: {error}"):
            about = self._node.about(worker)
            logger.warning("%s called %s: %s (told once)", worker.pid, call, error, extra=about)
        match frame:
            case wire.Spawn():
                self._stillborn(worker, frame, error)
            case wire.Exec():
                result = Result(error=_not_started(error))
                worker.pipe.post(wire.Finished(frame.ref, wire.Ended.of(result)))
            case wire.GetOrSpawn() | wire.Register() | wire.Unregister():
                worker.pipe.post(_answer_with(frame.ref, error))
            case wire.Cancel() | wire.Terminate() | wire.Relate() | wire.Member():
                whom = frame.pid if isinstance(frame, wire.Member) else frame.to
                client = whom if self.is_connection(whom) else None
                content = payload.pack({"client_pid": client, "topic": call, "error": str(error)})
                self._node.route(self._node.pid(), [worker.pid], ERROR, content)

    def _route_within(
        self, worker: Worker, frame: wire.Send | wire.Broadcast, reach: walls.Reach
    ) -> Iterator[None]:
        """Deliver a message to those whom it may come to, and tell its sender of the others."""
        if isinstance(frame, wire.Broadcast):
            receivers: Sequence[str] = self._node.kernel.groups.members(frame.group)
        else:
            receivers = [frame.to] if isinstance(frame.to, str) else frame.to
        given: command.Command | None = None
        for to in receivers:
            try:
                reach(to)
            except NotAllowed as error:
                if (process := self._node.kernel.find(to, self._node.name)) is not None:
                    self._node.clients.refuse(process.pid, worker.pid, frame.topic, str(error))
            else:
                given = self._node.route(worker.pid, (to,), frame.topic, frame.payload, given)
            yield

    # Without an answer

    def _send(self, worker: Worker, frame: wire.Send) -> Iterator[None] | None:
        to = frame.to
        if not isinstance(to, str):
            return self._node.route_in_portions(worker.pid, to, frame.topic, frame.payload)
        self._node.route(worker.pid, (to,), frame.topic, frame.payload)
        return None

    def _taken(self, worker: Worker, frame: wire.Taken) -> None:
        worker.pipe.taken(frame.total)

    def _ready(self, worker: Worker, _: wire.Ready) -> None:
        self._node.signal(worker.pid, Signal.READY)

    def _log(self, worker: Worker, frame: wire.Log) -> None:
        worker.log(frame)

    def _done(self, worker: Worker, frame: wire.Done) -> None:
        worker.says_done(frame)

    def _cancel(self, worker: Worker, frame: wire.Cancel) -> None:
        self._node.ask(worker.pid, frame.to, Signal.CANCEL, frame.reason)

    def _terminate(self, worker: Worker, frame: wire.Terminate) -> None:
        self._node.ask(worker.pid, frame.to, Signal.TERMINATE)

    def _relate(self, worker: Worker, frame: wire.Relate) -> None:
        kernel, me = self._node.kernel, worker.pid
        other = self._pid(frame.to)
        match frame.kind:
            case "monitor":
                self._node.execute(kernel.monitor(me, other))
            case "unmonitor":
                kernel.relations.unmonitor(me, other)
            case "link":
                self._node.execute(kernel.link(me, other))
            case "unlink":
                kernel.relations.unlink(me, other)

    def _trap_links(self, worker: Worker, frame: wire.TrapLinks) -> None:
        self._node.kernel.trap_links(worker.pid, trap=frame.trap)

    def _member(self, worker: Worker, frame: wire.Member) -> None:
        pid = self._pid(frame.pid)
        if frame.join:
            self._node.kernel.join_group(frame.group, pid, worker.pid)
        else:
            self._node.kernel.groups.leave(frame.group, pid)

    def _broadcast(self, worker: Worker, frame: wire.Broadcast) -> Iterator[None]:
        members = self._node.kernel.groups.members(frame.group)
        return self._node.route_in_portions(worker.pid, members, frame.topic, frame.payload)

    # Starting processes

    def _own_pid(self, worker: Worker, frame: wire.Spawn) -> PID:
        """Return the PID for a new process, which the worker has made itself."""
        pid = self._pid(frame.pid)
        if not self._node.worker_ids(worker).made(pid) or pid.host != frame.host:
            raise WireError(f"{pid} is not its to give to a process of {frame.host!r}")
        return pid

    def _launch(self, worker: Worker, pid: PID, frame: wire.Spawn, name: str | None = None) -> PID:
        return self._node.launch(
            pid,
            frame.target,
            frame.code,
            name,
            worker.pid,
            frame.monitored,
            frame.linked,
            plain=frame.plain,
        )

    def _spawn(self, worker: Worker, frame: wire.Spawn) -> None:
        pid = self._own_pid(worker, frame)
        try:
            self._launch(worker, pid, frame)
        except (WsrelayError, ValueError) as error:
            end = _not_started(error)
            self._log_refusal(worker, pid, frame, end)
            self._stillborn(worker, frame, error)

    def _stillborn(self, worker: Worker, frame: wire.Spawn, error: Exception) -> None:
        """Tell the parent of a process that was not started."""
        pid, end = self._own_pid(worker, frame), _not_started(error)
        monitored, linked = frame.monitored, frame.linked
        effects = self._node.kernel.stillborn(
            pid, end, worker.pid, monitored=monitored, linked=linked
        )
        self._node.execute(effects)

    def _log_refusal(self, worker: Worker, pid: PID, frame: wire.Spawn, end: ExitError) -> None:
        """Log that a process was not started, if that was not logged just now, and often."""
        untold = self._node.mistakes.again(worker.pid, time.monotonic())
        if untold is not None:
            about = fields(pid=pid, target=frame.target, host=pid.host, exit=end.kind.value)
            more = f" (nor were {untold} others that {worker.pid} asked for)" if untold else ""
            logger.error("%s was not started: %s%s", pid, shortened(end.message), more, extra=about)

    def _exec(self, worker: Worker, frame: wire.Exec) -> None:
        pid = self._own_pid(worker, frame.spawn)
        try:
            self._execs[self._launch(worker, pid, frame.spawn)] = worker, frame.ref
        except (WsrelayError, ValueError) as error:
            result = Result(error=_not_started(error))
            worker.pipe.post(wire.Finished(frame.ref, wire.Ended.of(result)))

    # With an answer

    def _answered(self, method: Callable[[Worker, Any], Any]) -> Callable[[Worker, Any], None]:
        def answer(worker: Worker, frame: wire.Request) -> None:
            try:
                reply = wire.Reply(frame.ref, method(worker, frame))
            except WireError:
                raise
            except (WsrelayError, ValueError) as error:
                reply = _answer_with(frame.ref, error)
            worker.pipe.post(reply)

        return answer

    def _get_or_spawn(self, worker: Worker, frame: wire.GetOrSpawn) -> PID:
        pid = self._own_pid(worker, frame.spawn)
        return self._launch(worker, pid, frame.spawn, frame.name)

    def _register(self, worker: Worker, frame: wire.Register) -> None:
        self._node.kernel.register(frame.name, self._pid(frame.pid), worker.pid)

    def _lookup(self, _: Worker, frame: wire.Lookup) -> PID:
        return self._node.kernel.names.lookup(frame.name)

    def _unregister(self, _: Worker, frame: wire.Unregister) -> None:
        self._node.kernel.names.unregister(frame.name)

    def _members(self, _: Worker, frame: wire.Members) -> list[PID]:
        return self._node.kernel.groups.members(frame.group)

    def _drain(self, worker: Worker, frame: wire.Drain) -> None:
        reply = wire.Reply(frame.ref)
        connection = self._node.connection(self._pid(frame.to))
        token, drains = (worker.pid, frame.ref), worker.drains
        if not frame.waits:
            if (asked := drains.pop(frame.ref, None)) is not None:
                asked.forget_drain(token)
        elif connection is None:
            worker.pipe.post(reply)  # nothing waits for one that is gone
        elif len(drains) >= MOST or frame.ref in drains:
            worker.pipe.post(_answer_with(frame.ref, TooMany("drain", MOST)))
        else:

            def tell() -> None:
                drains.pop(frame.ref, None)
                worker.pipe.post(reply)

            drains[frame.ref] = connection
            connection.when_drained(token, tell)


def _call(frame: wire.FromWorker) -> str:
    """Return what a handler calls to write such a frame."""
    match frame:
        case wire.Relate():
            name: str = frame.kind
        case wire.Member():
            name = "groups.join" if frame.join else "groups.leave"
        case wire.Register() | wire.Unregister():
            name = f"registry.{type(frame).__name__.lower()}"
        case wire.GetOrSpawn():
            name = "get_or_spawn"
        case _:
            name = type(frame).__name__.lower()
    return f"process.{name}"


def _answer_with(ref: int, error: Exception) -> wire.Reply:
    kind = type(error) if isinstance(error, WsrelayError) else WsrelayError
    return wire.Reply(ref, None, kind.__name__, str(error))


def _not_started(error: Exception) -> ExitError:
    kind = ExitKind.HOST_FULL if isinstance(error, HostFull) else ExitKind.START_FAILED
    return ExitError(kind, str(error))
