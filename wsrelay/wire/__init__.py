"""What crosses between processes: frames, payloads, code, and the pipes that carry them."""

from __future__ import annotations

from .frames import *  # noqa: F403 - the list of them stands there
from .frames import __all__ as __all__
