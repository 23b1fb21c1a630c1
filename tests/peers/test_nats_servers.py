"""The NATS servers of the tests are what they say."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from nats_servers import NatsServer


def _hello(server: NatsServer) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        return connection.recv(65536)


def test_a_server_comes_back_on_its_port_after_it_was_killed(own_nats: NatsServer) -> None:
    before = own_nats.pid
    own_nats.restart()
    assert own_nats.pid != before
    assert b'"jetstream":true' in _hello(own_nats)


def test_a_paused_server_accepts_and_says_nothing(own_nats: NatsServer) -> None:
    own_nats.pause()
    with socket.create_connection(("127.0.0.1", own_nats.port), timeout=0.1) as connection:
        with pytest.raises(TimeoutError):
            connection.recv(1)
        own_nats.resume()
        connection.settimeout(60)
        assert connection.recv(4) == b"INFO"


def test_nothing_of_a_server_is_left_when_it_has_ended(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", jetstream=None).start()
    pid = server.pid
    assert b'"jetstream":true' not in _hello(server)
    server.stop()
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
