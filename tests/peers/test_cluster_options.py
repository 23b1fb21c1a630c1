"""What may be said of a cluster, and what is said of what may not."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from wsrelay import Node
from wsrelay.peers.options import Cluster, ClusterTLS
from wsrelay.values.bounds import InvalidOptions


def _problems(*servers: Any, **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidOptions) as raised:
        Cluster(*(servers or (["nats://nats"],)), **{"node": "a", **options})
    return raised.value.problems


def test_a_cluster_needs_nothing_but_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "web-1.example.com")
    cluster = Cluster(["nats://127.0.0.1:4222"])
    assert (cluster.name, cluster.node_name, cluster.lease) == ("wsrelay", "web-1", 6.0)
    assert not cluster.encrypted


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("nats://host", "nats://host:4222"),
        ("host", "nats://host:4222"),
        ("host:1", "nats://host:1"),
        ("tls://host:1/", "tls://host:1"),
        ("nats://[::1]:1", "nats://[::1]:1"),
        ("nats://user:pass@host", "nats://user:pass@host:4222"),
    ],
)
def test_what_may_be_left_out_of_an_address_is_filled_in(given: str, taken: str) -> None:
    assert Cluster([given], node="a").servers == (taken,)
    assert Cluster(given, node="a").servers == (taken,)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ([], "must be a list of 'nats://HOST:PORT'"),
        (4222, "is 4222 and must be a list"),
        ([4222], "has 4222, which is not text"),
        ([""], "has '', which is not text"),
        (["ws://host"], "has 'ws://host': only nats:// and tls:// are supported"),
        (["nats://host:0x1"], "its port is not a number from 1 to 65535"),
        (["nats://host:65536"], "its port is not a number from 1 to 65535"),
        (["nats://:4222"], "has no host name"),
        (["nats://a b"], "has no host name"),
        (["nats://host/path"], "nothing may follow the port"),
        (["nats://secret@host:x"], "has 'nats://host:x': its port"),
    ],
)
def test_an_address_that_is_none_is_refused(given: Any, wrong: str) -> None:
    [(option, told)] = _problems(given)
    assert option == "servers"
    assert wrong in told
    assert "secret" not in told


@pytest.mark.parametrize("given", ["web-1", "A_b-9", "x" * 63, "web-1.example.com"])
def test_a_node_is_named_like_a_host(given: str) -> None:
    assert Cluster("nats", node=given).node_name == given.partition(".")[0]


@pytest.mark.parametrize("given", ["", "a b", "x" * 64, "ä", ".example.com", "a{b", 7])
def test_a_name_that_no_node_can_have_is_refused(given: Any) -> None:
    [(option, told)] = _problems(node=given)
    assert option == "node"
    assert told.startswith(f"is {given!r} and must be made of 1 to 63 of A-Z a-z 0-9 _ -")


def test_no_node_of_a_cluster_is_called_local() -> None:
    told = "is 'local', which every node that is in no cluster is called"
    assert _problems(node="local") == [("node", told)]
    assert _problems(node="local.example.com") == [("node", told)]


def test_a_machine_whose_name_is_no_node_needs_one_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "my machine")
    [(option, told)] = _problems(node=None)
    assert option == "node"
    assert told.startswith("is needed: this machine's name, 'my machine', is no node's")
    assert Cluster("nats", node="a").node_name == "a"


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    told = _problems(
        name="a.b",
        lease="2s",
        timeout="soon",
        user="u",
        token="",
        credentials=tmp_path / "none",
        tls=ClusterTLS(ca=tmp_path, key=__file__, hostname=""),
    )
    assert [option for option, _ in told] == [
        "name",
        "timeout",
        "token",
        "credentials",
        "password",
        "credentials",
        "tls.ca",
        "tls.cert",
        "tls.hostname",
    ]


@pytest.mark.parametrize(("given", "taken"), [("6s", 6.0), (3, 3.0), ("1m30s", 90.0)])
def test_times_are_durations_or_seconds(given: Any, taken: float) -> None:
    cluster = Cluster("nats", node="a", lease=given, timeout=given)
    assert (cluster.lease, cluster.timeout) == (taken, taken)


@pytest.mark.parametrize(
    ("option", "given", "wrong"),
    [
        ("lease", 2.9, "is 2.9 and must be 3s to 1h"),
        ("lease", "2h", "is 7200.0 and must be 3s to 1h"),
        ("lease", "6", "is: '6' is not a duration"),
        ("lease", None, "is: None is not a number of seconds"),
        ("timeout", 0, "is 0.0 and must be 100ms or more"),
        ("timeout", -1, "is: -1 seconds"),
    ],
)
def test_times_have_bounds(option: str, given: Any, wrong: str) -> None:
    [(name, told)] = _problems(**{option: given})
    assert name == option
    assert told.startswith(wrong)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"user": "u"}, ("password", "is missing: it belongs to user")),
        ({"password": "p"}, ("user", "is missing: it belongs to password")),
        ({"user": 7, "password": "p"}, ("user", "is 7 and must be text")),
        ({"user": "u", "password": 7}, ("password", "is ... and must be text")),
        (
            {"user": "u", "password": "p", "token": "t"},
            ("token", "is given beside user: one is right"),
        ),
        ({"tls": True}, ("tls", "is True and must be like ClusterTLS(ca='ca.pem')")),
        ({"credentials": 7}, ("credentials", "is 7 and must be the path of a file")),
    ],
)
def test_what_identifies_a_node_belongs_together(
    options: dict[str, Any], problem: tuple[str, str]
) -> None:
    assert _problems(**options) == [problem]


def test_secrets_are_not_shown() -> None:
    cluster = Cluster(["nats://user:hidden@host"], node="a", user="u", password="hidden")  # noqa: S106
    assert "hidden" not in repr(cluster)
    assert "nats://host:4222" in repr(cluster)
    assert "hidden" not in repr(Cluster("nats", node="a", token="hidden"))  # noqa: S106


@pytest.mark.parametrize(
    "cluster", [Cluster("tls://nats", node="a"), Cluster("nats", node="a", tls=ClusterTLS())]
)
def test_tls_is_wanted_by_address_or_option(cluster: Cluster) -> None:
    assert cluster.encrypted


@pytest.mark.parametrize("name", ["local", "a.b", "x" * 64])
def test_a_node_of_a_cluster_has_a_name_that_others_can_write_to(name: str) -> None:
    with pytest.raises(InvalidOptions, match="name"):
        Node(name=name, cluster=Cluster(["nats://127.0.0.1"], node="a"))
