"""How a template gets its guardian, and how the node learns who the template is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Final, NamedTuple, Never

from wsrelay.values import linux

from . import guardian

__all__ = ["Told", "enter", "tell", "told"]

_NOT_FOR_IT: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Given = socket.socket | Connection

_about = struct.Struct("=qq")


class Told(NamedTuple):
    """A template's process id, and the user that owns it and its children."""

    pid: int
    user: int


def enter(lifeline: socket.socket, given: Iterable[Given], host: str) -> int:
    """Continue in a fork, and guard it from this process; returns the guardian's process id.

    `lifeline` leads to the node and belongs to the guardian, `given` to the template.
    """
    linux.become_subreaper()
    # Ctrl-C, Ctrl-Z and a kill of the node's process group are not meant for us. And every group
    # that descendants can be in belongs to a session without strangers, so whole groups can be
    # killed.
    os.setsid()
    parent = os.getpid()
    template = os.fork()
    if template != 0:
        _guard(lifeline, given, host, template)
    os.setpgid(0, 0)
    return parent


def _guard(lifeline: socket.socket, given: Iterable[Given], host: str, template: int) -> Never:
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number in _NOT_FOR_IT:
            signal.signal(number, signal.SIG_IGN)
        for one in given:  # multiprocessing makes them inheritable
            one.close()
        lifeline.set_inheritable(True)
        descriptor = lifeline.detach()
        program = [sys.executable, "-I", "-S", guardian.__file__, str(descriptor), str(template)]
        if not getattr(sys, "frozen", False):  # if frozen, Python is part of the user's program
            with contextlib.suppress(OSError):
                os.execv(sys.executable, [*program, host])  # noqa: S606 - our own program
        guardian.serve(descriptor, template)
        code = 0
    except BaseException:  # noqa: BLE001 - a defect of ours; nothing above would show it
        traceback.print_exc()
    finally:
        os._exit(code)


def tell(lifeline: socket.socket) -> None:
    """Tell the node who this template is; precedes all user code, since the node believes it."""
    with lifeline:
        lifeline.send(_about.pack(os.getpid(), os.getuid()))


def told(lifeline: socket.socket) -> Told | None:
    """Return what `tell` wrote; None if nothing has arrived yet. Raises `EOFError`, `OSError`."""
    try:
        data = lifeline.recv(_about.size)
    except BlockingIOError:
        return None
    if not data:
        raise EOFError
    return Told(*_about.unpack(data))
