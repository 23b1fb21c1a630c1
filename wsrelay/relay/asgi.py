"""The types of ASGI (specification 3.0) and the little that we need on top of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from wsrelay.session.header import HEADER

__all__ = [
    "RETRY_AFTER",
    "SELECTS",
    "App",
    "Event",
    "Headers",
    "Receive",
    "Scope",
    "Send",
    "client_of",
    "offered",
    "request_headers",
    "response",
    "strip",
    "values",
]

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


RETRY_AFTER: Final = (b"retry-after", b"1")
"""Seconds after which a client of a full host may try again."""

SELECTS: Final = "wsrelay.selects"
"""Extension by which middleware around a relay says that it selects a subprotocol."""

_NAME: Final = HEADER.encode()
_PROTOCOL: Final = b"sec-websocket-protocol"


def strip(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers without the relay's own; `headers` may be any iterable, as in ASGI."""
    return [(name, value) for name, value in headers if bytes(name).lower() != _NAME]


def client_of(scope: Scope) -> str | None:
    """Return the client's address, if the server knows it."""
    client = scope.get("client")
    return client[0] if client else None


def offered(scope: Scope) -> list[str]:
    """Return the subprotocols that the client offers, in its order (RFC 6455 section 4.1)."""
    if "subprotocols" in scope:
        return list(scope["subprotocols"] or ())
    values = (value for name, value in scope["headers"] if name.lower() == _PROTOCOL)
    parts = b",".join(values).decode("latin-1").split(",")
    return [part.strip() for part in parts if part.strip()]


def request_headers(scope: Scope) -> Headers:
    """Return the headers of an upgrade request as the client sent them.

    uvicorn's wsproto protocol removes the offer of subprotocols and decodes the host's IDNA.
    """
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    names = scope.get("subprotocols")
    if names and all(name.lower() != _PROTOCOL for name, _ in headers):
        headers.append((_PROTOCOL, ", ".join(names).encode("latin-1")))
    return [(name, _ascii(value) if name.lower() == b"host" else value) for name, value in headers]


def values(scope: Scope, name: bytes) -> list[bytes]:
    """Return the values of the header `name` (lower case), in the form of `request_headers`."""
    found = [bytes(value) for key, value in scope["headers"] if key.lower() == name]
    return [_ascii(value) for value in found] if name == b"host" else found


def _ascii(host: bytes) -> bytes:
    try:
        return host if host.isascii() else host.decode().encode("idna")
    except UnicodeError:
        return host


def response(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> list[Event]:
    """Return the two events of a small response, with types that lack the prefix."""
    plain = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if status == 426:  # noqa: PLR2004 - RFC 9110 section 15.5.22, RFC 6455 section 4.4
        plain += [
            (b"upgrade", b"websocket"),
            (b"connection", b"upgrade"),
            (b"sec-websocket-version", b"13"),
        ]
    return [
        {"type": "start", "status": status, "headers": plain},
        {"type": "body", "body": body, "more_body": False},
    ]
