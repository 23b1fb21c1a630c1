"""Process identifiers: `{node@host|id}`."""

from __future__ import annotations

import itertools
import re
import secrets
import sys
from typing import Final, Self

from wsrelay.errors import InvalidName, InvalidPID, UnknownHost

__all__ = [
    "LONGEST",
    "PID",
    "PIDSource",
    "address",
    "base36",
    "is_node_name",
    "nameable",
    "placed",
]

_NODE = re.compile(r"[\w.-]+", re.ASCII)
_PATTERN = re.compile(r"\{(?:([\w.-]+)@)?([\w.:/-]+)\|([\w.-]+)\}", re.ASCII)
LONGEST: Final = 1_000
"""Characters of a name, a PID, a topic and the like, which others have to keep or log."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class PID(str):
    """A process identifier; a `str` that compares and hashes like its text.

    Raises `InvalidPID` for anything that is not of the form `{node@host|id}` or `{host|id}`.
    """

    __slots__ = ("_host",)
    _host: str

    def __new__(cls, text: str) -> Self:
        """Check the text and make a PID of it."""
        if not isinstance(text, str) or len(text) > LONGEST or not _PATTERN.fullmatch(text):
            raise InvalidPID(text)
        return super().__new__(cls, text)

    @classmethod
    def trusted(cls, text: str) -> Self:
        """Make a PID of text that is known to be valid (it came from the node)."""
        return super().__new__(cls, text)

    @property
    def node(self) -> str | None:
        """The node's name, or None if it is left out, which means this node."""
        node, at, _ = self[1:].partition("@")
        return node if at else None

    @property
    def host(self) -> str:
        """The process host's name, `gateway` for connections of the default front end."""
        try:
            return self._host
        except AttributeError:
            # Interned, as there are many PIDs and few hosts.
            self._host = sys.intern(self[1:].partition("|")[0].rpartition("@")[2])
            return self._host

    @property
    def id(self) -> str:
        """The part of the PID that is never reused."""
        return self[:-1].partition("|")[2]

    def on(self, node: str) -> PID:
        """Return the same PID with the node's name filled in if it was left out."""
        return self if self.node is not None else PID.trusted(f"{{{node}@{self[1:]}")


def address(to: str) -> str:
    """Return a PID or a registered name as plain text.

    Raises `InvalidPID` for a malformed PID, `InvalidName` for text that is too long for a name.
    """
    if not isinstance(to, PID):
        if not isinstance(to, str):
            raise InvalidPID(to)
        if to.startswith("{"):
            PID(to)
        elif len(to) > LONGEST:
            raise _too_long(to)
    return str(to)


def placed(host: str) -> tuple[str, str | None]:
    """Return the host and the node of `host@node`; without a node it is None."""
    name, at, node = host.rpartition("@")
    return (name, node) if at else (host, None)


def is_node_name(text: str) -> bool:
    """Whether the text can be the node part of PIDs."""
    return isinstance(text, str) and _NODE.fullmatch(text) is not None


def nameable(text: str) -> str:
    """Return text that can name a process or group; raises `InvalidName` if it cannot."""
    if not isinstance(text, str) or not text or text.startswith("{"):
        raise InvalidName(
            f"{text!r:.80} is not a name: a name is not empty and does not start with {{"
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidName(
            f"{text!r:.80} is not a name: it has surrogates, which UTF-8 cannot represent"
        )
    if len(text) > LONGEST:
        raise _too_long(text)
    return text


def _too_long(text: str) -> InvalidName:
    return InvalidName(f"{text[:40]!r}... is not a name: it has more than {LONGEST} characters")


class PIDSource:
    """Makes unique PIDs.

    `prefix` is `<random part of the node>.<number of the minting process>`; the node gives every
    worker a number of its own, so that workers can make PIDs for what they spawn without asking.
    Thread-safe: the counter is one atomic call.
    """

    def __init__(self, node: str, prefix: str) -> None:
        self._node = node
        self.prefix = prefix
        self._count = itertools.count(1)

    @staticmethod
    def draw() -> str:
        """Draw a node's random part: 40 bits, so that restarts under one name do not collide."""
        return base36(secrets.randbits(40)).rjust(8, "0")

    def next(self, host: str) -> PID:
        """Return a PID that has never been used before."""
        return PID.trusted(f"{{{self._node}@{host}|{self.prefix}-{base36(next(self._count))}}}")

    def placed(self, host: str, node: str) -> PID:
        """Return such a PID for a host of another node; raises `UnknownHost` for odd names."""
        try:
            return PID(f"{{{node}@{host}|{self.prefix}-{base36(next(self._count))}}}")
        except InvalidPID:
            raise UnknownHost(f"{host}@{node}", []) from None

    def made(self, pid: PID, on: str | None = None) -> bool:
        """Whether the PID carries this source's prefix, and is of this node or of the given one."""
        return pid.node == (on or self._node) and pid.id.rpartition("-")[0] == self.prefix


def base36(number: int) -> str:
    """Write a non-negative integer with the digits 0-9a-z."""
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if not number:
            return text
