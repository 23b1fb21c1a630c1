"""Text of strangers as it may stand in a log line or on a terminal."""

from __future__ import annotations

from typing import Final

__all__ = ["printable", "shortened"]

_LONGEST: Final = 200


def shortened(text: str, most: int = 4096) -> str:
    """Return the text, its middle left out where it has more than so many characters.

    What a process says of its end may be 64 MB, and a log line is read by people.
    """
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {len(text) - 2 * half} characters ... {text[-half:]}"


def printable(text: str) -> str:
    """Return the text with control characters escaped, cut to 200 characters.

    A path may hold a line break that forges a line of the log, or a terminal's escape sequence.
    """
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
