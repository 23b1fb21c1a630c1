"""The WebSocket connections of a node: their targets, and what the relay sends to these."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable
from typing import Any, Final, Protocol

from wsrelay.session.ends import RESTARTS, SHUT_DOWN, Closing
from wsrelay.values.message import ERROR, ExitKind, Result
from wsrelay.values.pid import PID, PIDSource
from wsrelay.values.printable import printable
from wsrelay.wire import payload

from .endpoint import Endpoint, Mail
from .engine import Engine
from .info import ConnectionInfo
from .process import WorkerProcess
from .router import MessageRouter
from .target import RelayTarget

__all__ = ["GATEWAY", "Connection", "Connections"]

logger = logging.getLogger(__name__)

GATEWAY: Final = "gateway"
"""The host of connections' PIDs."""

_LOOK: Final = 0.02
_LOOKS: Final = 3
"""Seconds between two looks, and their number: a late timer runs before sockets are read, a task
after that."""

_STRANGERS: Final = 8
"""Clients may fill a host's `mailbox` divided by this by coming and going: 8 MB by default.

Without a bound, 3,000 short visits with heads of 60 KB took 430 MB. 2,000 browsers that come back
at once to a process that is busy computing take 5 MB.
"""


class TargetClient(Protocol):
    """A client of a process: a connection here, or one of another node whose target is here."""

    pid: PID

    @property
    def target(self) -> PID:
        """The process that it is bound to."""

    @property
    def message_count(self) -> int:
        """How many messages of its client have been received."""

    @property
    def lags(self) -> bool:
        """Whether its target is behind with what clients have sent it."""

    def describe(self) -> ConnectionInfo:
        """Return its state for operators."""

    def target_exited(
        self, target: PID, result: Result, *, join_read: bool, instead: tuple[int, str] | None
    ) -> None:
        """Handle the exit of the target.

        `instead` is the close frame's code and reason where the result does not decide them.
        """

    def join_read(self) -> None:
        """Handle the target's receipt: it has read this connection's `ws.join`."""

    def shut_down(self) -> None:
        """Close because the node shuts down."""


class Connection(TargetClient, Endpoint, Protocol):
    """What the node needs of a WebSocket connection."""

    @property
    def closing(self) -> tuple[Closing, str]:
        """What began to close it, and who wanted that."""

    def hear(self, listener: Callable[[str, str | bytes], None] | None) -> None:
        """Call a listener with the topic and data of each message of the client; None: nobody."""

    def close(self, code: int, reason: str, by: str) -> None:
        """Close with that code, because an operator wants that."""

    def when_drained(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back once, when most of what it was sent has been written or it has ended."""

    def forget_drain(self, token: Hashable) -> None:
        """Drop the callback that has that token."""


class Connections:
    """The connections of a node, and the relay's way to their targets."""

    def __init__(self, engine: Engine, router: MessageRouter, ids: PIDSource) -> None:
        self.connections: dict[PID, Connection] = {}
        """The living connections."""
        self.guests: dict[PID, TargetClient] = {}
        """The clients of other nodes whose targets are here."""
        self.leaving: dict[PID, asyncio.TimerHandle] = {}
        """Connections that wait for their turn to be closed because the node shuts down."""
        self._engine = engine
        self._router = router
        self._ids = ids
        self._turns_end = 0.0
        engine.on_stop.append(self._on_stop)
        engine.on_exit.append(self._on_exit)

    # From connect to disconnect

    def new_pid(self) -> PID:
        """Make the PID of a new connection."""
        return self._ids.next(GATEWAY)

    def connect(self, connection: Connection, target: PID) -> RelayTarget:
        """Add a connection, bind it to its target, and return the target.

        The target must have just been found alive. From now on its exit is reported to the
        connection.
        """
        self._engine.kernel.connect(connection.pid)
        self.connections[connection.pid] = self._engine.endpoints[connection.pid] = connection
        bound = self._target(target)
        bound.bind(connection.pid)
        return bound

    def disconnect(self, pid: PID, target: RelayTarget, result: Result) -> None:
        """Remove a connection."""
        if (connection := self.connections.pop(pid, None)) is not None:
            del self._engine.endpoints[pid]
            names = self._engine.kernel.names.of(target.pid) or target.names
            closing = result.value["code"], result.value["reason"], *connection.closing
            info = connection.describe()
            self._engine.ends.add_connection(pid, info, names, closing)
        self._end_turn(pid)
        self.unbind(pid, target)
        self._engine.execute(self._engine.kernel.exited(pid, result))

    def _on_exit(self, process: WorkerProcess, result: Result) -> None:
        """Tell all connections of a process that it has exited."""
        if not process.clients:
            return
        instead = self.close_instead(process, result)
        for pid, join in list(process.clients.items()):
            read = not process.never_read(pid, join)
            self.target_exited(pid, process.pid, result, join_read=read, instead=instead)

    def close_instead(self, process: WorkerProcess, result: Result) -> tuple[int, str] | None:
        """Return code and reason of the close frame if they do not follow from the result."""
        if self._engine.draining:
            return SHUT_DOWN
        in_order = result.error is None or result.error.kind is ExitKind.CANCELLED
        return RESTARTS if process.restarts and in_order else None

    def target_exited(
        self,
        client: PID,
        target: PID,
        result: Result,
        *,
        join_read: bool,
        instead: tuple[int, str] | None,
    ) -> None:
        """Tell a client, if it is still there, that its target has exited."""
        if (bound := self.client(client)) is not None:
            self._end_turn(client)
            bound.target_exited(target, result, join_read=join_read, instead=instead)

    def client(self, pid: str) -> TargetClient | None:
        """Return the connection or guest with that PID, in full."""
        key: Any = pid
        return self.connections.get(key) or self.guests.get(key)

    def shut_down(self, spread: float = 0.0) -> None:
        """Close all connections because the node shuts down, spread over `spread` seconds.

        Each gets a random turn, so that the clients do not all come back at the same moment. If a
        target ends earlier, or stops taking messages, its connections have their turn then.
        """
        loop = asyncio.get_running_loop()
        self._turns_end = loop.time() + spread
        for pid, connection in [*self.connections.items(), *self.guests.items()]:
            self._end_turn(pid)
            if spread <= 0:
                connection.shut_down()
            else:
                delay = random.uniform(0, spread)  # noqa: S311 - no secret
                self.leaving[pid] = loop.call_later(delay, self._turn, pid)
        self._engine.changed()

    def _on_stop(self, process: WorkerProcess) -> None:
        """If the node is shutting down, close the clients whose messages nobody takes any more."""
        if not self._engine.draining:
            return
        for pid in list(process.clients):
            if pid in self.leaving:
                self._close_now(pid)

    def _turn(
        self,
        pid: PID,
        looks: int = _LOOKS,
        seen: int = 0,
        behind: bool = False,
    ) -> None:
        """Close a connection once everything that its client has sent so far has been read.

        That takes a few looks at its socket. If its target is behind, looking goes on until a few
        looks in a row have shown nothing new.
        """
        loop, connection = asyncio.get_running_loop(), self.client(pid)
        assert connection is not None  # noqa: S101 - its turn ends with it
        lags, count = connection.lags, connection.message_count
        behind = behind or lags
        if (lags or (behind and count != seen)) and loop.time() < self._turns_end:
            looks = _LOOKS
        if looks:
            arguments = (pid, looks - 1, count, behind)
            self.leaving[pid] = loop.call_later(_LOOK, self._turn, *arguments)
            return
        self._close_now(pid)

    def take_turn(self, client: PID) -> None:
        """Close a connection because its target's node shuts down, which it has the turn for."""
        if client in self.connections:
            self._end_turn(client)
            self._turn(client)

    def _close_now(self, client: PID) -> None:
        self._end_turn(client)
        if (connection := self.client(client)) is not None:
            connection.shut_down()

    def _end_turn(self, pid: PID) -> None:
        if (turn := self.leaving.pop(pid, None)) is not None:
            turn.cancel()
            self._engine.changed()

    def _target(self, pid: PID) -> RelayTarget:
        return self._engine.processes.get(pid) or self._engine.elsewhere.target(pid)

    # Clients of other nodes

    def welcome(
        self,
        guest: TargetClient,
        target: RelayTarget,
        metadata: dict[str, Any] | None,
        *,
        receipt: bool,
        trace: str = "",
    ) -> None:
        """Bind a client of another node to a process of this one, as `connect` and `join` do."""
        self.guests[guest.pid] = guest
        target.bind(guest.pid)
        self.join(guest.pid, target.pid, metadata, receipt=receipt, trace=trace)
        if self._engine.draining:  # it was on its way when the others were told
            guest.shut_down()

    def part(self, guest: PID) -> None:
        """Remove a client of another node, which has left its target."""
        self.guests.pop(guest, None)
        self._end_turn(guest)

    # What the relay sends to targets

    def join(
        self,
        client: PID,
        target: PID,
        metadata: dict[str, Any] | None,
        *,
        receipt: bool = False,
        trace: str = "",
    ) -> RelayTarget:
        """Bind a connection to a target, send the target `ws.join`, and return it.

        `receipt`: the connection is told when the target has read it. `trace`: see `RelayTarget`.
        The target must have just been found alive, but may have been asked to end since.
        """
        bound = self._target(target)
        if not bound.join(client, metadata, receipt=receipt, trace=trace):
            self._router.dead_letters += 1
        return bound

    def not_taken(self) -> None:
        """Count a message of the relay that its target no longer takes."""
        self._router.dead_letters += 1

    def leave(self, client: PID, target: RelayTarget, code: int, reason: str) -> None:
        """Send a target `ws.leave` and unbind the connection from it."""
        if not target.leave(client, code, reason):
            self._router.dead_letters += 1
        self.unbind(client, target)

    def refuse(self, client: PID, sender: PID, topic: str, error: str) -> None:
        """Answer a process that has sent a connection something that it cannot use."""
        content = {"client_pid": client, "topic": topic, "error": error}
        self._router.route(Mail(client, ERROR, payload.pack(content)), [sender])
        process = self._engine.processes.get(sender)
        who = self._router.pid if process is None else sender  # it may be elsewhere, or over
        if self._engine.mistakes.first(who, f"{topic}: {error}"):
            logger.warning(
                "%s sent %s to %s, which cannot use it: %s (told once)",
                sender,
                printable(topic),
                client,
                printable(error),
                extra=self._engine.about_pid(sender),
            )

    # Pressure

    def crowded(self, target: PID) -> str | None:
        """Return why a target can take no more clients for now, or None if it can.

        The clients that it has may still leave, which adds one more message for each of them.
        """
        return self._crowded(target, _STRANGERS)

    def why_no_target(self, target: PID) -> str | None:
        """Return why a client cannot be transferred to that process, or None if it can.

        It is a process that transfers a client, so the bound is that of processes' messages. A
        process of another node has to be asked for (`Node.arrive`).
        """
        if self._engine.elsewhere.find(target) is not None:
            return None
        return self._engine.kernel.why_no_target(target) or self._crowded(target, 1)

    def _crowded(self, target: PID, part: int) -> str | None:
        process = self._engine.processes.get(target)
        if process is None or not process.pipe.visits:
            return None
        limit = process.options.mailbox // part
        if process.pipe.visits <= limit:
            return None
        return (
            f"{target} (OS pid {process.os_pid}) is too busy: {process.pipe.visits} bytes of joins "
            f"and leaves wait for it, and at most {limit} may; have it read them, "
            "or raise limits.mailbox"
        )

    def hold(self, sender: PID, client: PID) -> bool:
        """Make a worker's writes wait for a connection; False if the sender is not a worker."""
        if (process := self._engine.processes.get(sender)) is None:
            return self._engine.elsewhere.hold(sender, client)
        process.incarnation.pipe.hold(client)
        return True

    def release(self, sender: PID, client: PID) -> None:
        """Undo `hold`."""
        if (process := self._engine.processes.get(sender)) is not None:
            process.incarnation.pipe.release(client)
        else:
            self._engine.elsewhere.release(sender, client)

    def drained(self, client: PID, token: Hashable) -> asyncio.Future[None] | None:
        """Return a future that is done when most of what a client was sent is on its way.

        None if that is so already, or if there is no such connection, which has nothing left.
        """
        if (connection := self.connections.get(client)) is None:
            return None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not future.done():
                future.set_result(None)

        connection.when_drained(token, tell)
        if future.done():
            return None
        future.add_done_callback(lambda _: connection.forget_drain(token))
        return future

    def unbind(self, client: PID, target: RelayTarget) -> None:
        """Note that a connection is not bound to that target any more."""
        if target.unbind(client) and self._engine.draining:
            self._engine.dismiss(target.pid)
