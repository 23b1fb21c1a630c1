"""What servers listen on, over real sockets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from wsrelay.gateway.address import AddressError, Listener, bind, url

IPV4, IPV6 = "127.0.0.1", "::1"

pytestmark = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")


@contextlib.contextmanager
def listening(host: str, port: int = 0) -> Iterator[Listener]:
    with contextlib.closing(bind(host, port)) as listener:
        yield listener


def answers(listener: Listener) -> set[str]:
    """The loopback addresses at which it can be reached on its one port."""
    [port] = {port for _, port in listener.names}
    found = set()
    for address in (IPV4, IPV6):
        with contextlib.suppress(OSError), socket.create_connection((address, port), 5):
            found.add(address)
    return found


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("", {IPV4, IPV6}),
        ("::", {IPV4, IPV6}),
        ("[::]", {IPV4, IPV6}),
        ("localhost", {IPV4, IPV6}),
        ("0.0.0.0", {IPV4}),  # noqa: S104 - it is what is tested
        ("127.0.0.1", {IPV4}),
        ("::1", {IPV6}),
        ("[::1]", {IPV6}),
    ],
)
def test_a_host_is_listened_on_at_all_of_its_addresses(host: str, reached: set[str]) -> None:
    with listening(host) as listener:
        assert answers(listener) == reached
        assert listener.loopback is (host in ("localhost", "127.0.0.1", "::1", "[::1]"))
        shown = urlsplit(url(listener))
        assert shown.hostname
        assert shown.port
        with socket.create_connection((shown.hostname, shown.port), 5):
            pass


def test_a_port_in_use_at_one_address_of_a_host_is_in_use() -> None:
    with listening(IPV6) as other:
        [(_, port)] = other.names
        with pytest.raises(AddressError, match=f"localhost:{port}: the address is in use"):
            bind("localhost", port)
        with socket.create_server((IPV4, port)):
            pass  # and nothing is left open


def test_a_name_that_nobody_has_is_an_error_that_names_it() -> None:
    with pytest.raises(AddressError, match=r"cannot listen on no\.such\.host\.invalid:80"):
        bind("no.such.host.invalid", 80)
