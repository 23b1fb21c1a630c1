"""The node's side of one process host: its template process, and the channels to and from it.

A template runs user code, so nothing that it writes is trusted: each frame must be one that may
come at that point, and each process that it names must be its child. Otherwise the template counts
as lost. It writes to pipes because a socket can carry descriptors: that of a TCP connection with
SO_LINGER, whose peer does not read, would block the node's loop for hours when it is closed here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
import types
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final, NamedTuple

from wsrelay import wire
from wsrelay.confinement.cgroup import Cgroup, CgroupError, asked
from wsrelay.confinement.limits import memory_total_reached
from wsrelay.confinement.options import HostOptions
from wsrelay.errors import HostFailed, WireError
from wsrelay.template import guarded, guardian, preloading
from wsrelay.template import main as template
from wsrelay.values.bucket import Bucket
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.numbers import Numbers
from wsrelay.values.printable import shortened
from wsrelay.wire.logrecord import fields
from wsrelay.wire.pipe_pair import close_all
from wsrelay.wire.tally import TAKEN, TOOK, Tally, TallySheet

from .family import Family
from .incarnation import Incarnation
from .log import Intake
from .output import Output
from .stacks import Stacks

__all__ = ["ProcessHost"]

logger = logging.getLogger(__name__)

_PATIENCE: Final = 10.0
"""Seconds that a guardian gets to end everything that its template has left, where the event loop
is blocked; it takes 5 if the template does not end and something looks like a resource tracker."""

_CHUNK: Final = 16 * 1024
"""Bytes read from a template in one iteration of the event loop: 2 ms of the shortest frames."""

_LEAVING: Final = 64
"""Workers that have ended and are not reaped yet while as many as there may be run already."""

_TOO_LARGE: Final = 2**31
"""The least number that is too large for a process id."""

_LONGEST_REPORT: Final = 256 * 1024
"""Bytes of a stack; the user code's own output before it may be endless."""


class _Ends(NamedTuple):
    """The node's ends: requests to a template go to `control`, its frames come from `told`."""

    control: socket.socket
    told: int
    lifeline: socket.socket

    def close(self) -> None:
        self.control.close()
        os.close(self.told)
        self.lifeline.close()


class ProcessHost:
    """Starts the template when it is first needed, and again after it was lost.

    Every method must be called in the event loop's thread; only `loaded`, `join` and `reap` wait.
    """

    def __init__(self, options: HostOptions, numbers: Numbers | None = None) -> None:
        self.options = options
        self._loop = asyncio.get_running_loop()
        self._guardian: BaseProcess | None = None
        self._ending: list[BaseProcess] = []
        """Guardians that were released and may still be ending."""
        self._lifeline: socket.socket | None = None
        self._dying: list[_Ends] = []
        """The channels of templates that are being killed."""
        self._family: Family | None = None
        """The template's identity; unknown until the guardian has reported it."""
        self._control: socket.socket | None = None
        self._told = self._report = -1
        self._reader = wire.from_template()
        self._sheet: TallySheet | None = None
        """Where the workers of the present template note what they have taken."""
        self._lines: list[tuple[int, Tally]] = []
        """Some of its lines that are free, with their numbers."""
        self._stacks: Stacks | None = None
        self._workers: dict[int, Incarnation] = {}
        self._pending: deque[Incarnation] = deque()
        self._asked: set[int] = set()
        """Workers requested from the template that it has not answered for."""
        self._forks = Bucket(options.spawn_rate, max(1.0, options.spawn_rate))
        self._next_fork: asyncio.TimerHandle | None = None
        self._numbers = numbers or Numbers()
        self._log = Intake(f"process host {options.name}:", options.log_rate, self._numbers)
        self._output: Output | None = None
        self._out: deque[tuple[bytes, Incarnation | None]] = deque()
        """Frames, each with the worker whose ends of the pipes go along with it."""
        self._reads_on = False
        self._loading: asyncio.Future[None] | None = None
        self._deadline: int | None = None
        self._not_begun: list[Incarnation] = []
        """Fenced workers that were forked after the deadline: they begin in time again."""
        self._retiring = False
        self._retired: asyncio.Task[None] | None = None
        self._cgroup: Cgroup | None = None
        self._removals: set[asyncio.Future[None]] = set()
        """Removals under way: the cgroups of templates that failed or were lost."""

    def start(self) -> None:
        """Start the template unless it is running; raises `HostFailed` if the system refuses."""
        if self._control is not None:
            return
        try:
            # Its readers, and so those of its workers, run in the context of this call for good,
            # which must not be that of the request that happens to come first.
            Context().run(self._start)
        except CgroupError as error:
            raise HostFailed(f"the limits of the host as a whole cannot be kept: {error}") from None
        except OSError as error:
            raise HostFailed(f"the template cannot be started: {_reason(error)}") from None

    def _start(self) -> None:
        for process in [one for one in self._ending if not one.is_alive()]:
            process.close()
            self._ending.remove(process)
        context = multiprocessing.get_context("spawn")
        with (
            _as_a_plain_process(),
            contextlib.ExitStack() as given,
            contextlib.ExitStack() as undo,
        ):
            if asked(self.options.limits):
                self._cgroup = Cgroup(self.options.name, self.options.limits)
                undo.callback(self._cgroup.remove)
            control, its_control = _pair(undo, given)
            control.shutdown(socket.SHUT_RD)
            told, telling = _pipe(undo, given)
            report, its_report = _pipe(undo, given)
            os.set_blocking(its_report.fileno(), False)
            lifeline, its_lifeline = _pair(undo, given)
            workers = self.options.max_processes + _LEAVING
            sheet = self._sheet = TallySheet.make(workers)
            undo.callback(sheet.close)
            tallies = given.enter_context(Connection(os.dup(sheet.fileno()), readable=False))
            output = None
            if not self.options.raw_output:
                self._output = Output(self._log, self.options.log_rate, self._about)
                undo.callback(self._output.finish)
                output = given.enter_context(Connection(self._output.writing, readable=False))
            process = context.Process(
                target=template.main,
                args=(its_control, telling, its_report, its_lifeline, self.options),
                kwargs={
                    "output": output,
                    "tallies": tallies,
                    "lines": sheet.lines,
                    "log_level": logging.getLogger("wsrelay").getEffectiveLevel(),
                    "cgroup_folder": self._cgroup and self._cgroup.folder,
                },
                name=f"wsrelay {self.options.name}",
            )
            process.start()
            undo.pop_all()
        self._guardian = process
        self._stacks = Stacks(sheet)
        self._connect(control, told, report, lifeline)

    def _connect(
        self, control: socket.socket, told: int, report: int, lifeline: socket.socket
    ) -> None:
        """Begin to talk to a template and its guardian."""
        for one in (control.fileno(), told, report, lifeline.fileno()):
            os.set_blocking(one, False)
        self._control, self._told, self._report, self._lifeline = control, told, report, lifeline
        self._reader = wire.from_template()
        self._loading = self._loop.create_future()
        # Possibly nobody awaits it; every worker that was to start is told of the failure.
        self._loading.add_done_callback(lambda future: future.exception())
        self._loop.add_reader(told, self._readable)
        self._loop.add_reader(lifeline, self._guardian_told)
        if self._deadline is not None:
            self._order(guardian.DEADLINE, self._deadline)

    async def loaded(self) -> None:
        """Wait until the template has preloaded everything; raises `HostFailed`."""
        self.start()
        assert self._loading is not None  # noqa: S101 - start() made it
        await asyncio.shield(self._loading)

    @property
    def loading(self) -> bool:
        """Whether the template has been started and is not ready to fork yet."""
        return self._loading is not None and not self._loading.done()

    @property
    def os_pid(self) -> int | None:
        """The template's process id."""
        return self._family.template if self._family is not None else None

    def launch(self, worker: Incarnation) -> None:
        """Have the worker forked as soon as the template is ready."""
        try:
            self.start()
        except HostFailed as error:
            failed = ExitError(ExitKind.START_FAILED, str(error))
            self._loop.call_soon(worker.failed, failed)
            return
        self._workers[worker.ref] = worker
        worker.limits = self.options.limits
        worker.kill_by_host = lambda: self._kill(worker)
        worker.interrupt_by_host = lambda: self._tell(wire.InterruptFrame(worker.ref))
        worker.fence_by_host = lambda: self._tell_fenced(worker)
        assert self._loading is not None  # noqa: S101 - start() made it
        self._pending.append(worker)
        if self._loading.done() and self._next_fork is None:
            self._launch_pending()

    def _launch_pending(self) -> None:
        """Have as many forked as the rate allows, and come back for the others."""
        self._next_fork = None
        while self._pending:
            if wait := self._forks.take(self._loop.time()):
                self._numbers.hit["spawn_rate"] += 1
                self._next_fork = self._loop.call_later(wait, self._launch_pending)
                return
            worker = self._pending.popleft()
            worker.stacks = self._stacks
            self._lines = self._lines or self._free_lines()
            if self._lines:
                worker.line, worker.tally = self._lines.pop()
                worker.tally[TAKEN] = worker.tally[TOOK] = 0
            self._tell(wire.ForkFrame(worker.ref, worker.line), worker)

    def _free_lines(self) -> list[tuple[int, Tally]]:
        """Return the lines of the sheet that no worker has: those of who has ended come back so."""
        sheet = self._sheet
        if sheet is None or len(self._workers) > sheet.lines:
            return []
        taken = {worker.line for worker in self._workers.values()}
        free = [line for line in range(sheet.lines) if line not in taken]
        return [(line, sheet.line(line)) for line in reversed(free)]

    def freeze_deadline(self, monotonic_ns: int) -> None:
        """Set the time from which on the fenced workers are stopped, until a later one is set.

        The guardian does it, so it is done even if this process and the template are stopped.
        """
        self._deadline = monotonic_ns
        self._order(guardian.DEADLINE, monotonic_ns)
        if time.monotonic_ns() < monotonic_ns:
            begin, self._not_begun = self._not_begun, []
            for worker in begin:
                worker.pipe.open()

    def _tell_fenced(self, worker: Incarnation) -> None:
        assert worker.os_pid is not None  # noqa: S101 - it calls this once it has been forked
        self._order(guardian.FENCE if worker.fenced else guardian.UNFENCE, worker.os_pid)
        if not worker.fenced and worker in self._not_begun:
            self._not_begun.remove(worker)
            worker.pipe.open()

    def _order(self, code: bytes, number: int = 0) -> None:
        """Give the guardian an order, which is as good as carried out: it does nothing else."""
        if self._lifeline is None:
            return
        try:
            self._lifeline.send(guardian.order(code, number))
        except BlockingIOError:  # hundreds of orders are unread
            self._lost(killed="its guardian was stopped")
        except OSError:
            pass  # the guardian is gone, and all its processes with it, as the next read will show

    def _kill(self, worker: Incarnation) -> None:
        if worker.os_pid is not None:
            self._tell(wire.KillFrame(worker.ref))
            return
        unsent = [entry for entry in self._out if entry[1] is worker]
        if worker in self._pending:
            self._pending.remove(worker)
            del self._workers[worker.ref]
        elif unsent:
            self._out.remove(unsent[0])
            del self._workers[worker.ref]
        # Otherwise the template is about to fork it, or stalled: the fork is killed when reported.
        worker.failed(ExitError(ExitKind.KILLED, "SIGKILL"))

    def close(self, *, at_once: bool = False) -> None:
        """Release the template: it ends, and its guardian kills everything that it has left.

        With `at_once` the template is killed too, as it always is if it has not loaded yet.
        """
        if self._next_fork is not None:
            self._next_fork.cancel()
        if self._control is not None and self._lifeline is not None:
            self._loop.remove_reader(self._told)
            self._loop.remove_writer(self._control)
            self._end_output()
            self._loop.remove_reader(self._lifeline)
        for ends in self._dying:
            self._loop.remove_reader(ends.lifeline)
        self._let_go(at_once=at_once)
        for ends in self._dying:
            self._loop.add_reader(ends.lifeline, self._forget, ends)
        self._out.clear()
        self._asked.clear()
        self._not_begun.clear()
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(HostFailed("the process host was closed"))

    def retire(self) -> None:
        """End as soon as the last worker has; no more may be launched."""
        self._retiring = True
        self._workers_changed()

    @property
    def over(self) -> bool:
        """Whether no template is left."""
        return self._guardian is None and not self._ending

    def _workers_changed(self) -> None:
        if self._retiring and not self._workers and self._retired is None:
            self.close()
            self._retired = self._loop.create_task(self.join(10))

    def abandon(self) -> None:
        """Release the template when the interpreter exits, or its event loop has ended."""
        self._let_go()
        if self._output is not None:
            self._output.abandon()

    def _let_go(self, *, at_once: bool = False) -> None:
        for ends in self._dying:
            ends.close()
        self._dying.clear()
        self._close_report()
        if self._control is not None and self._lifeline is not None:
            ends = _Ends(self._control, self._told, self._lifeline)
            try:
                if at_once:
                    self._lifeline.send(guardian.order(guardian.AT_ONCE))
            except OSError:
                at_once = False
            if self._sheet is not None:
                self._sheet.close()
                self._sheet = self._stacks = None
                self._lines = []
            if at_once:
                # Kept open: what still writes is to be killed, not warned by an error first.
                self._dying.append(ends)
            else:
                ends.close()
            self._control = self._lifeline = self._family = None
        if self._guardian is not None:
            assert self._guardian.pid is not None  # noqa: S101 - it was started
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._guardian.pid, signal.SIGCONT)  # a stopped one would end nothing
            self._ending.append(self._guardian)
            self._guardian = None

    def _close_report(self) -> None:
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    def _forget(self, killed: _Ends) -> None:
        self._loop.remove_reader(killed.lifeline)
        self._dying.remove(killed)
        killed.close()

    def reap(self) -> None:
        """Wait for the template to end after `abandon`, where no event loop can: about 10 ms."""
        for process in self._ending:
            process.join(_PATIENCE)
            self._reaped(process)
        self._ending.clear()
        self._remove_cgroup()

    def _remove_cgroup(self) -> None:
        if self._cgroup is not None:
            self._cgroup.remove()
            self._cgroup = None

    def _out_of_memory(self) -> bool:
        """Whether the system has killed something for `memory_total` since the last call."""
        return self._cgroup is not None and self._cgroup.out_of_memory()

    async def join(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Wait for the template to end after `close`."""
        if self._retired is not None and self._retired is not asyncio.current_task():
            await self._retired
        for process in self._ending:
            await asyncio.to_thread(process.join, timeout)
            self._reaped(process)
        self._ending.clear()
        if self._cgroup is not None:
            await asyncio.to_thread(self._remove_cgroup)
        await asyncio.gather(*self._removals)

    def _reaped(self, process: BaseProcess) -> None:
        if process.is_alive():
            # Not killed: nobody else would end what it has not ended yet. It goes on, unwaited for.
            logger.error(
                "process host %s: programs that its processes started have not ended; OS process "
                "%d goes on killing them",
                self.options.name,
                process.pid,
            )
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # noqa: SLF001 - its exit would wait
        else:
            process.close()

    def _about(self) -> dict[str, Any]:
        return fields(host=self.options.name, os_pid=self.os_pid)

    def _end_output(self) -> None:
        """Log the last of what it has printed."""
        if self._output is not None:
            self._output.finish()
            self._output.tell_crash()
            self._output = None
        self._log.end(self._about)

    # Out

    def _tell(self, frame: wire.Frame, worker: Incarnation | None = None) -> None:
        self._out.append((wire.pack(frame), worker))
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        if self._control is None:
            return
        try:
            while self._out:
                data, worker = self._out[0]
                if worker is None:
                    sent = self._control.send(data)
                else:
                    sent = socket.send_fds(self._control, [data], worker.worker_end.filenos())
                    worker.worker_end.close()
                    self._asked.add(worker.ref)
                if sent < len(data):
                    self._out[0] = data[sent:], None
                else:
                    self._out.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._control, self._flush)
            return
        except OSError:
            self._out.clear()  # the template is gone, as the next read will show
        self._loop.remove_writer(self._control)

    # In

    def _guardian_told(self) -> None:
        """Read the template's identity from the guardian, or find the guardian gone."""
        if self._lifeline is None or self._guardian is None:
            return
        try:
            told = guarded.told(self._lifeline)
        except (EOFError, OSError):
            self._lost("")
            return
        if told is not None:
            user = None if self.options.isolation.user is None else told.user
            self._family = Family(told.pid, self._guardian.pid or 0, user)

    def _readable(self) -> None:
        # To the last byte: libuv calls only once for data and the end together (it stops polling at
        # a hangup). In turns, because of templates that never stop writing.
        if not self._reads_on:
            self._read_on()

    def _read_on(self) -> None:
        self._reads_on = self._control is not None and self._read()
        if self._reads_on:
            self._loop.call_soon(self._read_on)

    def _read(self) -> bool:
        """Read what the template wrote; False when there is nothing more for now."""
        control = self._control
        assert control is not None  # noqa: S101 - it is being read
        try:
            data = os.read(self._told, _CHUNK)
        except BlockingIOError:
            return False
        printed = self._output.total if self._output is not None else 0
        try:
            for frame, _ in self._reader.feed(data):
                self._receive(frame, printed)
                if self._control is not control:
                    return False  # that frame ended it
            if self._reader.partial:
                self._reader.feed(b"")  # raises where more bytes would not make it a frame
        except WireError as error:
            self._lost(str(error))
            return False
        if not data:
            self._lost("")
        return bool(data)

    def _receive(self, frame: wire.FromTemplate, printed: int) -> None:
        """Do what the frame says; raises `WireError` for a frame that cannot be true."""
        assert self._loading is not None  # noqa: S101 - start() made it
        match frame:
            case wire.LogFrame():
                if self._output is not None:
                    self._output.read_to(printed + frame.printed)
                self._log.take(frame, self._about)
            case wire.LoadedFrame() if not self._loading.done():
                self._guardian_told()  # written earlier, but possibly not read yet
                if not self._loading.done():
                    self._obeys()
                    self._close_report()
                    self._loading.set_result(None)
                    self._launch_pending()
            case wire.LoadFailedFrame() if not self._loading.done():
                self._obeys()
                self._fail(HostFailed(frame.message, frame.details))
            case wire.ForkedFrame() if frame.ref in self._asked:
                self._asked.discard(frame.ref)
                self._forked(self._workers[frame.ref], frame)
            case wire.ForkFailedFrame() if frame.ref in self._asked:
                self._asked.discard(frame.ref)
                worker = self._workers.pop(frame.ref)
                worker.failed(ExitError(ExitKind.START_FAILED, frame.message))
                self._workers_changed()
            case wire.ExitedFrame() if frame.ref in self._workers and self._may_have_ended(
                frame.ref
            ):
                worker = self._workers.pop(frame.ref)
                if self._out_of_memory() and frame.code == -signal.SIGKILL:
                    worker.out_of_memory()
                worker.reaped(frame.code)
                self._workers_changed()
            case _:
                raise WireError(f"{shortened(repr(frame), 200)} answers no request of the node's")

    def _obeys(self) -> None:
        """Tell the guardian that from now on the template does only what the node requests."""
        self._order(guardian.OBEYS)

    def _may_have_ended(self, ref: int) -> bool:
        worker = self._workers[ref]
        return worker.os_pid is not None and not worker.runs

    def _forked(self, worker: Incarnation, frame: wire.ForkedFrame) -> None:
        if not 0 < frame.os_pid < _TOO_LARGE:
            raise WireError(f"{frame.os_pid} is not the id of an OS process")
        pidfd = None
        if frame.has_pidfd:
            with contextlib.suppress(AttributeError, OSError):  # it has ended, or our table is full
                pidfd = os.pidfd_open(frame.os_pid)
        if self._family is None or not self._family.has(frame.os_pid, pidfd):
            close_all([pidfd])
            raise WireError(f"OS process {frame.os_pid} is not its child, or not of its user")
        worker.forked(frame.os_pid, pidfd)
        if worker.fenced:
            self._tell_fenced(worker)
            if self._deadline is not None and time.monotonic_ns() >= self._deadline:
                self._not_begun.append(worker)
                return
        if worker.pipe.is_shut:
            worker.pipe.open()

    def _fail(self, error: HostFailed, *, at_once: bool = False) -> None:
        """Give up on this template; the next launch tries a new one."""
        self._close_with(error, at_once=at_once)
        workers, self._workers, self._pending = self._workers, {}, deque()
        if workers:  # otherwise whoever waits in `loaded` reports it
            details = f"\n{error.details}" if error.details else ""
            logger.error("process host %s cannot start: %s%s", self.options.name, error, details)
        for worker in workers.values():
            worker.failed(ExitError(ExitKind.START_FAILED, str(error), error.details or None))

    def _close_with(self, error: HostFailed, *, at_once: bool = False) -> None:
        """Close, and tell those who wait for the template why."""
        loading = self._loading
        if loading is not None and not loading.done():
            loading.set_exception(error)
        self.close(at_once=at_once)
        if self._cgroup is not None:
            removal = self._loop.run_in_executor(None, self._cgroup.remove, _PATIENCE)
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
            self._cgroup = None

    def _lost(self, lie: str = "", killed: str = "") -> None:
        """Handle the template's death, or have it killed for what it wrote, or another reason."""
        if lie:
            killed = f"it wrote what no template writes: {lie}"
        if self._loading is not None and not self._loading.done():
            self._fail(HostFailed(killed) if killed else self._why_lost(), at_once=True)
            return
        out_of_memory = self._out_of_memory()
        why = f": {memory_total_reached(self.options.limits)}" if out_of_memory else ""
        how = f", and is killed: {killed}" if killed else why
        logger.error("the template of process host %s was lost%s", self.options.name, how)
        self._close_with(HostFailed(f"the process host's template was lost{why}"), at_once=True)
        workers, self._workers, self._pending = self._workers, {}, deque()
        for worker in workers.values():
            if out_of_memory:
                worker.out_of_memory()
            worker.template_lost()

    def _why_lost(self) -> HostFailed:
        """Say why the template ended while it loaded."""
        if self._out_of_memory():
            reached = memory_total_reached(self.options.limits)
            return HostFailed(f"{reached} while it was preloading; raise `memory_total`")
        report = b""
        with contextlib.suppress(OSError):  # a process that it started may hold the other end
            while len(report) < _LONGEST_REPORT and (data := os.read(self._report, 65536)):
                report += data
        return preloading.why_lost(report, self.options.start_timeout)


def _pair(
    undo: contextlib.ExitStack, given: contextlib.ExitStack
) -> tuple[socket.socket, socket.socket]:
    """Make two sockets: the node's (closed by `undo`), and one that is handed over (`given`)."""
    ours, theirs = socket.socketpair()
    undo.callback(ours.close)
    return ours, given.enter_context(theirs)


def _pipe(undo: contextlib.ExitStack, given: contextlib.ExitStack) -> tuple[int, Connection]:
    """Make a pipe: its reading end is the node's (closed by `undo`), the other is handed over."""
    reading, writing = os.pipe()
    undo.callback(os.close, reading)
    return reading, given.enter_context(Connection(writing, readable=False))


def _reason(error: OSError) -> str:
    try:
        os.getcwd()  # noqa: PTH109 - what multiprocessing does, and raises
    except FileNotFoundError:
        return "the current folder was removed"
    return error.strerror or str(error)


@contextlib.contextmanager
def _as_a_plain_process() -> Iterator[None]:
    """Let multiprocessing start a child as if this process were an ordinary one.

    `__main__` is hidden, or multiprocessing would run it again in the child. A daemonic process,
    such as a worker of hypercorn's, may not have children, and they would inherit the flag.
    """
    main = sys.modules["__main__"]
    config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]  # noqa: SLF001
    daemon = config.pop("daemon", None)
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if daemon is not None:
            config["daemon"] = daemon
