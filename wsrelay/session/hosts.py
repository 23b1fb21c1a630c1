"""Which names a server is known by: the `Host` headers that it answers (RFC 9110 section 7.2).

Another site can have its own name resolve to 127.0.0.1 (DNS rebinding). To the browser, requests of
its pages are then of the same origin; only the name in `Host` gives them away.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

__all__ = ["Hosts", "is_loopback"]

_HEADER: Final = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^:\[\]]*)(:[0-9]*)?")
_NAME: Final = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")


class Hosts:
    """The rule for one server.

    `patterns` is a comma-separated list of `app.example.com`, `*.example.com` (any subdomain, not
    the domain itself), addresses and `*`; the port does not matter. Loopback names (`localhost`,
    `*.localhost`, 127.0.0.0/8, `[::1]`) and the address that a connection came in at always pass.
    Raises `ValueError`, which names the invalid pattern.
    """

    def __init__(self, patterns: str) -> None:
        self._patterns = [_pattern(text) for text in map(str.strip, patterns.split(",")) if text]
        self.any = "*" in self._patterns

    def allow(self, host: str | None, server: str | None = None) -> bool:
        """Whether a request with this `Host` may proceed; without one it is not from a browser.

        Such a request may always proceed.
        `server` is the address that the connection came in at.
        """
        if self.any or not host:
            return True
        match = _HEADER.fullmatch(host.lower())
        if match is None:
            return False
        name = _normal(match["host"])
        if is_loopback(name) or (server is not None and name == _normal(server)):
            return True
        return any(
            name == pattern or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in self._patterns
        )


def is_loopback(name: str) -> bool:
    """Whether a name or address always means the local machine."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")  # RFC 6761 section 6.3
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _normal(name: str) -> str:
    """Return an address in canonical form without brackets, or a name without the root's dot."""
    name = name.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name.lower().removesuffix(".")
    return str(getattr(address, "ipv4_mapped", None) or address)


def _pattern(text: str) -> str:
    name = _normal(text)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if text != "*" and _NAME.fullmatch(name) is None:
            raise ValueError(
                f"allowed host {text!r} is none of app.example.com, *.example.com, 192.0.2.1, *; "
                "it has no scheme and no port"
            ) from None
    return name
