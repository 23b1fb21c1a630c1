"""The node's side of one process host: its template process and the control socket to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import types
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from wsrelay import wire
from wsrelay.bucket import Bucket
from wsrelay.duplex import Duplex, close_all
from wsrelay.errors import HostFailed, WireError
from wsrelay.logrecord import fields
from wsrelay.message import ExitError, ExitKind

from . import preloading, template
from .cgroup import Cgroup, CgroupError, asked
from .limits import memory_total_reached
from .log import Intake
from .options import HostOptions
from .output import Output
from .worker import Worker

__all__ = ["ProcessHost"]

logger = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that a template gets to end before it is killed, where the event loop is held up."""


class ProcessHost:
    """Starts the template when it is first needed, and again when it was lost.

    Every method belongs to the event loop's thread; none waits but `loaded` and `join`.
    """

    def __init__(self, options: HostOptions) -> None:
        self.options = options
        self._loop = asyncio.get_running_loop()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._control: socket.socket | None = None
        self._reader = wire.from_template()
        self._descriptors: list[int | None] = []
        self._workers: dict[int, Worker] = {}
        self._pending: deque[Worker] = deque()
        self._forks = Bucket(options.spawn_rate, max(1.0, options.spawn_rate))
        self._next_fork: asyncio.TimerHandle | None = None
        self._log = Intake(f"process host {options.name}:", options.log_rate)
        self._output: Output | None = None
        self._out: deque[tuple[bytes, Duplex | None]] = deque()
        self._loading: asyncio.Future[None] | None = None
        self._retiring = False
        self._retired: asyncio.Task[None] | None = None
        self._cgroup: Cgroup | None = None
        self._removals: set[asyncio.Future[None]] = set()
        """The ends of the cgroups of templates that failed or were lost."""

    def start(self) -> None:
        """Start the template unless it runs; raises `HostFailed` if the system refuses."""
        if self._control is not None:
            return
        try:
            self._start()
        except CgroupError as error:
            raise HostFailed(f"the limits of the host as a whole cannot be kept: {error}") from None
        except OSError as error:
            raise HostFailed(f"the template cannot be started: {_reason(error)}") from None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        with (
            _as_a_plain_process(),
            contextlib.ExitStack() as given,
            contextlib.ExitStack() as undo,
        ):
            if asked(self.options.limits):
                self._cgroup = Cgroup(self.options.name, self.options.limits)
                undo.callback(self._cgroup.remove)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            given.enter_context(theirs)
            self._report, report = socket.socketpair()
            undo.callback(self._report.close)
            given.enter_context(report).setblocking(False)
            output = None
            if not self.options.raw_output:
                self._output = Output(self._log, self.options.log_rate, self._about)
                undo.callback(self._output.finish)
                output = given.enter_context(Connection(self._output.writing, readable=False))
            process = context.Process(
                target=template.main,
                args=(theirs, report, self.options),
                kwargs={
                    "output": output,
                    "node": os.getpid(),
                    "log_level": logging.getLogger("wsrelay").getEffectiveLevel(),
                    "cgroup_folder": self._cgroup and self._cgroup.folder,
                },
                name=f"wsrelay {self.options.name}",
            )
            process.start()
            undo.pop_all()
        self._process = process
        ours.setblocking(False)
        self._report.setblocking(False)
        self._control = ours
        self._reader = wire.from_template()
        self._loading = self._loop.create_future()
        # Nobody may wait for it; the failure is told to every worker that was to start.
        self._loading.add_done_callback(lambda future: future.exception())
        self._loop.add_reader(ours, self._readable)

    async def loaded(self) -> None:
        """Wait until the template has preloaded everything; raises `HostFailed`."""
        self.start()
        assert self._loading is not None  # noqa: S101 - start() made it
        await asyncio.shield(self._loading)

    @property
    def loading(self) -> bool:
        """Whether the template is there and not ready to fork."""
        return self._loading is not None and not self._loading.done()

    @property
    def os_pid(self) -> int | None:
        """The template's process id."""
        return self._process.pid if self._process is not None and self._control else None

    def launch(self, worker: Worker) -> None:
        """Have the worker forked, as soon as the template is ready."""
        try:
            self.start()
        except HostFailed as error:
            failed = ExitError(ExitKind.START_FAILED, str(error))
            self._loop.call_soon(worker.failed, failed)
            return
        self._workers[worker.ref] = worker
        worker.limits = self.options.limits
        worker.kill_by_host = lambda: self._kill(worker)
        worker.interrupt_by_host = lambda: self._tell(wire.Interrupt(worker.ref))
        assert self._loading is not None  # noqa: S101 - start() made it
        self._pending.append(worker)
        if self._loading.done() and self._next_fork is None:
            self._launch_pending()

    def _launch_pending(self) -> None:
        """Have forked as many as the rate lets, and come back for the others."""
        self._next_fork = None
        while self._pending:
            if wait := self._forks.take(self._loop.time()):
                self._next_fork = self._loop.call_later(wait, self._launch_pending)
                return
            worker = self._pending.popleft()
            self._tell(wire.Fork(worker.ref), worker.worker_end)

    def _kill(self, worker: Worker) -> None:
        if worker.os_pid is not None:
            self._tell(wire.Kill(worker.ref))
            return
        unsent = [entry for entry in self._out if entry[1] is worker.worker_end]
        if worker in self._pending:
            self._pending.remove(worker)
            del self._workers[worker.ref]
        elif unsent:
            self._out.remove(unsent[0])
            del self._workers[worker.ref]
        # Else the template is about to fork it, or stalled: the fork is killed when it is told of.
        worker.failed(ExitError(ExitKind.KILLED, "SIGKILL"))

    def close(self) -> None:
        """Let go of the template: it kills all that it has and ends."""
        self._kill_if_loading()
        if self._next_fork is not None:
            self._next_fork.cancel()
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._loop.remove_writer(self._control)
            self._end_output()
            self._control.close()
            self._control = None
            self._report.close()
        close_all(self._descriptors)
        self._descriptors.clear()
        self._out.clear()
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(HostFailed("the process host was closed"))

    def retire(self) -> None:
        """End as soon as the last of the workers has; no more are to be launched."""
        self._retiring = True
        self._workers_changed()

    @property
    def over(self) -> bool:
        """Whether there is no template."""
        return self._process is None

    def _workers_changed(self) -> None:
        if self._retiring and not self._workers and self._retired is None:
            self.close()
            self._retired = self._loop.create_task(self.join(10))

    def abandon(self) -> None:
        """Let go of the template at the exit of the interpreter, or of its event loop."""
        self._kill_if_loading()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._output is not None:
            self._output.abandon()
        close_all(self._descriptors)
        self._descriptors.clear()

    def reap(self) -> None:
        """Wait for the end of the template after `abandon`, where no event loop can: some 10 ms."""
        if self._process is not None:
            self._process.join(_PATIENCE)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process.close()
            self._process = None
        self._remove_cgroup()

    def _remove_cgroup(self) -> None:
        if self._cgroup is not None:
            self._cgroup.remove()
            self._cgroup = None

    def _out_of_memory(self) -> bool:
        """Whether the system has killed something for `memory_total` since this was last asked."""
        return self._cgroup is not None and self._cgroup.out_of_memory()

    def _kill_if_loading(self) -> None:
        """Do not wait for the end of user code that is being preloaded."""
        if self._process is not None and self.loading:
            self._process.kill()

    async def join(self, timeout: float) -> None:  # noqa: ASYNC109 - bounds a thread
        """Wait for the end of the template after `close`."""
        if self._retired is not None and self._retired is not asyncio.current_task():
            await self._retired
        if self._process is not None:
            await asyncio.to_thread(self._process.join, timeout)
            if self._process.is_alive():
                logger.error("template %s does not end and is killed", self._process.pid)
                self._process.kill()
                await asyncio.to_thread(self._process.join, timeout)
            self._process.close()
            self._process = None
        if self._cgroup is not None:
            await asyncio.to_thread(self._remove_cgroup)
        await asyncio.gather(*self._removals)

    def _about(self) -> dict[str, Any]:
        return fields(host=self.options.name, os_pid=self.os_pid)

    def _end_output(self) -> None:
        """Log what it has printed last."""
        if self._output is not None:
            self._output.finish()
            self._output.tell_crash()
            self._output = None
        self._log.end(self._about)

    # Out

    def _tell(self, frame: wire.Frame, ends: Duplex | None = None) -> None:
        self._out.append((wire.pack(frame), ends))
        if len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        if self._control is None:
            return
        try:
            while self._out:
                data, carried = self._out[0]
                if carried is None:
                    sent = self._control.send(data)
                else:
                    sent = socket.send_fds(self._control, [data], carried.filenos())
                    carried.close()
                if sent < len(data):
                    self._out[0] = data[sent:], None
                else:
                    self._out.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._control, self._flush)
            return
        except OSError:
            self._out.clear()  # the template is gone, which shows at the next read
        self._loop.remove_writer(self._control)

    # In

    def _readable(self) -> None:
        # To the last byte: a template that died with frames unread leaves an error behind its own
        # frames, and libuv calls once for both (it stops polling at an error).
        while self._control is not None and self._read():
            pass

    def _read(self) -> bool:
        """Take in what the template wrote; False when there is nothing more for now."""
        assert self._control is not None  # noqa: S101 - it is being read
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._control, 65536, 64)
            self._descriptors += descriptors
            if flags & socket.MSG_CTRUNC:
                self._descriptors.append(None)  # there was no room for it in our table
            frames = [frame for frame, _ in self._reader.feed(data)]
        except BlockingIOError:
            return False
        except (OSError, WireError):
            data, frames = b"", []
        printed = self._output.total if self._output is not None else 0
        for frame in frames:
            self._receive(frame, printed)
        if not data:
            self._lost()
        return bool(data)

    def _receive(self, frame: wire.FromTemplate, printed: int) -> None:
        assert self._loading is not None  # noqa: S101 - start() made it
        match frame:
            case wire.Loaded():
                self._report.close()
                self._loading.set_result(None)
                self._launch_pending()
            case wire.LoadFailed():
                self._fail(HostFailed(frame.message, frame.details))
            case wire.Forked():
                pidfd = self._descriptors.pop(0) if frame.has_pidfd else None
                self._workers[frame.ref].forked(frame.os_pid, pidfd)
            case wire.ForkFailed():
                worker = self._workers.pop(frame.ref)
                worker.failed(ExitError(ExitKind.START_FAILED, frame.message))
                self._workers_changed()
            case wire.Log():
                if self._output is not None:
                    self._output.read_to(printed + frame.printed)
                self._log.take(frame, self._about)
            case wire.Exited():
                worker = self._workers.pop(frame.ref)
                if self._out_of_memory() and frame.code == -signal.SIGKILL:
                    worker.out_of_memory()
                worker.reaped(frame.code)
                self._workers_changed()

    def _fail(self, error: HostFailed) -> None:
        """Give up on this template; the next launch tries a new one."""
        self._close_with(error)
        workers, self._workers, self._pending = self._workers, {}, deque()
        if workers:  # else whoever waits in `loaded` reports it
            details = f"\n{error.details}" if error.details else ""
            logger.error("process host %s cannot start: %s%s", self.options.name, error, details)
        for worker in workers.values():
            worker.failed(ExitError(ExitKind.START_FAILED, str(error), error.details or None))

    def _close_with(self, error: HostFailed) -> None:
        """Close, and let those who wait for the template know why."""
        if self._loading is not None and not self._loading.done():
            self._loading.set_exception(error)
        self.close()
        if self._cgroup is not None:
            removal = self._loop.run_in_executor(None, self._cgroup.remove, _PATIENCE)
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
            self._cgroup = None

    def _lost(self) -> None:
        """Find the control socket closed by the other side: the template died."""
        if self._loading is not None and not self._loading.done():
            self._fail(self._why_lost())
            return
        out_of_memory = self._out_of_memory()
        why = f": {memory_total_reached(self.options.limits)}" if out_of_memory else ""
        logger.error("the template of process host %s was lost%s", self.options.name, why)
        self._close_with(HostFailed(f"the process host's template was lost{why}"))
        workers, self._workers, self._pending = self._workers, {}, deque()
        for worker in workers.values():
            if out_of_memory:
                worker.out_of_memory()
            worker.template_lost()

    def _why_lost(self) -> HostFailed:
        """Say why the template ended while it loaded."""
        if self._out_of_memory():
            reached = memory_total_reached(self.options.limits)
            return HostFailed(f"{reached} by what it was told to preload; raise `memory_total`")
        report = b""
        with contextlib.suppress(OSError):  # what it has started may hold the other end
            while data := self._report.recv(65536):
                report += data
        return preloading.why_lost(report, self.options.start_timeout)


def _reason(error: OSError) -> str:
    try:
        os.getcwd()  # noqa: PTH109 - what multiprocessing does, and raises
    except FileNotFoundError:
        return "the current folder was removed"
    return error.strerror or str(error)


@contextlib.contextmanager
def _as_a_plain_process() -> Iterator[None]:
    """Start a child of multiprocessing as if this process were nothing special.

    `__main__` is hidden, or multiprocessing would run it again in the child. A daemonic process, as
    hypercorn's workers are, may have no children and passes that on to them.
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
