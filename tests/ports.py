"""Ports for servers that are told where to listen."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port"]

_PORTS = range(12_000, 30_000)
"""Below those that the system gives to connections, so none of these takes it meanwhile."""


def free_port() -> int:
    """A loopback port that nobody listens on."""
    for port in random.SystemRandom().sample(_PORTS, 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")
