"""For tests of handlers: a node with our front end in a thread, and clients that check what comes.

    from wsrelay.testing import serve

    def test_echo():
        with serve("handlers/echo.py") as server, server.connect() as client:
            client.send("hello")
            client.expect("hello")

Under pytest the fixture `relay_server` does the same and ends everything after the test.
"""

from __future__ import annotations

from .client import Client
from .server import RelayServer, serve

__all__ = ["Client", "RelayServer", "serve"]
