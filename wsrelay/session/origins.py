"""Which origins may connect (RFC 6454, RFC 6455 section 10.2)."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

__all__ = ["Origins"]

_LITERAL: Final = ("null", "file://")
"""What browsers send for pages without an origin of their own: sandboxed pages and files."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_PLAIN = re.compile(r"[!-~]+")
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]")


class _Origin(Struct, frozen=True):
    scheme: str
    host: str
    port: int | None


class Origins:
    """The rule for one relay.

    `patterns` is a comma-separated list of `https://app.example.com`, `https://*.example.com`
    (any subdomain, not the domain itself), `null`, `file://` and `*`; if it is empty, only the same
    origin passes. Raises `ValueError`, which names the invalid pattern.
    """

    def __init__(self, patterns: str = "") -> None:
        self._any = False
        self._literal: set[str] = set()
        self._patterns: list[_Origin] = []
        for text in filter(None, (part.strip() for part in patterns.split(","))):
            if text == "*":
                self._any = True
                continue
            if text.lower() in _LITERAL:
                self._literal.add(text.lower())
                continue
            if (pattern := _parse(text)) is None:
                raise ValueError(
                    f"allowed origin {text!r} is none of https://app.example.com, "
                    "https://*.example.com, null, file://, *"
                )
            self._patterns.append(pattern)

    def allow(self, origin: str | None, host: str | None) -> bool:
        """Whether a request with these `Origin` and `Host` headers may proceed.

        Without an `Origin` it is not from a browser and passes. The same origin passes whatever its
        scheme, so that a TLS proxy in front does no harm.
        """
        if origin is None or self._any or origin in self._literal:
            return True
        given = _parse(origin)
        if given is None or given.host.startswith("*"):
            return False
        return _same_host(given, host) or any(_matches(given, one) for one in self._patterns)


def _parse(text: str) -> _Origin | None:
    # urlsplit tolerates blanks and drops an empty query or fragment.
    if _PLAIN.fullmatch(text) is None or text.endswith(("?", "#")):
        return None
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        return None
    host = parts.netloc if port is None else parts.netloc.rpartition(":")[0]
    if (
        port == 0
        or not parts.scheme
        or parts.path
        or parts.query
        or parts.fragment
        or not _HOST.fullmatch(host)
    ):
        return None
    return _Origin(parts.scheme, host.removesuffix("."), port or _DEFAULT_PORTS.get(parts.scheme))


def _same_host(origin: _Origin, host: str | None) -> bool:
    here = _parse(f"{origin.scheme}://{host}") if host else None
    return here == origin


def _matches(origin: _Origin, pattern: _Origin) -> bool:
    if (origin.scheme, origin.port) != (pattern.scheme, pattern.port):
        return False
    if pattern.host.startswith("*."):
        return origin.host.endswith(pattern.host[1:]) and len(origin.host) > len(pattern.host) - 1
    return origin.host == pattern.host
