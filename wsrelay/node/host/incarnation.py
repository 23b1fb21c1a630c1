"""What runs a process: an OS process, its pipe, its exit, and what is known of how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec import Raw

from wsrelay import wire
from wsrelay.confinement.limits import Limits, cpu_time_reached, memory_total_reached
from wsrelay.confinement.options import HostOptions
from wsrelay.errors import HostFailed, WireError
from wsrelay.template import crashes
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.wire.pipe_pair import Duplex
from wsrelay.wire.tally import Tally

from .log import Intake
from .output import Output
from .pipe import NodePipe
from .stacks import Stacks
from .unfinished import LARGE, Unfinished

__all__ = ["Incarnation"]

logger = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds that a stalled template has to report the exit status of a worker that is dead."""


class Incarnation:
    """A worker from its launch to its exit: one OS process.

    The kernel's pidfd says when it is dead, the template's report (or the worker's own last
    frame) says how. What it left in its pipe and printed last is read before `exited` is called,
    once. `about` returns the fields of its log records. Raises `HostFailed` if the system has no
    descriptors left for its pipes.
    """

    def __init__(
        self,
        pid: PID,
        ref: int,
        options: HostOptions,
        *,
        log: Intake,
        received: Callable[[wire.FromWorker], Iterator[None] | None],
        exited: Callable[[Result], None],
        about: Callable[[], dict[str, Any]],
        unfinished: Unfinished,
        fenced: bool = False,
    ) -> None:
        self.pid = pid
        self.ref = ref
        """The number by which its template knows it; also part of the PIDs that it makes."""
        self.fenced = fenced
        """Whether it is stopped when its host's deadline passes; if it is from the beginning, it
        gets nothing to run before its guardian has been told."""
        self.os_pid: int | None = None
        self.died = 0.0
        """When its exit was noticed, in seconds of `time.monotonic`; 0: it has not been."""
        self.tally: Tally | None = None
        """What it notes of itself; None while it has nothing to note it in."""
        self.line: int | None = None
        """The number of that line."""
        self.stacks: Stacks | None = None
        """Where its stacks can be read."""
        self.done: wire.DoneFrame | None = None
        self._account = unfinished.account(str(pid), self._overdue)
        self._exited = exited
        self._loop = asyncio.get_running_loop()
        self._log_read = self._printed = 0
        """The last read of its pipe that brought log records, and how much it had printed then."""
        self._about = about
        self._log = log
        try:
            node_end, self.worker_end = Duplex.pair()
            self.pipe = NodePipe(
                node_end,
                received,
                self._garbage,
                self._flooded,
                self._account,
                begun=False,  # what it writes before its fork is reported is read after that
            )
            self._output = self._make_output(options)
            if fenced:
                self.pipe.shut()
        except OSError as error:
            raise HostFailed(f"no process can be started: {error.strerror}") from None
        self._pidfd: int | None = None
        self._exit_code: int | None = None
        self._failure: ExitError | None = None
        self._doomed = False
        self._interrupted = False
        self._is_dead = False
        self._is_emptied = False
        self._over = False
        self._patience: asyncio.TimerHandle | None = None
        self.limits = Limits()
        self.kill_by_host: Callable[[], None] | None = None
        """How its process host kills it where there is no pidfd, or no process yet."""
        self.interrupt_by_host: Callable[[], None] | None = None
        """How its process host interrupts it where there is no pidfd."""
        self.fence_by_host: Callable[[], None] | None = None
        """How its process host tells the guardian whether it is fenced."""
        self._forks: asyncio.Future[None] | None = None
        """Until it has been forked, if anything waits for that."""

    def _make_output(self, options: HostOptions) -> Output | None:
        if options.raw_output:
            return None
        try:
            output = Output(self._log, options.log_rate, self._about, self.pipe.take_in)
        except OSError:
            self.pipe.close()
            self.worker_end.close()
            raise
        self.worker_end.output = output.writing
        return output

    async def stack(self) -> str:
        """Return the stacks of its threads, whatever it does; raises `TimeoutError`."""
        if self.stacks is None or self.os_pid is None or self._is_dead:
            raise TimeoutError("it does not run")
        try:
            return await self.stacks.of(
                self.os_pid, self.tally, self._ask_for_stack, self.pipe.post
            )
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise TimeoutError("its host's template was lost") from None

    def _ask_for_stack(self, number: int) -> None:
        if self._pidfd is None:
            raise TimeoutError("its node has no pidfd of it (Linux 5.3), so no signal is safe")
        self._signal(self._pidfd, number)

    def never_read(self, client: PID, join: int) -> bool:
        """Whether a worker has returned without ever reading this client's `ws.join`."""
        done = self.done
        return done is not None and (join > done.received or client in done.unread)

    def says_done(self, frame: wire.DoneFrame) -> None:
        """Handle its last frame; the result is kept until it has ended. Raises `WireError`."""
        if self.done is not None:
            raise WireError("a second DoneFrame")
        self.done = frame
        if (size := len(frame.value)) > LARGE:
            self._account.keep(size)

    def log(self, frame: wire.LogFrame) -> None:
        """Log a record of it, after what it had printed before."""
        if self._output is not None:
            if self._log_read != self.pipe.reads:  # the output was read for the same chunk already
                self._log_read, self._printed = self.pipe.reads, self._output.total
            self._output.read_to(self._printed + frame.printed)
        self._log.take(frame, self._about)

    async def fence(self) -> bool:
        """Have it stopped when its host's deadline passes; returns whether it is alive.

        When this returns, no failure of the node or of the template prevents that any more.
        """
        was_fenced, self.fenced = self.fenced, not self._is_dead
        if not self.fenced or self.os_pid is not None:
            if self.fenced != was_fenced:  # the guardian is told once, however many names it gets
                self._tell_fenced()
        else:  # the guardian is told with the fork
            if self._forks is None:
                self._forks = self._loop.create_future()
            await asyncio.shield(self._forks)
        return not self._is_dead

    def unfence(self) -> None:
        """Undo `fence`."""
        self.fenced = False
        self._tell_fenced()

    def _tell_fenced(self) -> None:
        if self.os_pid is not None and self.fence_by_host is not None:
            self.fence_by_host()

    def kill(self) -> None:
        """Send SIGKILL; the template kills the rest of its process group when it reaps it."""
        self._doomed = True
        if self._is_dead:
            return
        if self._pidfd is not None:
            self._signal(self._pidfd, signal.SIGKILL)
        elif self.kill_by_host is not None:
            self.kill_by_host()

    def interrupt(self) -> None:
        """Have the handler interrupted, if it is running."""
        self._interrupted = True
        if self._is_dead:
            return
        if self._pidfd is not None:
            self._signal(self._pidfd, wire.INTERRUPT)
        elif self.os_pid is not None and self.interrupt_by_host is not None:
            self.interrupt_by_host()

    def _signal(self, pidfd: int, number: int) -> None:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass  # it is dead, as the loop is about to see
        except PermissionError:
            logger.warning("%s: OS process %d now belongs to another user", self.pid, self.os_pid)

    # What the template and the operating system report

    @property
    def runs(self) -> bool:
        """Whether the operating system says that it is alive; False where there is no pidfd."""
        if self._pidfd is None:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def forked(self, os_pid: int, pidfd: int | None) -> None:
        """Handle the fork: it runs now."""
        self.os_pid = os_pid
        if self._is_dead:  # it was given up before it was forked
            if pidfd is not None:
                self._signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
            if self.kill_by_host is not None:
                self.kill_by_host()
            return
        self._pidfd = pidfd
        self.pipe.begin()
        if pidfd is not None:
            self._loop.add_reader(pidfd, self._dead)
        if self._forks is not None:
            self._forks.set_result(None)
        if self._doomed:
            self.kill()
        elif self._interrupted:
            self.interrupt()

    def reaped(self, exit_code: int) -> None:
        """Handle the template's report of its exit status."""
        self._exit_code = exit_code
        self._dead()

    def out_of_memory(self) -> None:
        """Record the host's memory limit as what killed it, unless the node has killed it."""
        if not self._doomed:
            reached = memory_total_reached(self.limits)
            self._failure = self._failure or ExitError(ExitKind.LIMIT, reached)

    def failed(self, error: ExitError) -> None:
        """Count it as dead from now on, for this reason if none was given before."""
        self._failure = self._failure or error
        self._dead()

    def abandoned(self, error: ExitError) -> None:
        """Handle the end of its node: its exit is announced before this returns."""
        self.pipe.take_in_at_once()
        self.failed(error)

    def template_lost(self) -> None:
        """Handle the loss of the template, which ends the worker too."""
        lost = ExitError(ExitKind.TEMPLATE_LOST, "the process host's template was lost")
        if self._pidfd is not None:
            self._failure = self._failure or lost
            self.kill()  # where there is PDEATHSIG it is dying already
            return
        self.failed(lost)  # the guardian kills it: an id from the template must not be signalled

    def _garbage(self, problem: str) -> None:
        self.done = None  # what it said about its end no longer counts
        self._account.close()
        self._failure = ExitError(
            ExitKind.ERROR, f"killed: it wrote garbage on its pipe: {problem}"
        )
        self.kill()

    def _flooded(self) -> None:
        self._failure = ExitError(
            ExitKind.MAILBOX_OVERFLOW, "killed: it asked for more replies and events than it reads"
        )
        self.kill()

    def _overdue(self, problem: str) -> None:
        self._failure = ExitError(ExitKind.LIMIT, problem)
        if self.done is not None:  # then its exit is reported with that, not with this problem
            logger.warning("%s is killed: %s", self.pid, problem, extra=self._about())
        self.kill()

    # The end

    def _dead(self) -> None:
        """Read what it left, then announce the exit as soon as its cause is known too."""
        if not self._is_dead:
            self._is_dead, self.died = True, time.monotonic()
            if self._forks is not None and not self._forks.done():
                self._forks.set_result(None)
            if self.fenced:
                self.unfence()
            if self._pidfd is not None:
                self._loop.remove_reader(self._pidfd)
                os.close(self._pidfd)
                self._pidfd = None
            self.worker_end.close()
            self.pipe.finish(self._emptied)
        elif self._is_emptied:
            self._look()

    def _emptied(self) -> None:
        """Handle the end of its pipe: everything that it left there has been read."""
        if self._output is not None:
            self._output.finish()
        self._is_emptied = True
        self._look()

    def _look(self) -> None:
        """Announce the exit if its cause is known, or wait for the cause."""
        if self.done or self._failure or self._exit_code is not None:
            self._finish()
        elif self._patience is None:
            self._patience = self._loop.call_later(_PATIENCE, self._finish)

    def _finish(self) -> None:
        if self._over:
            return
        if self._patience is not None:
            self._patience.cancel()
        self._over = True
        self.tally = None
        result = self._result()
        if self._output is not None and (result.error is None or result.error.traceback is None):
            self._output.tell_crash()
        self._exited(result)
        if self.done is not None:  # delivered by now; only the garbage collector frees a worker
            self.done.value = b""
        self._account.close()

    def _result(self) -> Result:
        if self.done is not None:
            said = self.done.error
            error = None if said is None else said.told()
            return Result(Raw(self.done.value), error)  # decoded by its reader
        if self._failure is not None:
            return Result(error=self._failure)
        code = self._exit_code
        error = None
        if code is None:
            error = ExitError(ExitKind.KILLED, "its exit status is unknown")
        elif code == -signal.SIGXCPU and self.limits.cpu_time is not None:
            error = ExitError(ExitKind.LIMIT, cpu_time_reached(self.limits))
        elif code < 0:
            written = self._output.crash if self._output is not None else b""
            stack = crashes.stack(written) if -code in crashes.SIGNALS else ""
            error = ExitError(ExitKind.KILLED, _signal_name(-code), stack or None)
        elif code == wire.PIPE_CLOSED:
            error = ExitError(
                ExitKind.EXIT,
                f"exit code {code}: it has closed the pipe to its node. A handler that closes "
                "descriptors must close only those that it has opened itself",
            )
        elif code > 0:
            error = ExitError(ExitKind.EXIT, f"exit code {code}")
        return Result(error=error)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
