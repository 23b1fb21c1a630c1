"""Where things are."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["HERE", "ROOT", "environment"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def environment(**more: str) -> dict[str, str]:
    """Return the environment of the processes that the bench starts."""
    return {**os.environ, "PYTHONPATH": str(HERE.parent), **more}
