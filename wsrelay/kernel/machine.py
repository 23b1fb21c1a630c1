"""The process table: signals in, effects out.

The node calls a method and executes the effects that it returns, in order. Nothing here knows how
a process is started, reached or ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from msgspec import Struct, field

from wsrelay.errors import HostFull, InvalidName, UnknownHost
from wsrelay.values.message import Event, ExitError, ExitKind, Result
from wsrelay.values.pid import PID

from .effects import (
    BreakEffect,
    Effect,
    ExitedEffect,
    KillEffect,
    LaunchEffect,
    LinkEffect,
    NotifyEffect,
    StartedEffect,
    StopEffect,
    WatchEffect,
)
from .groups import Groups
from .ledger import Ledger
from .lifecycle import TABLE, Action, ProcessState, Signal
from .names import Names
from .relations import Ended, Relations

__all__ = ["Kernel", "Process"]


_NOPROC = Result(error=ExitError(ExitKind.NOPROC, "there is no such process"))

_ENDED_BY = {
    Signal.TERMINATE: ExitError(ExitKind.TERMINATED, "terminated"),
    Signal.STOP_TIMEOUT: ExitError(
        ExitKind.CANCELLED,
        "killed: it was cancelled, interrupted, and did not end within its stop timeout",
    ),
    Signal.START_TIMEOUT: ExitError(
        ExitKind.START_FAILED, "killed: it did not start within its start timeout"
    ),
}


class _Sequel(Struct):
    """What follows from an end while that is being recorded."""

    ends: deque[tuple[PID, Result]] = field(default_factory=deque)
    """Processes that end because of it: nothing has to be killed first, since they wait."""
    due: deque[PID] = field(default_factory=deque)
    """Processes that have nobody to wait for any more."""


class Process(Struct, eq=False):
    """One row of the process table."""

    pid: PID
    state: ProcessState
    connection: bool
    takes_mail: bool = True
    """Whether its inbox still takes messages."""
    ended_by: ExitError | None = None
    """Why wsrelay itself killed it; replaces the bare signal in its result."""
    traps_links: bool = False


class Kernel:
    """All processes of one node. `hosts` maps each process host to its `max_processes`."""

    def __init__(self, hosts: Mapping[str, int]) -> None:
        self.ledger = Ledger()
        self.names = Names(self.ledger)
        self.groups = Groups(self.ledger)
        self.relations = Relations()
        self._limits = dict(hosts)
        self._workers = dict.fromkeys(hosts, 0)
        self._processes: dict[PID, Process] = {}

    @property
    def processes(self) -> Mapping[PID, Process]:
        """The living processes, by PID."""
        return self._processes

    def count(self, host: str) -> int:
        """Return the number of living workers of the host; those that wait take no place."""
        return self._workers[host]

    def limit(self, host: str) -> int:
        """Return how many workers the host may have; 0 if it has been removed."""
        return self._limits.get(host, 0)

    def set_hosts(self, hosts: Mapping[str, int]) -> None:
        """Replace the process hosts and limits; workers of a removed host keep running."""
        self._limits = dict(hosts)
        self._workers = {**dict.fromkeys(hosts, 0), **self._workers}

    def check_host(self, host: str, *, waits: bool = False) -> None:
        """Raise `UnknownHost` or `HostFull` if the host cannot take one more worker.

        One that `waits` takes no place yet.
        """
        if (limit := self._limits.get(host)) is None:
            raise UnknownHost(host, list(self._limits))
        if not waits and self._workers[host] >= limit:
            raise HostFull(host, limit)

    def spawn(
        self,
        pid: PID,
        name: str | None = None,
        *,
        parent: PID | None = None,
        monitored: bool = False,
        linked: bool = False,
    ) -> list[Effect]:
        """Add a worker, under a name if one is given, monitored by or linked to its parent.

        The name is exclusive: if a cancelled process still holds it, the worker waits, and its
        `LaunchEffect` comes when that process has ended. Raises `UnknownHost`, `HostFull`,
        `NameTaken`, `InvalidName` or `TooMany`, and then changes nothing.
        """
        waits = self.names.holder(name) is not None
        self.check_host(pid.host, waits=waits)
        if pid in self._processes:
            raise ValueError(f"{pid} is in use")
        relatives = [parent] if parent in self._processes else []
        for one in relatives:
            self.relations.check(one, pid, monitor=monitored, link=linked)
        if name is not None:
            self.names.claim(name, pid)  # the last step that may raise
        state = ProcessState.WAITING if waits else ProcessState.STARTING
        self._processes[pid] = Process(pid, state, connection=False)
        for one in relatives:
            if monitored:
                self.relations.monitor(one, pid)
            if linked:
                self.relations.link(one, pid)
        if waits:
            return []
        self._workers[pid.host] += 1
        return [LaunchEffect(pid)]

    def spawn_failed(
        self, pid: PID, error: ExitError, parent: PID, *, monitored: bool, linked: bool
    ) -> list[Effect]:
        """Notify the parent of a worker that could not even be added."""
        result = Result(error=error)
        effects = self._exit_event(parent, pid, result) if monitored else []
        return effects + (self._broken_link(parent, pid, result) if linked else [])

    def relate(self, parent: PID, pid: PID, *, monitored: bool, linked: bool) -> None:
        """Relate a process that is started elsewhere to its parent; raises `TooMany`.

        Its node knows of that from the request to start it.
        """
        if monitored:
            self.relations.monitor(parent, pid)
        if linked:
            self.relations.link(parent, pid)

    def get_or_spawn(self, name: str, pid: PID) -> tuple[PID, list[Effect]]:
        """Return the process of that name, or add this worker under it."""
        if (existing := self.names.get(name)) is not None:
            return existing, []
        return pid, self.spawn(pid, name)

    def connect(self, pid: PID) -> None:
        """Add a connection."""
        self._processes[pid] = Process(pid, ProcessState.RUNNING, connection=True)

    def find(self, to: str, node: str) -> Process | None:
        """Return the living process with that PID (the node part may be missing) or name."""
        if (process := self._processes.get(to)) is not None:  # type: ignore[call-overload]
            return process  # type: ignore[no-any-return]
        if to.startswith("{"):
            if "@" in to:
                return None
            return self._processes.get(PID.trusted(f"{{{node}@{to[1:]}"))
        pid = self.names.get(to)
        return None if pid is None else self._processes.get(pid)

    def register(self, name: str, pid: PID, asker: PID | None = None) -> None:
        """Register a living process under a name. Raises `NameTaken`, `InvalidName`, `TooMany`.

        `asker` is the process that requests this, or None for the node.
        """
        process = self._processes.get(pid)
        if process is None or process.state is ProcessState.CANCELLING:
            raise InvalidName(f"{pid} is not alive, so it cannot be registered as {name!r}")
        self.names.register(name, pid, asker)

    def unregister(self, name: str, asker: PID | None = None) -> list[Effect]:
        """Free a name, which gives up its exclusivity too. Raises `NameNotFound`.

        A cancelled process that unregisters the exclusive name that it still holds lets its
        successor start. A successor that loses its name while it waits starts at once.
        """
        pid = self.names.unregister(name, asker)
        return [] if pid is None else self._settle(_Sequel(due=deque([pid])))

    # Relations

    def monitor(self, watcher: PID, target: PID, *, elsewhere: bool = False) -> list[Effect]:
        """Send the watcher EXIT when the target ends, or at once if it is not alive.

        `elsewhere`: if it is not here, its node knows whether it is alive.
        """
        is_here = target in self._processes
        if not is_here and not elsewhere:
            return self._exit_event(watcher, target, _NOPROC)
        is_first = not self.relations.is_watched(target)
        self.relations.monitor(watcher, target)
        return [] if is_here or not is_first else [WatchEffect(target, watcher, watched=True)]

    def unmonitor(self, watcher: PID, target: PID) -> list[Effect]:
        """Undo `monitor`."""
        was_watched = self.relations.is_watched(target)
        self.relations.unmonitor(watcher, target)
        return self._unwatched(target, watcher) if was_watched else []

    def _unwatched(self, target: PID, watcher: PID) -> list[Effect]:
        """Have another node forget the monitor of a process that nobody watches any more."""
        if target in self._processes or self.relations.is_watched(target):
            return []
        return [WatchEffect(target, watcher, watched=False)]

    def link(self, one: PID, other: PID, *, elsewhere: bool = False) -> list[Effect]:
        """Link two processes; one that is not alive counts as having just ended with an error.

        `elsewhere` as in `monitor`.
        """
        if one == other:
            return []
        is_here = other in self._processes
        if not is_here and not elsewhere:
            return self._broken_link(one, other, _NOPROC)
        is_new = not self.relations.is_linked(one, other)
        self.relations.link(one, other)
        return [] if is_here or not is_new else [LinkEffect(other, one, linked=True)]

    def unlink(self, one: PID, other: PID) -> list[Effect]:
        """Undo `link`."""
        if not self.relations.is_linked(one, other):
            return []
        self.relations.unlink(one, other)
        return [] if other in self._processes else [LinkEffect(other, one, linked=False)]

    # Relations of processes of other nodes to those here, as their nodes tell

    def observe(self, observer: PID, target: PID) -> list[Effect]:
        """Send another node, by a PID that stands for it, EXIT as `monitor` does."""
        if target in self._processes:
            self.relations.observe(observer, target)
            return []
        return self._exit_event(observer, target, _NOPROC)

    def linked(self, pid: PID, other: PID) -> list[Effect]:
        """Record that a process elsewhere has linked itself to one here; raises `TooMany`."""
        if other in self._processes:
            self.relations.link(pid, other)
            return []
        return self._exit_event(pid, other, _NOPROC)

    def gone(self, pid: PID, result: Result) -> list[Effect]:
        """Record the end of a process of another node; a second time has no effect."""
        then = _Sequel()
        if (ended := self.relations.release(pid)) is None:
            return []
        effects = self._tell(pid, result, ended, then)
        return effects + self._settle(then)

    def _tell(self, pid: PID, result: Result, ended: Ended, then: _Sequel) -> list[Effect]:
        """Tell all who were related to a process of its end."""
        effects: list[Effect] = []
        for watcher in ended.watchers:
            effects += self._exit_event(watcher, pid, result)
        for other in ended.linked:
            if other in self._processes:
                effects += self._link_down(other, pid, result, then)
            else:  # its node must forget the link too, also if there was no error
                effects.append(NotifyEffect(other, Event("LINK_DOWN", pid, result)))
        for target in ended.unwatched:
            effects += self._unwatched(target, pid)
        return effects

    def trap_links(self, pid: PID, *, trap: bool) -> None:
        """Choose whether the process gets LINK_DOWN or is itself ended."""
        if (process := self._processes.get(pid)) is not None:
            process.traps_links = trap

    def join_group(
        self, group: str, pid: PID, asker: PID | None = None, meta: bytes = b""
    ) -> list[Effect]:
        """Add a process to a group, unless it has exited or has been cancelled.

        Raises `InvalidName`, `TooMany`; `asker` as in `register`, `meta` as in `Groups.join`.
        """
        return [*self.groups.join(group, pid, asker, meta)] if self._stays(pid) else []

    def leave_group(self, group: str, pid: PID) -> list[Effect]:
        """Remove a process from a group."""
        return [*self.groups.leave(group, pid)]

    def watch_group(self, group: str, watcher: PID, number: int) -> list[Effect]:
        """Begin a watch, unless the watcher has exited or has been cancelled."""
        return [*self.groups.watch(group, watcher, number)] if self._stays(watcher) else []

    def _stays(self, pid: PID) -> bool:
        """Whether it is alive and has not been cancelled."""
        process = self._processes.get(pid)
        return process is not None and process.state is not ProcessState.CANCELLING

    def _exit_event(self, watcher: PID, target: PID, result: Result) -> list[Effect]:
        return [NotifyEffect(watcher, Event("EXIT", target, result))]

    def _broken_link(self, pid: PID, ended: PID, result: Result) -> list[Effect]:
        sequel = _Sequel()
        effects = self._link_down(pid, ended, result, sequel)
        return effects + self._settle(sequel)

    def _link_down(self, pid: PID, ended: PID, result: Result, sequel: _Sequel) -> list[Effect]:
        """Notify or end a process that was linked to one that ended with an error."""
        process = self._processes.get(pid)
        if process is None or result.error is None:
            return []
        if process.traps_links:
            return [NotifyEffect(pid, Event("LINK_DOWN", ended, result))]
        why = f"linked process {ended} ended ({result.error.kind})"
        error = ExitError(ExitKind.LINK_DOWN, why)
        if process.state is ProcessState.WAITING:
            sequel.ends.append((pid, Result(error=error)))
            return []
        process.ended_by = process.ended_by or error
        return [BreakEffect(pid, why)]

    def why_no_target(self, pid: PID) -> str | None:
        """Return why a relay cannot be bound to that process, or None if it can."""
        process = self._processes.get(pid)
        if process is None:
            return f"target_pid {pid} is not alive"
        if process.connection:
            return f"target_pid {pid} is a connection; a target is a worker"
        if process.state is ProcessState.CANCELLING:
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
        """Give a signal to a process; has no effect if it is not alive.

        Neither EXIT, for which there is `exited`, nor DUE, which follows from another's exit.
        `because` is the error with which a process killed by this signal ends, if it is not the
        signal's own.
        """
        if (process := self._processes.get(pid)) is None:
            return []
        state, action = TABLE[process.state][signal]
        if action is Action.CLEAN_UP:  # it waits, and nothing runs it yet
            return self.exited(pid, Result(error=because or _ENDED_BY.get(signal)))
        process.state = state
        match action:
            case Action.START:
                return [StartedEffect(pid)]
            case Action.STOP:
                process.takes_mail = False
                self.names.cancelled(pid)
                return [*self.groups.release(pid), StopEffect(pid, reason, sender or pid)]
            case Action.KILL:
                process.ended_by = process.ended_by or because or _ENDED_BY[signal]
                return [KillEffect(pid)]
        return []

    def exited(self, pid: PID, result: Result, sequel: _Sequel | None = None) -> list[Effect]:
        """Record that the process has exited; a second call has no effect.

        What its end brings about follows: first its notifications, then the ends of those that
        waited and were linked to it, then the start of its successor. With a `sequel` the latter
        two are only added to that.
        """
        if (process := self._processes.pop(pid, None)) is None:
            return []
        then = sequel or _Sequel()
        if not process.connection and process.state is not ProcessState.WAITING:
            self._workers[pid.host] -= 1
        process.state = ProcessState.EXITED
        process.takes_mail = False
        if (successor := self.names.release(pid)) is not None:
            then.due.append(successor)
        left = self.groups.release(pid)
        killed = result.error is not None and result.error.kind is ExitKind.KILLED
        if process.ended_by and (killed or (process.connection and result.error)):
            result = Result(result.value, process.ended_by)
        effects: list[Effect] = [ExitedEffect(pid, result), *left]
        if (ended := self.relations.release(pid)) is not None:
            effects += self._tell(pid, result, ended, then)
        if sequel is None and (then.ends or then.due):
            effects += self._settle(then)
        return effects

    def _settle(self, sequel: _Sequel) -> list[Effect]:
        """Record all ends that follow, from each other too, then start those that are due."""
        effects: list[Effect] = []
        while sequel.ends or sequel.due:
            if sequel.ends:
                effects += self.exited(*sequel.ends.popleft(), sequel)
            else:
                effects += self._start(sequel.due.popleft(), sequel)
        return effects

    def _start(self, pid: PID, sequel: _Sequel) -> list[Effect]:
        """Start a process that has waited for the one before it, if its host has a place."""
        process = self._processes.get(pid)
        if process is None or process.state is not ProcessState.WAITING:
            return []
        if self.names.awaited(pid) is not None:
            return []
        try:
            self.check_host(pid.host)
        except (UnknownHost, HostFull) as error:
            is_full = isinstance(error, HostFull)
            kind = ExitKind.HOST_FULL if is_full else ExitKind.START_FAILED
            sequel.ends.append((pid, Result(error=ExitError(kind, str(error)))))
            return []
        process.state, _ = TABLE[process.state][Signal.DUE]
        self._workers[pid.host] += 1
        return [LaunchEffect(pid)]
