from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wsrelay.session.origins import Origins

HERE = "app.example.com"

_LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
_HOSTS = st.lists(_LABELS, min_size=1, max_size=4).map(".".join) | st.sampled_from(
    ["127.0.0.1", "[::1]", "[2001:db8::1]", "localhost"]
)
_SCHEMES = st.sampled_from(["http", "https"])
_PORTS = st.none() | st.integers(1, 65535)


def _origin(scheme: str, host: str, port: int | None = None) -> str:
    return f"{scheme}://{host}" + (f":{port}" if port is not None else "")


def _effective(scheme: str, port: int | None) -> int:
    return port if port is not None else {"http": 80, "https": 443}[scheme]


# Same origin


def test_a_request_without_origin_passes_whatever_is_configured() -> None:
    for patterns in ("", "*", "https://other.example.com"):
        assert Origins(patterns).allow(None, HERE)
        assert Origins(patterns).allow(None, None)


@settings(deadline=None)
@given(_SCHEMES, _HOSTS, _PORTS)
def test_the_same_host_and_port_pass_whatever_the_scheme(
    scheme: str, host: str, port: int | None
) -> None:
    origin, here = _origin(scheme, host, port), _origin("", host, port).removeprefix("://")
    assert Origins().allow(origin, here)
    assert Origins().allow(origin.upper(), here)
    assert Origins().allow(origin, here.upper())
    assert Origins("https://elsewhere.example.org").allow(origin, here)


@settings(deadline=None)
@given(_SCHEMES, _HOSTS, _PORTS, _HOSTS, _PORTS)
def test_with_none_configured_only_the_same_host_and_port_pass(
    scheme: str, host: str, port: int | None, here: str, here_port: int | None
) -> None:
    same = host == here and _effective(scheme, port) == _effective(scheme, here_port)
    header = _origin("", here, here_port).removeprefix("://")
    assert Origins().allow(_origin(scheme, host, port), header) is same


@pytest.mark.parametrize(
    ("origin", "here", "passes"),
    [
        ("https://app.example.com", "app.example.com", True),
        ("https://app.example.com", "app.example.com:443", True),
        ("https://app.example.com:443", "app.example.com", True),
        ("http://app.example.com", "app.example.com:80", True),
        ("https://app.example.com.", "app.example.com", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("https://app.example.com", "app.example.com:8443", False),
        ("https://app.example.com:8443", "app.example.com", False),
        ("http://localhost:8000", "127.0.0.1:8000", False),
        ("https://example.com", "app.example.com", False),
        ("https://app.example.com", "example.com", False),
        ("https://app.example.com.evil.org", "app.example.com", False),
        ("https://evil-app.example.com", "app.example.com", False),
    ],
)
def test_same_means_host_and_port_to_the_letter(origin: str, here: str, passes: bool) -> None:
    assert Origins().allow(origin, here) is passes


@pytest.mark.parametrize(
    "here",
    [None, "", "*", "*.example.com", "app.example.com/", "x@app.example.com", "app.example.com:x"],
)
def test_without_a_proper_host_header_no_origin_is_the_same(here: str | None) -> None:
    assert not Origins().allow("https://app.example.com", here)


_NO_ORIGINS = [
    "",
    " ",
    "null",
    "*",
    "app.example.com",
    "//app.example.com",
    "://app.example.com",
    "https://",
    "https:",
    "https:app.example.com",
    "https:///app.example.com",
    "https://app.example.com/",
    "https://app.example.com/path",
    "https://app.example.com?query",
    "https://app.example.com#fragment",
    "https://user@app.example.com",
    "https://app.example.com:x",
    "https://app.example.com:99999",
    "https://app.example.com:",
    "https://app.example.com:443:443",
    "https://app example.com",
    "https://*.example.com",
    "https://.example.com",
    "https://app..example.com",
    "https://[::1",
    "https://äpp.example.com",
    "https://other.example.com https://app.example.com",
    "https://other.example.com,https://app.example.com",
]


@pytest.mark.parametrize("origin", _NO_ORIGINS)
def test_what_is_no_origin_passes_nothing_but_the_asterisk(origin: str) -> None:
    for patterns in ("", "https://app.example.com", "https://*.example.com"):
        assert not Origins(patterns).allow(origin, HERE)
    assert Origins("*").allow(origin, HERE)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com?",
        "https://app.example.com#",
        " https://app.example.com",
        "https://app.ex\tample.com",
        "ht\ntps://app.example.com",
        "https://app.example.com\r",
        "https://app.example.com:0",
        "https://\N{KELVIN SIGN}.example.com",
    ],
)
def test_text_that_only_resembles_an_origin_does_not_pass(origin: str) -> None:
    for patterns in ("", "https://app.example.com", "https://k.example.com"):
        assert not Origins(patterns).allow(origin, HERE)


# Patterns


@settings(deadline=None)
@given(_SCHEMES, _HOSTS, _PORTS, _SCHEMES, _HOSTS, _PORTS)
def test_a_pattern_allows_its_own_scheme_host_and_port_alone(
    scheme: str,
    host: str,
    port: int | None,
    other_scheme: str,
    other_host: str,
    other_port: int | None,
) -> None:
    origins = Origins(_origin(scheme, host, port))
    assert origins.allow(_origin(scheme, host, port), "elsewhere.test")
    assert origins.allow(_origin(scheme, host, _effective(scheme, port)), "elsewhere.test")
    same = (scheme, host, _effective(scheme, port)) == (
        other_scheme,
        other_host,
        _effective(other_scheme, other_port),
    )
    assert origins.allow(_origin(other_scheme, other_host, other_port), "elsewhere.test") is same


@settings(deadline=None)
@given(_SCHEMES, st.lists(_LABELS, min_size=1, max_size=3), st.lists(_LABELS, max_size=3), _PORTS)
def test_a_wildcard_allows_every_subdomain_and_not_the_domain_itself(
    scheme: str, domain: list[str], above: list[str], port: int | None
) -> None:
    origins = Origins(_origin(scheme, "*." + ".".join(domain), port))
    host = ".".join(above + domain)
    assert origins.allow(_origin(scheme, host, port), "elsewhere.test") is bool(above)
    other = "http" if scheme == "https" else "https"
    assert not origins.allow(_origin(other, host, port), "elsewhere.test")


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        ("https://a.example.com", True),
        ("https://a.b.example.com", True),
        ("https://A.Example.COM", True),
        ("https://a.example.com:443", True),
        ("https://a.example.com.", True),
        ("https://example.com", False),
        ("https://aexample.com", False),
        ("https://evilexample.com", False),
        ("https://a.example.com.evil.org", False),
        ("https://a.example.com:8443", False),
        ("http://a.example.com", False),
        ("https://evil.org", False),
    ],
)
def test_a_wildcard_stands_for_whole_labels(origin: str, passes: bool) -> None:
    assert Origins("https://*.example.com").allow(origin, "elsewhere.test") is passes


def test_any_of_several_patterns_is_enough() -> None:
    origins = Origins(" https://a.example.com ,, https://*.example.org,http://localhost:3000 ")
    for origin in ("https://a.example.com", "https://x.example.org", "http://localhost:3000"):
        assert origins.allow(origin, "elsewhere.test")
    for origin in ("https://b.example.com", "https://example.org", "http://localhost:3001"):
        assert not origins.allow(origin, "elsewhere.test")


@pytest.mark.parametrize("patterns", ["*", "https://a.example.com, *", " * "])
def test_an_asterisk_allows_everything(patterns: str) -> None:
    for origin in ("https://evil.org", "null", "file://", ""):
        assert Origins(patterns).allow(origin, HERE)


@pytest.mark.parametrize("origin", ["null", "file://"])
def test_pages_without_an_origin_of_their_own_pass_where_they_are_listed(origin: str) -> None:
    assert Origins(f"https://app.example.com, {origin}").allow(origin, HERE)
    for patterns in ("", "https://app.example.com"):
        assert not Origins(patterns).allow(origin, HERE)
    for other in ("nul", "file:///", "file://x", "https://other.example.com"):
        assert not Origins(origin).allow(other, HERE)


@pytest.mark.parametrize("patterns", ["", " ", ",", " , "])
def test_an_empty_list_configures_nothing(patterns: str) -> None:
    assert Origins(patterns).allow(f"https://{HERE}", HERE)
    assert not Origins(patterns).allow("https://other.example.com", HERE)


@pytest.mark.parametrize(
    "pattern",
    [
        "app.example.com",
        "*.example.com",
        "https://",
        "https://*",
        "https://*example.com",
        "https://a.*.example.com",
        "https://**.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com:port",
        "https://user@app.example.com",
        "https://app example.com",
        "file:///",
        "file://host/path",
        "nul",
        "**",
    ],
)
def test_a_wrong_pattern_is_refused_and_named(pattern: str) -> None:
    for patterns in (pattern, f"https://a.example.com, {pattern}"):
        with pytest.raises(ValueError, match=re.escape(repr(pattern.lower()))):
            Origins(patterns)


# Whatever comes


@settings(deadline=None, max_examples=300)
@given(
    st.text() | st.text("htps:/.*[]@?#%0159 ax\t", max_size=30),
    st.none() | st.text() | st.text(":.[]*@/ax0", max_size=20),
)
def test_no_origin_and_no_host_header_raises_anything(origin: str, here: str | None) -> None:
    assume(origin)
    assert Origins("*").allow(origin, here)
    assert not Origins("https://only.this.test").allow(f"{origin}!", here)
    assert Origins().allow(origin, here) in (True, False)


@settings(deadline=None, max_examples=200)
@given(st.text() | st.text("htps:/.*[]@?#, 0159ax", max_size=30))
def test_any_patterns_are_a_rule_or_a_value_error(patterns: str) -> None:
    try:
        origins = Origins(patterns)
    except ValueError as error:
        assert "allowed origin" in str(error)  # noqa: PT017 - either way is right
        return
    assert origins.allow("https://never.named.test", HERE) is ("*" in _listed(patterns))


def _listed(patterns: str) -> list[str]:
    return [part.strip() for part in patterns.split(",")]
