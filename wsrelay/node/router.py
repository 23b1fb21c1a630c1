"""The router: from a PID or a name to whoever takes the message."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from wsrelay.kernel import Signal
from wsrelay.values.message import Event
from wsrelay.values.pid import PID
from wsrelay.values.printable import printable

from .endpoint import Endpoint, Mail
from .ends import EndRequest
from .engine import Engine

__all__ = ["MessageRouter"]

logger = logging.getLogger(__name__)

_PORTION: Final = 64
"""Receivers of a message that are served in one turn: half a millisecond if all are clients."""


class MessageRouter:
    """Delivers messages and signals; `pid` is the node's own."""

    def __init__(self, engine: Engine, pid: PID) -> None:
        self.pid = pid
        self.dead_letters = 0
        """Messages to a PID or name that nobody has."""
        self._engine = engine
        self._endpoints = engine.endpoints
        self._kernel = engine.kernel
        # The kernel does not know the node, so both forms of its PID are entered here.
        for form in (pid, PID.trusted(f"{{{pid.host}|{pid.id}}}")):
            self._endpoints[form] = _NodeEndpoint(engine)

    def _find(self, to: str) -> Endpoint | None:
        """Return the endpoint with that name, or with that PID without the node's part."""
        process = self._kernel.find(to, self._engine.name)
        return None if process is None else self._endpoints.get(process.pid)

    def route(self, mail: Mail, receivers: Iterable[str], away: list[str] | None = None) -> None:
        """Deliver a message to each receiver; for one that is not alive it is a dead letter.

        Those that are not here are added to `away`, for `route_away` when there are no more.
        Without it they get the message now.
        """
        frame, missed = mail.frame, away
        for to in receivers:
            endpoint = self._endpoints.get(to) or self._find(to)  # type: ignore[call-overload]
            if endpoint is None:
                if missed is None:
                    missed = []
                missed.append(to)
            elif not ((frame and endpoint.write_through(frame)) or endpoint.deliver(mail)):
                self.dead_letters += 1
        if missed and away is None:
            self.route_away(mail, missed)

    def route_away(self, mail: Mail, receivers: Sequence[str]) -> None:
        """Send a message to receivers that are not here: once to each other node they are on."""
        if receivers:
            self.dead_letters += self._engine.elsewhere.send(mail, receivers)

    def route_in_portions(self, mail: Mail, receivers: Sequence[str]) -> Iterator[None]:
        """Deliver a message to many receivers, pausing after each portion to let others run."""
        away: list[str] = []
        for start in range(0, len(receivers), _PORTION):
            self.route(mail, receivers[start : start + _PORTION], away)
            yield
        self.route_away(mail, away)

    def ask(
        self,
        sender: PID,
        to: str,
        signal: Signal,
        reason: str = "",
        restarts: bool = False,
        *,
        by: str = "",
    ) -> None:
        """Send a signal to a PID or name on behalf of a process.

        `restarts` as in `Node.cancel`, `by` as in `Engine.signal`.
        """
        if (process := self._kernel.find(to, self._engine.name)) is None:
            elsewhere = self._engine.elsewhere
            if (there := elsewhere.find(to)) is None:
                self.dead_letters += 1
            else:
                elsewhere.signal(sender, there, signal, reason, restarts=restarts)
            return
        if restarts and (worker := self._engine.processes.get(process.pid)) is not None:
            worker.restarts = True
        self._engine.signal(process.pid, signal, reason, sender=sender, by=by)


class _NodeEndpoint:
    """The node as an endpoint: it sends what HTTP handlers send, and takes nothing."""

    asked: EndRequest | None = None

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write_through(self, frame: bytes) -> bool:
        """Do nothing: the node is no client."""
        del frame
        return False

    def deliver(self, mail: Mail) -> bool:
        """Tell the author of a process that answers the node what to do instead, in the log."""
        engine = self._engine
        process = engine.processes.get(mail.sender)
        if process is not None and engine.mistakes.first(mail.sender, "to the node"):
            logger.warning(
                "%s sent %s to the node, which has no inbox: messages that HTTP handlers send have "
                "the node as their sender. Put the PID of a process that should get the answer "
                "into the payload (told once)",
                mail.sender,
                printable(mail.topic),
                extra=engine.about(process),
            )
        return False

    def stop(self, reason: str, sender: PID) -> None:
        """Do nothing: no process may end the node."""

    def kill(self) -> None:
        """Do nothing: no process may end the node."""

    def notify(self, event: Event) -> None:
        """Do nothing: the node monitors nobody."""

    def break_link(self) -> None:
        """Do nothing: the node is linked to nobody."""
