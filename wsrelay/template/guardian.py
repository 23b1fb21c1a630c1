"""A separate program between a node and a template: it ends all that the template has started.

A template runs user code, so it may hang, be stopped, or lie. Its guardian runs none: it stays
until none of the template's descendants are left, whatever they did to get out of reach (a session
of their own, PDEATHSIG cleared, `clone` with CLONE_PARENT), because the kernel gives it all orphans
among them. The node itself is not a subreaper: it may be part of somebody else's program, which
would get children that it never started and would not reap.

It imports next to nothing and takes 4 MB per host. Merely forked from the template it took 9 MB;
with `socket`, `pathlib` and `typing` imported, 6 MB.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

__all__ = ["AT_ONCE", "OBEYS", "serve"]

AT_ONCE = b"!"
"""What the node writes to have the template killed."""

OBEYS = b"."
"""What the node writes once the template does nothing but wait for orders: from then on it is given
time to end by itself when the socket closes. Before that, loading user code is not waited for."""

_PATIENCE = 3.0
"""Seconds that a template has to end by itself, including exit handlers of preloaded code."""

_TRACKERS_PATIENCE = 2.0
"""Seconds that resource trackers have to remove what exited workers have left; 20 ms is usual."""

_PAUSE = 0.002

_NAME = "wsrelay: guardian"
_TRACKER = b"multiprocessing.resource_tracker"


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
        # A child's exit interrupts the poll through this pipe.
        self._woken, self._wakeup = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wakeup, False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._reap()  # children that exited before the handler was installed
        patience = 0.0
        while self._wait(None) and (said := self._said()):
            patience = _PATIENCE if said == OBEYS else 0.0
            if said == AT_ONCE:
                break
        if self._runs and patience:
            os.kill(self._template, signal.SIGCONT)  # a stopped process could not end
            self._wait(patience)
        self._end_all()

    def _said(self) -> bytes:
        try:
            return os.read(self._node, 1)
        except OSError:  # the node exited before reading who the template is
            return b""

    def _wait(self, patience: float | None) -> bool:
        """Wait until the template exits, or `patience` seconds.

        With None there is no timeout; then it also returns, with True, when the node writes or
        closes its end.
        """
        deadline = None if patience is None else time.monotonic() + patience
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        if deadline is None:
            poll.register(self._node, select.POLLIN)
        left = None
        while self._runs:
            if deadline is not None and (left := (deadline - time.monotonic()) * 1000) <= 0:
                return False
            ready = [descriptor for descriptor, _ in poll.poll(left)]
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


def _children() -> list[int]:
    """Return the process ids of this process's children, zombies too (Linux; elsewhere none)."""
    found: list[int] = []
    me = os.getpid()
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208 - no pathlib
        if name.isdecimal():
            stat = _read(f"/proc/{name}/stat")
            # The name is in parentheses and may contain anything; the parent is second after it.
            if stat and int(stat[stat.rindex(b")") + 2 :].split()[1]) == me:
                found.append(int(name))
    return found


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
