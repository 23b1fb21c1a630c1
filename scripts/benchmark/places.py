"""Where things are."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["HERE", "ROOT", "environment"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def environment(*first: Path, **more: str) -> dict[str, str]:
    """Return the environment of the processes that the bench starts.

    `first` are folders whose modules come before the installed ones.
    """
    folders = os.pathsep.join(map(str, (*first, HERE.parent)))
    return {**os.environ, "PYTHONPATH": folders, **more}
