"""One relayed connection over ASGI's `receive` and `send`: drives the session's effects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from wsrelay.message import ERROR, Result
from wsrelay.node import ConnectionInfo, Node
from wsrelay.pid import PID

from . import command, session
from .asgi import Event, Receive, Send, Transport
from .header import Relay
from .outbox import Overflow

__all__ = ["AsgiConnection", "Limits"]

_PATIENCE: Final = 10.0
"""Seconds without progress that a client gets to take what was sent before a close frame."""


class Limits:
    """Outbox limit in bytes, the policy at the limit, and the linger in seconds."""

    def __init__(self, outbox: int, overflow: Overflow, linger: float) -> None:
        self.outbox = outbox
        self.overflow = overflow
        self.linger = linger


class AsgiConnection:
    """A connection as the node knows it, from before the upgrade to its end.

    Two tasks: one reads the client and waits where its target has no room, one writes the outbox
    at the client's pace; neither waits for the other.
    """

    def __init__(
        self, node: Node, relay: Relay, limits: Limits, transport: Transport | None
    ) -> None:
        self.pid = node.clients.new_pid()
        self._node = node
        self._clients = node.clients
        self._limits = limits
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._session = session.Session(
            self.pid, relay, limit=limits.outbox, overflow=limits.overflow
        )
        self._news = asyncio.Event()
        self._closing: session.Close | None = None
        self._writer: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._when_drained: list[Callable[[], None]] = []
        node.clients.connect(self, relay.target_pid)

    # Its life

    def refused(self) -> None:
        """End before the upgrade, which does not come about."""
        self._do(self._session.refused())

    async def serve(self, accept: Event, receive: Receive, send: Send) -> None:
        """Upgrade and relay until the client or the connection's process is gone."""
        try:
            await send(accept)
        except OSError:
            self.refused()  # servers raise it for a client that is gone
            return
        except BaseException:
            self.refused()
            raise
        self._do(self._session.opened(self._loop.time()))
        reader = asyncio.create_task(self._read(receive), name=f"read {self.pid}")
        self._writer = asyncio.create_task(self._write(send), name=f"write {self.pid}")
        tasks = {reader, self._writer}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self._deadline is not None:
                self._deadline.cancel()
            self._do(self._session.client_gone(1006))
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _read(self, receive: Receive) -> None:
        early: asyncio.Task[Event] | None = None
        try:
            while True:
                event = await (receive() if early is None else early)
                early = None
                if event["type"] == "websocket.disconnect":
                    code, reason, known = _how(event)
                    self._do(self._session.client_gone(code, reason, known=known))
                    return
                text = event.get("text")
                self._do(self._session.message(event["bytes"] if text is None else text))
                while (room := self._clients.room_for(self._session.target)) is not None:
                    # Listen on for a client that goes; one message at most is read ahead.
                    early = early or asyncio.create_task(_as_coroutine(receive))
                    self._room = asyncio.ensure_future(room())
                    ends = {self._room} | ({self._transport.lost} if self._transport else set())
                    await asyncio.wait({early, *ends}, return_when=asyncio.FIRST_COMPLETED)
                    if early.done() and early.result()["type"] == "websocket.receive":
                        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    self._room.cancel()
                    if early.done() and early.result()["type"] == "websocket.disconnect":
                        break
                    if self._transport is not None and self._transport.lost.done():
                        break  # what it has sent is taken in all the same
        finally:
            if early is not None:
                early.cancel()

    async def _write(self, send: Send) -> None:
        outbox = self._session.outbox
        try:
            while True:
                while outbox:
                    data = outbox.get()
                    kind = "text" if isinstance(data, str) else "bytes"
                    await send({"type": "websocket.send", kind: data})
                    self._do(self._session.wrote())
                    if self._when_drained:
                        self._tell_drained()
                    if self._closing is not None and not self._closing.lingering:
                        self._arm(_PATIENCE)
                if self._closing is not None:
                    break
                self._news.clear()
                await self._news.wait()
            closing = self._closing
            event = {"type": "websocket.close", "code": closing.code, "reason": closing.reason}
            await send(event)
        except OSError:
            pass  # the client is gone, which the reader learns too

    def _arm(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        """Drop a client that does not take what it was sent, not even its close frame."""
        if self._transport is not None:
            self._transport.abort()
        if self._writer is not None:
            self._writer.cancel()

    # What the node asks and tells

    def describe(self) -> ConnectionInfo:
        """Return what an operator wants to see."""
        session, now = self._session, self._loop.time()
        return ConnectionInfo(
            pid=str(self.pid),
            target=str(session.target),
            uptime=round(session.uptime(now), 3),
            messages=session.message_count,
            outbox=session.outbox.size,
            dropped=session.dropped,
        )

    def command(self, given: command.Command, sender: PID) -> None:
        """Carry out what a process sent."""
        self._do(self._session.command(given, sender, self._node.why_no_target))
        if self._session.outbox:
            self._news.set()

    def target_exited(self, target: PID, result: Result, *, join_read: bool) -> None:
        """Learn that the target is gone."""
        self._do(self._session.target_exited(target, result, join_read=join_read))

    def cancel(self, reason: str) -> None:
        """Close normally."""
        self._do(self._session.cancel(reason))

    def link_down(self) -> None:
        """Close because a linked process ended with an error."""
        self._do(self._session.link_down())

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call back, once, when most of what it was sent is on its way or it is over."""
        self._when_drained.append(callback)
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._session.drained:
            callbacks, self._when_drained = self._when_drained, []
            for callback in callbacks:
                callback()

    def terminate(self) -> None:
        """Drop at once."""
        self._do(self._session.client_gone(1006))
        self._give_up()

    def shut_down(self) -> None:
        """Close because the node shuts down."""
        self._do(self._session.shut_down())

    # What the session wants

    def _do(self, effects: list[session.Effect]) -> None:  # noqa: C901, PLR0912 - a flat table
        clients, pid = self._clients, self.pid
        for effect in effects:
            match effect:
                case session.Tell():
                    clients.tell(pid, effect.target, effect.topic, effect.payload)
                case session.Join():
                    clients.join(pid, effect.target, effect.metadata)
                    if self._room is not None:
                        self._room.cancel()  # it was the old target's
                case session.Attach():
                    clients.attach(pid, effect.target, effect.metadata)
                case session.Leave():
                    clients.leave(pid, effect.target, effect.code, effect.reason)
                case session.CancelTarget():
                    self._node.cancel(effect.target, "the connection has ended")
                case session.Refuse():
                    content = {"client_pid": pid, "topic": effect.topic, "error": effect.error}
                    clients.post(pid, effect.to, ERROR, content)
                case session.Hold():
                    clients.hold(effect.sender, pid)
                case session.Release():
                    clients.release(effect.sender, pid)
                case session.Beat():
                    self._beat_every(effect.interval)
                case session.Close():
                    self._closing = effect
                    self._tell_drained()
                    self._news.set()
                    self._arm(self._limits.linger if effect.lingering else _PATIENCE)
                case session.Ended():
                    self._beat_every(None)
                    self._tell_drained()
                    clients.disconnect(pid, self._session.target, effect.result)

    def _beat_every(self, interval: float | None, due: float | None = None) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if interval is not None:
            due = self._loop.time() + interval if due is None else due
            self._beat = self._loop.call_at(due, self._heartbeat, interval, due)

    def _heartbeat(self, interval: float, due: float) -> None:
        now = self._loop.time()
        # One that the target has no room for is left out: the next says all that this one would.
        if self._clients.room_for(self._session.target) is None:
            self._do(self._session.heartbeat(now))
        self._beat_every(interval, max(due + interval, now))


def _how(event: Event) -> tuple[int, str, bool]:
    """Return code and reason of a disconnect event, and whether the server knows.

    Events without any reason are special: uvicorn reports a client that vanished with 1005 so, and
    hypercorn every client that goes, however it goes, with 1006.
    """
    code = event.get("code", 1005)
    if "reason" not in event and code in (1005, 1006):
        return 1006, "", code == 1005  # noqa: PLR2004 - RFC 6455 section 7.4.1
    return code, event.get("reason") or "", True


async def _as_coroutine(receive: Receive) -> Event:
    return await receive()
