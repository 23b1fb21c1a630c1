"""The kernel: who lives, under which names, and what must happen next. Pure: no I/O, no clock."""

from .groups import Groups
from .lifecycle import Action, Signal, State
from .machine import Break, Effect, Exited, Kernel, Kill, Launch, Notify, Process, Started, Stop
from .names import Names
from .relations import Relations

__all__ = [
    "Action",
    "Break",
    "Effect",
    "Exited",
    "Groups",
    "Kernel",
    "Kill",
    "Launch",
    "Names",
    "Notify",
    "Process",
    "Relations",
    "Signal",
    "Started",
    "State",
    "Stop",
]
