"""What must happen because of what the kernel was told; the node carries it out, in order."""

from __future__ import annotations

from msgspec import Struct

from wsrelay.values.message import Event, Result
from wsrelay.values.pid import PID

from .groups import PresenceEffect

__all__ = [
    "BreakEffect",
    "Effect",
    "ExitedEffect",
    "KillEffect",
    "LaunchEffect",
    "LinkEffect",
    "NotifyEffect",
    "StartedEffect",
    "StopEffect",
    "WatchEffect",
]


class LaunchEffect(Struct, frozen=True):
    """Start the worker."""

    pid: PID


class StartedEffect(Struct, frozen=True):
    """The worker is running its handler."""

    pid: PID


class StopEffect(Struct, frozen=True):
    """Close the process's inbox, send it CANCEL, and signal STOP_TIMEOUT when its time is up."""

    pid: PID
    reason: str
    sender: PID


class KillEffect(Struct, frozen=True):
    """End the process at once."""

    pid: PID


class ExitedEffect(Struct, frozen=True):
    """The process has exited with this result."""

    pid: PID
    result: Result


class NotifyEffect(Struct, frozen=True):
    """Send the process an event: EXIT or LINK_DOWN."""

    pid: PID
    event: Event


class BreakEffect(Struct, frozen=True):
    """End the process because one that it is linked to has ended with an error."""

    pid: PID
    reason: str


class WatchEffect(Struct, frozen=True):
    """Begin or cease to ask the node of a process elsewhere for the end of that.

    `other` is the process of this node with which that began or ended.
    """

    pid: PID
    other: PID
    watched: bool


class LinkEffect(Struct, frozen=True):
    """Tell the node of a process elsewhere that `other`, of this node, is linked to it or not."""

    pid: PID
    other: PID
    linked: bool


Effect = (
    LaunchEffect
    | StartedEffect
    | StopEffect
    | KillEffect
    | ExitedEffect
    | NotifyEffect
    | BreakEffect
    | PresenceEffect
    | WatchEffect
    | LinkEffect
)
