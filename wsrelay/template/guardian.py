"""A program of its own, between a node and a template: it ends whatever has come of the template.

A template runs user code, and so may hang, be stopped, or lie. Its guardian runs none: it is there
until nothing is left of the template's descendants, whatever they did to get out of reach (a
session of their own, PDEATHSIG taken back, `clone` with CLONE_PARENT), for the kernel gives it all
orphans among them. The node itself is no subreaper: it may be a part of somebody else's program,
which would get children that it never started, and reap none of them.

It imports next to nothing: forked from the template and no more it took 9 MB for each host, with
`socket`, `pathlib` and `typing` 6, and so 4.
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
"""What the node writes when the template does nothing but wait for its orders: from then on it may
end by itself when the socket does. User code that is loaded before that is not waited for."""

_PATIENCE = 3.0
"""Seconds that a template has to end by itself, exit handlers of preloaded code and all."""

_TRACKERS_PATIENCE = 2.0
"""Seconds that resource trackers have to remove what dead workers have left; 20 ms are usual."""

_PAUSE = 0.002

_NAME = "wsrelay: guardian"
_TRACKER = b"multiprocessing.resource_tracker"


def serve(lifeline: int, template: int) -> None:
    """Return when the template is gone, with all that it had, as the node's word or end wants.

    `lifeline` is the descriptor of a socket to the node; the process is the template's parent, a
    subreaper and the leader of its session.
    """
    try:
        with open("/proc/self/comm", "w") as name:  # noqa: PTH123 - see above
            name.write(_NAME)
    except OSError:
        pass
    _Guardian(lifeline, template).serve()


class _Guardian:
    def __init__(self, node: int, template: int) -> None:
        self._node = node
        self._template = template
        self._runs = True
        # A child's death interrupts the poll by way of this pipe.
        self._woken, self._wakeup = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wakeup, False)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._reap()  # what ended before there was somebody to wake
        patience = 0.0
        while self._wait(None) and (said := self._said()):
            patience = _PATIENCE if said == OBEYS else 0.0
            if said == AT_ONCE:
                break
        if self._runs and patience:
            os.kill(self._template, signal.SIGCONT)  # stopped it could not end
            self._wait(patience)
        self._end_all()

    def _said(self) -> bytes:
        try:
            return os.read(self._node, 1)
        except OSError:  # the node ended before it had read who the template is
            return b""

    def _wait(self, patience: float | None) -> bool:
        """Wait for the template's end, for so many seconds; or, which is True, for the node."""
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
        """Reap all dead children, adopted ones too; returns whether others are left."""
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._runs = self._runs and pid != self._template
        except ChildProcessError:
            self._runs = False
            return False
        return True

    def _end_all(self) -> None:
        """Kill every descendant and wait until they are gone.

        A resource tracker ends by itself once nobody is left to need what it removes.
        """
        patience = time.monotonic() + _TRACKERS_PATIENCE
        while True:
            # Whatever outlived its parent is our child now: killing it may bring up more. None of
            # their numbers can be used anew before they are reaped.
            there = _children()
            trackers = [pid for pid in there if _is_tracker(pid)]
            if time.monotonic() > patience:
                trackers = []
            killed = [_killed(pid) for pid in there if pid not in trackers]
            if not any(killed) and not trackers:
                return  # what is left, if anything, a handler has started with `sudo`
            if not self._reap():
                return
            time.sleep(_PAUSE)


def _children() -> list[int]:
    """Return the process ids of this process's children, zombies too (Linux; elsewhere none)."""
    found: list[int] = []
    me = os.getpid()
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208 - see above
        if name.isdecimal():
            stat = _read(f"/proc/{name}/stat")
            # The name stands in parentheses and may hold anything; the parent is second after it.
            if stat and int(stat[stat.rindex(b")") + 2 :].split()[1]) == me:
                found.append(int(name))
    return found


def _is_tracker(pid: int) -> bool:
    """Whether a process is a resource tracker, by its command line."""
    return _TRACKER in _read(f"/proc/{pid}/cmdline")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - see above
            return file.read()
    except OSError:  # it ended while we looked
        return b""


def _killed(pid: int) -> bool:
    """Kill a child together with its process group.

    One that forks and ends, again and again, is caught by its group's number alone. All groups are
    in sessions that have nobody but descendants of this process in them.
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
