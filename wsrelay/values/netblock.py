"""The netblock that an address counts as: what one subscriber gets."""

from __future__ import annotations

import ipaddress
from typing import Final

__all__ = ["is_loopback", "netblock"]

_SUBSCRIBER: Final = 64
"""Bits of an IPv6 prefix; within it, a subscriber can use as many addresses as it likes."""


def netblock(host: str | None) -> str:
    """Return the /64 of an IPv6 address, or an IPv4 address itself, even if mapped into IPv6.

    Text that is not an address is returned unchanged; None gives the empty string.
    """
    if not host or ":" not in host:
        return host or ""
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address):
        shift = address.max_prefixlen - _SUBSCRIBER
        return f"{ipaddress.IPv6Address(int(address) >> shift << shift)}/{_SUBSCRIBER}"
    return host if address is None else str(address)


def is_loopback(host: str | None) -> bool:
    """Whether an address is a loopback address."""
    address = _address(host or "")
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
