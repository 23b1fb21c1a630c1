"""At which addresses this OS process listens: those of the server around a node."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import psutil

__all__ = ["Listening"]

_FRESH: Final = 10.0
"""Seconds after which it is looked up again: the system goes through all descriptors for that."""


class Listening:
    """Looks them up, now and then."""

    def __init__(self) -> None:
        self._known: list[str] = []
        self._at = 0.0

    async def addresses(self) -> list[str]:
        """Return them as `HOST:PORT`, by port; of Unix sockets, nothing is known."""
        if not self._known or time.monotonic() - self._at > _FRESH:
            self._known = await asyncio.to_thread(_look_up)
            self._at = time.monotonic()
        return self._known


def _look_up() -> list[str]:
    try:
        sockets = psutil.Process().net_connections("tcp")
    except psutil.Error:
        return []
    found = {(one.laddr.port, one.laddr.ip) for one in sockets if one.status == "LISTEN"}
    return [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for port, ip in sorted(found)]
