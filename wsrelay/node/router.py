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
from .engine import Engine

__all__ = ["MessageRouter"]

logger = logging.getLogger(__name__)

_PORTION: Final = 64
"""Receivers of a message that have their turn together: half a millisecond, if all are clients."""


class MessageRouter:
    """Delivers messages and signals; `pid` is the node's own."""

    def __init__(self, engine: Engine, pid: PID) -> None:
        self.pid = pid
        self.dead_letters = 0
        """Messages to a PID or name that nobody has."""
        self._engine = engine
        self._endpoints = engine.endpoints
        self._kernel = engine.kernel
        # The kernel does not know the node, so it is here under both forms of its PID.
        for form in (pid, PID.trusted(f"{{{pid.host}|{pid.id}}}")):
            self._endpoints[form] = _NodeEndpoint(engine)

    def _find(self, to: str) -> Endpoint | None:
        """Return who has that name, or that PID without the node's part."""
        process = self._kernel.find(to, self._engine.name)
        return None if process is None else self._endpoints.get(process.pid)

    def route(self, mail: Mail, receivers: Iterable[str]) -> None:
        """Deliver a message to each receiver; one that is not alive makes it a dead letter."""
        for to in receivers:
            endpoint = self._endpoints.get(to) or self._find(to)  # type: ignore[call-overload]
            if endpoint is None or not endpoint.deliver(mail):
                self.dead_letters += 1

    def route_in_portions(self, mail: Mail, receivers: Sequence[str]) -> Iterator[None]:
        """Deliver a message to many; between two portions of them others may have their turn."""
        for start in range(0, len(receivers), _PORTION):
            self.route(mail, receivers[start : start + _PORTION])
            yield

    def ask(
        self,
        sender: PID,
        to: str,
        signal: Signal,
        reason: str = "",
        restarts: bool = False,
    ) -> None:
        """Give a signal in the name of a process to a PID or name; `restarts` as in `cancel`."""
        if (process := self._kernel.find(to, self._engine.name)) is None:
            self.dead_letters += 1
            return
        if restarts and (worker := self._engine.processes.get(process.pid)) is not None:
            worker.restarts = True
        self._engine.signal(process.pid, signal, reason, sender=sender)


class _NodeEndpoint:
    """The node: it sends what HTTP handlers send, and takes nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def deliver(self, mail: Mail) -> bool:
        """Tell a process that answers the node what to do instead."""
        engine = self._engine
        process = engine.processes.get(mail.sender)
        if process is not None and engine.mistakes.first(mail.sender, "to the node"):
            logger.warning(
                "%s sent %s to the node, where nobody takes it: what an HTTP handler sends has the "
                "node as its sender, which has no inbox. Put the PID of a process that is to take "
                "the answer into the payload (told once)",
                mail.sender,
                printable(mail.topic),
                extra=engine.about(process),
            )
        return False

    def stop(self, reason: str, sender: PID) -> None:
        """Go on: no process may end the node."""

    def kill(self) -> None:
        """Go on."""

    def notify(self, event: Event) -> None:
        """Watch nobody."""

    def break_link(self) -> None:
        """Be linked to nobody."""
