"""What is relied on in nats-py beyond its documentation: a version that differs is told."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
from importlib.metadata import version
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.transport import Transport
from nats_ports import cluster_of
from nats_servers import NatsServer
from support import until

from wsrelay.peers.nats import client
from wsrelay.peers.nats.client import NatsClient, configured_servers
from wsrelay.peers.nats.socket import NatsSocket
from wsrelay.peers.options import Cluster, ClusterTLS

pytestmark = pytest.mark.anyio

NATS_PY = f"nats-py {version('nats-py')}"


async def _connected(server: NatsServer, lost: list[str]) -> NatsClient:
    cluster = cluster_of(server)
    alive = NatsClient(configured_servers(cluster)[0], lost.append, lambda _: None)
    await alive.connect(cluster, "test")
    return alive


def test_a_transport_of_nats_py_has_the_methods_that_the_socket_has() -> None:
    assert Transport.__abstractmethods__ == {
        "__bool__",
        "at_eof",
        "close",
        "connect",
        "connect_tls",
        "drain",
        "read",
        "readline",
        "wait_closed",
        "write",
        "writelines",
    }, f"{NATS_PY} wants another transport: adapt wsrelay/peers/nats/socket.py"
    for method in Transport.__abstractmethods__:
        theirs, ours = (getattr(kind, method) for kind in (Transport, NatsSocket))
        assert list(inspect.signature(theirs).parameters) == list(
            inspect.signature(ours).parameters
        ), f"{NATS_PY} calls a transport's {method} otherwise"


async def test_a_client_of_nats_py_uses_the_socket_that_it_is_given(nats: NatsServer) -> None:
    alive = await _connected(nats, [])
    inner = alive._client
    assert inner._transport is alive.socket, f"{NATS_PY} does not take its transport any more"
    assert inner.is_connected
    assert inner.max_payload == 1024 * 1024
    await alive.close()
    assert inner.is_closed


async def test_a_client_of_nats_py_counts_what_it_reads_and_has_not_written(
    nats: NatsServer,
) -> None:
    alive = await _connected(nats, [])
    got: list[object] = []
    await alive.subscribe("wsr.test.count", got.append)
    said = f"{NATS_PY} does not count as before: adapt wsrelay/peers/nats/client.py"
    assert alive._client.pending_data_size == 0, said
    before = alive._client.stats["in_msgs"]
    alive.socket.publish(b"PUB wsr.test.count ", b"one")
    await until(lambda: got)
    assert alive._client.stats["in_msgs"] == before + 1, said
    await alive.close()


async def test_a_client_of_nats_py_that_is_not_answered_waits_on(own_nats: NatsServer) -> None:
    """Its `flush` returns at once when its reader has ended; `rtt` must not."""
    lost: list[str] = []
    alive = await _connected(own_nats, lost)
    reader = alive._client._reading_task
    assert reader is not None
    reader.cancel()
    await asyncio.wait([reader])
    ping = alive._ping()
    await asyncio.wait([ping], timeout=0.1)
    assert not ping.done(), f"{NATS_PY} calls a ping answered that is not"
    await alive.end()


async def test_nothing_of_a_client_is_left_when_it_has_ended(own_nats: NatsServer) -> None:
    before = asyncio.all_tasks()
    lost: list[str] = []
    alive = await _connected(own_nats, lost)
    own_nats.pause()
    for _ in range(16):
        alive.socket.publish(b"PUB wsr.test.stuck ", bytes(1_000_000))
    await alive.end()
    assert asyncio.all_tasks() == before
    assert lost == []


async def test_a_client_is_lost_as_soon_as_its_socket_is(own_nats: NatsServer) -> None:
    lost: list[str] = []
    alive = await _connected(own_nats, lost)
    own_nats.kill()
    await until(lambda: lost)
    assert not alive.socket.open
    await alive.end()
    assert len(lost) == 1


@pytest.mark.parametrize(
    ("url", "options", "known"),
    [
        ("nats://h", {}, ("h", None, None, None)),
        ("nats://u:p%40@h", {}, ("h", "u", "p@", None)),
        ("nats://t@h", {}, ("h", None, None, "t")),
        ("nats://h", {"user": "u", "password": "p"}, ("h", "u", "p", None)),
        ("tls://h", {"tls": ClusterTLS(hostname="other")}, ("other", None, None, None)),
    ],
)
def test_a_node_is_known_by_its_options_or_by_the_address(
    url: str, options: dict[str, object], known: tuple[str | None, ...]
) -> None:
    [server] = configured_servers(Cluster(url, node="a", **options))  # type: ignore[arg-type]
    assert server.address == f"{url.partition(':')[0]}://h:4222"
    assert (server.hostname, server.user, server.password, server.token) == known


async def test_what_the_other_machine_does_not_acknowledge_for_3_s_is_given_up(
    nats: NatsServer,
) -> None:
    """A machine that has lost its power says nothing: only the operating system can find out."""
    alive = await _connected(nats, [])
    assert alive.socket._transport is not None
    plain = alive.socket._transport.get_extra_info("socket")
    assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
    await alive.close()


@pytest.mark.parametrize("error", [ssl.SSLEOFError(), ConnectionResetError(), TimeoutError()])
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    [server] = configured_servers(Cluster("nats://h", node="a"))
    assert client.explained(error, server)[1] is False


def test_credentials_are_read_as_nats_py_needs_them(tmp_path: Path) -> None:
    path = tmp_path / "node.creds"
    path.write_text("-----BEGIN NATS USER JWT-----\nJ\n-----BEGIN USER NKEY SEED-----\nSU\n")
    text = client._credentials(Cluster("nats", node="a", credentials=path))
    assert text is not None
    assert Client()._read_creds_user_jwt(text) == b"J"
    assert Client()._read_creds_user_nkey(text) == b"SU"
