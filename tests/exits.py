"""A node's processes seen from outside: how they ended, their template, a client of one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from support import client, relay_to, serving, until

from wsrelay import PID, ExitError, Node, Result, WebSocketRelay, wire
from wsrelay.node import WorkerProcess


class Exits:
    """Exit results of a node's workers, taken where the node learns them."""

    def __init__(self, node: Node) -> None:
        self.results: dict[PID, Result] = {}

        def note(process: WorkerProcess, result: Result) -> None:
            self.results[process.pid] = wire.PackedResult.of(result).opened()

        node.engine.on_exit.append(note)

    async def of(self, pid: PID) -> Result:
        await until(lambda: pid in self.results, f"{pid} has ended")
        return self.results[pid]

    async def error(self, pid: PID) -> ExitError:
        error = (await self.of(pid)).error
        assert error is not None
        return error


@contextlib.asynccontextmanager
async def driven(node: Node, pid: PID) -> AsyncIterator[Any]:
    """A client of the process."""
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as websocket:
        yield websocket


def template_of(node: Node) -> int:
    pid = node._templates["processes"].os_pid
    assert pid is not None
    return pid
