"""What a process host's template gives up before it imports any user code."""

from __future__ import annotations

import contextlib
import fnmatch
import grp
import itertools
import os
import pwd
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from wsrelay.values import linux
from wsrelay.values.bounds import InvalidOptions

from . import landlock, seccomp, syscalls

__all__ = ["Filesystem", "Isolation", "IsolationError", "doubts", "enter"]


_ALL_MODES: Final = 0o777


class IsolationError(Exception):
    """The operating system lacks or refuses a kind of isolation; the text says which and why."""


class Filesystem(Struct, frozen=True, kw_only=True):
    """Files and folders that may be read (and executed), and those that may also be written."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


class Isolation(Struct, frozen=True, kw_only=True):
    """How the workers of a host are kept apart from the rest of the system.

    `user` and `group` are names or numbers and need a node that runs as root; `environment` holds
    names or patterns (`LC_*`) of the variables that workers see, None: all. `filesystem` and
    `network="none"` (no sockets except pairs of streams) need Linux. With `user`, `filesystem` or
    `network` a host is walled in: that implies `no_new_privs` and no capabilities.
    """

    user: str | None = None
    group: str | None = None
    umask: int | None = None
    working_directory: str | None = None
    environment: tuple[str, ...] | None = None
    filesystem: Filesystem | None = None
    network: str = "host"
    no_new_privs: bool = False
    core_dumps: bool = False

    def __post_init__(self) -> None:
        """Raise `InvalidOptions` for impossible values, before any process is started."""
        problems = []
        if self.umask is not None and not 0 <= self.umask <= _ALL_MODES:
            problems.append(("umask", f"is {self.umask:#o} and must be 0 to 0o777"))
        if self.network not in ("host", "none"):
            problems.append(("network", f"is {self.network!r} and must be 'host' or 'none'"))
        if self.group is not None and self.user is None:
            problems.append(("group", f"{self.group!r} needs a user"))
        if problems:
            raise InvalidOptions(problems)

    @property
    def walled(self) -> bool:
        """Whether it keeps processes from what is not their host's; these have few rights."""
        return self.user is not None or self.filesystem is not None or self.network != "host"


def enter(isolation: Isolation, scripts: Iterable[Path]) -> None:
    """Enter the isolation for good; raises `IsolationError`.

    `scripts` may be read regardless of `filesystem`.
    """
    _require_linux(isolation)
    if not isolation.core_dumps:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if isolation.umask is not None:
        os.umask(isolation.umask)
    if isolation.environment is not None:
        _keep_variables(isolation.environment)
    if isolation.walled:
        linux.bound_capabilities()
    if isolation.user is not None:
        _become(isolation.user, isolation.group)
    if isolation.walled:
        linux.drop_capabilities()
    if isolation.working_directory is not None:
        _change_to(isolation.working_directory)
    if isolation.no_new_privs or isolation.walled:
        linux.no_new_privileges()
    _wall_in(isolation, scripts)


def _require_linux(isolation: Isolation) -> None:
    wanted = {
        "filesystem": isolation.filesystem is not None,
        "network": isolation.network != "host",
        "no_new_privs": isolation.no_new_privs,
        # Elsewhere other processes may read the environment that this one was started with.
        "environment": isolation.environment is not None,
    }
    if sys.platform != "linux" and (names := [name for name, is_set in wanted.items() if is_set]):
        raise IsolationError(f"{', '.join(names)}: only Linux has that, and this is {sys.platform}")


def _keep_variables(patterns: tuple[str, ...]) -> None:
    kept = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    os.environ.clear()
    linux.forget_environment()
    os.environ.update(kept)


def _become(user: str, group: str | None) -> None:
    account = _account(user)
    uid = _number("user", user) if account is None else account.pw_uid
    if group is not None:
        gid = _group(group)
    elif account is not None:
        gid = account.pw_gid
    else:
        raise IsolationError(f"user {user} is not in the user database: name a group, too")
    if os.geteuid() != 0:
        if (uid, gid) != (os.geteuid(), os.getegid()):
            raise IsolationError(f"user {user}: only a node that runs as root can change users")
        return
    if account is None:
        os.setgroups([gid])
    else:
        os.initgroups(account.pw_name, gid)
        os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _account(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        return None


def _group(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return _number("group", group)


def _number(what: str, text: str) -> int:
    if not text.isdecimal():
        raise IsolationError(f"there is no {what} {text!r}")
    return int(text)


def _change_to(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise IsolationError(f"working_directory {folder}: {error.strerror}") from None


_SYSTEM: Final = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
    # The template finds orphans in it, and a child its own folder, whose number is unknown before.
    # Of others only what `ps` shows to all users can be seen: environments, memory, descriptors and
    # folders need the right to trace a process, and Landlock grants that only for those inside.
    # (Root with CAP_PERFMON could still read memory, since Linux 6.15: the capability is dropped.)
    "/proc",
)
_PACKAGE: Final = Path(__file__).resolve().parent.parent


def _keep_files(filesystem: Filesystem, scripts: Iterable[Path]) -> None:
    """Give up all files except for these and what Python itself needs."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), _PACKAGE, *map(Path, _SYSTEM), *scripts]
    read = [path for path in needed if os.path.exists(path)]  # noqa: PTH110 - never raises
    write = [Path(os.devnull)]
    for key, paths, into in (("read", filesystem.read, read), ("write", filesystem.write, write)):
        for path in paths:
            try:
                os.close(os.open(path, os.O_PATH))
            except OSError as error:
                raise IsolationError(f"filesystem.{key}: {path}: {error.strerror}") from None
            into.append(Path(path))
    try:
        landlock.restrict(read, write)
    except (landlock.LandlockError, OSError) as error:
        raise IsolationError(f"filesystem is not possible here: {error}") from None


def _wall_in(isolation: Isolation, scripts: Iterable[Path]) -> None:
    """Give up files, sockets, and what reaches other processes."""
    calls: dict[str, tuple[syscalls.SyscallRule, ...]] = {}
    if isolation.filesystem is not None:
        _keep_files(isolation.filesystem, scripts)
        calls["filesystem"] = syscalls.FILES
    elif isolation.network == "none":
        # `doubts` has reported what a kernel without it leaves open.
        with contextlib.suppress(landlock.LandlockError):
            landlock.keep_to_itself()
    if isolation.network == "none":
        calls["network none"] = syscalls.SOCKETS
    if not calls:
        return
    try:
        seccomp.forbid(itertools.chain(syscalls.OTHERS, *calls.values()))
    except (seccomp.SeccompError, OSError) as error:
        raise IsolationError(f"{', '.join(calls)} is not possible here: {error}") from None


def doubts(isolation: Isolation) -> list[str]:
    """List what the walls of a host leave open only because it has no `user` of its own."""
    no_files, no_network = isolation.filesystem is not None, isolation.network == "none"
    if isolation.user is not None or not (no_files or no_network) or sys.platform != "linux":
        return []
    try:
        supported = landlock.version()
    except landlock.LandlockError:
        supported = 0
    left = {
        "write the files of the node's user, and so what others run": no_files,
        "connect to its Unix sockets, the node's control socket among them": no_network,
        "read and change its processes' memory (before Linux 6.7)": no_files
        or supported >= landlock.KNOWS_TCP,
        "signal its processes (before Linux 6.12)": supported >= landlock.KNOWS_SCOPES,
    }
    return [what for what, is_prevented in left.items() if not is_prevented]
