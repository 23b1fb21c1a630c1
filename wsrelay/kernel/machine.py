"""The process table: signals in, effects out.

The node calls a method and executes the effects that it returns, in order. Nothing here knows how
a process is started, reached or ended.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from wsrelay.errors import HostFull, UnknownHost
from wsrelay.message import ExitError, ExitKind, Result
from wsrelay.pid import PID

from .lifecycle import TABLE, Action, Signal, State
from .names import Names

__all__ = ["Effect", "Exited", "Kernel", "Kill", "Launch", "Process", "Started", "Stop"]


class Launch(Struct, frozen=True):
    """Start the worker."""

    pid: PID


class Started(Struct, frozen=True):
    """The worker runs its handler."""

    pid: PID


class Stop(Struct, frozen=True):
    """Close its inbox, send it CANCEL, and come back with STOP_TIMEOUT when its time is over."""

    pid: PID
    reason: str
    sender: PID


class Kill(Struct, frozen=True):
    """End it at once."""

    pid: PID


class Exited(Struct, frozen=True):
    """It is gone, with this result."""

    pid: PID
    result: Result


Effect = Launch | Started | Stop | Kill | Exited

_ENDED_BY = {
    Signal.TERMINATE: ExitError(ExitKind.TERMINATED, "terminated"),
    Signal.STOP_TIMEOUT: ExitError(
        ExitKind.CANCELLED, "killed: it was cancelled and did not end within its stop timeout"
    ),
    Signal.START_TIMEOUT: ExitError(
        ExitKind.START_FAILED, "killed: it did not start within its start timeout"
    ),
}


class Process(Struct, eq=False):
    """One row of the process table."""

    pid: PID
    state: State
    connection: bool
    ended_by: ExitError | None = None
    """Why wsrelay itself killed it; takes the place of the bare signal in its result."""


class Kernel:
    """All processes of one node. `hosts` maps each process host to its `max_processes`."""

    def __init__(self, hosts: Mapping[str, int]) -> None:
        self.names = Names()
        self._limits = dict(hosts)
        self._workers = dict.fromkeys(hosts, 0)
        self._processes: dict[PID, Process] = {}

    @property
    def processes(self) -> Mapping[PID, Process]:
        """The living, by PID."""
        return self._processes

    def count(self, host: str) -> int:
        """Return how many workers of the host live."""
        return self._workers[host]

    def check_host(self, host: str) -> None:
        """Raise `UnknownHost` or `HostFull` if the host cannot take one more worker."""
        if (limit := self._limits.get(host)) is None:
            raise UnknownHost(host, list(self._limits))
        if self._workers[host] >= limit:
            raise HostFull(host, limit)

    def spawn(self, pid: PID, name: str | None = None) -> list[Effect]:
        """Add a worker, under a name if one is given.

        Raises `UnknownHost`, `HostFull`, `NameTaken`; then nothing has changed.
        """
        self.check_host(pid.host)
        if pid in self._processes:
            raise ValueError(f"{pid} is in use")
        if name is not None:
            self.names.register(name, pid)
        self._processes[pid] = Process(pid, State.STARTING, connection=False)
        self._workers[pid.host] += 1
        return [Launch(pid)]

    def get_or_spawn(self, name: str, pid: PID) -> tuple[PID, list[Effect]]:
        """Return the process of that name, or add this worker under it."""
        if (there := self.names.get(name)) is not None:
            return there, []
        return pid, self.spawn(pid, name)

    def connect(self, pid: PID) -> None:
        """Add a connection."""
        self._processes[pid] = Process(pid, State.RUNNING, connection=True)

    def find(self, to: str, node: str) -> Process | None:
        """Return the living process of that PID (the node part may be missing) or name."""
        if (process := self._processes.get(to)) is not None:  # type: ignore[call-overload]
            return process  # type: ignore[no-any-return]
        if to.startswith("{"):
            if "@" in to:
                return None
            return self._processes.get(PID.trusted(f"{{{node}@{to[1:]}"))
        pid = self.names.get(to)
        return None if pid is None else self._processes.get(pid)

    def register(self, name: str, pid: PID) -> None:
        """Register a living process under a name. Raises `NameTaken`, `ValueError`."""
        process = self._processes.get(pid)
        if process is None or process.state is State.CANCELLING:
            raise ValueError(f"{pid} is not alive, so it cannot be registered as {name!r}")
        self.names.register(name, pid)

    def why_no_target(self, pid: PID) -> str | None:
        """Return why a relay cannot be bound to that process, or None if it can."""
        process = self._processes.get(pid)
        if process is None:
            return f"target_pid {pid} is not alive"
        if process.connection:
            return f"target_pid {pid} is a connection; a target is a worker"
        if process.state is State.CANCELLING:
            return f"target_pid {pid} is not alive: it has been cancelled"
        return None

    def signal(
        self,
        pid: PID,
        signal: Signal,
        *,
        reason: str = "",
        sender: PID | None = None,
        because: ExitError | None = None,
    ) -> list[Effect]:
        """Give a signal (other than EXIT) to a process; to the dead it means nothing.

        `because` is the error that a process killed by this signal ends with, where it is not the
        signal's own.
        """
        if (process := self._processes.get(pid)) is None:
            return []
        process.state, action = TABLE[process.state][signal]
        match action:
            case Action.START:
                return [Started(pid)]
            case Action.STOP:
                self.names.release(pid)
                return [Stop(pid, reason, sender or pid)]
            case Action.KILL:
                process.ended_by = process.ended_by or because or _ENDED_BY[signal]
                return [Kill(pid)]
        return []

    def exited(self, pid: PID, result: Result) -> list[Effect]:
        """Tell the kernel that the process is gone; a second time means nothing."""
        if (process := self._processes.pop(pid, None)) is None:
            return []
        process.state = State.EXITED
        self.names.release(pid)
        if not process.connection:
            self._workers[pid.host] -= 1
        if process.ended_by and result.error and result.error.kind is ExitKind.KILLED:
            result = Result(error=process.ended_by)
        return [Exited(pid, result)]
