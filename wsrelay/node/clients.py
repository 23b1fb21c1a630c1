"""The WebSocket connections of a node: whom they are bound to, and what the relay sends there."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import Raw

from wsrelay import wire
from wsrelay.session import command
from wsrelay.session import machine as session
from wsrelay.values.message import ERROR, JOIN, LEAVE, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import printable
from wsrelay.wire import payload
from wsrelay.wire.logrecord import fields

from .host import Worker
from .info import ConnectionInfo

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Clients", "Connection"]

logger = logging.getLogger(__name__)

_NEVER_SENT: Final = sys.maxsize

_LOOK: Final = 0.02
_LOOKS: Final = 3
"""Seconds, and times: a timer that is late comes before the reading of sockets, a task after it."""

_STRANGERS: Final = 8
"""The part of a host's `mailbox` that clients may fill by coming and going: 8 MB by default.

Without a bound 3,000 short visits with heads of 60 KB were 430 MB. 2,000 browsers that come back
at once, to a process that computes just then, are 5 MB.
"""

Watcher = Callable[[PID, int | None], None]


class Connection(Protocol):
    """What the node needs of a WebSocket connection to treat it as a process."""

    pid: PID

    @property
    def target(self) -> PID:
        """The process that it is bound to."""

    @property
    def message_count(self) -> int:
        """How many messages of its client were taken."""

    def describe(self) -> ConnectionInfo:
        """Return what an operator wants to see."""

    def command(self, given: command.Command, sender: PID) -> None:
        """Carry out what a process sent."""

    def target_exited(
        self, target: PID, result: Result, *, join_read: bool, instead: tuple[int, str] | None
    ) -> None:
        """Learn that the target is gone; `instead`: the close frame's code and reason."""

    def cancel(self, reason: str) -> None:
        """Close normally."""

    def link_down(self) -> None:
        """Close because a linked process ended with an error."""

    def when_drained(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back, once, when most of what it was sent is on its way or it is over."""

    def forget_drain(self, token: Hashable) -> None:
        """Do not call back whoever waits under that token."""

    def terminate(self) -> None:
        """Drop at once."""

    def shut_down(self) -> None:
        """Close because the node shuts down."""


class Clients:
    """The relay's way to the node."""

    def __init__(self, node: Node) -> None:
        self.connections: dict[PID, Connection] = {}
        """The living connections."""
        self._node = node
        self._watchers: dict[PID, Watcher] = {}
        self.leaving: dict[PID, asyncio.TimerHandle] = {}
        """Connections that are to be closed in their turn because the node shuts down."""
        self._turns_end = 0.0

    # Their lives

    def new_pid(self) -> PID:
        """Make the PID of a connection of the front end."""
        return self._node.new_pid("gateway")

    def connect(self, connection: Connection, target: PID) -> None:
        """Add a connection and bind it to its target, whose exit it is told from now on."""
        self._node.kernel.connect(connection.pid)
        self.connections[connection.pid] = connection
        self._bind(connection.pid, target, _NEVER_SENT)

    def disconnect(self, pid: PID, target: PID, result: Result) -> None:
        """Remove a connection."""
        self.connections.pop(pid, None)
        self._end_turn(pid)
        self._unbind(pid, target)
        self._node.execute(self._node.kernel.exited(pid, result))

    def target_ended(self, worker: Worker, result: Result) -> None:
        """Tell all connections of a worker that it is gone."""
        instead = None
        if self._node.draining:
            instead = session.SHUT_DOWN
        elif worker.restarts and (result.error is None or result.error.kind is ExitKind.CANCELLED):
            instead = session.RESTARTS
        for pid, join in list(worker.clients.items()):
            if (connection := self.connections.get(pid)) is not None:
                self._end_turn(pid)
                read = not worker.never_read(pid, join)
                connection.target_exited(worker.pid, result, join_read=read, instead=instead)
        if (watcher := self._watchers.pop(worker.pid, None)) is not None:
            watcher(worker.pid, None)

    def shut_down(self, spread: float = 0.0) -> None:
        """Close all connections because the node shuts down, spread over so many seconds.

        Each has a turn drawn by lot, so that not all clients come back at one moment; one whose
        target ends earlier, or takes no more messages, has its turn then.
        """
        loop = asyncio.get_running_loop()
        self._turns_end = loop.time() + spread
        for pid, connection in list(self.connections.items()):
            self._end_turn(pid)
            if spread <= 0:
                connection.shut_down()
            else:
                delay = random.uniform(0, spread)  # noqa: S311 - no secret
                self.leaving[pid] = loop.call_later(delay, self._turn, pid)
        self._node.changed()

    def inbox_closed(self, worker: Worker) -> None:
        """Let the turn of all clients come whose messages nobody takes any more."""
        for pid in list(worker.clients):
            if pid in self.leaving:
                self._end_turn(pid)
                self.connections[pid].shut_down()

    def _turn(
        self,
        pid: PID,
        looks: int = _LOOKS,
        seen: int = 0,
        behind: bool = False,
    ) -> None:
        """Close a connection once what its client has sent by now is read.

        That takes some looks at its socket, and where its target is behind, as many as show
        something new, and some more.
        """
        loop, connection = asyncio.get_running_loop(), self.connections[pid]
        worker = self._node.worker(connection.target)
        lags = worker is not None and worker.pipe.backlog > 0
        behind, count = behind or lags, connection.message_count
        if (lags or (behind and count != seen)) and loop.time() < self._turns_end:
            looks = _LOOKS
        if looks:
            arguments = (pid, looks - 1, count, behind)
            self.leaving[pid] = loop.call_later(_LOOK, self._turn, *arguments)
            return
        self._end_turn(pid)
        connection.shut_down()

    def _end_turn(self, pid: PID) -> None:
        if (turn := self.leaving.pop(pid, None)) is not None:
            turn.cancel()
            self._node.changed()

    # What the relay sends to targets

    def join(self, client: PID, target: PID, metadata: dict[str, Any] | None) -> None:
        """Bind a connection to a target and send it `ws.join`."""
        if (worker := self._node.addressee(target)) is not None:
            pipe = worker.pipe
            pipe.queue(wire.Attach(str(client), Raw(payload.pack(metadata))), visit=True)
            number = pipe.queue(wire.Relay(JOIN, str(client), {}), visit=True)
            self._bind(client, target, number)

    def attach(self, client: PID, target: PID, metadata: dict[str, Any] | None) -> None:
        """Set the metadata of the connection's messages from now on."""
        if (worker := self._node.alive(target)) is not None:
            content = Raw(payload.pack(metadata))
            worker.pipe.queue(wire.Attach(str(client), content), visit=True)

    def tell(self, client: PID, target: PID, topic: str, content: dict[str, Any]) -> None:
        """Send a target a message of the relay."""
        if (worker := self._node.addressee(target)) is not None:
            worker.pipe.queue(wire.Relay(topic, str(client), content))

    def leave(self, client: PID, target: PID, code: int, reason: str) -> None:
        """Send a target `ws.leave` and unbind the connection from it."""
        if (worker := self._node.addressee(target)) is not None:
            content = {"code": code, "reason": reason}
            worker.pipe.queue(wire.Relay(LEAVE, str(client), content), visit=True)
            worker.pipe.queue(wire.Detach(str(client)), visit=True)
        self._unbind(client, target)

    def refuse(self, client: PID, sender: PID, topic: str, error: str) -> None:
        """Answer a process that has sent a connection something unusable."""
        content = {"client_pid": client, "topic": topic, "error": error}
        self._node.route(client, [sender], ERROR, payload.pack(content))
        if self._node.mistakes.first(sender, f"{topic}: {error}"):
            worker = self._node.worker(sender)
            logger.warning(
                "%s sent %s to %s, which cannot use it: %s (told once)",
                sender,
                printable(topic),
                client,
                printable(error),
                extra=fields(pid=sender) if worker is None else self._node.about(worker),
            )

    # Pressure

    def crowded(self, target: PID) -> str | None:
        """Return why a target can take no more clients for now, or None if it can.

        Those that are there already may leave all the same: each of them is told of once more.
        """
        return self._crowded(target, _STRANGERS)

    def why_no_target(self, target: PID) -> str | None:
        """Return why a client cannot be transferred to that process, or None if it can.

        Who transfers is a process: what it does may take as much as other processes' messages.
        """
        return self._node.why_no_target(target) or self._crowded(target, 1)

    def _crowded(self, target: PID, part: int) -> str | None:
        worker = self._node.worker(target)
        if worker is None or not worker.pipe.visits:
            return None
        limit = self._node.hosts[target.host].mailbox // part
        if worker.pipe.visits <= limit:
            return None
        return (
            f"{target} (OS pid {worker.os_pid}) is too busy: {worker.pipe.visits} bytes of joins "
            f"and leaves wait for it, at most {limit} may; let it take them, "
            "or raise limits.mailbox"
        )

    def full(self, target: PID) -> bool:
        """Whether a target has no room for clients' messages."""
        worker = self._node.worker(target)
        return worker is not None and worker.pipe.full

    def when_room(self, client: PID, target: PID, callback: Callable[[], None]) -> None:
        """Call a connection back, once, when its target has room for messages or is gone.

        A connection that has left its target by then is not called.
        """
        worker = self._node.worker(target)
        if worker is None:
            callback()
        else:
            worker.pipe.when_room(client, callback)

    def hold(self, sender: PID, client: PID) -> bool:
        """Let a worker's writes wait for a connection; False for senders that are no worker."""
        if (worker := self._node.worker(sender)) is None:
            return False
        worker.pipe.hold(client)
        return True

    def release(self, sender: PID, client: PID) -> None:
        """Undo `hold`."""
        if (worker := self._node.worker(sender)) is not None:
            worker.pipe.release(client)

    # Who is bound to whom

    def watch(self, target: PID, watcher: Watcher) -> None:
        """Call back with the number of a worker's connections when it changes; None: it ended."""
        self._watchers[target] = watcher

    def _bind(self, client: PID, target: PID, join: int) -> None:
        """Bind a connection to a worker; `join` is the number of its `ws.join` frame."""
        worker = self._node.worker(target)
        assert worker is not None  # noqa: S101 - the caller has just found it alive
        worker.clients[client] = join
        if (watcher := self._watchers.get(target)) is not None:
            watcher(target, len(worker.clients))

    def _unbind(self, client: PID, target: PID) -> None:
        worker = self._node.worker(target)
        if worker is None or worker.clients.pop(client, None) is None:
            return
        worker.pipe.forget(client)
        if (watcher := self._watchers.get(target)) is not None:
            watcher(target, len(worker.clients))
        if not worker.clients and self._node.draining:
            self._node.dismiss(target)
