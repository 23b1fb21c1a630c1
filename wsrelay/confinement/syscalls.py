"""The system calls that a walled-in host's processes may not make, and with which arguments.

Everything else passes, up to the newest call known when this was written; newer calls fail with
ENOSYS, as on the Linux of that time, so that they offer no way around these tables.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, NamedTuple

__all__ = ["FILES", "FIRST_UNKNOWN", "OTHERS", "SOCKETS", "Condition", "SyscallRule"]

FIRST_UNKNOWN: Final = 470
"""After `file_setattr` (Linux 6.17). From 424 on all architectures have the same numbers."""

WORD: Final = 0xFFFFFFFF


class Condition(NamedTuple):
    """Whether the lower 32 bits of an argument, under a mask, equal this value or differ from it.

    No argument that is tested here needs more: the kernel takes each as an `int`, or defines no
    higher flag.
    """

    argument: int
    value: int
    mask: int = WORD
    equal: bool = True


class SyscallRule(NamedTuple):
    """A system call that fails with `error`, unless it has conditions and all of them hold.

    It has a number for x86-64 and one for asm-generic (AArch64, RISC-V, LoongArch), None where it
    does not exist.
    """

    name: str
    x86_64: int | None
    generic: int | None
    error: int = errno.EPERM
    unless: tuple[Condition, ...] = ()


_NAMESPACES: Final = 0x7E020080
"""CLONE_NEWTIME, -NS, -CGROUP, -UTS, -IPC, -USER, -PID, -NET."""

_CLONE_NEWTIME: Final = 0x80
"""In `clone` this bit is part of a signal number."""

_SELF: Final = (Condition(0, 0),)
"""The calling thread, as process id 0."""

_IOPRIO_WHO_PROCESS: Final = 1
_SOCK_TYPE: Final = 0xF
"""What is left without SOCK_NONBLOCK and SOCK_CLOEXEC."""

_TERMINAL_INPUT: Final = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: input for whatever reads the terminal, such as a shell."""

_FILE_FLAGS: Final = (
    *(0x40086602, 0x40046602, 0x401C5820),  # FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR
    *(0x40087602, 0x40047602),  # FS_IOC_SETVERSION, FS_IOC32_SETVERSION
    *(0x40806685, 0x800C6613),  # FS_IOC_ENABLE_VERITY, FS_IOC_SET_ENCRYPTION_POLICY
    # BTRFS_IOC_ SNAP_CREATE, SUBVOL_CREATE, SNAP_DESTROY, with their second versions,
    # SUBVOL_SETFLAGS and SET_RECEIVED_SUBVOL
    *(0x50009401, 0x50009417, 0x5000940E, 0x50009418, 0x5000940F, 0x5000943F),
    *(0x4008941A, 0xC0C89425),
)
"""What changes a file or a folder's contents, and only needs it to be open for reading."""

_NO_SUCH_FEATURE: Final = errno.EOPNOTSUPP
"""The error of a file system without extended attributes; `ls` and `cp` handle it."""


def _none_of(argument: int, values: tuple[int, ...]) -> tuple[Condition, ...]:
    return tuple(Condition(argument, value, equal=False) for value in values)


OTHERS: Final[tuple[SyscallRule, ...]] = (
    # Other processes: Landlock protects only their memory.
    SyscallRule("ptrace", 101, 117),
    SyscallRule("process_vm_readv", 310, 270),
    SyscallRule("process_vm_writev", 311, 271),
    SyscallRule("process_madvise", 440, 440),
    SyscallRule("pidfd_getfd", 438, 438),
    SyscallRule("kcmp", 312, 272),
    SyscallRule("prlimit64", 302, 261, unless=_SELF),
    SyscallRule("setpriority", 141, 140, unless=(Condition(0, 0), Condition(1, 0))),
    SyscallRule("ioprio_set", 251, 30, unless=(Condition(0, _IOPRIO_WHO_PROCESS), Condition(1, 0))),
    SyscallRule("sched_setparam", 142, 118, unless=_SELF),
    SyscallRule("sched_setscheduler", 144, 119, unless=_SELF),
    SyscallRule("sched_setaffinity", 203, 122, unless=_SELF),
    SyscallRule("sched_setattr", 314, 274, unless=_SELF),
    SyscallRule("migrate_pages", 256, 238, unless=_SELF),
    SyscallRule("move_pages", 279, 239, unless=_SELF),
    # What all processes of a user, or of the machine, share besides files (syslog is the
    # kernel's log). Calls that take an id are refused too, since ids can be guessed.
    SyscallRule("shmget", 29, 194),
    SyscallRule("shmat", 30, 196),
    SyscallRule("shmctl", 31, 195),
    SyscallRule("semget", 64, 190),
    SyscallRule("semop", 65, 193),
    SyscallRule("semtimedop", 220, 192),
    SyscallRule("semctl", 66, 191),
    SyscallRule("msgget", 68, 186),
    SyscallRule("msgsnd", 69, 189),
    SyscallRule("msgrcv", 70, 188),
    SyscallRule("msgctl", 71, 187),
    SyscallRule("mq_open", 240, 180),
    SyscallRule("mq_unlink", 241, 181),
    SyscallRule("add_key", 248, 217),
    SyscallRule("request_key", 249, 218),
    SyscallRule("keyctl", 250, 219),
    SyscallRule("syslog", 103, 116),
    # Namespaces: inside its own a process has all capabilities. The flags of clone3 are in memory,
    # which a filter cannot read; glibc falls back to clone if clone3 does not exist.
    SyscallRule("clone", 56, 220, unless=(Condition(0, 0, _NAMESPACES & ~_CLONE_NEWTIME),)),
    SyscallRule("clone3", 435, 435, errno.ENOSYS),
    SyscallRule("unshare", 272, 97, unless=(Condition(0, 0, _NAMESPACES),)),
    SyscallRule("setns", 308, 268),
    # Mounts, including descriptors of detached ones, and opening files without a path.
    SyscallRule("mount", 165, 40),
    SyscallRule("umount2", 166, 39),
    SyscallRule("pivot_root", 155, 41),
    SyscallRule("chroot", 161, 51),
    SyscallRule("fsopen", 430, 430),
    SyscallRule("fsconfig", 431, 431),
    SyscallRule("fsmount", 432, 432),
    SyscallRule("fspick", 433, 433),
    SyscallRule("open_tree", 428, 428),
    SyscallRule("open_tree_attr", 467, 467),
    SyscallRule("move_mount", 429, 429),
    SyscallRule("mount_setattr", 442, 442),
    SyscallRule("name_to_handle_at", 303, 264),
    SyscallRule("open_by_handle_at", 304, 265),
    # Parts of the kernel that do what other calls do while bypassing this filter, or that have most
    # of its vulnerabilities. Programs fall back to something else if io_uring does not exist.
    SyscallRule("io_uring_setup", 425, 425, errno.ENOSYS),
    SyscallRule("io_uring_enter", 426, 426, errno.ENOSYS),
    SyscallRule("io_uring_register", 427, 427, errno.ENOSYS),
    SyscallRule("userfaultfd", 323, 282),
    SyscallRule("perf_event_open", 298, 241),
    SyscallRule("bpf", 321, 280),
    SyscallRule("init_module", 175, 105),
    SyscallRule("finit_module", 313, 273),
    SyscallRule("delete_module", 176, 106),
    SyscallRule("kexec_load", 246, 104),
    SyscallRule("kexec_file_load", 320, 294),
    SyscallRule("ioctl", 16, 29, unless=_none_of(1, _TERMINAL_INPUT)),
)
"""For every walled-in host: what reaches other processes, or more of the kernel than needed."""

FILES: Final[tuple[SyscallRule, ...]] = (
    # Landlock does not cover these, and a filter sees no paths: they are refused for all files.
    SyscallRule("chmod", 90, None),
    SyscallRule("fchmod", 91, 52),
    SyscallRule("fchmodat", 268, 53),
    SyscallRule("fchmodat2", 452, 452),
    SyscallRule("chown", 92, None),
    SyscallRule("lchown", 94, None),
    SyscallRule("fchown", 93, 55),
    SyscallRule("fchownat", 260, 54),
    SyscallRule("utime", 132, None),
    SyscallRule("utimes", 235, None),
    SyscallRule("futimesat", 261, None),
    SyscallRule("utimensat", 280, 88),
    SyscallRule("file_setattr", 469, 469),
    SyscallRule("ioctl", 16, 29, unless=_none_of(1, _TERMINAL_INPUT + _FILE_FLAGS)),
    # Attributes of an open file may be read: whoever opened it may read the file itself.
    SyscallRule("setxattr", 188, 5, _NO_SUCH_FEATURE),
    SyscallRule("lsetxattr", 189, 6, _NO_SUCH_FEATURE),
    SyscallRule("fsetxattr", 190, 7, _NO_SUCH_FEATURE),
    SyscallRule("setxattrat", 463, 463, _NO_SUCH_FEATURE),
    SyscallRule("getxattr", 191, 8, _NO_SUCH_FEATURE),
    SyscallRule("lgetxattr", 192, 9, _NO_SUCH_FEATURE),
    SyscallRule("getxattrat", 464, 464, _NO_SUCH_FEATURE),
    SyscallRule("listxattr", 194, 11, _NO_SUCH_FEATURE),
    SyscallRule("llistxattr", 195, 12, _NO_SUCH_FEATURE),
    SyscallRule("listxattrat", 465, 465, _NO_SUCH_FEATURE),
    SyscallRule("removexattr", 197, 14, _NO_SUCH_FEATURE),
    SyscallRule("lremovexattr", 198, 15, _NO_SUCH_FEATURE),
    SyscallRule("fremovexattr", 199, 16, _NO_SUCH_FEATURE),
    SyscallRule("removexattrat", 466, 466, _NO_SUCH_FEATURE),
    # These reveal the names of files in folders that cannot be listed.
    SyscallRule("inotify_add_watch", 254, 27),
    SyscallRule("fanotify_init", 300, 262),
)
"""For hosts with `filesystem`: what changes or reveals files that may not even be opened."""

SOCKETS: Final[tuple[SyscallRule, ...]] = (
    SyscallRule("socket", 41, 198, errno.EACCES),
    # The ends of a stream pair stay bound to each other. A datagram socket can exchange data, and
    # descriptors, with any socket of the machine.
    SyscallRule(
        "socketpair",
        53,
        199,
        errno.EACCES,
        unless=(Condition(0, socket.AF_UNIX), Condition(1, socket.SOCK_STREAM, _SOCK_TYPE)),
    ),
)
"""For hosts with `network: none`."""
