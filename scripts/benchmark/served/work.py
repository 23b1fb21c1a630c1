"""What the Python peers answer in each mode; standard library only, to keep workers small."""

import os
import time

__all__ = ["ANSWERS", "serve"]


def echo(text: str) -> str:
    """Return the text."""
    return text


def serve(text: str) -> str:
    """Answer `pid` with the process's ID, `burn SECONDS` after computing so long, others as is."""
    if text == "pid":
        return str(os.getpid())
    if text.startswith("burn "):
        end = time.monotonic() + float(text.removeprefix("burn "))
        while time.monotonic() < end:
            pass
        return "burnt"
    return text


ANSWERS = {"echo": echo, "room": echo, "service": serve}
