"""What runs inside a worker. Kept small: every worker carries it."""

from .load import LoadError, forget_script, load_function, load_module, load_target, user_traceback
from .main import run
from .rehearse import rehearse

__all__ = [
    "LoadError",
    "forget_script",
    "load_function",
    "load_module",
    "load_target",
    "rehearse",
    "run",
    "user_traceback",
]
