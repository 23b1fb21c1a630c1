"""Do in the template what all workers do, before it forks the first.

CPython specializes code while it runs the first few times (PEP 659), by writing to it. After a fork
each of these writes costs the worker a page of its own, and all workers would make the same writes:
a worker has 2.24 MB with this and 2.51 MB without.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from msgspec import Raw

from wsrelay import wire
from wsrelay.values import scripts
from wsrelay.values.message import MESSAGE
from wsrelay.values.targets import Target
from wsrelay.wire import payload
from wsrelay.wire.code import unpack_target
from wsrelay.wire.pipe_pair import Duplex
from wsrelay.worker import forks, signals
from wsrelay.worker.call import HandlerCall
from wsrelay.worker.calls import WorkerContext
from wsrelay.worker.load import load_target
from wsrelay.worker.logs import NodeLog
from wsrelay.worker.pipe import WorkerPipe

__all__ = ["rehearse"]

_TIMES: Final = 40
"""Code is specialized from its eighth run on."""

_ME: Final = "{local@rehearsal|1}"
_CLIENT: Final = "{local@rehearsal|2}"


def rehearse(targets: Sequence[Target], *, redirects: bool) -> None:
    """Act as a worker that runs the first of the targets, which must be loaded, as an echo.

    `redirects`: its output is redirected, like that of this process.
    """
    target = str(targets[0]) if targets else "os:fspath"
    start = wire.StartFrame(_ME, "1", wire.CatalogFrame([], {}), target, b"", 0, _ME)
    text = {"type": "text", "data": ""}
    relayed = wire.RelayFrame(MESSAGE, _CLIENT, text)
    node_end, worker_end = Duplex.pair()
    with node_end, worker_end:
        for _ in range(_TIMES):
            worker_end.output = os.dup(1) if redirects else -1
            worker_end.redirect_output()
            pipe = WorkerPipe(worker_end)
            node_end.write_all(wire.pack(start))
            pipe.read(None)
            context = WorkerContext(pipe, start)
            NodeLog(pipe.write, start.log_level)
            with forks.ChildBoundary():
                unpack_target(start.target, start.code, load_target)
            pipe.write(wire.ReadyFrame())
            HandlerCall(pipe.attach)(str, (), {})
            signals.rehearse()
            forks.rehearse()
        node_end.write_all(wire.pack(wire.AttachFrame(_CLIENT, Raw(payload.encode({})))))
        inbox = context.mailbox.inbox
        for _ in range(_TIMES):
            node_end.write_all(wire.pack(relayed))
            _, message = context.mailbox.take(inbox)
            context.send(message.client, "ws.send", text)
    scripts.rest()
