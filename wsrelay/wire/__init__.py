"""What crosses between processes: frames, payloads, code, and the pipes that carry them."""

from __future__ import annotations

from .frames import *  # noqa: F403 - `frames.__all__` lists them
from .frames import __all__ as __all__
