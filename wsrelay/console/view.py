"""The process behind one page: it looks at the nodes once a second and tells what has changed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from typing import Any, Final

from wsrelay.aio.room import Room
from wsrelay.room import on
from wsrelay.values.awaited import Client

from .follow import Followed, follow
from .looks import Act, Look, Stack
from .merge_patch import difference
from .node_socket import NodeAway, NodeRefuses, UnknownRoute
from .orders import NotAnOrder, obey, stack
from .states import state_of
from .watch import NodesWatch
from .watched_node import WatchedNode

__all__ = ["ConsoleView"]

_INTERVAL: Final = 1.0
"""Seconds from one look to the next."""

_SHARE: Final = 4
"""A look that took t seconds is followed by a pause of at least so many times t."""

_FLUSH: Final = 0.3
"""Seconds for which log records are gathered before they are sent."""


class ConsoleView(Room):
    """Serves one page, for as long as that is connected; nothing is asked while none is.

    `only` is the control socket of the one node to show (None: all of this user). Orders are obeyed
    with `write` only.
    """

    async def on_start(self, only: str | None, write: bool) -> None:
        """Begin; the first look is that of the page."""
        self.seen = NodesWatch(only)
        self.write = write
        self.shown: dict[str, Any] = {}
        self.look: Look | None = None
        self.following: asyncio.Task[None] | None = None

    async def on_join(self, client: Client[Any]) -> None:
        """Look at the nodes from now on."""
        self.start_soon(self._look_on(client))

    async def on_leave(self, client: Client[Any], code: int, reason: str) -> None:  # noqa: ARG002
        """End with the page."""
        self.end()

    @on(Look)
    async def show(self, client: Client[Any], look: Look) -> None:
        """Show something else."""
        before, self.look = self.look, look
        self.seen.choose(look.of if look.page == "process" else "")
        if before is None or _followed(before) != _followed(look):
            if self.following is not None:
                self.following.cancel()
            self.following = self.start_soon(self._follow(client, look))
        await self._tell(client)

    @on(Act)
    async def act(self, client: Client[Any], act: Act) -> None:
        """Do what the user wants, if the console may."""
        if not self.write:
            error = "this console is read-only: start it with --write to change anything"
            await client.send_json({"type": "answer", "id": act.id, "error": error})
            return
        self.start_soon(self._answer(client, act.id, obey(act, self._node_of(act.of))))

    @on(Stack)
    async def stack(self, client: Client[Any], asked: Stack) -> None:
        """Get the stacks of a process."""
        self.start_soon(self._answer(client, asked.id, stack(asked.of, self._node_of(asked.of))))

    def _node_of(self, pid: str) -> WatchedNode | None:
        """Return the node that has this process or connection."""
        found = self.seen.process(pid) or self.seen.connection(pid)
        return None if found is None else self.seen.nodes[found.node]

    async def _answer(self, client: Client[Any], number: int, result: Awaitable[Any]) -> None:
        try:
            answer = {"value": await result}
        except (NodeAway, NodeRefuses, NotAnOrder, UnknownRoute) as error:
            answer = {"error": str(error)}
        await client.send_json({"type": "answer", "id": number, **answer})

    # What has changed

    async def _look_on(self, client: Client[Any]) -> None:
        while True:
            begun = time.monotonic()
            await self.seen.look()
            await self._tell(client)
            took = time.monotonic() - begun
            await asyncio.sleep(max(_INTERVAL - took, _SHARE * took))

    async def _tell(self, client: Client[Any]) -> None:
        if self.look is None or not self.seen.looks:
            return
        state = state_of(self.seen, self.look, write=self.write)
        patch = difference(self.shown, state)
        self.shown = state
        if patch:
            await client.send_json({"type": "state", "patch": patch})

    # Logs and traces

    async def _follow(self, client: Client[Any], look: Look) -> None:
        if look.page not in {"logs", "process"}:
            return
        followed = Followed(look)
        gathering = asyncio.create_task(follow(self.seen, look, followed))
        try:
            await client.send_json({"type": "lines", "first": True})
            while True:
                await asyncio.sleep(_FLUSH)
                if news := followed.take():
                    await client.send_json({"type": "lines", **news})
        finally:
            gathering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gathering


def _followed(look: Look) -> tuple[object, ...]:
    """Return what decides which lines are followed."""
    if look.page not in {"logs", "process"}:
        return ()
    return (
        look.page,
        look.of,
        look.level,
        look.page == "logs" and look.search,
        look.trace,
        look.payload,
    )
