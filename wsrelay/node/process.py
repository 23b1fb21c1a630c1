"""A worker process: everything that belongs to its PID, whichever OS process runs it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw, Struct

from wsrelay import wire
from wsrelay.confinement import HostOptions
from wsrelay.errors import HostFull
from wsrelay.kernel import PresenceEffect, ProcessState, Signal
from wsrelay.kernel import Process as Row
from wsrelay.values.message import (
    CANCEL,
    EMPTY,
    JOIN,
    LEAVE,
    Event,
    ExitError,
    ExitKind,
    Result,
)
from wsrelay.values.numbers import Numbers
from wsrelay.values.pid import PID
from wsrelay.values.printable import escaped
from wsrelay.values.rights import Rights
from wsrelay.wire import payload
from wsrelay.wire.tally import TAKEN, Tally

from .endpoint import Mail
from .ends import EndRequest
from .host import Incarnation, Intake, Lanes

if TYPE_CHECKING:
    from .spans import ProcessSpans

__all__ = ["NamedOrder", "SpawnOrder", "WorkerProcess"]

logger = logging.getLogger(__name__)

_NEVER_SENT: Final = 2**63
"""The number of a `ws.join` that no frame has carried yet."""

_MEMBERS: Final = 32 * 1024
"""Bytes of members that one frame shows: it is a part of what is sent ahead of acknowledgements."""

Signalling = Callable[..., None]
"""Sends a signal to a process: takes its PID, the `Signal`, and the error `because` of which."""


class SpawnOrder(Struct, frozen=True):
    """What a process runs: the target's text (None: `code` is a callable), code and arguments.

    `plain`: the arguments are data. The `label` shows what a callable is.
    """

    target: str | None
    code: bytes
    plain: bool = False
    label: str = ""

    @property
    def shown(self) -> str:
        """What operators see as its target."""
        return escaped(self.target or self.label or "a callable")


class NamedOrder(Struct, frozen=True):
    """What to start under a name that nobody has; the fields are those of `Engine.launch`.

    If another node starts it, the process gets another PID. If it `stays`, none does: it was asked
    for on this node.
    """

    name: str
    pid: PID
    order: SpawnOrder
    parent: PID | None = None
    monitored: bool = False
    linked: bool = False
    end_when_empty: float | None = None
    stays: bool = False


class WorkerProcess:
    """A worker as an endpoint, from its spawn to its exit.

    Its `incarnation`, an OS process behind a pipe, runs it. Everything here outlives that: names,
    clients, timers, relations (in `row`, which is the kernel's), the log's token bucket. While it
    waits for the process before it under its name, it has no incarnation, and `pipe` only keeps
    what it is sent.
    """

    pipe: Lanes
    """What it is sent goes here; the incarnation's, as soon as there is one."""

    entry: str
    """The id of its entry; empty if it is not of one."""

    launched = False
    """Whether it has an incarnation."""

    launched_at = 0.0
    """When its host was asked to start it, in seconds of `time.monotonic`."""

    sent = 0
    """Messages that it has sent; one to many receivers is one."""

    asked: EndRequest | None = None
    """Who has asked it to end."""

    spans: ProcessSpans | None = None
    """Those of OpenTelemetry, if the node has configured that."""

    _call: tuple[Callable[..., None], tuple[Any, ...]]
    """What its timer calls, or has called; it has had none before."""

    def __init__(
        self,
        row: Row,
        options: HostOptions,
        order: SpawnOrder,
        *,
        parent: PID | None,
        numbers: Numbers,
        entry: str = "",
        signal: Signalling,
        stopping: Callable[[WorkerProcess], None],
        end_when_empty: float | None = None,
        fenced: bool = False,
    ) -> None:
        self.pid = row.pid
        self.row = row
        self.options = options
        """Those of its host, as they were at its start."""
        self.rights: Rights | None = options.rights
        """Those of its host if the host is walled in, else None."""
        self.order: SpawnOrder | None = order
        """What to run; None once it has been launched."""
        self.target = order.shown
        self.entry = entry
        self.parent = parent
        self.started = time.monotonic()
        self._numbers = numbers
        self.names: list[str] = []
        """The last names that it had."""
        self.clients: dict[PID, int] = {}
        """Connections bound to it, each with the number of its `ws.join` frame."""
        self.arrivals = 0
        """Clients on their way to it, which are bound to it once their upgrade is through."""
        self.end_when_empty = end_when_empty
        """Seconds without a client after which it is cancelled, None for never."""
        self.result: Result | None = None
        """How it ended, once it has, without the value, which may be large."""
        self.pending: dict[int, asyncio.Future[Any]] = {}
        """Its requests that have not been answered yet, by their number."""
        self.waiting_code = len(order.code)
        """Bytes of code and arguments that wait for it to start."""
        self.found = False
        """Whether a spawn under its name has returned it since it was spawned."""
        self.restarts = False
        """Whether an operator has cancelled it, so that its clients are told to reconnect."""
        self.drains = False
        """Whether it is asked to end because the node shuts down."""
        self.log = Intake(str(row.pid), options.log_rate, numbers)
        if row.state is ProcessState.WAITING:
            self.pipe = Lanes()
        self._incarnation: Incarnation | None = None
        self._signal = signal
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._left: float | None = None
        """The seconds that its timer has left, while it is frozen."""
        self._empty: asyncio.TimerHandle | None = None
        """Until it is cancelled because it is empty."""
        self.fenced = fenced
        """Whether its host stops it when the node's deadline passes."""
        self.frozen = False
        """Whether its host has stopped it."""
        self._start: asyncio.Future[str | HostFull | None] | None = None

    def runs_as(self, incarnation: Incarnation) -> None:
        """Set the incarnation that runs it from now on."""
        self._incarnation, self.pipe, self.order = incarnation, incarnation.pipe, None
        self.launched, self.launched_at = True, time.monotonic()

    @property
    def incarnation(self) -> Incarnation:
        """What runs it; there is none until it has been launched."""
        assert self._incarnation is not None  # noqa: S101 - asked only of what has written a frame
        return self._incarnation

    @property
    def os_pid(self) -> int | None:
        """The id of the OS process, None before the fork."""
        return None if self._incarnation is None else self._incarnation.os_pid

    @property
    def tally(self) -> Tally | None:
        """What it notes of itself, None if it has nothing to note it in; it may lie."""
        return None if self._incarnation is None else self._incarnation.tally

    @property
    def waiting(self) -> int:
        """How many messages it was sent and has not taken; without a tally, those kept here."""
        sent = self.pipe.queued - self.pipe.silent
        if (tally := self.tally) is not None:
            return min(max(0, sent - tally[TAKEN]), sent)
        return self.pipe.kept if self.launched else sent

    @property
    def takes_mail(self) -> bool:
        """Whether its inbox still takes messages."""
        return self.row.takes_mail

    @property
    def received(self) -> int:
        """Messages that it was sent, whether it has taken them or not."""
        return self.pipe.queued - self.pipe.silent

    @property
    def died(self) -> float:
        """When it exited, in seconds of `time.monotonic`; 0 if it has not."""
        return 0.0 if self._incarnation is None else self._incarnation.died

    # Endpoint

    def write_through(self, frame: bytes) -> bool:
        """Do nothing: it is no client."""
        del frame
        return False

    def deliver(self, mail: Mail) -> bool:
        """Put a message into its mailbox; beyond the limit the process is ended.

        Returns whether the message was taken. Nothing is ever dropped silently.
        """
        pipe, limit = self.pipe, self.options.mailbox
        if not self.takes_mail or pipe.mailbox > limit:  # the latter: it is already being ended
            return False
        numbers = self._numbers
        numbers.messages_between += 1
        numbers.bytes_between += len(mail.content)
        pipe.queue(mail.packed, mail=True)
        if pipe.mailbox > limit:
            self._overflows()
        return True

    def show(self, presence: PresenceEffect) -> None:
        """Show it members of a group that it watches; that waits in its mailbox, as messages do."""
        for frame in _frames(presence):
            if self.takes_mail and self.pipe.mailbox <= self.options.mailbox:
                self.pipe.queue(frame, mail=True)
                if self.pipe.mailbox > self.options.mailbox:
                    self._overflows()

    def _overflows(self) -> None:
        self._numbers.hit["mailbox"] += 1
        overflow = f"killed: its mailbox held more than {self.options.mailbox} bytes"
        error = ExitError(ExitKind.MAILBOX_OVERFLOW, overflow)
        self._signal(self.pid, Signal.TERMINATE, because=error)

    def stop(self, reason: str, sender: PID) -> None:
        """Close its inbox and send it CANCEL; interrupt it, then kill it, if it does not end."""
        self._stopping(self)
        # The event first: once the inbox is closed, its reader knows of it.
        self.pipe.post(wire.SignalFrame(CANCEL, str(sender), reason, drains=self.drains))
        self.pipe.queue(wire.CloseInboxFrame())
        self.pipe.silent += 1
        half = self.options.stop_timeout / 2
        self._call_later(half, self.interrupt, half)

    def interrupt(self, rest: float, again: int = 4) -> None:
        """Interrupt a handler that runs on after its CANCEL, and give it `rest` seconds to end.

        It is interrupted `again` later in that time, which changes nothing for a handler that has
        noticed: a signal that arrives between Python's last look and a system call is not noticed
        before that call ends.
        """
        if not rest:  # it is killed at once
            self._signal(self.pid, Signal.STOP_TIMEOUT)
            return
        logger.debug("%s runs on after its CANCEL and is interrupted", self.pid)
        if self._incarnation is not None:
            self._incarnation.interrupt()
        if again:
            step = rest / (again + 1)
            self._call_later(step, self.interrupt, rest - step, again - 1)
        else:
            self.signal_after(rest, Signal.STOP_TIMEOUT)

    def kill(self) -> None:
        """Send it SIGKILL."""
        if self._incarnation is not None:  # else it could not be launched, and is ending already
            self._incarnation.kill()

    def notify(self, event: Event) -> None:
        """Send it an event, which overtakes its mail."""
        ended = None if event.result is None else wire.PackedResult.of(event.result)
        self.pipe.post(wire.SignalFrame(event.kind, str(event.sender), "", ended))

    def break_link(self) -> None:
        """Kill it because a process that it is linked to has ended with an error."""
        self.kill()

    # Timers: it has one at a time

    def signal_after(self, seconds: float, signal: Signal) -> None:
        """Send it a signal after so many seconds; replaces the timer that it has."""
        self._call_later(seconds, self._signal, self.pid, signal)

    def _call_later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        self.stop_timer()
        self._call = function, args
        if self.frozen:
            self._left = seconds
        else:
            self._timer = self._loop.call_later(seconds, function, *args)

    def stop_timer(self) -> None:
        """Stop its timer, if it has one."""
        self._left = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def freeze(self, since: float) -> None:
        """Let its timers stand still: it is stopped, since that time of the event loop."""
        if self.frozen:
            return
        self.frozen = True
        self.occupied()
        if self._timer is not None and (left := self._timer.when() - since) > 0:
            self.stop_timer()
            self._left = left

    def thaw(self) -> None:
        """Let its timers go on: it goes on too. If it is empty, that counts from now."""
        self.frozen = False
        if self._left is not None:
            function, args = self._call
            self._call_later(self._left, function, *args)
        self.left()

    # Its end without clients

    def set_end_when_empty(self, seconds: float | None) -> None:
        """Change `end_when_empty`; if it is empty now, the time counts from now."""
        if seconds != self.end_when_empty:
            self.end_when_empty = seconds
            self.occupied()
            self.left()

    def occupied(self) -> None:
        """Note that it has a client, or one on its way."""
        if self._empty is not None:
            self._empty.cancel()
            self._empty = None

    def left(self) -> None:
        """Note that a client has left; if it was the last one, it ends in time."""
        if (
            self.end_when_empty is not None
            and self._empty is None
            and not self.frozen
            and not self.clients
            and not self.arrivals
            and self.result is None
        ):
            self._empty = self._loop.call_later(
                self.end_when_empty, self._signal, self.pid, Signal.CANCEL, EMPTY
            )

    # Its clients

    def bind(self, client: PID) -> None:
        """Report its exit to that connection, as one whose `ws.join` it has not read."""
        self.clients[client] = _NEVER_SENT
        self.occupied()

    def unbind(self, client: PID) -> bool:
        """Undo `bind` and `join`; returns whether that was its last client, while it lives."""
        if self.clients.pop(client, None) is None or self.result is not None:
            return False
        self.pipe.forget(client)
        self.left()
        return not self.clients

    # Its start

    @property
    def start_awaited(self) -> bool:
        """Whether anybody waits for its start."""
        return self._start is not None

    def wait_for_start(self) -> asyncio.Future[str | HostFull | None]:
        """Return a future: None once it runs, or the reason why it never will."""
        if self._start is None:
            self._start = self._loop.create_future()
        return self._start

    def tell_started(self, problem: str | HostFull | None) -> None:
        """Resolve the future of `wait_for_start`; `problem` is why it will not run, or None."""
        future, self._start = self._start, None
        if future is not None and not future.done():
            future.set_result(problem)

    # What the relay sends it; False: it no longer takes mail, so that is a dead letter

    def join(
        self,
        client: PID,
        metadata: dict[str, Any] | None,
        *,
        receipt: bool = False,
        trace: str = "",
    ) -> bool:
        """Send it `ws.join` and bind the connection.

        `receipt`: it says when it has read that (`JoinReadFrame`). `trace` is the context of the
        upgrade.
        """
        if not self.takes_mail:
            return False
        pipe = self.pipe
        content = Raw(payload.pack(metadata))
        pipe.queue(wire.AttachFrame(str(client), content, receipt, trace), visit=True)
        self.clients[client] = pipe.queue(wire.RelayFrame(JOIN, str(client), {}), visit=True)
        pipe.silent += 1
        self.occupied()
        return True

    def attach(self, client: PID, metadata: dict[str, Any] | None) -> None:
        """Set the metadata for a client's messages from now on."""
        if self.takes_mail:
            content = Raw(payload.pack(metadata))
            self.pipe.queue(wire.AttachFrame(str(client), content), visit=True)
            self.pipe.silent += 1

    def tell(self, client: PID, topic: str, content: dict[str, Any]) -> bool:
        """Send it a message from the relay."""
        if not self.takes_mail:
            return False
        self.pipe.queue(wire.RelayFrame(topic, str(client), content))
        return True

    def leave(self, client: PID, code: int, reason: str) -> bool:
        """Send it `ws.leave`."""
        if not self.takes_mail:
            return False
        content = {"code": code, "reason": reason}
        self.pipe.queue(wire.RelayFrame(LEAVE, str(client), content), visit=True)
        self.pipe.queue(wire.DetachFrame(str(client)), visit=True)
        self.pipe.silent += 1
        return True

    def never_read(self, client: PID, join: int) -> bool:
        """Whether it has returned, or never ran, without reading this client's `ws.join`."""
        return self._incarnation is None or self._incarnation.never_read(client, join)

    # Its end

    def exited(self, about: Callable[[], dict[str, Any]]) -> None:
        """Stop its timers, log what its intake still holds, and drop what was kept for it."""
        self.stop_timer()
        self.occupied()
        self.log.end(about)
        if self._incarnation is None:
            self.pipe.close()


def _frames(presence: PresenceEffect) -> Iterator[wire.PresenceFrame]:
    """Yield the members in frames of moderate size: there may be many."""
    group, watch, kind = presence.group, presence.watch, presence.kind
    members: list[tuple[str, bytes]] = []
    room = _MEMBERS
    for pid, meta in presence.members:
        members.append((str(pid), meta))
        room -= len(pid) + len(meta)
        if room <= 0:
            yield wire.PresenceFrame(group, watch, kind, members)
            members, room = [], _MEMBERS
    if members:
        yield wire.PresenceFrame(group, watch, kind, members)
