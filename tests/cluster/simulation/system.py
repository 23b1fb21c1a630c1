"""The operating system of the simulated nodes: descriptors, pipes, OS processes and templates.

A node's own code makes pipes, writes to them, opens pidfds and starts templates, as it does on
Linux: `Patches` (`patches.py`) puts what is here in the place of `os`, `socket`, `signal` and
`select` in the modules that do so, and `start_template` in the place of the fork.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import math
import os
import select
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from wsrelay import wire
from wsrelay.node.host.family import Family
from wsrelay.node.host.process_host import ProcessHost
from wsrelay.template import guarded, guardian

if TYPE_CHECKING:
    from .world import Machine

__all__ = ["End", "Fcntl", "Os", "Select", "Signals", "SimFamily", "SimHost", "Sockets", "System"]

_PIPE: Final = 64 * 1024
_ATOMIC: Final = select.PIPE_BUF
_FIRST: Final = 10_000
"""The first descriptor, so that none is mistaken for a real one."""

_OS_PIDS: Final = 50_000


class System:
    """All descriptors of a run, by number; a number is never used again."""

    def __init__(self) -> None:
        self.ends: dict[int, Any] = {}
        self.processes: dict[int, Any] = {}
        """The simulated OS processes that are alive, by their ids."""
        self._numbers = itertools.count(_FIRST)
        self._os_pids = itertools.count(_OS_PIDS)

    def open(self, end: Any) -> int:
        """Give an end of something a number."""
        number = next(self._numbers)
        self.ends[number] = end
        end.numbers.add(number)
        return number

    def os_pid(self) -> int:
        """Give an OS process a number."""
        return next(self._os_pids)

    def end(self, number: int) -> Any:
        """Return what a descriptor is; raises `OSError`."""
        try:
            return self.ends[number]
        except KeyError:
            raise OSError(errno.EBADF, f"no descriptor {number}") from None

    def close(self, number: int) -> None:
        """Close a descriptor; raises `OSError`."""
        end = self.end(number)
        del self.ends[number]
        end.numbers.discard(number)
        end.let_go()

    def is_ready(self, number: int) -> bool:
        """Whether a descriptor can be read (or written, for the end of a pipe that is for that)."""
        end = self.ends.get(number)
        return end is not None and end.is_ready


class Pipe:
    """A pipe of the kernel: bytes in order, as many as there is room for."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = _PIPE
        self.reading = End(self, reads=True)
        self.writing = End(self, reads=False)


class End:
    """One end of a pipe, open as long as anybody holds it; `notify` is called when it is ready."""

    def __init__(self, pipe: Pipe, *, reads: bool) -> None:
        self.pipe = pipe
        self.reads = reads
        self.numbers: set[int] = set()
        self.holders = 1
        self.notify: Callable[[], None] | None = None

    @property
    def other(self) -> End:
        return self.pipe.writing if self.reads else self.pipe.reading

    @property
    def is_ready(self) -> bool:
        """Whether a read or a write would not wait."""
        pipe = self.pipe
        if self.reads:
            return bool(pipe.data) or not pipe.writing.holders
        return len(pipe.data) + _ATOMIC <= pipe.size or not pipe.reading.holders

    def hold(self) -> End:
        """Hold it once more."""
        self.holders += 1
        return self

    def let_go(self) -> None:
        """Hold it no more; when nobody does, the other end learns of it."""
        self.holders -= 1
        if not self.holders:
            self.other.tell()

    def tell(self) -> None:
        """Tell its holder that it may be ready."""
        if self.notify is not None:
            self.notify()

    def write(self, data: bytes | memoryview) -> int:
        """Write as much as there is room for; raises `OSError`."""
        pipe = self.pipe
        if not pipe.reading.holders:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        room, size = pipe.size - len(pipe.data), len(data)
        if size > room and (size <= _ATOMIC or room <= 0):
            raise BlockingIOError(errno.EAGAIN, "the pipe is full")
        pipe.data += data[:room] if size > room else data
        pipe.reading.tell()
        return min(size, room)

    def read(self, size: int) -> bytes:
        """Read up to so many bytes; raises `BlockingIOError`."""
        pipe = self.pipe
        if not pipe.data:
            if pipe.writing.holders:
                raise BlockingIOError(errno.EAGAIN, "the pipe is empty")
            return b""
        was_full = not pipe.writing.is_ready
        if size >= len(pipe.data):
            data = bytes(pipe.data)
            pipe.data.clear()
        else:
            data = bytes(pipe.data[:size])
            del pipe.data[:size]
        if was_full:
            pipe.writing.tell()
        return data


class Pidfd:
    """A descriptor of an OS process, ready when that is dead."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.numbers: set[int] = set()
        self.notify: Callable[[], None] | None = None

    @property
    def is_ready(self) -> bool:
        return bool(self.process.is_dead)

    def let_go(self) -> None:
        self.process.pidfds.remove(self)


class _Real:
    """What is not simulated is the real module's."""

    module: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class Os(_Real):
    """`os`, for the modules that use pipes and pidfds."""

    module = os

    def __init__(self, system: System) -> None:
        self._system = system
        self.close = system.close

    def pipe(self) -> tuple[int, int]:
        pipe = Pipe()
        return self._system.open(pipe.reading), self._system.open(pipe.writing)

    def set_blocking(self, number: int, blocking: bool) -> None:
        self._system.end(number)
        assert not blocking

    def write(self, number: int, data: bytes | memoryview) -> int:
        return self._system.end(number).write(data)  # type: ignore[no-any-return]

    def writev(self, number: int, buffers: Sequence[bytes | memoryview]) -> int:
        end, total = self._system.end(number), 0
        for data in buffers:
            try:
                sent = end.write(data)
            except BlockingIOError:
                if not total:
                    raise
                break
            total += sent
            if sent < len(data):
                break
        return total

    def read(self, number: int, size: int) -> bytes:
        return self._system.end(number).read(size)  # type: ignore[no-any-return]

    def readv(self, number: int, buffers: Sequence[memoryview]) -> int:
        data = self._system.end(number).read(len(buffers[0]))
        buffers[0][: len(data)] = data
        return len(data)

    def pidfd_open(self, os_pid: int) -> int:
        process = self._system.processes.get(os_pid)
        if process is None:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        return self._system.open(process.pidfd())

    def kill(self, os_pid: int, number: int) -> None:
        """Do nothing: only guardians are signalled this way, and they need no SIGCONT."""
        assert (os_pid in self._system.processes, number) == (False, signal.SIGCONT)


class Fcntl(_Real):
    """`fcntl`, for pipes: how much they hold, and how much is in them."""

    module = fcntl

    def __init__(self, system: System) -> None:
        self._system = system

    def fcntl(self, number: int, _: int, argument: int) -> int:
        if number >= 0:
            self._system.end(number).pipe.size = argument
        return argument

    def ioctl(self, number: int, _: int, into: Any) -> int:
        into[0] = len(self._system.end(number).pipe.data)
        return 0


class Signals(_Real):
    """`signal`, for pidfds."""

    module = signal

    def __init__(self, system: System) -> None:
        self._system = system

    def pidfd_send_signal(self, number: int, signal_number: int) -> None:
        self._system.end(number).process.signalled(signal_number)


class _Poll:
    def __init__(self, system: System) -> None:
        self._system = system
        self._numbers: list[int] = []

    def register(self, number: int, _: int) -> None:
        self._numbers.append(number)

    def poll(self, _: int) -> list[int]:
        return [number for number in self._numbers if self._system.is_ready(number)]


class Select(_Real):
    """`select`, for pidfds."""

    module = select

    def __init__(self, system: System) -> None:
        self._system = system

    def poll(self) -> _Poll:
        return _Poll(self._system)


class Sockets(_Real):
    """`socket`, for what is sent to templates with descriptors."""

    module = socket

    @staticmethod
    def send_fds(control: _Control, buffers: Sequence[bytes], numbers: Iterable[int]) -> int:
        return control.send(buffers[0], numbers)


class SimFamily(Family):
    """A family whose members are not looked up in /proc."""

    def has(self, os_pid: int, pidfd: int | None) -> bool:
        del os_pid, pidfd
        return True


class _Control:
    """The node's end of the socket to its template."""

    def __init__(self, system: System, template: Template) -> None:
        self.numbers: set[int] = set()
        self.notify: Callable[[], None] | None = None
        self._system = system
        self._template = template
        self._number = system.open(self)

    is_ready = True
    """Whether it can be written."""

    def fileno(self) -> int:
        return self._number

    def send(self, data: bytes, numbers: Iterable[int] = ()) -> int:
        ends = [self._system.end(number).hold() for number in numbers]
        self._template.receive(data, ends)
        return len(data)

    def close(self) -> None:
        self._system.close(self._number)
        self._template.released()

    def let_go(self) -> None:
        pass


class _Lifeline:
    """The node's end of the socket to a guardian."""

    def __init__(self, system: System, template: Template) -> None:
        self.numbers: set[int] = set()
        self.notify: Callable[[], None] | None = None
        self._system = system
        self._template = template
        self._number = system.open(self)
        self.is_told = False

    @property
    def is_ready(self) -> bool:
        return self._template.is_dead or (self._template.is_running and not self.is_told)

    def fileno(self) -> int:
        return self._number

    def told(self) -> guarded.Told | None:
        """Do what `guarded.told` does."""
        if self._template.is_dead:
            raise EOFError
        if self.is_told or not self._template.is_running:
            return None
        self.is_told = True
        return guarded.Told(self._template.os_pid, 0)

    def send(self, data: bytes) -> int:
        self._template.ordered(data)
        return len(data)

    def close(self) -> None:
        self._system.close(self._number)

    def let_go(self) -> None:
        pass


class Template:
    """A template with its guardian: forks what it is told to, reaps, and can stall and die.

    It is a real one to the node: it reads frames, and writes frames to a pipe.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._scheduler = scheduler = machine.scheduler
        system = self._system = machine.system
        self.os_pid = system.os_pid()
        self.pid = system.os_pid()
        """The guardian's process id: to its host it is that process."""
        self.is_running = self.is_dead = False
        self.stalled_until = 0.0
        self._reader = wire.to_template()
        self._told_last = self._received_last = 0.0
        self._lives: dict[int, Any] = {}
        self._deadline: int | None = None
        self._fenced: set[int] = set()
        self._ordered_last = 0.0
        pipe = Pipe()
        self._telling = pipe.writing
        self.told = system.open(pipe.reading)
        self.control = _Control(system, self)
        self.lifeline = _Lifeline(system, self)
        self._unsent: deque[bytes] = deque()
        pipe.writing.notify = self._flush
        scheduler.later(machine.draw(0.005, 0.05), self._runs)

    def _runs(self) -> None:
        self.is_running = True
        self._machine.loop.notice(self.lifeline.fileno())
        self._scheduler.later(self._machine.draw(0.01, 0.3), self._tell, wire.LoadedFrame())

    def is_alive(self) -> bool:
        """Do what a guardian's `multiprocessing.Process` does."""
        return not self.is_dead

    def close(self) -> None:
        """Do what a guardian's `multiprocessing.Process` does."""

    # In

    def receive(self, data: bytes, ends: list[End]) -> None:
        """Take bytes from the node, and ends of pipes."""
        if self.is_dead:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        delay = self._machine.draw(0.0001, 0.003)
        self._received_last = self._scheduler.after(
            max(self._received_last, self.stalled_until), delay, self._read, data, ends
        )

    def _read(self, data: bytes, ends: list[End]) -> None:
        if self.is_dead:
            return
        if self._scheduler.now < self.stalled_until:
            self._received_last = self._scheduler.after(
                max(self._received_last, self.stalled_until), 0.0, self._read, data, ends
            )
            return
        for frame, _ in self._reader.feed(data):
            match frame:
                case wire.ForkFrame():
                    self._fork(frame, ends)
                case wire.KillFrame() if frame.ref in self._lives:
                    self._lives[frame.ref].signalled(signal.SIGKILL)

    def _fork(self, frame: wire.ForkFrame, ends: list[End]) -> None:
        worker = self._machine.fork(self, frame, ends)
        self._lives[frame.ref] = worker
        self._tell(wire.ForkedFrame(frame.ref, worker.os_pid, True))

    # Out

    def _tell(self, frame: wire.Frame) -> None:
        if not self.is_dead:
            self._unsent.append(wire.pack(frame))
            self._flush()

    def _flush(self) -> None:
        while self._unsent and not self.is_dead:
            try:
                self._telling.write(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self._unsent.clear()
                return
            self._unsent.popleft()

    def ended(self, ref: int, code: int) -> None:
        """Reap a worker of its own that has ended."""
        when = max(self.stalled_until, self._scheduler.now) + self._machine.draw(0.0001, 0.01)
        self._scheduler.at(when, self._reap, ref, code)

    def _reap(self, ref: int, code: int) -> None:
        if self._scheduler.now < self.stalled_until:
            self.ended(ref, code)
        elif self._lives.pop(ref, None) is not None:
            self._tell(wire.ExitedFrame(ref, code))

    # The guardian

    def ordered(self, data: bytes) -> None:
        """Take an order of the node to the guardian, which obeys at once, whatever else hangs."""
        if self.is_dead:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        code, number = data[:1], int.from_bytes(data[1:], "little")
        delay = self._machine.draw(0.00001, 0.001)
        self._ordered_last = self._scheduler.after(
            self._ordered_last, delay, self._obey, code, number
        )

    def _obey(self, code: bytes, number: int) -> None:
        if self.is_dead:
            return
        match code:
            case guardian.AT_ONCE:
                self.die()
                return
            case guardian.DEADLINE:
                self._deadline = number
            case guardian.FENCE:
                self._fenced.add(number)
            case guardian.UNFENCE:
                self._fenced.discard(number)
        for worker in list(self._lives.values()):
            worker.go_on()

    @property
    def deadline(self) -> float:
        """Until when fenced workers run; for ever if it was never told."""
        return math.inf if self._deadline is None else self._deadline / 1e9

    def stops(self, os_pid: int) -> bool:
        """Whether a worker is stopped, because it is fenced and the deadline is over."""
        return (
            self._deadline is not None
            and os_pid in self._fenced
            and int(self._scheduler.now * 1e9) >= self._deadline
        )

    # Faults

    def stall(self, until: float) -> None:
        """Do nothing until that time."""
        self.stalled_until = max(self.stalled_until, until)

    def die(self) -> None:
        """End at once; its workers follow, as PDEATHSIG and the guardian see to it."""
        if self.is_dead:
            return
        self.is_dead = True
        self._telling.let_go()
        self._machine.loop.notice(self.lifeline.fileno())
        for worker in list(self._lives.values()):
            self._scheduler.later(self._machine.draw(0.0, 0.01), worker.signalled, signal.SIGKILL)
        self._machine.templates.remove(self)

    def released(self) -> None:
        """End because the node has let go of it."""
        self._scheduler.later(self._machine.draw(0.001, 0.02), self.die)


class SimHost(ProcessHost):
    """The node's side of a process host whose template is simulated; all but its start is real."""

    def _start(self) -> None:
        template = self._loop.machine.start_template()  # type: ignore[attr-defined]
        self._guardian = template
        report = self._loop.machine.os.pipe()  # type: ignore[attr-defined]
        self._loop.machine.os.close(report[1])  # type: ignore[attr-defined]
        self._connect(template.control, template.told, report[0], template.lifeline)

    async def join(self, timeout: float) -> None:  # noqa: ASYNC109 - as in `ProcessHost`
        """Forget the guardians: what they end is dead soon, and nothing waits for it."""
        del timeout
        self._ending.clear()
