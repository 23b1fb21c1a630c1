"""Rooms as classes whose methods are `async def`; see `wsrelay.Room`."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from wsrelay.errors import CallError, ChannelClosed, InvalidMessage
from wsrelay.room import BaseRoom, Clients
from wsrelay.values.awaited import Client, Message
from wsrelay.values.client import M, content_of
from wsrelay.values.json_text import json_text
from wsrelay.values.message import SEND, Event
from wsrelay.values.presence import Presence
from wsrelay.worker.dispatch import Dispatcher, within_async

from . import process

__all__ = ["Room"]

T = TypeVar("T")


class Room(BaseRoom[M]):
    """A room whose methods are `async def`; see `wsrelay.Room`.

    One of them runs at a time: what arrives waits until it has returned. What takes longer, and can
    be stopped, is for `start_soon`.
    """

    clients: Clients[Client[M]]
    """The clients that have joined and not left, in order of joining."""

    _wsrelay_is_async = True

    async def on_start(self, *args: Any, **kwargs: Any) -> None:
        """Begin, with what the room was started with."""

    async def on_join(self, client: Client[M]) -> None:
        """Welcome a client, which is in `clients` already."""

    async def on_leave(self, client: Client[M], code: int, reason: str) -> None:
        """Take note that a client has gone, which is in `clients` no longer."""

    async def on_text(self, client: Client[M], text: str) -> None:
        """Take text of a client that no `@on` takes."""

    async def on_binary(self, client: Client[M], data: bytes) -> None:
        """Take bytes of a client."""

    async def on_invalid(self, client: Client[M], error: InvalidMessage) -> None:
        """Tell a client that nothing takes what it has sent, or that it does not convert."""
        await client.send_json({"type": "error", "error": str(error)})

    async def on_message(self, message: Message) -> None:
        """Take a message of a process whose topic no `@on` takes."""

    async def on_event(self, event: Event | Presence) -> None:
        """Take note of the end of a process that is monitored or linked, or of a watched group."""

    async def on_heartbeat(self, client: Client[M], uptime: float, count: int) -> None:
        """Do what is to be done for a client at each `heartbeat_interval`."""

    async def on_stop(self, reason: str) -> None:
        """End in order: the room is cancelled, and all that was queued has been taken.

        Half of the host's `stop_timeout` after the CANCEL, it is interrupted.
        """

    async def broadcast(self, data: str | bytes, *, but: str | None = None) -> None:
        """Send all clients, but for one, a message: text if it is `str`, else binary."""
        content = content_of(data)
        if clients := self.clients.all_but(but):
            await process.send(clients, SEND, content)

    async def broadcast_json(self, value: object, *, but: str | None = None) -> None:
        """Send all clients, but for one, a value as JSON, which is encoded once."""
        await self.broadcast(json_text(value), but=but)

    def start_soon(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task beside the hooks, and return it: `cancel()` stops it.

        If it raises, the room ends with that exception at once. When the room comes to its end, its
        tasks are cancelled, and have ended before `on_stop` is called. Raises `RuntimeError` then.
        """
        if self._wsrelay_tasks is None:
            coroutine.close()
            raise RuntimeError("the room is not running: its tasks have been cancelled")
        task = self._wsrelay_tasks.create_task(coroutine)
        self._wsrelay_running.add(task)
        task.add_done_callback(self._wsrelay_running.discard)
        return task

    _wsrelay_tasks: asyncio.TaskGroup | None = None
    _wsrelay_running: set[asyncio.Task[Any]]

    async def _wsrelay_live(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dispatcher = self._wsrelay
        self._wsrelay_running = set()
        problem: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self._wsrelay_tasks = tasks
                await self.on_start(*args, **kwargs)
                await _serve(dispatcher)
                self._wsrelay_tasks = None
                for task in self._wsrelay_running:
                    task.cancel()
        except BaseExceptionGroup as group:
            # If there is only one, the room ends as a function would that raises it.
            problem = group.exceptions[0] if len(group.exceptions) == 1 else group
        if problem is not None:
            raise problem
        if not dispatcher.ended:
            await self.on_stop(dispatcher.reason)
        return dispatcher.value

    @staticmethod
    async def _wsrelay_answer(method: Any, message: Any, *payload: Any) -> None:
        try:
            value = await method(*payload)
        except CallError as error:
            await message.refuse(str(error))
        else:
            await message.reply(value)


async def _serve(room: Dispatcher) -> None:
    """Take what arrives until the room is at its end."""
    mailbox, (step, _, _) = room.mailbox, room.ways(within_async)
    inbox, next_async = mailbox.inbox, mailbox.next_async
    is_turn = True  # of a tick: a message has passed since the last one, or there was none
    while not room.ended:
        left = room.left()
        if left == 0 and is_turn:
            is_turn = False
            await room.tick()()
            await asyncio.sleep(0)  # tasks go on even if a tick is always due
            continue
        is_turn = True
        try:
            if left is None:
                _, item = await next_async(inbox)
            else:
                _, item = await mailbox.take_async(inbox, timeout=left)
        except TimeoutError:
            continue
        except ChannelClosed:
            return
        if (todo := step(item)) is not None:
            await todo[0](*todo[1])
