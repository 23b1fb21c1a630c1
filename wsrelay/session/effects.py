"""What a session asks its driver to do; the driver carries effects out in order."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from wsrelay.values.message import Result
from wsrelay.values.pid import PID

from .header import TargetSpec

__all__ = [
    "AskTarget",
    "AttachMetadata",
    "CancelTarget",
    "CloseClient",
    "ConnectionEnded",
    "Effect",
    "FindTarget",
    "JoinTarget",
    "LeaveTarget",
    "PauseSender",
    "RejectCommand",
    "ResumeSender",
    "SendToTarget",
    "SetHeartbeat",
]


class JoinTarget(Struct, frozen=True):
    """Bind the connection to the target and send it `ws.join`.

    `receipt`: the driver calls `join_read` when the target has read it.
    """

    target: PID
    metadata: dict[str, Any] | None
    receipt: bool = False


class FindTarget(Struct, frozen=True):
    """Unbind the connection from its target, and find or start the name's next process.

    The driver then calls `found` or `not_found`. Nothing is sent to a target before that.
    """

    spec: TargetSpec


class AskTarget(Struct, frozen=True):
    """Ask the node of a process whether the client can be bound to it.

    The driver then calls `answered`.
    """

    target: PID


class AttachMetadata(Struct, frozen=True):
    """Attach new metadata to what follows."""

    target: PID
    metadata: dict[str, Any] | None


class SendToTarget(Struct, frozen=True):
    """Send the target a message; `payload` lacks `client_pid` and `metadata`."""

    target: PID
    topic: str
    payload: dict[str, Any]


class LeaveTarget(Struct, frozen=True):
    """Send the target `ws.leave` and unbind the connection from it."""

    target: PID
    code: int
    reason: str


class CancelTarget(Struct, frozen=True):
    """Cancel a target that lived for this connection alone."""

    target: PID


class RejectCommand(Struct, frozen=True):
    """Send `ws.error` to the sender of an unusable command."""

    to: PID
    topic: str
    error: str


class PauseSender(Struct, frozen=True):
    """Make the sender wait until `ResumeSender`; if it cannot, the driver calls `cannot_wait`."""

    sender: PID


class ResumeSender(Struct, frozen=True):
    """Let a sender that waits for this connection continue."""

    sender: PID


class SetHeartbeat(Struct, frozen=True):
    """Call `heartbeat` at this interval (seconds) from now on; None: stop calling it."""

    interval: float | None


class CloseClient(Struct, frozen=True):
    """Send what is in the outbox, then the close frame.

    `lingering`: the client gets no more time than the linger to read them.
    """

    code: int
    reason: str
    lingering: bool = False


class ConnectionEnded(Struct, frozen=True):
    """The connection is over: its process has exited with this result."""

    result: Result


Effect = (
    JoinTarget
    | FindTarget
    | AskTarget
    | AttachMetadata
    | SendToTarget
    | LeaveTarget
    | CancelTarget
    | RejectCommand
    | PauseSender
    | ResumeSender
    | SetHeartbeat
    | CloseClient
    | ConnectionEnded
)
