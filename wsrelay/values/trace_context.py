"""Trace contexts: what a request or a message belongs to, as W3C Trace Context has it.

A context is text: the `traceparent`, and behind a space the `tracestate` if there is one. What is
sent has it in front as MessagePack's extension 1, so that it is a part of a payload or of a start's
code wherever these go, on this node or to another; what belongs to no trace is as if there were
none of this. Only who reads the payload takes it off (`split`).
"""

from __future__ import annotations

import re
from typing import Any, Final, Self, TypeVar

from .pid import PID

__all__ = ["TRACED", "TracedPID", "parse", "put", "split", "trace_of"]

B = TypeVar("B", bytes, memoryview)

TRACED: Final = b"\xc8"
"""The first byte of what has a context in front; no payload that is data begins with it."""

_NUMBER: Final = b"\x01"
"""The number of the extension."""

_HEAD: Final = 4
"""Bytes before the context: the first byte, the length in two bytes, and the number."""

_LONGEST_STATE: Final = 512
"""Characters of a `tracestate` that are passed on, and of one of its entries if that is too long
(W3C Trace Context, section 3.3.1.5)."""
_LONGEST_ENTRY: Final = 128
_MOST_ENTRIES: Final = 32

_PARENT: Final = 55
"""Characters of a `traceparent` of version 00."""

_LONGEST: Final = _PARENT + 1 + _LONGEST_STATE

_TRACEPARENT: Final = re.compile(
    r"([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)
_ENTRY: Final = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x7e]{0,256}", re.ASCII)


class TracedPID(PID):
    """The sender of a message that belongs to a trace. A copy, pickled or not, is a plain `PID`."""

    __slots__ = ("trace",)
    trace: str

    @classmethod
    def of(cls, text: str, trace: str) -> Self:
        """Make one of text that is known to be a PID."""
        self = cls.trusted(text)
        self.trace = trace
        return self

    def __reduce__(self) -> tuple[type[PID], tuple[str]]:
        """Become a PID where it is copied or pickled: the context is that of one message."""
        return PID, (str(self),)


def trace_of(message: Any) -> str:
    """Return the context of a message: that of its sender, or of the upgrade of its client."""
    trace: str = getattr(message.sender, "trace", "")
    return trace


def parse(traceparent: str, tracestate: str = "") -> str:
    """Return the context that these two headers tell; empty if the first is malformed.

    A `tracestate` that is malformed is left out; of one that is too long the entries of more than
    128 characters go first, then the last ones.
    """
    found = _TRACEPARENT.fullmatch(traceparent.strip(" \t")) if len(traceparent) < 1024 else None  # noqa: PLR2004 - of future versions
    if found is None:
        return ""
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more):
        return ""
    state = _state(tracestate)
    return f"00-{trace}-{span}-{flags}" + (f" {state}" if state else "")


def _state(text: str) -> str:
    entries = [entry for part in text.split(",") if (entry := part.strip(" \t"))]
    if not all(map(_ENTRY.fullmatch, entries)) or len(entries) > _MOST_ENTRIES:
        return ""
    state = ",".join(entries)
    if len(state) > _LONGEST_STATE:
        entries = [entry for entry in entries if len(entry) <= _LONGEST_ENTRY]
        while len(state := ",".join(entries)) > _LONGEST_STATE:
            entries.pop()
    return state


def put(data: bytes, trace: str) -> bytes:
    """Return a payload or code with a context in front; as it is if the context is empty."""
    if not trace:
        return data
    head = trace.encode()
    return b"".join((TRACED, len(head).to_bytes(2, "big"), _NUMBER, head, data))


def split(data: B) -> tuple[str, B]:
    """Return the context in front of a payload or code, and the rest.

    The context is empty if there is none, or none that is right.
    """
    if data[:1] != TRACED:
        return "", data
    size = int.from_bytes(data[1:3], "big")
    if size > _LONGEST or data[3:_HEAD] != _NUMBER:
        return "", data  # which is no data, as its reader will find
    try:
        text = str(data[_HEAD : _HEAD + size], "ascii")
    except UnicodeDecodeError:
        text = ""
    return parse(*text.split(" ", 1)) if text else "", data[_HEAD + size :]
