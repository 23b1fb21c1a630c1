"""What runs inside a worker. Kept small: every worker carries it."""

from __future__ import annotations

from . import crashes, forks, generators, load, multiprocess, signals
from .load import LoadError, forget_script, load_function, load_module, load_target, user_traceback
from .logs import NodeLog, enable_own_loggers, log_to
from .main import Given, run
from .terminal import explain_absence

__all__ = [
    "Given",
    "LoadError",
    "NodeLog",
    "crashes",
    "enable_own_loggers",
    "explain_absence",
    "forget_script",
    "forks",
    "generators",
    "load",
    "load_function",
    "load_module",
    "load_target",
    "log_to",
    "multiprocess",
    "run",
    "signals",
    "user_traceback",
]
