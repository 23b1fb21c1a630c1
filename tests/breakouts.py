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
        process.registry.register("crowd")
    time.sleep(60)


def reach_out(port: int, path: str) -> dict[str, Any]:
    libc = ctypes.CDLL(None, use_errno=True)

    def io_uring() -> None:
        if libc.syscall(425, 1, None) < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")

    def other_table() -> None:
        if libc.syscall(0x40000000 + 41, socket.AF_INET, socket.SOCK_STREAM, 0) < 0:
            raise OSError(ctypes.get_errno(), "socket of x32")

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
            "io_uring": io_uring,
            "x32": other_table,
            "executed": executed,
            "pair": socket.socketpair,
        }
    )


def meddle(allowed: str, readable: str, outside: str) -> dict[str, Any]:
    def by_way_of_a_link() -> None:
        os.symlink(f"{outside}/file", f"{allowed}/link")
        read(f"{allowed}/link")

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
            "read outside": lambda: read(f"{outside}/file"),
            "list outside": lambda: os.listdir(outside),
            "write outside": lambda: write(f"{outside}/new"),
            "make folder": lambda: os.mkdir(f"{outside}/folder"),
            "device": lambda: read("/dev/mem"),
            "by way of a link": by_way_of_a_link,
            "executed": executed,
        }
    )


def signal_other(pid: int) -> dict[str, Any]:
    return tried({"signal": lambda: os.kill(pid, signal.SIGTERM)})
