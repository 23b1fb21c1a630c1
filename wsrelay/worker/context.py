"""What a worker can do: the calls of `wsrelay.process`, seen from inside the worker."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from wsrelay import errors, payload, wire
from wsrelay.pid import PID, PIDSource
from wsrelay.spawning import pack_target

from .mailbox import Mailbox
from .pipe import WorkerPipe

__all__ = ["WorkerContext"]

logger = logging.getLogger(__name__)


class WorkerContext:
    """The worker's side of everything that handlers call.

    Methods build a frame and write it; the `*_frame` ones are shared with the asynchronous face.
    """

    def __init__(self, pipe: WorkerPipe, start: wire.Start) -> None:
        self.pipe = pipe
        self.mailbox = Mailbox(pipe)
        self._pid = PID.trusted(start.pid)
        self._hosts = start.hosts
        self._ids = PIDSource(str(self._pid.node), start.ids)
        self._refs = itertools.count(1)

    def pid(self) -> PID:
        """Return the worker's own PID."""
        return self._pid

    def send_frame(self, to: str | Iterable[str], topic: str, content: Any) -> wire.Send:
        """Build the frame of a message; raises `ReservedTopic`, `PayloadError`."""
        if not isinstance(topic, str) or topic.startswith("@"):
            raise errors.ReservedTopic(topic)
        # Plain text goes to the wire: the encoder refuses subclasses such as PID.
        receivers = str(to) if isinstance(to, str) else [str(one) for one in to]
        return wire.Send(receivers, topic, Raw(payload.encode(content)))

    def send(self, to: str | Iterable[str], topic: str, content: Any) -> None:
        """Send a message; the kernel has it on return."""
        self.pipe.write(self.send_frame(to, topic, content))

    def spawn_frame(self, target: Any, host: str | None, args: Any, kwargs: Any) -> wire.Spawn:
        """Build the frame that starts a process; its PID is made here."""
        name = self._pid.host if host is None else host
        if name not in self._hosts:
            raise errors.UnknownHost(host, self._hosts)
        text, code = pack_target(target, args, kwargs)
        return wire.Spawn(str(self._ids.next(name)), name, text, code)

    def spawn(self, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
        """Start a process and return its PID at once."""
        frame = self.spawn_frame(target, host, args, kwargs)
        self.pipe.write(frame)
        return PID.trusted(frame.pid)

    def get_or_spawn_frame(
        self, name: str, target: Any, host: str | None, args: Any, kwargs: Any
    ) -> wire.GetOrSpawn:
        """Build the frame that finds or starts a process under a name."""
        spawn = self.spawn_frame(target, host, args, kwargs)
        return wire.GetOrSpawn(next(self._refs), name, spawn)

    def get_or_spawn(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Find a process by name or start it under that name."""
        frame = self.get_or_spawn_frame(name, target, host, args, kwargs)
        queue = self.mailbox.expect(frame.ref)
        self.pipe.write(frame)
        return PID.trusted(answer(self.mailbox.take(queue)))

    def cancel(self, to: str, reason: str) -> None:
        """Ask a process to end."""
        self.pipe.write(wire.Cancel(str(to), reason))

    def terminate(self, to: str) -> None:
        """End a process at once."""
        self.pipe.write(wire.Terminate(str(to)))


def answer(reply: wire.Reply) -> Any:
    """Return a reply's value, or raise the error that it carries."""
    if reply.error is None:
        return reply.value
    kind = getattr(errors, reply.error, errors.WsrelayError)
    error = kind.__new__(kind)
    Exception.__init__(error, reply.message)
    raise error
