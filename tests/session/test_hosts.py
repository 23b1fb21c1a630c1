"""Which Host headers a server answers to."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.session.hosts import Hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LocalHost",
        "localhost.",
        "app.localhost:80",
        "127.0.0.1:8000",
        "127.1.2.3",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]:1",
    ],
)
def test_loopback_names_pass_always(host: str) -> None:
    for patterns in ("", "app.example.com"):
        assert Hosts(patterns).allow(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil-localhost",
        "evil.example:localhost",
        "192.0.2.1",
        "0.0.0.0",  # noqa: S104 - a name here
        "[::]:8000",
        "128.0.0.1",
        "localhost, evil.example",
        "user@localhost",
        "[::1",
        "http://localhost",
    ],
)
def test_other_names_pass_where_they_are_listed_alone(host: str) -> None:
    assert not Hosts("").allow(host)
    assert Hosts("*").allow(host)


@pytest.mark.parametrize("host", [None, ""])
def test_a_request_without_a_host_is_no_browser_s_and_passes(host: str | None) -> None:
    assert Hosts("").allow(host)


def test_a_listed_name_passes_on_every_port_and_a_wildcard_for_its_subdomains() -> None:
    hosts = Hosts("App.example.com, *.example.org, 192.0.2.1, [2001:db8::1]")
    for host in (
        "app.example.com",
        "APP.example.com.:8443",
        "a.example.org",
        "a.b.example.org:80",
        "192.0.2.1:80",
        "[2001:db8:0::1]:80",
    ):
        assert hosts.allow(host)
    for host in ("example.com", "a.app.example.com", "example.org", "anexample.org", "192.0.2.2"):
        assert not hosts.allow(host)


def test_the_address_that_a_connection_came_in_at_passes() -> None:
    hosts = Hosts("app.example.com")
    assert hosts.allow("192.0.2.1:8080", "192.0.2.1")
    assert hosts.allow("[2001:db8::1]:8080", "2001:db8:0::1")
    assert not hosts.allow("192.0.2.2:8080", "192.0.2.1")


@pytest.mark.parametrize(
    "pattern", ["https://app.example.com", "app.example.com:80", "*example.com", "a b", "a.*.com"]
)
def test_a_wrong_pattern_is_refused_and_named(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        Hosts(f"app.example.com, {pattern}")


@given(st.text() | st.text("localhst.:[]01*"), st.none() | st.text(":.1af"))
def test_no_host_raises_anything(host: str, server: str | None) -> None:
    assert Hosts("").allow(host, server) in (True, False)
