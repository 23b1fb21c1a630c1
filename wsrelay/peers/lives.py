"""The lives of processes elsewhere: their starts, ends and relations, told between nodes.

The kernel of a process's node knows who is linked to it, and which other nodes watch it; the kernel
of a watcher's node knows the watchers. So an end is told once to each node that it concerns, and
that node's kernel tells its own. Whoever asks about a process that is not alive is told so at once.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final, Literal, cast

from msgspec import Raw

from wsrelay import wire
from wsrelay.cluster.frames import (
    LinkFrame,
    PeerExitedFrame,
    PeerFrame,
    PeerSignalFrame,
    PeerSpawnFrame,
    PeerWatchFrame,
    StartedFrame,
    UnlinkedFrame,
)
from wsrelay.errors import InvalidTarget, TooMany, WireError, WsrelayError
from wsrelay.kernel import Effect, LinkEffect, NotifyEffect, Signal, WatchEffect
from wsrelay.node.elsewhere import Elsewhere
from wsrelay.node.engine import Engine
from wsrelay.node.process import SpawnOrder
from wsrelay.node.starts import not_started
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import shortened
from wsrelay.values.sizes import show
from wsrelay.wire import payload

from .exchange import Exchange, gone, not_a_member, not_an_entry, opened
from .neighbour import Neighbour

__all__ = ["Lives", "check_entry", "told"]

_RESULT: Final = 1024
_RESULTS: Final = 4 * wire.MAX_FRAME
"""Bytes of a result that count, and that may wait for a node: beyond that ends are told without
their results, as to a worker (`node/host/lanes.py`)."""

_MOST_LINKS: Final = 100_000
"""Links of one process here to processes of other nodes, which may name any number of these."""

_NOTHING: Final = b"\xc0"

_SIGNALS: Final[dict[Signal, Literal["cancel", "terminate"]]] = {
    Signal.CANCEL: "cancel",
    Signal.TERMINATE: "terminate",
}

Finished = asyncio.Future[wire.FinishedFrame]


class Lives(Elsewhere):
    """What a node asks about the lives of processes of others."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.engine = exchange.engine
        self.kernel = exchange.kernel
        self.router = exchange.router
        self._execs: dict[PID, tuple[int, Finished]] = {}
        """Processes elsewhere that run for an `exec`, each with the request's number."""
        exchange.on(PeerSignalFrame, self._signalled)
        exchange.on(PeerWatchFrame, self._watched)
        exchange.on(LinkFrame, self._linked)
        exchange.on(UnlinkedFrame, self._unlinked)
        exchange.on(PeerExitedFrame, self._exited)
        exchange.on(PeerSpawnFrame, self._spawned)
        exchange.answer(StartedFrame, self._started)
        exchange.on_down.append(self._down)

    # Starts

    def spawn(self, parent: PID, pid: PID, frame: wire.SpawnFrame) -> None:
        """Do what `Elsewhere.spawn` does; raises `InvalidTarget`, `HostFailed`."""
        self._spawn(parent, pid, frame, watched=frame.monitored)

    def _spawn(self, parent: PID, pid: PID, frame: wire.SpawnFrame, *, watched: bool) -> None:
        target, neighbour = frame.target, self.exchange.of(pid)
        if target is None or target not in self.engine.entries or not frame.plain:
            raise not_an_entry(target, str(pid.node))
        if neighbour is None:
            raise not_a_member(str(pid.node))
        neighbour.way.send(
            PeerSpawnFrame(str(pid), str(parent), target, frame.code, watched, frame.linked)
        )
        neighbour.pace(self.engine.processes.get(parent))

    def exec(self, parent: PID, ref: int, pid: PID, frame: wire.SpawnFrame) -> Finished:
        """Do what `Elsewhere.exec` does; raises as `spawn` does."""
        self._spawn(parent, pid, frame, watched=True)
        future: Finished = asyncio.get_running_loop().create_future()
        self._execs[pid] = ref, future
        future.add_done_callback(functools.partial(self._executed, parent, pid))
        return future

    def _executed(self, parent: PID, pid: PID, future: Finished) -> None:
        if self._execs.pop(pid, None) is not None and future.cancelled():
            self.signal(parent, pid, Signal.TERMINATE)

    def _spawned(self, neighbour: Neighbour, frame: PeerSpawnFrame) -> None:
        pid, parent = self.exchange.own(frame.pid), self.exchange.theirs(neighbour, frame.parent)
        try:
            check_entry(self.engine, frame.target)
            order = SpawnOrder(frame.target, bytes(frame.code), plain=True)
            self.engine.launch(pid, order, parent=parent)
        except (WsrelayError, ValueError) as error:
            end = not_started(error)
            self.exchange.node.starts.log_refusal(neighbour.pid, pid, frame.target, end)
            if frame.watched or frame.linked:
                self._tell(neighbour, pid, Result(error=end))
            return
        if frame.watched:
            self.engine.execute(self.kernel.observe(neighbour.pid, pid))
        if frame.linked:
            self._link(parent, pid)

    def started(self, pid: PID) -> asyncio.Future[str | None]:
        """Do what `Elsewhere.started` does."""
        neighbour = self._of(pid)

        def convert(answer: PeerFrame | ExitError) -> str | None:
            if isinstance(answer, ExitError):
                return f"target_pid {pid} is not alive: {answer.message}"
            return cast("str | None", opened(answer))

        return self.exchange.ask(neighbour, StartedFrame(0, str(pid)), convert)

    def _started(self, _: Neighbour, frame: StartedFrame) -> Any:
        return self.engine.started(self.exchange.own(frame.pid))

    # Signals

    def signal(
        self, sender: PID, to: PID, signal: Signal, reason: str = "", *, restarts: bool = False
    ) -> None:
        """Do what `Elsewhere.signal` does."""
        if (neighbour := self.exchange.of(to)) is None:
            return
        frame = PeerSignalFrame(str(to), str(sender), _SIGNALS[signal], reason, restarts)
        neighbour.way.send(frame)
        neighbour.pace(self.engine.processes.get(sender))

    def _signalled(self, neighbour: Neighbour, frame: PeerSignalFrame) -> None:
        to, sender = self.exchange.own(frame.to), self.exchange.theirs(neighbour, frame.sender)
        signal = Signal.CANCEL if frame.kind == "cancel" else Signal.TERMINATE
        self.router.ask(sender, to, signal, frame.reason, frame.restarts)

    # Relations, and ends

    def carry_out(self, effect: Effect) -> None:
        """Do what `Elsewhere.carry_out` does."""
        pid = effect.pid
        if (neighbour := self.exchange.of(pid)) is None:
            if isinstance(effect, WatchEffect | LinkEffect) and pid.node != self.engine.name:
                # It has gone between the question and this.
                self.engine.execute(self.kernel.gone(pid, Result(error=gone(str(pid.node)))))
            return
        match effect:
            case NotifyEffect():
                event = effect.event
                if event.result is not None:
                    self._tell_once(neighbour, event.sender, event.result)
                return
            case WatchEffect():
                if not effect.watched and pid in self._execs:
                    return  # its end is awaited by another way too
                neighbour.way.send(PeerWatchFrame(str(pid), effect.watched))
            case LinkEffect():
                if not effect.linked:
                    neighbour.unlinking[effect.other, pid] += 1
                neighbour.way.send(LinkFrame(str(pid), str(effect.other), effect.linked))
            case _:
                return
        neighbour.pace(self.engine.processes.get(effect.other))

    def _tell_once(self, neighbour: Neighbour, pid: PID, result: Result) -> None:
        """Tell a node of an end; all that is owed to it follows from the same end at once."""
        if result.error is None or result.error.kind is not ExitKind.NOPROC:
            if neighbour.told == pid:
                return
            neighbour.told = pid
        self._tell(neighbour, pid, result)

    def _tell(self, neighbour: Neighbour, pid: PID, result: Result) -> None:
        value, error = result.value, result.error
        data = cast("bytes", memoryview(value) if type(value) is Raw else payload.pack(value))
        size = len(data)
        if size > _RESULT and neighbour.way.backlog + size > _RESULTS:
            why = f"{show(_RESULTS)} wait for node {neighbour.node} already"
            left_out = ExitError(ExitKind.LIMIT, f"its result of {size} bytes is left out: {why}")
            data, error = _NOTHING, error or left_out
            error = ExitError(error.kind, shortened(error.message))
        neighbour.way.send(PeerExitedFrame(str(pid), data, told(error)))

    def _exited(self, neighbour: Neighbour, frame: PeerExitedFrame) -> None:
        pid = self.exchange.theirs(neighbour, frame.pid)
        error = None if frame.error is None else frame.error.told()
        result = Result(Raw(frame.value), error)
        self._finish(pid, wire.PackedResult(frame.value, error))
        self.engine.execute(self.kernel.gone(pid, result))

    def _finish(self, pid: PID, result: wire.PackedResult) -> None:
        if (waiting := self._execs.pop(pid, None)) is not None:
            ref, future = waiting
            if not future.done():
                future.set_result(wire.FinishedFrame(ref, result))

    def _watched(self, neighbour: Neighbour, frame: PeerWatchFrame) -> None:
        pid = self.exchange.own(frame.pid)
        if frame.watched:
            self.engine.execute(self.kernel.observe(neighbour.pid, pid))
        else:
            self.kernel.relations.unmonitor(neighbour.pid, pid)

    def _linked(self, neighbour: Neighbour, frame: LinkFrame) -> None:
        pid, other = self.exchange.own(frame.pid), self.exchange.theirs(neighbour, frame.other)
        if not frame.linked:
            self.kernel.relations.unlink(other, pid)
            neighbour.way.send(UnlinkedFrame(str(other), str(pid)))
        elif not neighbour.unlinking[pid, other]:
            self._link(other, pid)

    def _link(self, other: PID, pid: PID) -> None:
        """Link a process elsewhere, whose node bounds how many links it has, to one here."""
        if self.kernel.relations.count_links(pid) >= _MOST_LINKS:
            raise WireError(f"more than {_MOST_LINKS} processes are linked to {pid}")
        try:
            self.engine.execute(self.kernel.linked(other, pid))
        except TooMany as error:
            raise WireError(str(error)) from None

    def _unlinked(self, neighbour: Neighbour, frame: UnlinkedFrame) -> None:
        pair = self.exchange.own(frame.pid), self.exchange.theirs(neighbour, frame.other)
        if not neighbour.unlinking[pair]:
            raise WireError(f"{pair[0]} and {pair[1]} were not being unlinked")
        neighbour.unlinking[pair] -= 1
        if not neighbour.unlinking[pair]:
            del neighbour.unlinking[pair]

    def _down(self, neighbour: Neighbour) -> None:
        result = wire.PackedResult(_NOTHING, gone(neighbour.node))
        for pid in [pid for pid in self._execs if pid.node == neighbour.node]:
            self._finish(pid, result)

    def _of(self, pid: PID) -> Neighbour:
        """Return the node of a process that has just been found."""
        neighbour = self.exchange.of(pid)
        assert neighbour is not None  # noqa: S101 - see `Elsewhere`
        return neighbour


def check_entry(engine: Engine, target: str | None) -> None:
    """Raise `InvalidTarget` for what other nodes may not start here."""
    if target not in engine.entries:
        raise InvalidTarget(f"node {engine.name} has no entry {target!r:.200}")


def told(error: ExitError | None) -> wire.WorkerError | None:
    """Return an error as frames carry it."""
    if error is None:
        return None
    return wire.WorkerError(error.kind, error.message, error.traceback)
