"""Limits of a host as a whole, set by cgroup v2: they also hold for all that its processes start.

Each template lives in a cgroup of its own below the node's, along with its workers, their children,
daemons and memfds. A cgroup with children must not hold processes itself (except for the root), so
the node moves into a leaf first:

    /system.slice/wsrelay.service        delegated to the node (`Delegate=yes`)
        wsrelay.node                     the node, and what was in its cgroup with it
        wsrelay.app-processes.71.4242.1  a host: its node's process id and start time, and a number
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from pathlib import Path
from typing import Final, NamedTuple

from wsrelay.values import linux
from wsrelay.values.bounds import InvalidOptions

from .limits import Limits

__all__ = ["Cgroup", "CgroupError", "Place", "asked", "check", "enter", "find", "settings"]

_CONTROLLERS: Final = {"cpus": "cpu", "memory_total": "memory", "processes_total": "pids"}
"""The controller that enforces each of the limits."""

_PREFIX: Final = "wsrelay."
_NODE: Final = "wsrelay.node"

_PERIOD: Final = 100_000
"""Microseconds; `cpu.max` is how many of CPU time may be used in each such period."""

_LONGEST_NAME: Final = 100

_PATIENCE: Final = 5.0
"""Seconds that killed processes have to disappear."""

_PAUSE: Final = 0.005

_MOVES: Final = 100
"""Rounds of moving the processes beside the node, which may fork meanwhile."""

_numbers = itertools.count(1)


class CgroupError(Exception):
    """The system has no cgroup v2, or none for this node; the text says what to do."""


class Place(NamedTuple):
    """Where hosts' cgroups go; `occupied`: the node has to leave it for a leaf first."""

    folder: Path
    occupied: bool


def asked(limits: Limits) -> list[str]:
    """Return the names of the limits that are set for the host as a whole."""
    return [name for name in _CONTROLLERS if getattr(limits, name) is not None]


def check(limits: Limits) -> None:
    """Check that such limits can be set here; raises `InvalidOptions`."""
    if names := asked(limits):
        try:
            find(limits)
        except CgroupError as error:
            raise InvalidOptions([(f"limits.{names[0]}", f"cannot be kept: {error}")]) from None


def settings(limits: Limits) -> dict[str, str]:
    """Return the files of a cgroup to write, each with its text."""
    texts = {}
    if limits.cpus is not None:
        texts["cpu.max"] = f"{round(limits.cpus * _PERIOD)} {_PERIOD}"
    if limits.memory_total is not None:
        texts["memory.max"] = str(limits.memory_total)
        texts["memory.swap.max"] = "0"
    if limits.processes_total is not None:
        texts["pids.max"] = str(limits.processes_total)
    return texts


def find(
    limits: Limits, proc: Path = Path("/proc"), systemd: Path = Path("/run/systemd/system")
) -> Place:
    """Return where hosts with these limits can have their cgroups; raises `CgroupError`.

    Changes nothing.
    """
    place = _place(_own(proc), systemd.exists())
    folder = place.folder
    try:
        available = (folder / "cgroup.controllers").read_text().split()
    except OSError as error:
        raise CgroupError(f"the node's cgroup {folder}: {error.strerror}") from None
    if missing := [name for name in _controllers(limits) if name not in available]:
        raise CgroupError(
            f"the cgroup {folder} has no controller {', '.join(missing)} (it has: "
            f"{' '.join(available) or 'none'}). {_why_missing(missing, proc)}"
        )
    needed = (folder, folder / "cgroup.procs", folder / "cgroup.subtree_control")
    if not all(os.access(path, os.W_OK) for path in needed):
        raise CgroupError(
            f"the node may not write to its cgroup {folder}. Run it as a systemd service with "
            "`Delegate=yes`; a container needs /sys/fs/cgroup mounted writable, or limits of its "
            "own instead of the host's"
        )
    return place


def _controllers(limits: Limits) -> list[str]:
    return [_CONTROLLERS[name] for name in asked(limits)]


def _own(proc: Path) -> Path:
    """Return the folder of this process's cgroup."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        raise CgroupError("only Linux has cgroups") from None
    # Paths that begin with /.. are outside the namespace's root.
    paths = [Path(line[3:]) for line in lines if re.match(r"0::/(?!\.\.)", line)]
    for path, mount in itertools.product(paths, mounts):
        fields = mount.split()
        root, point = (Path(_unescaped(field)) for field in fields[3:5])
        if fields[fields.index("-") + 1] == "cgroup2" and path.is_relative_to(root):
            return point / path.relative_to(root)
    raise CgroupError(
        "no cgroup v2 is available: mount it (`mount -t cgroup2 none /sys/fs/cgroup`), "
        "or start the system with systemd.unified_cgroup_hierarchy=1"
    )


def _unescaped(field: str) -> str:
    """Return a field of mountinfo with its octal escapes (for blanks and the like) undone."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _place(own: Path, systemd: bool) -> Place:
    """Choose the node's cgroup, or its parent if the node is already in a leaf."""
    if own.name == _NODE:
        return Place(own.parent, occupied=False)
    if not (own / "cgroup.type").exists():  # the root's, in which processes may stay
        return Place(own, occupied=False)
    if not systemd or _delegated(own):
        return Place(own, occupied=True)
    if _delegated(own.parent):  # DelegateSubgroup= has moved it already
        return Place(own.parent, occupied=False)
    raise CgroupError(
        f"systemd has not delegated the cgroup {own} to the node, and would undo what is set "
        "in it. Write `Delegate=yes` into the [Service] of its unit, or start it with "
        "`systemd-run --scope -p Delegate=yes wsrelay ...` (not as root: with --user, too)"
    )


def _delegated(folder: Path) -> bool:
    for mark in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, mark) == b"1":
                return True
    return False


def _why_missing(missing: list[str], proc: Path) -> str:
    with contextlib.suppress(OSError):
        for line in (proc / "cgroups").read_text().splitlines():
            name, hierarchy, *_ = line.split()
            if name in missing and hierarchy != "0":
                return (
                    "The system has it in cgroup v1: start it with "
                    "systemd.unified_cgroup_hierarchy=1, or unmount that hierarchy"
                )
    needed = f"`Delegate={' '.join(missing)}`"
    return f"The node's unit needs {needed}, and for one of systemd --user so does user@.service"


def enter(folder: Path) -> None:
    """Move this process into a cgroup; raises `CgroupError`."""
    try:
        _write(folder / "cgroup.procs", "0")
    except OSError as error:
        raise CgroupError(f"the cgroup {folder} cannot be entered: {error.strerror}") from None


class Cgroup:
    """The cgroup of one template and all that it starts; raises `CgroupError`.

    What exited nodes have left behind is removed first.
    """

    def __init__(self, host: str, limits: Limits) -> None:
        place = find(limits)
        for folder in place.folder.glob(f"{_PREFIX}*.*.*.*"):
            if not _alive(*folder.name.rsplit(".", 3)[1:3]):
                _remove(folder)
        me = os.getpid()
        name = re.sub("[/:]", "-", host)[:_LONGEST_NAME]
        number = f"{me}.{linux.started(me)}.{next(_numbers)}"
        self.folder = place.folder / f"{_PREFIX}{name}.{number}"
        self._killed = 0
        try:
            if place.occupied:
                _step_aside(place.folder)
            _enable(place.folder, _controllers(limits))
            self.folder.mkdir()
        except OSError as error:
            why = f"the cgroup {place.folder} cannot be divided: {error.strerror}"
            raise CgroupError(why) from None
        for file, text in settings(limits).items():
            try:
                _write(self.folder / file, text)
            except OSError as error:
                if file == "memory.swap.max" and isinstance(error, FileNotFoundError):
                    continue  # a system without swap
                self.remove()
                raise CgroupError(f"{self.folder / file} = {text}: {error.strerror}") from None

    def out_of_memory(self) -> bool:
        """Whether the system has killed processes due to `memory_total` since the last call."""
        try:
            text = (self.folder / "memory.events").read_text()
        except OSError:
            return False
        before = self._killed
        self._killed = int(dict(map(str.split, text.splitlines()))["oom_kill"])
        return self._killed > before

    def remove(self, patience: float = 0.0) -> None:
        """Kill what is left after `patience` seconds, then remove the cgroup, which may be gone."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and _populated(self.folder):
            time.sleep(_PAUSE)
        _remove(self.folder)


def _step_aside(folder: Path) -> None:
    """Move all processes of a cgroup into a leaf below it."""
    (folder / _NODE).mkdir(exist_ok=True)
    for _ in range(_MOVES):
        pids = (folder / "cgroup.procs").read_text().split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(folder / _NODE / "cgroup.procs", pid)
        if not pids:
            return


def _enable(folder: Path, controllers: list[str]) -> None:
    file = folder / "cgroup.subtree_control"
    enabled = file.read_text().split()
    if wanted := [f"+{name}" for name in controllers if name not in enabled]:
        _write(file, " ".join(wanted))


def _alive(pid: str, started: str) -> bool:
    """Whether the node with this process id and start time is still running."""
    return not pid.isdecimal() or str(linux.started(int(pid))) == started


def _populated(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return "populated 1" in (folder / "cgroup.events").read_text()
    return False


def _remove(folder: Path) -> None:
    """Kill all processes in a cgroup and those below it, and remove these cgroups."""
    deadline = time.monotonic() + _PATIENCE
    while folder.exists() and time.monotonic() < deadline:
        _kill(folder)
        for inner, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # fails until the killed processes are gone
                Path(inner).rmdir()
        if folder.exists():
            time.sleep(_PAUSE)


def _kill(folder: Path) -> None:
    try:
        _write(folder / "cgroup.kill", "1")
    except OSError:  # before Linux 5.14
        for file in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                for pid in file.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)


def _write(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
