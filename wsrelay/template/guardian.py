"""A separate program between a node and a template: it ends all that the template has started.

A template runs user code, so it may hang, be stopped, or lie. Its guardian runs none: it stays
until none of the template's descendants are left, whatever they did to get out of reach (a session
of their own, PDEATHSIG cleared, `clone` with CLONE_PARENT), because the kernel gives it all orphans
among them. The node itself is not a subreaper: it may be part of somebody else's program, which
would get children that it never started and would not reap.

It also stops (SIGSTOP) the processes that are fenced when the deadline passes that the node has
told it, and lets them go on when it is told a later one. The node may hang then, and so may the
template, so neither could be trusted with that.

It imports next to nothing and takes 4 MB per host. Merely forked from the template it took 9 MB;
with `socket`, `pathlib` and `typing` imported, 6 MB.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

__all__ = ["AT_ONCE", "DEADLINE", "FENCE", "OBEYS", "UNFENCE", "order", "serve"]

AT_ONCE = b"!"
"""The node's order to have the template killed."""

OBEYS = b"."
"""What the node tells once the template does nothing but wait for orders: from then on it is given
time to end by itself when the socket closes. Before that, loading user code is not waited for."""

DEADLINE = b"d"
"""The monotonic time, in nanoseconds, from which on the fenced processes are to be stopped, until
a later one comes. Without any they are never stopped."""

FENCE = b"f"
"""The process id of a worker that is fenced from now on."""

UNFENCE = b"u"
"""The process id of a worker that is not fenced any more, or has ended."""

_ORDER = 9
"""Bytes of an order."""

_PATIENCE = 3.0
"""Seconds that a template has to end by itself, including exit handlers of preloaded code."""

_TRACKERS_PATIENCE = 2.0
"""Seconds that resource trackers have to remove what exited workers have left; 20 ms is usual."""

_PAUSE = 0.002

_NAME = "wsrelay: guardian"
_TRACKER = b"multiprocessing.resource_tracker"

_ENDED = b"ZX"
_HALTED = b"ZXTt"
"""States in `/proc` of processes that have ended; and of those that do not run, for any reason."""

_MISSING = b"X" if sys.platform == "linux" else b"R"


def order(code: bytes, number: int = 0) -> bytes:
    """Return what the node writes for an order."""
    return code + number.to_bytes(_ORDER - 1, "little")


def serve(lifeline: int, template: int) -> None:
    """End the template and all its descendants when the node says so or exits, then return.

    `lifeline` is the descriptor of a socket to the node. This process must be the template's
    parent, a subreaper, and the leader of its session.
    """
    try:
        with open("/proc/self/comm", "w") as name:  # noqa: PTH123 - pathlib costs memory
            name.write(_NAME)
    except OSError:
        pass
    _Guardian(lifeline, template).serve()


class _Guardian:
    def __init__(self, node: int, template: int) -> None:
        self._node = node
        self._template = template
        self._runs = True
        self._patience = 0.0
        self._orders = b""
        self._fence = _Fence()
        # A child's exit interrupts the poll through this pipe.
        self._woken, self._wakeup = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wakeup, False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._reap()  # children that exited before the handler was installed
        while self._wait(None) and self._obey():
            pass
        if self._runs and self._patience:
            os.kill(self._template, signal.SIGCONT)  # a stopped process could not end
            self._wait(self._patience)
        self._end_all()

    def _obey(self) -> bool:
        """Carry out what the node has written; returns False if it is time to end everything."""
        try:
            data = os.read(self._node, 4096)
        except OSError:  # the node exited before reading who the template is
            return False
        self._orders += data
        while len(self._orders) >= _ORDER:
            code, number = self._orders[:1], int.from_bytes(self._orders[1:_ORDER], "little")
            self._orders = self._orders[_ORDER:]
            if code == AT_ONCE:
                self._patience = 0.0
                return False
            if code == OBEYS:
                self._patience = _PATIENCE
            else:
                self._fence.obey(code, number)
        return bool(data)

    def _wait(self, patience: float | None) -> bool:
        """Wait until the template exits, or `patience` seconds; meanwhile, keep the deadline.

        With None there is no timeout; then it also returns, with True, when the node writes or
        closes its end.
        """
        deadline = None if patience is None else time.monotonic() + patience
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if deadline is None:
            poll.register(self._node, select.POLLIN)
        while self._runs:
            left = self._fence.keep()
            if deadline is not None:
                rest = deadline - time.monotonic()
                if rest <= 0:
                    return False
                left = rest if left is None else min(left, rest)
            ready = [fd for fd, _ in poll.poll(None if left is None else left * 1000)]
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._node in ready:
                return True
        return False

    def _reap(self) -> bool:
        """Reap all exited children, adopted ones too; returns whether any others are left."""
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._runs = self._runs and pid != self._template
        except ChildProcessError:
            self._runs = False
            return False
        return True

    def _end_all(self) -> None:
        """Kill every descendant and wait until they are gone.

        A resource tracker ends by itself once no process is left that needs what it removes.
        """
        patience = time.monotonic() + _TRACKERS_PATIENCE
        while True:
            # Whatever outlived its parent is our child now; killing it may orphan more. None of
            # their process ids can be reused before they are reaped.
            children = _children()
            trackers = [pid for pid in children if _is_tracker(pid)]
            if time.monotonic() > patience:
                trackers = []
            killed = [_killed(pid) for pid in children if pid not in trackers]
            if not any(killed) and not trackers:
                return  # whatever is left was started by a handler with `sudo`
            if not self._reap():
                return
            time.sleep(_PAUSE)


class _Fence:
    """Stops the fenced processes while the deadline is past."""

    def __init__(self) -> None:
        self._deadline: int | None = None
        self._fenced: dict[int, bytes] = {}
        """Workers by process id, each with the time when it began: an id may be used again."""
        self._stopped: dict[int, int] = {}
        """The process groups that were stopped here, each with its session."""
        self._all = False
        """Whether all that is to be stopped is."""

    def obey(self, code: bytes, number: int) -> None:
        if code == DEADLINE:
            self._deadline = number
        elif code == FENCE:
            self._fenced[number] = _Stat(number).began
            self._all = False
        elif code == UNFENCE:
            self._fenced.pop(number, None)
            if _Stat(number).state not in _ENDED:
                self._go_on(number)

    def keep(self) -> float | None:
        """Stop what is to be stopped and let the rest go on; returns the seconds until the next."""
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic_ns()
        if left > 0:
            self._go_on()
            return left / 1e9 if self._fenced else None
        if not self._all:
            self._stop()
        return None

    def _stop(self) -> None:
        self._all = True
        for pid, began in list(self._fenced.items()):
            if _Stat(pid).began != began:
                del self._fenced[pid]
            elif pid not in self._stopped:
                self._stop_group(pid, pid)
        # Then what has left its worker's group, but not its session. No member of a group that was
        # told to stop can fork any more, so this ends.
        while self._fenced and (
            left := [
                (stat.group, stat.session)
                for stat in _all_stats()
                if stat.session in self._fenced
                and stat.group not in self._stopped
                and stat.state not in _HALTED
            ]
        ):
            for group, session in left:
                self._stop_group(group, session)

    def _stop_group(self, group: int, session: int) -> None:
        self._stopped[group] = session
        _signal_group(group, signal.SIGSTOP)

    def _go_on(self, session: int | None = None) -> None:
        """Let one session go on, or all."""
        if session is None:
            self._all = False
        for group, of in list(self._stopped.items()):
            if session in {None, of}:
                del self._stopped[group]
                _signal_group(group, signal.SIGCONT)


class _Stat:
    """What `/proc` says of a process; one that does not exist has ended (Linux)."""

    def __init__(self, pid: int) -> None:
        stat = _read(f"/proc/{pid}/stat") if sys.platform == "linux" else b""
        # The name is in parentheses and may contain anything; what matters comes after it.
        fields = stat[stat.rindex(b")") + 2 :].split() if stat else [_MISSING, *[b"0"] * 19]
        self.pid = pid
        self.state = fields[0]
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.began = fields[19]


def _all_stats() -> list[_Stat]:
    """Return what `/proc` says of all processes (Linux; elsewhere of none)."""
    names = os.listdir("/proc") if sys.platform == "linux" else ()  # noqa: PTH208 - no pathlib
    return [_Stat(int(name)) for name in names if name.isdecimal()]


def _children() -> list[int]:
    """Return the process ids of this process's children, zombies too (Linux; elsewhere none)."""
    me = os.getpid()
    return [stat.pid for stat in _all_stats() if stat.parent == me]


def _signal_group(group: int, number: int) -> None:
    # Before its setsid() a new worker is not a group leader yet; then it alone gets the signal.
    for send in (os.killpg, os.kill):
        try:
            send(group, number)
        except (ProcessLookupError, PermissionError):
            continue
        return


def _is_tracker(pid: int) -> bool:
    """Whether a process is a resource tracker, by its command line."""
    return _TRACKER in _read(f"/proc/{pid}/cmdline")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs memory
            return file.read()
    except OSError:  # it exited meanwhile
        return b""


def _killed(pid: int) -> bool:
    """Kill a child together with its process group.

    A process that forks and exits, again and again, can only be caught through its group. All
    groups are in sessions that contain only descendants of this process.
    """
    try:
        if (group := os.getpgid(pid)) != os.getpgrp():
            os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    try:
        os.kill(pid, signal.SIGKILL)
    except PermissionError:
        return False
    return True


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
