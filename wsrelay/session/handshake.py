"""Whether a request asks for a WebSocket, and what is wrong with it (RFC 6455 section 4.2.1)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["HandshakeProblem", "asks", "problem"]

_VERSION: Final = b"13"
_KEY: Final = 16
"""Bytes in a key."""

_Headers = Iterable[tuple[bytes, bytes]]


class HandshakeProblem(NamedTuple):
    """The status that refuses a request, and why."""

    status: int
    reason: str


def asks(headers: _Headers) -> bool:
    """Whether `Upgrade` names WebSocket, whatever else is wrong with the request."""
    upgrades = [value for name, value in headers if name.lower() == b"upgrade"]
    return b"websocket" in _tokens(upgrades)


def problem(method: str, version: str, headers: _Headers) -> HandshakeProblem | None:  # noqa: C901, PLR0911 - a flat table
    """Return what is wrong with a request that asks for a WebSocket.

    Whatever servers and libraries interpret differently is refused (repeated headers, a body,
    HTTP/1.0), so that the `Origin` and `Host` that were checked are the ones that count.
    """
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value)
    if method != "GET":
        return HandshakeProblem(400, f"its method is {method}, not GET")
    if version in ("0.9", "1.0"):
        return HandshakeProblem(400, f"HTTP/{version} does not support upgrades")
    if b"upgrade" not in _tokens(fields.get(b"connection", ())):
        return HandshakeProblem(
            400, "it has no 'Connection: Upgrade' (a proxy must be configured to pass it on)"
        )
    for name in (b"host", b"sec-websocket-key", b"sec-websocket-version"):
        if (count := len(fields.get(name, ()))) != 1:
            return HandshakeProblem(400, f"it has {count} {name.decode()} headers, not one")
    if len(fields.get(b"origin", ())) > 1:
        return HandshakeProblem(400, "it has more than one origin header")
    if not _is_key(fields[b"sec-websocket-key"][0]):
        return HandshakeProblem(400, "its sec-websocket-key is not 16 bytes in base64")
    if b"transfer-encoding" in fields or fields.get(b"content-length", [b"0"]) != [b"0"]:
        return HandshakeProblem(400, "it has a body")
    if (wrong := _undecodable(fields)) is not None:
        return HandshakeProblem(400, f"its header {wrong} cannot be decoded")
    if (asked := fields[b"sec-websocket-version"][0]) != _VERSION:
        return HandshakeProblem(426, f"its sec-websocket-version is {asked.decode()}, not 13")
    return None


def _tokens(values: Iterable[bytes]) -> set[bytes]:
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _is_key(value: bytes) -> bool:
    try:
        return len(base64.b64decode(value, validate=True)) == _KEY
    except binascii.Error:
        return False


def _undecodable(fields: dict[bytes, list[bytes]]) -> str | None:
    """Return the name of a header that the server's library would fail to decode."""
    for name, values in fields.items():
        if name == b"host":
            encoding = "idna"
        elif name in (b"connection", b"upgrade") or name.startswith(b"sec-websocket-"):
            encoding = "ascii"
        else:
            continue
        try:
            for value in values:
                value.decode(encoding)
        except UnicodeError:
            return name.decode("latin-1")
    return None
