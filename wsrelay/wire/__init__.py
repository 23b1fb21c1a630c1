"""What crosses between processes: frames, payloads, code, and the pipes that carry them."""

from __future__ import annotations

from . import frames, framing
from .frames import *  # noqa: F403 - `frames.__all__` lists them
from .framing import *  # noqa: F403 - `framing.__all__` lists them

__all__: list[str] = []
__all__ += frames.__all__
__all__ += framing.__all__
