"""The kernel: which processes live, their names, and what must happen next. No I/O, no clock."""

from .groups import Groups, PresenceEffect
from .lifecycle import Action, ProcessState, Signal
from .machine import (
    BreakEffect,
    Effect,
    ExitedEffect,
    Kernel,
    KillEffect,
    LaunchEffect,
    LinkEffect,
    NotifyEffect,
    Process,
    StartedEffect,
    StopEffect,
    WatchEffect,
)
from .names import Names
from .relations import Relations

__all__ = [
    "Action",
    "BreakEffect",
    "Effect",
    "ExitedEffect",
    "Groups",
    "Kernel",
    "KillEffect",
    "LaunchEffect",
    "LinkEffect",
    "Names",
    "NotifyEffect",
    "PresenceEffect",
    "Process",
    "ProcessState",
    "Relations",
    "Signal",
    "StartedEffect",
    "StopEffect",
    "WatchEffect",
]
