"""Handlers that try to break out of their process host's isolation, and tell how it went."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsrelay import process


def tried(attempts: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """What each attempt came to: `did`, or the error's number."""
    results: dict[str, Any] = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            results[name] = error.errno
        else:
            results[name] = "did"
    return results


libc = ctypes.CDLL(None, use_errno=True)
IS_X86_64 = os.uname().machine == "x86_64"


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def call(number: int, *args: Any) -> None:
    """Make a system call by its number, which from 424 on is the same everywhere."""
    checked(libc.syscall(number, *args))


def old_call(x86_64: int, generic: int, *args: Any) -> None:
    call(x86_64 if IS_X86_64 else generic, *args)


def write(path: str) -> None:
    Path(path).write_text("x")


def read(path: str) -> None:
    Path(path).read_bytes()


def double(number: int) -> int:
    return number * 2


async def doze() -> str:
    await asyncio.sleep(0)
    return "done"


def echo() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            answer = {"type": "text", "data": message.payload["data"]}
            process.send(message.sender, "ws.send", answer)


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def session() -> list[int]:
    return [os.getpid(), os.getsid(0), os.getpgrp()]


def core_limit() -> list[int]:
    return list(resource.getrlimit(resource.RLIMIT_CORE))


def written(name: str) -> list[str]:
    write(name)
    return [os.getcwd(), oct(os.stat(name).st_mode & 0o777)]


def environment() -> list[Any]:
    os.system("true")  # the C library's own environment is still sound
    return [dict(os.environ), Path("/proc/self/environ").read_bytes().strip(b"\0").decode()]


def capabilities() -> dict[str, int]:
    """Its capabilities, and those of a program that it executes."""
    cat = ["/bin/cat", "/proc/self/status"]
    ran = subprocess.run(cat, check=True, capture_output=True, text=True)
    lines = [*Path("/proc/self/status").read_text().splitlines(), *ran.stdout.splitlines()]
    sets = [line.split(":") for line in lines if line.startswith("Cap")]
    return {name: int(number, 16) for name, number in sets}


def niceness() -> int:
    return os.nice(0)


def privileges() -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("NoNewPrivs"))


def harm(secret: str, victim: int) -> dict[str, Any]:
    tries = tried(
        {
            "read": lambda: read(secret),
            "signal": lambda: os.kill(victim, signal.SIGTERM),
            "environment": lambda: read(f"/proc/{victim}/environ"),
            "become root": lambda: os.setuid(0),
        }
    )
    ids = [os.getuid(), os.geteuid(), os.getgid(), os.getegid(), *os.getgroups()]
    return {**tries, "ids": ids}


def bomb() -> int:
    """Fork until the system refuses; gives how many came to life."""
    made: list[int] = []
    try:
        while len(made) < 200:
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
            made.append(pid)
    except BlockingIOError:
        pass
    for pid in made:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(made)


def crowd() -> None:
    """Take all the processes there are, and stay."""
    try:
        while os.fork():
            pass
    except BlockingIOError:
        process.registry.register("processes/crowd")
    time.sleep(60)


def reach_out(port: int, path: str) -> dict[str, Any]:
    def executed() -> None:
        code = "import socket, sys\ntry: socket.socket()\nexcept OSError as e: sys.exit(e.errno)"
        raise OSError(subprocess.run([sys.executable, "-c", code], check=False).returncode, "")

    return tried(
        {
            "tcp": lambda: socket.create_connection(("127.0.0.1", port)),
            "tcp6": lambda: socket.socket(socket.AF_INET6),
            "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
            "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
            "unix": lambda: socket.socket(socket.AF_UNIX).connect(path),
            "io_uring": lambda: call(425, 1, None),
            "x32": lambda: call(0x40000000 + 41, socket.AF_INET, socket.SOCK_STREAM, 0),
            "executed": executed,
            "pair": socket.socketpair,
            "datagram pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
            "packet pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        }
    )


def meddle(allowed: str, readable: str, outside: str) -> dict[str, Any]:
    def by_way_of_a_link() -> None:
        os.symlink(f"{outside}/file", f"{allowed}/link")
        read(f"{allowed}/link")

    def by_descriptor(path: str) -> str:
        return f"/proc/self/fd/{os.open(path, os.O_PATH)}"

    def linked_without_a_path() -> None:
        descriptor = os.open(f"{outside}/file", os.O_PATH)
        empty, here = 0x1000, -100  # AT_EMPTY_PATH, AT_FDCWD
        checked(libc.linkat(descriptor, b"", here, f"{allowed}/linked".encode(), empty))

    def executed() -> None:
        cat = subprocess.run(["/bin/cat", f"{outside}/file"], check=False, capture_output=True)
        if cat.returncode:
            raise OSError(None, cat.stderr.decode())

    return tried(
        {
            "write allowed": lambda: write(f"{allowed}/new"),
            "read allowed": lambda: read(f"{allowed}/new"),
            "list readable": lambda: os.listdir(readable),
            "read readable": lambda: read(f"{readable}/file"),
            "write readable": lambda: write(f"{readable}/file"),
            "truncate readable": lambda: os.truncate(f"{readable}/file", 0),
            "remove readable": lambda: os.unlink(f"{readable}/file"),
            "rename out": lambda: os.rename(f"{readable}/file", f"{allowed}/file"),
            "link out": lambda: os.link(f"{outside}/file", f"{allowed}/file"),
            "link readable": lambda: os.link(f"{readable}/file", f"{allowed}/readable"),
            "link by descriptor": lambda: os.link(
                by_descriptor(f"{outside}/file"), f"{allowed}/descriptor"
            ),
            "link without a path": linked_without_a_path,
            "read outside": lambda: read(f"{outside}/file"),
            "read by descriptor": lambda: read(by_descriptor(f"{outside}/file")),
            "list by descriptor": lambda: os.listdir(by_descriptor(outside)),
            "write by descriptor": lambda: write(by_descriptor(f"{readable}/file")),
            "make socket": lambda: os.mknod(f"{outside}/socket", 0o140600),
            "make link": lambda: os.symlink("file", f"{outside}/link"),
            "list outside": lambda: os.listdir(outside),
            "write outside": lambda: write(f"{outside}/new"),
            "make folder": lambda: os.mkdir(f"{outside}/folder"),
            "device": lambda: read("/dev/mem"),
            "by way of a link": by_way_of_a_link,
            "executed": executed,
        }
    )


def look(victim: int, outside: str) -> dict[str, Any]:
    """Look at what all users of the machine may see."""
    return tried(
        {
            "command line": lambda: read(f"/proc/{victim}/cmdline"),
            "state": lambda: read(f"/proc/{victim}/stat"),
            "size": lambda: os.stat(outside),
            "content": lambda: read(outside),
        }
    )


def connect(name: str) -> dict[str, Any]:
    """Connect to an abstract Unix socket."""
    return tried({"connect": lambda: socket.socket(socket.AF_UNIX).connect(f"\0{name}")})


def signal_other(pid: int) -> dict[str, Any]:
    return tried({"signal": lambda: os.kill(pid, signal.SIGTERM)})


NEWUSER = 0x10000000


def cloned(flags: int) -> None:
    """Fork by the plain system call, with flags."""
    pid = libc.syscall(56 if IS_X86_64 else 220, flags | signal.SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    checked(pid)
    os.waitpid(pid, 0)


def reach_processes(victim: int) -> dict[str, Any]:
    """Do to another process of the same user what its user may do."""
    of_victim = f"/proc/{victim}"
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    pidfd = os.pidfd_open(victim)
    return tried(
        {
            "environ": lambda: read(f"{of_victim}/environ"),
            "auxv": lambda: read(f"{of_victim}/auxv"),
            "maps": lambda: read(f"{of_victim}/maps"),
            "mem": lambda: os.close(os.open(f"{of_victim}/mem", os.O_RDWR)),
            "fd": lambda: os.readlink(f"{of_victim}/fd/0"),
            "what fd is": lambda: os.close(os.open(f"{of_victim}/fd/0", os.O_RDONLY)),
            "fdinfo": lambda: read(f"{of_victim}/fdinfo/0"),
            "cwd": lambda: os.readlink(f"{of_victim}/cwd"),
            "root": lambda: os.listdir(f"{of_victim}/root"),
            "exe": lambda: os.readlink(f"{of_victim}/exe"),
            "thread's environ": lambda: read(f"{of_victim}/task/{victim}/environ"),
            "ptrace": lambda: checked(libc.ptrace(0x4206, victim, None, None)),  # PTRACE_SEIZE
            "readv": lambda: checked(libc.process_vm_readv(victim, vector, 1, vector, 1, 0)),
            "writev": lambda: checked(libc.process_vm_writev(victim, vector, 1, vector, 1, 0)),
            "pidfd_getfd": lambda: call(438, pidfd, 0, 0),
            "kcmp": lambda: old_call(312, 272, os.getpid(), victim, 1, 0, 0),
            "prlimit": lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE, (100, 100)),
            "look at limits": lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE),
            "niceness": lambda: os.setpriority(os.PRIO_PROCESS, victim, 5),
            "group's niceness": lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(victim), 5),
            "ioprio": lambda: old_call(251, 30, 1, victim, 3 << 13),
            "affinity": lambda: os.sched_setaffinity(victim, {0}),
            "policy": lambda: os.sched_setscheduler(victim, os.SCHED_BATCH, os.sched_param(0)),
            "parameters": lambda: os.sched_setparam(victim, os.sched_param(0)),
        }
    )


def manage_itself() -> dict[str, Any]:
    """Do to itself what it may not do to others."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return tried(
        {
            "environ": lambda: read("/proc/self/environ"),
            "maps": lambda: read("/proc/self/maps"),
            "fd": lambda: os.listdir("/proc/self/fd"),
            "limits": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, files),
            "niceness": lambda: os.setpriority(os.PRIO_PROCESS, 0, 5),
            "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
            "policy": lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
            "signal": lambda: os.kill(os.getpid(), 0),
        }
    )


def reach_the_kernel() -> dict[str, Any]:
    """Use what most programs never use, and breakouts do; where it is not refused, to no effect."""
    new_user = (ctypes.c_uint64 * 11)(NEWUSER, 0, 0, 0, signal.SIGCHLD)
    buffer = ctypes.create_string_buffer(128)
    return tried(
        {
            "unshare": lambda: checked(libc.unshare(NEWUSER)),
            "clone": lambda: cloned(NEWUSER),
            "clone3": lambda: call(435, new_user, ctypes.sizeof(new_user)),
            "setns": lambda: checked(libc.setns(os.pidfd_open(os.getpid()), NEWUSER)),
            "mount": lambda: checked(libc.mount(b"none", b"/nowhere", b"tmpfs", 0, None)),
            "chroot": lambda: os.chroot("/"),
            "fsopen": lambda: call(430, b"tmpfs", 0),
            "open_tree": lambda: call(428, -100, b"/", 0),
            "move_mount": lambda: call(429, -100, b"/nowhere", -100, b"/nowhere", 0),
            "handle": lambda: old_call(303, 264, -100, b"/proc", buffer, buffer, 0),
            "open handle": lambda: old_call(304, 265, -100, buffer, 0),
            "userfaultfd": lambda: old_call(323, 282, 1),
            "io_uring": lambda: call(425, 1, buffer),
            "bpf": lambda: old_call(321, 280, 0, buffer, 128),
            "perf": lambda: old_call(298, 241, buffer, 0, -1, -1, 0),
            "keyring": lambda: old_call(250, 219, 0, -3, 1),  # KEYCTL_GET_KEYRING_ID
            "module": lambda: old_call(313, 273, 0, b"", 0),
            "shared memory": lambda: checked(libc.shmget(4711, 4096, 0)),
            "its number": lambda: checked(libc.shmctl(0, 2, buffer)),  # IPC_STAT
            "semaphore": lambda: checked(libc.semget(4711, 1, 0)),
            "queue": lambda: checked(libc.msgget(4711, 0)),
            "kernel's log": lambda: old_call(103, 116, 10, None, 0),  # its size
            "POSIX queue": lambda: old_call(240, 180, b"nowhere", os.O_RDWR, 0, None),
            "terminal input": lambda: checked(libc.ioctl(0, 0x5412, b"x")),  # TIOCSTI
            "x32": lambda: call(0x40000000 + 39),
            "newer": lambda: call(470),
        }
    )


def change_what_is_not_listed(outside: str, readable: str, allowed: str) -> dict[str, Any]:
    """Change files that belong to its own user, without opening them or opened for reading."""
    with open(readable) as file:
        opened = file.fileno()
        flags = ctypes.c_int()
        return tried(
            {
                "chmod": lambda: os.chmod(outside, 0o600),
                "chmod of what is read": lambda: os.chmod(readable, 0o600),
                "fchmod": lambda: os.fchmod(opened, 0o600),
                "fchmodat2": lambda: call(452, -100, outside.encode(), 0o777, 0),
                "chown": lambda: os.chown(outside, os.getuid(), -1),
                "lchown": lambda: os.lchown(outside, -1, os.getgid()),
                "fchown": lambda: os.fchown(opened, -1, os.getgid()),
                "times": lambda: os.utime(outside, (0, 0)),
                "times of what is open": lambda: os.utime(opened, (0, 0)),
                "old times": lambda: checked(libc.utimes(outside.encode(), None)),
                "flags": lambda: checked(libc.ioctl(opened, 0x40086602, ctypes.byref(flags))),
                "generation": lambda: checked(libc.ioctl(opened, 0x40087602, ctypes.byref(flags))),
                "watch": lambda: checked(
                    libc.inotify_add_watch(libc.inotify_init(), outside.encode(), 0x2)
                ),
                "attribute": lambda: os.setxattr(outside, "user.a", b"1"),
                "attribute of what is open": lambda: os.setxattr(opened, "user.a", b"1"),
                "look at attributes": lambda: os.listxattr(outside),
                "look at one": lambda: os.getxattr(outside, "user.there"),
                "remove one": lambda: os.removexattr(outside, "user.there"),
                "character device": lambda: os.mknod(f"{allowed}/c", 0o020600, os.makedev(1, 1)),
                "whiteout": lambda: os.mknod(f"{allowed}/w", 0o020600, 0),
                "block device": lambda: os.mknod(f"{allowed}/b", 0o060600, os.makedev(7, 0)),
                "pipe": lambda: os.mkfifo(f"{allowed}/pipe"),
                "socket": lambda: os.mknod(f"{allowed}/socket", 0o140600),
            }
        )


def order_a_device(path: str) -> dict[str, Any]:
    """Give an order to a device that may be opened."""
    number = ctypes.c_int()
    device = os.open(path, os.O_RDWR | os.O_NOCTTY)
    order = 0x80045430  # TIOCGPTN
    try:
        return tried({"ioctl": lambda: checked(libc.ioctl(device, order, ctypes.byref(number)))})
    finally:
        os.close(device)
