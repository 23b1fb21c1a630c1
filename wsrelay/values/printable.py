"""Text from strangers, made safe for a log line or a terminal."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "SHORT",
    "escaped",
    "escaped_in_json",
    "indented",
    "printable",
    "shortened",
    "without_middle",
]

SHORT: Final = 200
"""Characters to show of text that a client has made up."""

_UNSAFE: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: line breaks that forge lines, and terminal commands
    "\u2028\u2029"  # line breaks for some readers
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these reverse the direction of the text
    "\ud800-\udfff"  # what was not UTF-8, and cannot be written as such
    "]"
)

_MARGIN: Final = " " * 4

_BREAKS: Final = re.compile(r"\r\n|\r|\n")


def escaped(text: str) -> str:
    """Return the text with everything escaped that a terminal obeys or that misleads a reader.

    These are control characters, including line breaks, and those that reverse the direction of
    writing.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_in_json(line: str) -> str:
    """Return JSON on one line with the same characters escaped in JSON's way."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def indented(text: str) -> str:
    """Return text escaped, with all lines but the first indented, so that no line can be forged.

    Text that is already in this form is unchanged.
    """
    if _UNSAFE.search(text) is None:
        return text
    first, *below = (escaped(line.expandtabs()) for line in _BREAKS.split(text))
    if not all(line.startswith(_MARGIN) or not line for line in below):
        below = [f"{_MARGIN}{line}" if line else "" for line in below]
    return "\n".join((first, *below))


def shortened(text: str, most: int = 4096) -> str:
    """Return the text indented, without its middle if it has more than `most` characters.

    What a process says about its end may be 64 MB, and log lines are read by people.
    """
    return without_middle(indented(without_middle(text, most)), most)


def without_middle(text: str, most: int) -> str:
    """Return the text without its middle if it has more than `most` characters, and say so."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {len(text) - 2 * half} characters ... {text[-half:]}"


def printable(text: str) -> str:
    """Return the text escaped, cut to 200 characters.

    A path may contain a line break that forges a log line, or a terminal's escape sequence.
    """
    cut = escaped(text[:SHORT])
    return cut if len(text) <= SHORT else f"{cut}..."
