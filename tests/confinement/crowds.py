"""Handlers that use what their host as a whole has, and more."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

MB = 1024 * 1024


def allocate(size: int) -> int:
    return len(bytearray(size))


def settle() -> list[str]:
    """Return the cgroups of this process and of a daemon that it starts in a session of its own."""
    found = [Path("/proc/self/cgroup").read_text()]
    order = "cat /proc/self/cgroup"
    done = subprocess.run(
        ["sh", "-c", order], start_new_session=True, capture_output=True, text=True, check=True
    )
    return [*found, done.stdout]


def fill_memfd(size: int) -> None:
    descriptor = os.memfd_create("full")
    for _ in range(size // MB):
        os.write(descriptor, bytes(MB))
    time.sleep(600)


def hungry(size: int) -> int:
    return len(bytearray(os.urandom(MB)) * (size // MB))


def fork_all() -> int:
    """Fork until the system refuses, and return how many that were."""
    children: list[int] = []
    try:
        while len(children) < 1000:
            if (pid := os.fork()) == 0:
                time.sleep(600)
            children.append(pid)
    except OSError:
        pass
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return len(children)


def spin() -> None:
    while True:
        pass


def hide(path: str) -> None:
    """Start a daemon in a session of its own, tell its process id, and wait."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as daemon:
        Path(path).write_text(f"{daemon.pid}\n")
        time.sleep(600)


def leave(folder: str) -> list[str]:
    """Try to get out of a cgroup and to lift its limits; return what was possible."""
    own = Path(folder)
    attempts = [(own.parent / "cgroup.procs", "0"), (own / "pids.max", "max")]
    done = []
    for file, text in attempts:
        try:
            file.write_text(text)
            done.append(str(file))
        except OSError:
            pass
    try:
        (own / "deeper").mkdir()
        done.append("mkdir")
    except OSError:
        pass
    return done


def wait() -> None:
    time.sleep(600)
