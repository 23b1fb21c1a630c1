"""What every Python peer's service does with a text; standard library only."""

from __future__ import annotations

import os
import time

__all__ = ["serve"]


def serve(text: str) -> str:
    """Answer `pid` with the process's id, `burn SECONDS` after computing so long, others as is."""
    if text == "pid":
        return str(os.getpid())
    if text.startswith("burn "):
        end = time.monotonic() + float(text.removeprefix("burn "))
        while time.monotonic() < end:
            pass
        return "burnt"
    return text
