"""The shapes of ASGI (specification 3.0) and the little that we need on top of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from .header import HEADER

__all__ = [
    "RETRY_AFTER",
    "App",
    "Event",
    "Headers",
    "Receive",
    "Scope",
    "Send",
    "response",
    "strip",
]

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


RETRY_AFTER: Final = (b"retry-after", b"1")
"""Seconds after which a client of a full host may come again."""

_NAME: Final = HEADER.encode()


def strip(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers without the relay's own; what is given is read once, as ASGI allows."""
    return [(name, value) for name, value in headers if bytes(name).lower() != _NAME]


def response(status: int, body: bytes, *headers: tuple[bytes, bytes]) -> list[Event]:
    """Return the two events of a small response, their types without prefix."""
    plain = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if status == 426:  # noqa: PLR2004 - RFC 9110 section 15.5.22 wants the headers
        plain += [(b"upgrade", b"websocket"), (b"connection", b"upgrade")]
    return [
        {"type": "start", "status": status, "headers": plain},
        {"type": "body", "body": body, "more_body": False},
    ]
