"""The engine: carries out the kernel's effects, starts processes, and reports when they end.

Effects are carried out in order from one queue: what an exit causes comes after the exit, and never
in the middle of it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from sys import modules
from typing import Any, Final

from msgspec import Raw
from msgspec.structs import replace

from wsrelay import tracing, wire
from wsrelay.errors import HostFailed, HostFull, TooMany, UnknownHost
from wsrelay.kernel import (
    BreakEffect,
    Effect,
    ExitedEffect,
    Kernel,
    KillEffect,
    LaunchEffect,
    NotifyEffect,
    PresenceEffect,
    ProcessState,
    Signal,
    StartedEffect,
    StopEffect,
)
from wsrelay.template import worker_title
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.numbers import RETURNED
from wsrelay.values.pid import PID, PIDSource, base36
from wsrelay.values.printable import shortened
from wsrelay.values.sizes import show
from wsrelay.values.targets import TargetEntry
from wsrelay.wire import payload
from wsrelay.wire.logrecord import fields

from .elsewhere import Elsewhere
from .end_log import EndLog
from .endpoint import Endpoint
from .ends import EndRequest, Ends
from .fencing import Fencing
from .host import WORKER_LOG, Incarnation, Unfinished
from .mistake_log import MistakeLog
from .process import NamedOrder, SpawnOrder, WorkerProcess
from .stacks import stack_of
from .stall_actions import StallActions
from .stalls import Stalls
from .templates import Templates

__all__ = ["Engine", "FrameHandler"]

logger = logging.getLogger(__name__)

_LARGE_CODE: Final = 64 * 1024
_MOST_CODE: Final = 256 * 1024 * 1024
"""Bytes from which on one process's arguments count, and the most that may wait per parent."""

_TEMPLATE_START: Final = 10.0
"""Seconds that a template may take to begin loading, on a busy machine."""

_NOT_RUNNING_YET: Final = (ProcessState.WAITING, ProcessState.STARTING)

FrameHandler = Callable[[wire.FromWorker], Iterator[None] | None]
"""Handles a frame of a worker; long work is returned as an iterator, to be done step by step."""


class Engine:
    """The processes of a node, in one event loop.

    `endpoints` holds everything that can be addressed by a PID, `processes` the workers among them.
    The callbacks in `on_stop` are called when a process is asked to end, those in `on_exit` when it
    has ended, in order. `receiver` returns the handler of a process's frames.
    """

    def __init__(
        self, name: str, templates: Templates, entries: Mapping[str, TargetEntry], random: str
    ) -> None:
        self.name = name
        self.templates = templates
        self.numbers = templates.numbers
        self.entries = dict(entries)
        self.kernel = Kernel(templates.limits)
        self.unfinished = Unfinished()
        """Accounts for what workers have begun to write; kept apart from the clients' account,
        which workers could otherwise fill."""
        self.mistakes = MistakeLog()
        self._end_log = EndLog(self.mistakes)
        self.endpoints: dict[PID, Endpoint] = {}
        self.processes: dict[PID, WorkerProcess] = {}
        self.elsewhere = Elsewhere()
        """The processes of other nodes."""
        self.roomy: dict[str, str] = {}
        """For each host the other node where it has most room, unless that is this one."""
        self.draining = False
        """Whether nothing starts here; see `close`."""
        self._rejoins = False
        self.on_reopened: list[Callable[[], None]] = []
        self.on_stop: list[Callable[[WorkerProcess], None]] = []
        self.ends = Ends()
        """Those that ended last."""
        self.on_exit: list[Callable[[WorkerProcess, Result], None]] = [self.ends.add]
        self.when_ended: dict[PID, Callable[[Result], None]] = {}
        """What to call, once, when a process has ended; its owner takes care of ending it."""
        self.changed: Callable[[], None] = lambda: None
        """Called when a node that is shutting down may have less left to wait for."""
        self.fencing = Fencing(name, templates, self.processes, self.endpoints)
        self.stalls = Stalls(StallActions(self).found)
        self.receiver: Callable[[WorkerProcess], FrameHandler]
        self._random = random
        self._known: wire.CatalogFrame | None = None
        self._refs = itertools.count(1)
        self._effects: deque[Effect] = deque()
        self._executing = False

    # Effects

    def signal(
        self,
        pid: PID,
        signal: Signal,
        reason: str = "",
        *,
        sender: PID | None = None,
        because: ExitError | None = None,
        by: str = "",
    ) -> None:
        """Send a signal to a process; the arguments are those of `Kernel.signal`.

        `by` says who asks, if that is not the sender: an operator, for example.
        """
        if (
            (signal is Signal.CANCEL or signal is Signal.TERMINATE)
            and because is None
            and (endpoint := self.endpoints.get(pid)) is not None
            and ((asked := endpoint.asked) is None or asked.signal is Signal.CANCEL)
            and not (asked is not None and signal is Signal.CANCEL)
        ):
            endpoint.asked = EndRequest(signal, by or sender or "", reason)
            if signal is Signal.CANCEL and pid in self.processes:  # its names are freed by that
                process = self.processes[pid]
                process.names = [*self.kernel.names.of(pid)] or process.names
        self.execute(self.kernel.signal(pid, signal, reason=reason, sender=sender, because=because))

    def execute(self, effects: Iterable[Effect]) -> None:
        """Carry out effects, after those that are being carried out already.

        An exception of an effect is raised here, and the effects after it follow in the loop's next
        iteration.
        """
        self._effects.extend(effects)
        if self._executing:
            return
        self._executing = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._executing = False
            if self._effects:
                asyncio.get_running_loop().call_soon(self.execute, ())

    def _carry_out(self, effect: Effect) -> None:  # noqa: C901 - a flat table
        if isinstance(effect, ExitedEffect):
            if effect.pid in self.processes:
                self._on_exit(effect.pid, effect.result)
            return
        endpoint = self.endpoints.get(effect.pid)
        if endpoint is None:
            self.elsewhere.carry_out(effect)
            return
        match effect:
            case StartedEffect():
                self._on_start(self.processes[effect.pid])
            case StopEffect():
                endpoint.stop(effect.reason, effect.sender)
            case KillEffect():
                endpoint.kill()
            case NotifyEffect():
                endpoint.notify(effect.event)
            case BreakEffect():
                endpoint.break_link()
            case PresenceEffect():
                self.processes[effect.pid].show(effect)
            case LaunchEffect():
                self._launch_successor(self.processes[effect.pid])

    def _on_start(self, process: WorkerProcess) -> None:
        process.stop_timer()
        process.waiting_code = 0
        seconds = time.monotonic() - process.launched_at
        self.numbers.start_seconds[process.options.name].add(seconds)
        self._debug(process, f"runs, OS pid {process.os_pid}")
        if process.spans is not None:
            process.spans.started()
        process.tell_started(None)

    def _stopping(self, process: WorkerProcess) -> None:
        process.drains = self.draining
        process.tell_started(self.kernel.why_no_target(process.pid))
        for observer in self.on_stop:
            observer(process)

    def _exited(self, process: WorkerProcess, result: Result) -> None:
        """Handle the end of what ran a process, and so of the process itself."""
        process.names = [*self.kernel.names.of(process.pid)] or process.names  # freed below
        process.exited(functools.partial(self.about, process))
        self.execute(self.kernel.exited(process.pid, result))

    def _on_exit(self, pid: PID, result: Result) -> None:
        process = self.processes.pop(pid)
        process.result = Result(error=result.error)
        kind = RETURNED if result.error is None else result.error.kind.value
        self.numbers.ends[process.options.name, process.entry, kind] += 1
        if kind == ExitKind.HOST_FULL:  # it has waited for its name, and had no place then
            self.numbers.hit["max_processes"] += 1
        del self.endpoints[pid]
        if (spans := process.spans) is not None:
            spans.ended(result.error)
        if process.options.stall is not None:
            self.stalls.forget(process)
        if process.launched:
            about = self.about(process)
            self._end_log.ended(pid, result.error, about if spans is None else about | spans.ids)
        else:
            process.exited(functools.partial(self.about, process))
            self._end_log.never_started(pid, result.error, self.about(process))
        self.mistakes.forget(pid)
        if process.start_awaited:
            process.tell_started(self._why_not_started(process, result))
        for observer in self.on_exit:
            observer(process, result)
        if (callback := self.when_ended.pop(pid, None)) is not None:
            callback(_opened(result))
        self.changed()

    def abandon(self, process: WorkerProcess, error: ExitError) -> None:
        """Record the end of a process whose node has been closed, before this returns."""
        if process.launched:
            process.incarnation.abandoned(error)
        else:
            self.execute(self.kernel.exited(process.pid, Result(error=error)))

    def dismiss(self, pid: PID) -> None:
        """Cancel a process because the node shuts down, unless a companion will end it."""
        if pid not in self.when_ended:
            self.signal(pid, Signal.CANCEL, "node shuts down")

    def is_away(self, pid: PID) -> bool:
        """Whether it is a process of another node that is in the cluster."""
        return pid.node != self.name and self.elsewhere.find(pid) is not None

    # Starts

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry whose id the target is, None if it is not an entry's id."""
        if target is None or (entry := self.entries.get(target)) is None:
            return None
        return entry.host or self.templates.names[0]

    def ids(self, incarnation: Incarnation) -> PIDSource:
        """Return the source of the PIDs that a worker makes: each incarnation has its own."""
        return PIDSource(self.name, f"{self._random}.{base36(incarnation.ref)}")

    def launch(  # noqa: C901, PLR0917 - one piece, as the calls of a start are counted; internal, called by position from other threads
        self,
        pid: PID,
        order: SpawnOrder,
        name: str | None = None,
        parent: PID | None = None,
        monitored: bool = False,
        linked: bool = False,
        *,
        end_when_empty: float | None = None,
    ) -> PID:
        """Start a worker, or return the one that already has the name.

        `end_when_empty` is that of `WorkerProcess`, for one that is started. If a cancelled process
        still holds the name, the worker waits until that has ended. Raises `UnknownHost`;
        `HostFull`; `HostFailed` if the node is shutting down or the system has no descriptors left;
        and `TooMany` if too many of the parent's arguments wait already.
        """
        if name is not None and (there := self.kernel.names.get(name)) is not None:
            if (process := self.processes.get(there)) is not None:
                process.found = True
            return there
        if self.draining:
            raise HostFailed(self.why_closed)
        if parent is not None and len(order.code) > _LARGE_CODE:
            self._check_code(parent, len(order.code))
        try:
            effects = self.kernel.spawn(
                pid, name, parent=parent, monitored=monitored, linked=linked
            )
        except HostFull:
            self.numbers.hit["max_processes"] += 1
            raise
        target = order.target
        entry = target if target is not None and target in self.entries else ""
        options = self.templates.options[pid.host]
        self.numbers.starts[options.name, entry] += 1
        spans, otel = None, modules.get(tracing.OTEL)
        # `tracing.is_on` without the call:
        if otel and not isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider):
            from .spans import ProcessSpans  # noqa: PLC0415 - it needs OpenTelemetry

            spans = ProcessSpans(pid, order.shown, order.code)
            order = replace(order, code=spans.code)
        process = WorkerProcess(
            self.kernel.processes[pid],
            options,
            order,
            parent=parent,
            numbers=self.numbers,
            entry=entry,
            signal=self.signal,
            stopping=self._stopping,
            end_when_empty=end_when_empty,
            fenced=name is not None and self.fencing.is_cluster_name(name),
        )
        if spans is not None:
            process.spans = spans
        if process.fenced:
            self.fencing.begun(process)
        process.names = [*self.kernel.names.of(pid)]
        if effects:
            # Its launch is carried out here, so that the caller gets the error if it fails.
            try:
                self._launch(process)
            except HostFailed as error:
                self.kernel.exited(pid, Result())  # the caller learns of it from this error
                if spans is not None:
                    spans.ended(ExitError(ExitKind.START_FAILED, str(error)))
                raise
        else:
            former = self.kernel.names.awaited(pid)
            self._debug(process, f"waits until {former} has ended: {process.target}")
        self.processes[pid] = self.endpoints[pid] = process
        return pid

    # Names: what is returned has to be awaited if other nodes must be asked

    def get_or_spawn(self, order: NamedOrder) -> PID | Awaitable[PID]:
        """Return the process with the name, or start one under it; raises as `launch` does."""
        if self.elsewhere.decides(order.name) and self.kernel.names.get(order.name) is None:
            return self.elsewhere.get_or_spawn(order)
        return self.launch_named(order)

    def launch_named(self, order: NamedOrder) -> PID:
        """Do what `launch` does; raises `UnknownHost` too if the PID is one of another node."""
        self.check_here(order.pid)
        return self.launch(
            order.pid,
            order.order,
            order.name,
            order.parent,
            order.monitored,
            order.linked,
            end_when_empty=order.end_when_empty,
        )

    def check_here(self, pid: PID) -> None:
        """Raise `UnknownHost` if the PID of a process that is to start is one of another node."""
        if pid.node != self.name:
            raise UnknownHost(f"{pid.host}@{pid.node}", self.templates.names)

    def register(self, name: str, pid: PID, asker: PID | None = None) -> Awaitable[None] | None:
        """Give a name to a living process; raises as `Kernel.register` does."""
        if self.elsewhere.decides(name):
            return self.elsewhere.register(name, pid, asker)
        self.kernel.register(name, pid, asker)
        return None

    def unregister(self, name: str, asker: PID | None = None) -> Awaitable[None] | None:
        """Free a name; raises as `Kernel.unregister` does."""
        there = self.elsewhere.find(name)
        holds = asker is not None and self.kernel.names.holder(name) == asker
        if there is not None and not holds and self.kernel.names.get(name) is None:
            return self.elsewhere.unregister(name, there)
        self.execute(self.kernel.unregister(name, asker))
        return None

    def lookup(self, name: str) -> PID:
        """Return the process with that name, of any node; raises `NameNotFound`."""
        if (pid := self.kernel.names.get(name) or self.elsewhere.find(name)) is not None:
            return pid
        return self.kernel.names.lookup(name)

    def _check_code(self, parent: PID, size: int) -> None:
        """Raise `TooMany` if too many arguments of the parent's processes wait for their starts.

        What all of another node have asked for counts together: it may name any parents.
        """
        asker = self._asker(parent)
        mine = (one for one in self.processes.values() if self._asker(one.parent) == asker)
        if sum(process.waiting_code for process in mine) + size > _MOST_CODE:
            raise TooMany("arguments (of processes that have not started)", show(_MOST_CODE))

    def _asker(self, parent: PID | None) -> str | None:
        """Return for whom what a parent starts counts: itself, or its node if that is another."""
        node = None if parent is None else parent.node
        return parent if node in {None, self.name} else node

    def _launch_successor(self, process: WorkerProcess) -> None:
        """Launch a process that has waited for the one before it, under its host's options of now.

        It gets what has been kept for it.
        """
        kept, options = process.pipe, self.templates.options[process.pid.host]
        process.options, process.rights = options, options.rights
        try:
            self._launch(process)
        except HostFailed as error:
            failed = Result(error=ExitError(ExitKind.START_FAILED, str(error)))
            self.execute(self.kernel.exited(process.pid, failed))
        else:
            kept.hand_over(process.pipe)

    def _launch(self, process: WorkerProcess) -> None:
        """Have a process run by its host; raises `HostFailed`."""
        pid, order = process.pid, process.order
        assert order is not None  # noqa: S101 - it is launched once
        incarnation = self._incarnation(process)
        self._debug(process, f"starts: {process.target}")
        target = order.target
        if target is not None and (entry := self.entries.get(target)) is not None:
            target = entry.target
        incarnation.pipe.post(
            wire.StartFrame(
                str(pid),
                self.ids(incarnation).prefix,
                self._catalog(),
                target,
                order.code,
                logging.getLogger(WORKER_LOG).getEffectiveLevel(),
                worker_title(pid, process.names, process.target),
                order.plain,
                process.rights,
                process.end_when_empty,
            )
        )
        process.runs_as(incarnation)
        template = self.templates[pid.host]
        template.launch(incarnation)
        timeout = process.options.start_timeout
        if template.loading:
            # The template has its own timeout, and reports better why loading takes too long.
            timeout += _TEMPLATE_START + timeout
        process.signal_after(timeout, Signal.START_TIMEOUT)
        if process.options.stall is not None:
            self.stalls.watch(process, process.options.stall)

    def _incarnation(self, process: WorkerProcess) -> Incarnation:
        """Create what is to run a process; raises `HostFailed`."""
        return Incarnation(
            process.pid,
            next(self._refs),
            process.options,
            log=process.log,
            received=self.receiver(process),
            exited=functools.partial(self._exited, process),
            about=functools.partial(self.about, process),
            unfinished=self.unfinished,
            fenced=process.fenced,
        )

    def close(self, *, rejoins: bool = False) -> None:
        """Start nothing more: the node shuts down, or only `rejoins` its cluster (see `reopen`)."""
        self._rejoins = rejoins and (self._rejoins or not self.draining)
        self.draining = True

    def reopen(self) -> None:
        """Start processes again, if the node did not close to shut down."""
        if self._rejoins:
            self._rejoins = self.draining = False
            for observer in self.on_reopened:
                observer()

    @property
    def why_closed(self) -> str:
        """Why nothing starts here."""
        return f"node {self.name} {'joins its cluster again' if self._rejoins else 'shuts down'}"

    def reconfigure(self, entries: Mapping[str, TargetEntry]) -> None:
        """Use other entries and the current hosts, and tell all workers."""
        self.kernel.set_hosts(self.templates.limits)
        self.entries = dict(entries)
        self._tell_catalog()

    def prefer(self, roomy: Mapping[str, str]) -> None:
        """Start what is spawned in `host@*` on that node from now on; here if it has no such host.

        All workers are told if that is a change.
        """
        if roomy != self.roomy:
            self.roomy = dict(roomy)
            self._tell_catalog()

    def choose(self, host: str) -> str:
        """Return the node that starts what is spawned in `host@*`."""
        return self.roomy.get(host, self.name)

    def _tell_catalog(self) -> None:
        self._known = None
        catalog = self._catalog_frame()
        for process in self.processes.values():
            if process.launched:  # else it gets the catalog of the time when it starts
                process.pipe.post(catalog)

    def _catalog_frame(self) -> wire.CatalogFrame:
        entries = {name: entry.host for name, entry in self.entries.items()}
        return wire.CatalogFrame(
            self.templates.names, entries, self.roomy, self.elsewhere.shares_names
        )

    def _catalog(self) -> wire.CatalogFrame:
        """Return what each worker is told of the configuration, encoded once for all of them."""
        if self._known is None:
            self._known = wire.encoded(self._catalog_frame())
        return self._known

    async def started(self, pid: PID) -> str | None:
        """Wait until the process runs its handler; return why it cannot be a target, or None.

        Raises `HostFull` if the process waited for the one before it under its name, and its host
        had no place when that had ended.
        """
        process = self.processes.get(pid)
        if process is None or process.row.state not in _NOT_RUNNING_YET:
            return self.kernel.why_no_target(pid)
        problem = await asyncio.shield(process.wait_for_start())
        if isinstance(problem, HostFull):
            raise problem
        return problem

    def _why_not_started(self, process: WorkerProcess, result: Result) -> str | HostFull:
        error = result.error
        if error is None:
            why = "it returned at once" if process.launched else "it was cancelled while it waited"
        elif error.kind is ExitKind.HOST_FULL:
            return HostFull(process.pid.host, self.kernel.limit(process.pid.host))
        else:
            why = shortened(error.message)
        return f"target_pid {process.pid} is not alive: {why}"

    # What hangs

    async def stack(self, pid: PID) -> str:
        """Return the stacks of a process as text; raises `TimeoutError` if it shows none."""
        return await stack_of(self.processes[pid], self.names_of(self.processes[pid]))

    # The log

    def about(self, process: WorkerProcess) -> dict[str, Any]:
        """Return what is known of a process, as fields of a log record."""
        return fields(
            pid=process.pid,
            names=self.kernel.names.of(process.pid) or process.names,
            target=process.target,
            os_pid=process.os_pid,
            host=process.pid.host,
        )

    def names_of(self, process: WorkerProcess) -> Iterable[str]:
        """Return the names that a process has, or had at its end."""
        return self.kernel.names.of(process.pid) or process.names

    def about_pid(self, pid: PID) -> dict[str, Any]:
        """Return what is known of any process, perhaps of another node, as `about` does."""
        if (process := self.processes.get(pid)) is not None:
            return self.about(process)
        by = None if pid.node == self.name else self.name
        return fields(pid=pid, names=self.elsewhere.names_of(pid), host=pid.host, node=by)

    def _debug(self, process: WorkerProcess, what: str) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s %s", process.pid, what, extra=self.about(process))


def _opened(result: Result) -> Result:
    """Return the result with its value decoded, for a waiter in this process."""
    if type(result.value) is not Raw:
        return result
    try:
        return Result(payload.decode_bounded(bytes(result.value)), result.error)
    except (ValueError, RecursionError):
        return Result(None, result.error)
