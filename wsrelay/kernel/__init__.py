"""The kernel: who lives, under which names, and what must happen next. Pure: no I/O, no clock."""

from .lifecycle import Action, Signal, State
from .machine import Effect, Exited, Kernel, Kill, Launch, Process, Started, Stop
from .names import Names

__all__ = [
    "Action",
    "Effect",
    "Exited",
    "Kernel",
    "Kill",
    "Launch",
    "Names",
    "Process",
    "Signal",
    "Started",
    "State",
    "Stop",
]
