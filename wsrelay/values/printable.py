"""Text of strangers as it may stand in a log line or on a terminal."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["SHORT", "escaped", "escaped_in_json", "indented", "printable", "shortened"]

SHORT: Final = 200
"""Characters of what a client has made up."""

_UNSAFE: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1: line breaks that forge, and the terminal's own language
    "\u2028\u2029"  # line breaks for some readers
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # these turn the order of what is shown around
    "\ud800-\udfff"  # what was no UTF-8, and cannot be written as such
    "]"
)

_MARGIN: Final = " " * 4

_BREAKS: Final = re.compile(r"\r\n|\r|\n")


def escaped(text: str) -> str:
    """Return the text with all that a terminal would obey, or a reader take for its own, escaped.

    That is control characters, line breaks among them, and those that turn the writing around.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escaped_in_json(line: str) -> str:
    """Return JSON on one line with the same characters escaped as JSON does it."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def indented(text: str) -> str:
    """Return text of several lines escaped, those below the first indented: none can be forged.

    What is so already stays as it is.
    """
    if _UNSAFE.search(text) is None:
        return text
    first, *below = (escaped(line.expandtabs()) for line in _BREAKS.split(text))
    if not all(line.startswith(_MARGIN) or not line for line in below):
        below = [f"{_MARGIN}{line}" if line else "" for line in below]
    return "\n".join((first, *below))


def shortened(text: str, most: int = 4096) -> str:
    """Return the text indented, its middle left out where it has more than so many characters.

    What a process says of its end may be 64 MB, and a log line is read by people.
    """
    return _cut(indented(_cut(text, most)), most)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... {len(text) - 2 * half} characters ... {text[-half:]}"


def printable(text: str) -> str:
    """Return the text escaped, cut to 200 characters.

    A path may hold a line break that forges a line of the log, or a terminal's escape sequence.
    """
    cut = escaped(text[:SHORT])
    return cut if len(text) <= SHORT else f"{cut}..."
