"""The kernel: which processes live, their names, and what must happen next. No I/O, no clock."""

from .effects import (
    BreakEffect,
    Effect,
    ExitedEffect,
    KillEffect,
    LaunchEffect,
    LinkEffect,
    NotifyEffect,
    StartedEffect,
    StopEffect,
    WatchEffect,
)
from .groups import Groups, PresenceEffect
from .lifecycle import Action, ProcessState, Signal
from .machine import Kernel, Process
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
