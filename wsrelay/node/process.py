"""A worker process: all that belongs to its PID, whatever OS process runs it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from wsrelay import wire
from wsrelay.confinement import HostOptions
from wsrelay.kernel import Process as Row
from wsrelay.kernel import ProcessState, Signal
from wsrelay.values.message import JOIN, LEAVE, Event, ExitError, ExitKind
from wsrelay.values.pid import PID
from wsrelay.values.rights import Rights
from wsrelay.wire import payload

from .endpoint import Mail
from .host import Incarnation, Intake, NodePipe

__all__ = ["WorkerProcess"]

logger = logging.getLogger(__name__)

Signalling = Callable[..., None]
"""Gives a signal to a process: its PID, the `Signal`, and `because` of which error."""


class WorkerProcess:
    """An endpoint, from its launch to its exit.

    What runs it is its `incarnation`, an OS process behind a pipe. Everything here outlives that:
    names, clients, timers, relations (`row` is the kernel's), the log's token bucket.
    """

    def __init__(
        self,
        row: Row,
        options: HostOptions,
        *,
        target: str,
        parent: PID | None,
        signal: Signalling,
        stopping: Callable[[WorkerProcess], None],
    ) -> None:
        self.pid = row.pid
        self.row = row
        self.options = options
        """Those of its host; they stay as they were at its start."""
        self.rights: Rights | None = options.rights
        """Those of its host if that is walled in."""
        self.target = target
        self.parent = parent
        self.started = time.monotonic()
        self.names: list[str] = []
        """The names that it had last."""
        self.clients: dict[PID, int] = {}
        """Connections bound to it, each with the number of its `ws.join` frame."""
        self.pending: dict[int, asyncio.Future[Any]] = {}
        """Its requests that are not answered yet, by their number."""
        self.waiting_code = 0
        """Bytes of code and arguments that it takes at its start."""
        self.found = False
        """Whether somebody has asked for it by its name after it was spawned."""
        self.restarts = False
        """An operator has cancelled it: its clients are to come again."""
        self.log = Intake(str(row.pid), options.log_rate)
        self.incarnation: Incarnation
        self.pipe: NodePipe
        self._signal = signal
        self._stopping = stopping
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._start: asyncio.Future[str | None] | None = None

    def runs_as(self, incarnation: Incarnation) -> None:
        """Be run by that from now on."""
        self.incarnation = incarnation
        self.pipe = incarnation.pipe

    @property
    def os_pid(self) -> int | None:
        """The number of the OS process, None before it was forked."""
        return self.incarnation.os_pid

    @property
    def takes_mail(self) -> bool:
        """Whether its inbox still takes messages."""
        state = self.row.state
        return state is ProcessState.RUNNING or state is ProcessState.STARTING

    # Endpoint

    def deliver(self, mail: Mail) -> bool:
        """Put a message into its mailbox; beyond the limit it is ended: never a silent drop."""
        pipe, limit = self.pipe, self.options.mailbox
        if not self.takes_mail or pipe.mailbox > limit:  # the latter: it is being ended for that
            return False
        pipe.queue(mail.packed, mail=True)
        if pipe.mailbox > limit:
            overflow = f"killed: its mailbox held more than {limit} bytes"
            error = ExitError(ExitKind.MAILBOX_OVERFLOW, overflow)
            self._signal(self.pid, Signal.TERMINATE, because=error)
        return True

    def stop(self, reason: str, sender: PID) -> None:
        """Close its inbox and send it CANCEL; interrupt and then kill it when its time is over."""
        self._stopping(self)
        self.pipe.queue(wire.CloseInboxFrame())
        self.pipe.post(wire.SignalFrame("CANCEL", str(sender), reason))
        half = self.options.stop_timeout / 2
        self._call_later(half, self.interrupt, half)

    def interrupt(self, rest: float) -> None:
        """Interrupt a handler that goes on after its CANCEL, and let it end for the same time."""
        if rest:  # else it was to be killed at once
            logger.debug("%s goes on after its CANCEL and is interrupted", self.pid)
            self.incarnation.interrupt()
        self.signal_after(rest, Signal.STOP_TIMEOUT)

    def kill(self) -> None:
        """SIGKILL it."""
        self.incarnation.kill()

    def notify(self, event: Event) -> None:
        """Send it an event, which overtakes its mail."""
        ended = None if event.result is None else wire.PackedResult.of(event.result)
        self.pipe.post(wire.SignalFrame(event.kind, str(event.sender), "", ended))

    def break_link(self) -> None:
        """Kill it."""
        self.incarnation.kill()

    # Timers: it waits for one thing at a time

    def signal_after(self, seconds: float, signal: Signal) -> None:
        """Give it a signal in so many seconds, in place of what it has a timer for now."""
        self._call_later(seconds, self._signal, self.pid, signal)

    def _call_later(self, seconds: float, function: Callable[..., None], *args: Any) -> None:
        self.stop_timer()
        self._timer = self._loop.call_later(seconds, function, *args)

    def stop_timer(self) -> None:
        """Let nothing happen to it by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Its start

    @property
    def start_awaited(self) -> bool:
        """Whether anybody waits for its start."""
        return self._start is not None

    def wait_for_start(self) -> asyncio.Future[str | None]:
        """Return what is done when it runs, with None, or will not, with why."""
        if self._start is None:
            self._start = self._loop.create_future()
        return self._start

    def tell_started(self, problem: str | None) -> None:
        """Tell those who wait for its start."""
        future, self._start = self._start, None
        if future is not None and not future.done():
            future.set_result(problem)

    # What the relay sends it; False: it takes nothing any more, and that is a dead letter

    def join(self, client: PID, metadata: dict[str, Any] | None) -> int | None:
        """Send it `ws.join`; returns the frame's number, None where nothing is taken."""
        if not self.takes_mail:
            return None
        pipe = self.pipe
        pipe.queue(wire.AttachFrame(str(client), Raw(payload.pack(metadata))), visit=True)
        return pipe.queue(wire.RelayFrame(JOIN, str(client), {}), visit=True)

    def attach(self, client: PID, metadata: dict[str, Any] | None) -> None:
        """Set the metadata of a client's messages from now on."""
        if self.takes_mail:
            content = Raw(payload.pack(metadata))
            self.pipe.queue(wire.AttachFrame(str(client), content), visit=True)

    def tell(self, client: PID, topic: str, content: dict[str, Any]) -> bool:
        """Send it a message of the relay."""
        state = self.row.state  # `takes_mail` without the call: each client's message comes here
        if state is not ProcessState.RUNNING and state is not ProcessState.STARTING:
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
        return True

    def never_read(self, client: PID, join: int) -> bool:
        """Whether it has returned and never took this client's `ws.join`."""
        return self.incarnation.never_read(client, join)

    # Its end

    def exited(self, about: Callable[[], dict[str, Any]]) -> None:
        """Let nothing more happen to it, and tell the log what is still to be told."""
        self.stop_timer()
        self.log.end(about)
