"""What handlers import: `from wsrelay import process` (contract section 3).

In a worker each function speaks for that worker; in an HTTP handler the functions that do not
wait speak for the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from . import current
from .errors import ChannelClosed
from .message import Event, Message
from .pid import PID

__all__ = [
    "Channel",
    "cancel",
    "events",
    "get_or_spawn",
    "inbox",
    "pid",
    "send",
    "spawn",
    "terminate",
]

T = TypeVar("T")


class Channel(Generic[T]):
    """Where items arrive; iterating ends once it is closed and everything has been taken."""

    def __init__(self, mailbox: Any, queue: Any) -> None:
        self._mailbox = mailbox
        self._queue = queue

    def receive(self, timeout: float | None = None) -> T:
        """Wait for the next item, up to `timeout` seconds (None: for ever).

        Raises `TimeoutError` at the deadline and `ChannelClosed` once the channel is closed and
        empty.
        """
        item: T = self._mailbox.take(self._queue, timeout)
        return item

    def __iter__(self) -> Iterator[T]:
        while True:
            try:
                yield self.receive()
            except ChannelClosed:
                return


def pid() -> PID:
    """Return the caller's own PID."""
    return current.caller().pid()


def inbox() -> Channel[Message]:
    """Return the channel of this process's messages; raises `NotAProcess` outside of one."""
    mailbox = current.worker().mailbox
    return Channel(mailbox, mailbox.inbox)


def events() -> Channel[Event]:
    """Return the channel of this process's events; raises `NotAProcess` outside of one."""
    mailbox = current.worker().mailbox
    return Channel(mailbox, mailbox.events)


def send(to: str | Iterable[str], topic: str, payload: Any = None) -> None:
    """Send a message to a PID, a registered name, or many of them at once.

    On return the kernel has the bytes, so they survive the sender's death. Does not wait for the
    receiver, except for a connection whose outbox is at its limit under the policy `pause`.
    Raises `ReservedTopic` and `PayloadError`; a receiver that is not alive is no error.
    """
    current.caller().send(to, topic, payload)


def spawn(target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
    """Start a process and return its PID at once.

    `target` is `path/to/script.py:function`, `module:function` or any callable; `host` names the
    process host (None: one's own, on the node its first). Raises `InvalidTarget`, `UnknownHost`,
    `PayloadError` and, on the node, `HostFull`.
    """
    return current.caller().spawn(target, host, *args, **kwargs)


def get_or_spawn(
    name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
) -> PID:
    """Return the process registered under `name`, or start one under that name, atomically.

    Errors are those of `spawn`, `HostFull` in a worker too.
    """
    return current.caller().get_or_spawn(name, target, host, *args, **kwargs)


def cancel(to: str, reason: str = "") -> None:
    """Ask a process to end: its names are free at once and its inbox closes.

    A worker that goes on is killed after its host's `stop_timeout`; a connection is closed with
    code 1000 and the reason.
    """
    current.caller().cancel(to, reason)


def terminate(to: str) -> None:
    """End a process at once: SIGKILL to a worker's process group, a dropped connection."""
    current.caller().terminate(to)
