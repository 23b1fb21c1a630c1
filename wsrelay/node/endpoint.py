"""Endpoints: what the node can do with anything that has a PID."""

from __future__ import annotations

from typing import Protocol, cast

from msgspec import Struct

from wsrelay import wire
from wsrelay.session import command
from wsrelay.values.message import SEND, Event
from wsrelay.values.pid import PID

from .ends import EndRequest

__all__ = ["Endpoint", "Mail"]


class Mail(Struct, eq=False):
    """A message on its way to any number of endpoints; each form of it is made only once."""

    sender: PID
    topic: str
    content: bytes | memoryview
    _command: command.Command | None = None
    _frame: bytes | None = None
    _packed: bytes | None = None

    @property
    def command(self) -> command.Command:
        """The command that it is to a connection."""
        if self._command is None:
            self._command = command.parse(self.topic, self.content)
        return self._command

    @property
    def frame(self) -> bytes:
        """The WebSocket frame that it is to a client.

        It is empty if it is not a right `ws.send`, or a large one, which must not be copied.
        """
        if self._frame is None:
            content = self.content
            self._frame = b""
            if self.topic == SEND and isinstance(content, bytes):
                self._frame = command.frame_of(content)
        return self._frame

    @property
    def packed(self) -> bytes:
        """The frame that a worker reads."""
        if self._packed is None:
            frame = wire.DeliverFrame(self.topic, str(self.sender), cast("bytes", self.content))
            self._packed = wire.pack(frame)
        return self._packed


class Endpoint(Protocol):
    """A worker process, a connection, or the node itself."""

    asked: EndRequest | None
    """Who has asked it to end."""

    def write_through(self, frame: bytes) -> bool:
        """Write a WebSocket frame to the client at once, if nothing is in the way.

        Otherwise, and if there is no client, it returns False, having done nothing.
        """

    def deliver(self, mail: Mail) -> bool:
        """Take a message; returns whether it was taken (if not, it is a dead letter)."""

    def stop(self, reason: str, sender: PID) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it at once."""

    def notify(self, event: Event) -> None:
        """Tell it of another process: EXIT or LINK_DOWN."""

    def break_link(self) -> None:
        """End it because a process that it is linked to has ended with an error."""
