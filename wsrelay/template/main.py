"""The template process: preloads, forks workers, reaps them, and ends them with the node.

Single-threaded and free of asyncio, so that a fork copies nothing but preloaded modules.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Never

from setproctitle import setproctitle

from wsrelay import wire, worker
from wsrelay.confinement import cgroup, isolation, limits
from wsrelay.confinement.options import HostOptions
from wsrelay.values import linux, targets
from wsrelay.values.printable import shortened
from wsrelay.wire.pipe_pair import Duplex, close_all
from wsrelay.wire.tally import TallySheet

from . import guarded, preloading, titles, warm_up

__all__ = ["main"]

_SMALL: Final = range(0, 480, 16)
"""Lengths of `bytes` objects, one for each block size that Python's allocator has pools for."""

_STANDARD_ERROR: Final = 2

_line: Final = struct.Struct("=l")
_NO_LINE: Final = -1

_LONGEST: Final = 128 * 1024
"""Characters of what is reported about a failure: the node does not read frames of a megabyte."""


def main(
    control: socket.socket,
    telling: Connection,
    report: Connection,
    lifeline: socket.socket,
    options: HostOptions,
    *,
    output: Connection | None,
    tallies: Connection,
    lines: int,
    log_level: int,
    cgroup_folder: Path | None,
) -> None:
    """Run as the template, under a guardian, until the node's end of `control` closes.

    `telling` takes frames for the node, `report` the stack if loading takes too long, `output` what
    is printed. `lifeline` belongs to the guardian. `tallies` is the memory of a `TallySheet`.
    """
    parent = _enter(control, telling, report, lifeline, output, tallies, options)
    with tallies:
        sheet = TallySheet.inherited(os.dup(tallies.fileno()), lines)
    worker.load.set_arguments(options.arguments)
    worker.forks.watch()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # or a killed worker's output is lost
    template = Template(control, telling, options, sheet)
    worker.log_to(worker.NodeLog(template.tell, log_level))
    try:
        declared = [targets.parse(text).absolute() for text in options.targets]
        files = [Path(target.script) for target in declared if target.script is not None]
        if cgroup_folder is not None:
            cgroup.enter(cgroup_folder)
        limits.raise_priority(options.nice)
        isolation.enter(options.isolation, files)
        limits.enter_template(options.limits)
        linux.die_with_parent(parent)  # a change of user clears it, so this comes after
        guarded.tell(lifeline)
        with report:
            preloading.preload(options, declared, report)
        template.signal_handlers = worker.signals.release()
    except (cgroup.CgroupError, isolation.IsolationError, limits.LimitError) as error:
        template.tell(wire.LoadFailedFrame(str(error), ""))
    except worker.LoadError as error:
        under = limits.shown(options.limits)
        message = shortened(f"{error.message}{under}", _LONGEST)
        template.tell(wire.LoadFailedFrame(message, shortened(error.details, _LONGEST)))
    else:
        worker.crashes.report_on_standard_error()
        worker.crashes.write_stacks(sheet.fileno())
        warm_up.rehearse(declared, redirects=not options.raw_output)
        gc.collect()
        template.fill_gaps()
        gc.freeze()
        worker.forks.flush()
        template.tell(wire.LoadedFrame())
        template.refill = True
    template.serve()


def _enter(  # noqa: PLR0917 - the arguments of `main`
    control: socket.socket,
    telling: Connection,
    report: Connection,
    lifeline: socket.socket,
    output: Connection | None,
    tallies: Connection,
    options: HostOptions,
) -> int:
    """Get a guardian, and let go of what belongs to the node; returns the guardian's process id."""
    worker.signals.hold_back()
    worker.multiprocess.enter_template()
    printing = () if output is None else (output,)
    parent = guarded.enter(lifeline, (control, telling, report, tallies, *printing), options.name)
    if output is not None:
        with output:
            for standard in (1, 2):
                os.dup2(output.fileno(), standard)
    worker.multiprocess.leave_sentinel(keep=(telling.fileno(), report.fileno()))
    titles.enter_template(options.name)
    if sys.stdin is not None and (given := sys.stdin.fileno()) > _STANDARD_ERROR:
        os.close(given)  # multiprocessing's own empty one, which workers would inherit as well
    if not options.raw_output or not _terminal_as_stdin():
        _empty_stdin()
        worker.explain_absence()
    return parent


def _empty_stdin() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:  # it was closed, as some daemons leave it
        os.dup2(null, 0)
        os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process


def _terminal_as_stdin() -> bool:
    """Have `input()` and `pdb` read from the terminal that the output goes to, if it is one."""
    for descriptor in (1, 2):
        try:
            terminal = os.open(os.ttyname(descriptor), os.O_RDONLY | os.O_NOCTTY)
        except OSError:
            continue
        os.dup2(terminal, 0)
        os.close(terminal)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
        return True
    return False


class Template:
    """The loop: control frames and children's exits in, forks and reports out."""

    def __init__(
        self, control: socket.socket, telling: Connection, options: HostOptions, sheet: TallySheet
    ) -> None:
        self._control = control
        self._node = telling
        self._options = options
        self._sheet = sheet
        self._ends = 2 if options.raw_output else 3
        """Descriptors that come with each `Fork`: the worker's pipe, and that for its output."""
        self._reader = wire.to_template()
        self._telling = threading.Lock()
        """Threads of preloaded code may log while a frame is being written."""
        self._descriptors: list[int | None] = []
        self._refs: dict[int, int] = {}  # process id to ref
        self._warm: dict[int, socket.socket] = {}
        """Processes forked ahead, each with the socket through which it gets its pipe."""
        self.refill = False
        """Whether to fork ahead what is missing: set by each order to fork, until enough wait.

        It ends early when a fork fails or a waiting process exits: retrying at once would be a
        busy loop.
        """
        self.signal_handlers: dict[int, worker.signals.Handler] = {}
        """Those that workers start with."""
        self._filling: list[bytes] = []
        # A child's exit interrupts the poll through this pair.
        self._wakeup, self._woken = socket.socketpair()
        self._wakeup.setblocking(False)
        self._woken.setblocking(False)

    def fill_gaps(self) -> None:
        """Fill the free blocks between objects, so that new objects of workers go to fresh pages.

        In the gaps they would cause the surrounding pages to be copied: a worker has 2.39 MB with
        this and 2.46 MB without; it takes 0.8 MB in the template.
        """
        self._filling = [bytes(size) for size in _SMALL for _ in range(100)]

    def tell(self, frame: wire.Frame) -> None:
        """Write a frame to the node; the next read will notice if the node is gone."""
        data = memoryview(wire.pack(frame))
        try:
            with self._telling:
                while data:
                    data = data[os.write(self._node.fileno(), data) :]
        except OSError:
            pass

    def serve(self) -> None:
        """Serve until the node is gone, then kill the workers; the guardian does the rest."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        try:
            while True:
                self.refill = self.refill and len(self._warm) < self._options.warm
                ready = [fd for fd, _ in poll.poll(0 if self.refill else None)]
                if not ready:  # one at a time, since an order may come meanwhile
                    self._fork_ahead()
                if self._woken.fileno() in ready:
                    self._drain_wakeups()
                    self._reap()
                if self._control.fileno() in ready and not self._obey():
                    return
        finally:
            self._end()

    def _drain_wakeups(self) -> None:
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _obey(self) -> bool:
        """Carry out the node's orders; returns False when the node is gone."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._control, 65536, 64)
        except ConnectionResetError:
            return False
        self._descriptors += descriptors
        if flags & socket.MSG_CTRUNC:  # preloaded code has used up all descriptors
            self._descriptors += [None] * (self._ends - len(descriptors))
        for frame, _ in self._reader.feed(data):
            match frame:
                case wire.ForkFrame():
                    count = self._ends
                    ends, self._descriptors = self._descriptors[:count], self._descriptors[count:]
                    self._fork(frame, ends)
                    self.refill = True
                case wire.KillFrame():
                    self._each(frame.ref, _kill_group)
                case wire.InterruptFrame():
                    self._each(frame.ref, lambda pid: os.kill(pid, wire.INTERRUPT))
        return bool(data)

    def _each(self, ref: int, do: Callable[[int], None]) -> None:
        """Call `do` with the process id of this worker, unless it was reaped."""
        for pid, other in self._refs.items():
            if other == ref:
                do(pid)

    def _fork(self, frame: wire.ForkFrame, descriptors: list[int | None]) -> None:
        ref, line = frame.ref, frame.line
        given = [descriptor for descriptor in descriptors if descriptor is not None]
        if len(given) < self._ends:
            close_all(given)
            self.tell(wire.ForkFailedFrame(ref, "the template has no descriptor left"))
            return
        with Duplex(*given) as ends:
            try:
                pid = self._take_warm(ends, line) or self._forked(lambda: (ends, line))
            except OSError as error:
                bound = limits.shown_processes(self._options.limits)
                refused = f"the operating system refused a fork: {error}{bound}"
                self.tell(wire.ForkFailedFrame(ref, refused))
                return
        self._refs[pid] = ref
        self.tell(wire.ForkedFrame(ref, pid, hasattr(os, "pidfd_open")))

    def _fork_ahead(self) -> None:
        """Fork one process that waits for its pipe."""
        try:
            ours, theirs = socket.socketpair()
            with theirs, contextlib.ExitStack() as undo:
                undo.enter_context(ours)
                title = titles.waiting_title(self._options.name)
                pid = self._forked(lambda: _received(theirs, ours, title))
                undo.pop_all()
        except OSError:
            self.refill = False
        else:
            self._warm[pid] = ours

    def _take_warm(self, ends: Duplex, line: int | None) -> int | None:
        """Give the pipe to a process that waits for one; return its id, or None."""
        while self._warm:
            pid = next(iter(self._warm))
            with self._warm.pop(pid) as waiting:
                try:
                    socket.send_fds(
                        waiting, [_line.pack(_NO_LINE if line is None else line)], ends.filenos()
                    )
                except OSError:
                    continue  # it was killed
                return pid
        return None

    def _forked(self, wait: Callable[[], worker.Given]) -> int:
        """Fork a worker that gets its pipe from `wait`, and return its process id."""
        template = os.getpid()
        # Not `multiprocessing.Process`, which costs each worker another 0.5 MB, 0.4 ms, and three
        # descriptors.
        pid = worker.forks.fork_worker()
        if pid == 0:
            self._child(wait, template)
        return pid

    def _child(self, wait: Callable[[], worker.Given], template: int) -> Never:
        try:
            signal.set_wakeup_fd(-1)
            worker.multiprocess.enter_worker()
            # Only the template's own: preloaded code may hold files that the worker needs.
            self._node.close()
            for mine in (self._control, self._wakeup, self._woken, *self._warm.values()):
                mine.close()
            close_all(self._descriptors)
            enter = functools.partial(limits.enter_worker, self._options.limits, self._options.nice)
            worker.run(wait, template, enter, self.signal_handlers, self._sheet)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        """Reap all exited children, and report the workers among them."""
        while (pid := _exited_child()) is not None:
            ref = self._refs.pop(pid, None)
            if (waiting := self._warm.pop(pid, None)) is not None:
                waiting.close()
                self.refill = False
            if ref is not None:
                # Before reaping it: until then this process group's id cannot be reused.
                _kill_group(pid)
            _, status, used = os.wait4(pid, 0)
            if ref is not None:
                code = os.waitstatus_to_exitcode(status)
                if code == -signal.SIGKILL and limits.hard_limit_reached(
                    self._options.limits, used
                ):
                    code = -signal.SIGXCPU  # it ignored SIGXCPU and then hit the hard limit
                self.tell(wire.ExitedFrame(ref, code))

    def _end(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in self._refs:
            _kill_group(pid)


def _received(waiting: socket.socket, template: socket.socket, title: str) -> worker.Given:
    """Wait for a pipe to arrive through `waiting`; raises `EOFError`.

    `template` is the other end, which this fork has inherited.
    """
    setproctitle(title)
    template.close()
    with waiting:
        data, descriptors, _, _ = socket.recv_fds(waiting, _line.size, 3)
    if not data:
        raise EOFError
    (line,) = _line.unpack(data)
    return Duplex(*descriptors), None if line == _NO_LINE else line


def _exited_child() -> int | None:
    """Return the process id of an exited child without reaping it, or None."""
    try:
        exited = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if exited is None else exited.si_pid


def _kill_group(pid: int) -> None:
    # Before its setsid() a new worker is not a group leader yet; then it alone is killed.
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
        return
