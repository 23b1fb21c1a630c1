"""Who is let in by NATS, who is not, and the one line that the latter get."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import nats as nats_py
import peer_handlers
import pytest
import trustme
from nats.js.api import StreamConfig
from nats_ports import Inbox, a_bus, a_store, cluster_of
from nats_servers import NatsServer
from ports import free_port
from support import processes, until

from wsrelay import Node
from wsrelay.cluster.ports import Entry, Unavailable
from wsrelay.errors import CannotJoin
from wsrelay.peers.nats import NatsBus, NatsStore, client, connection
from wsrelay.peers.options import Cluster, ClusterTLS
from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"


async def _refusal(port: NatsBus | NatsStore) -> str:
    """The one line with which it does not open."""
    try:
        with pytest.raises(CannotJoin) as raised:
            await port.open()
    finally:
        await port.aclose()
    text = str(raised.value)
    assert "\n" not in text
    return text


async def test_a_nats_that_cannot_be_reached_is_waited_for_until_the_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "_TELL", 0.1)
    port = free_port()
    cluster = cluster_of(f"nats://127.0.0.1:{port}", timeout=0.5)
    text = await _refusal(NatsBus(cluster))
    assert text.startswith(f"no connection to NATS at nats://127.0.0.1:{port}: ")
    assert "the bus has waited for it for" in caplog.text


async def test_a_nats_that_is_started_later_is_found(own_nats: NatsServer) -> None:
    own_nats.kill()
    async with asyncio.TaskGroup() as both:
        bus, store = NatsBus(cluster_of(own_nats)), NatsStore(cluster_of(own_nats))
        both.create_task(bus.open())
        both.create_task(store.open())
        await asyncio.sleep(0)
        own_nats.start()
    assert bus.connected
    assert store.connected
    await bus.aclose()
    await store.aclose()


async def test_what_is_not_nats_is_told() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        cluster = cluster_of(f"127.0.0.1:{port}", timeout=0.1)
        assert await _refusal(NatsBus(cluster)) == (
            f"what answers at nats://127.0.0.1:{port} is not NATS"
        )


async def test_a_nats_that_says_nothing_is_told(
    own_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT", 0.05)
    own_nats.pause()
    text = await _refusal(NatsBus(cluster_of(own_nats, timeout=0.1)))
    assert text == f"NATS at {own_nats.url} does not answer"


@pytest.fixture
def token_nats(tmp_path: Path) -> Any:
    server = NatsServer(tmp_path / "nats", 'authorization { token: "right" }').start()
    yield server
    server.kill()


async def test_a_token_lets_a_node_in_and_a_wrong_one_does_not(token_nats: NatsServer) -> None:
    async with a_bus(cluster_of(token_nats, token="right")):  # noqa: S106
        pass
    async with a_bus(cluster_of(token_nats.url.replace("//", "//right@"))):
        pass
    for wrong in ({}, {"token": "wrong"}, {"user": "u", "password": "p"}):
        assert await _refusal(NatsBus(cluster_of(token_nats, **wrong))) == (
            f"NATS at {token_nats.url} does not let this node in: user, password, token or "
            "credentials are wrong or missing (Authorization Violation)"
        )


async def test_a_node_that_is_not_let_in_any_more_says_so_and_tries_on(
    token_nats: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_TELL", 0.1)
    async with a_bus(cluster_of(token_nats, token="right")) as bus:  # noqa: S106
        again = asyncio.Event()
        bus.on_connected.append(again.set)
        token_nats.configure('authorization { token: "other" }')
        token_nats.restart()
        await until(lambda: "does not let this node in" in caplog.text)
        token_nats.configure('authorization { token: "right" }')
        token_nats.restart()
        await until(again.is_set)


@pytest.mark.parametrize("text", ["", "-----BEGIN NATS USER JWT-----\n", "\0\xff"])
async def test_a_file_without_credentials_is_refused_and_read_only_once(
    nats: NatsServer, tmp_path: Path, text: str
) -> None:
    path = tmp_path / "node.creds"
    path.write_text(text, encoding="latin-1")
    told = await _refusal(NatsBus(cluster_of(nats, credentials=path)))
    assert told.startswith(f"credentials {path} ")


async def test_a_nats_without_jetstream_is_told(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", jetstream=None).start()
    try:
        assert (await _refusal(NatsStore(cluster_of(server)))).startswith(
            "NATS runs without JetStream"
        )
        async with a_bus(cluster_of(server)):
            pass
    finally:
        server.kill()


async def test_an_account_without_jetstream_is_told(tmp_path: Path) -> None:
    users = """accounts {
        rich: { jetstream: enabled, users: [{ user: rich, password: x }] }
        poor: { users: [{ user: poor, password: x }] }
    }"""
    server = NatsServer(tmp_path / "nats", users).start()
    try:
        async with a_store(cluster_of(server, user="rich", password="x")):  # noqa: S106
            pass
        told = await _refusal(NatsStore(cluster_of(server, user="poor", password="x")))  # noqa: S106
        assert "JetStream" in told
    finally:
        server.kill()


async def test_a_server_that_takes_only_small_messages_is_refused(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", "max_payload: 100000").start()
    try:
        told = await _refusal(NatsBus(cluster_of(server)))
        assert "takes messages of 100000 bytes; its max_payload must be 524288 or more" in told
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"storage": "memory"}, "has storage 'memory' and must have 'file'"),
        ({"max_msgs_per_subject": 5}, "has max_msgs_per_subject 5 and must have 1"),
        ({"max_age": 60}, "has max_age 60000000000 and must have 0"),
        ({"max_bytes": 10_000}, "has max_bytes 10000 and must have -1"),
        ({"subjects": ["other.>"]}, "is no key-value bucket"),
    ],
)
async def test_a_bucket_that_somebody_has_made_in_another_way_is_refused(
    nats: NatsServer, settings: dict[str, Any], wrong: str
) -> None:
    cluster = cluster_of(nats)
    operator = await nats_py.connect(nats.url)
    right = {"max_msgs_per_subject": 1, "subjects": [f"$KV.wsr_{cluster.name}.>"]}
    config = StreamConfig(name=f"KV_wsr_{cluster.name}", **{**right, **settings})
    await operator.jetstream().add_stream(config)
    await operator.close()
    assert wrong in await _refusal(NatsStore(cluster))


async def test_a_bucket_that_an_operator_has_made_is_taken(nats: NatsServer) -> None:
    cluster = cluster_of(nats)
    operator = await nats_py.connect(nats.url)
    await operator.jetstream().create_key_value(bucket=f"wsr_{cluster.name}", direct=True)
    await operator.close()
    async with a_store(cluster) as store:
        assert await store.put("lease.a", b"", 0) == 1


# Permissions, as the documentation has them


@pytest.fixture(scope="module")
def guarded_nats(tmp_path_factory: pytest.TempPathFactory) -> Any:
    [users] = re.findall(r"```text\n(authorization \{.*?)```", PAGE.read_text(), re.DOTALL)
    server = NatsServer(tmp_path_factory.mktemp("nats") / "nats", users).start()
    yield server
    server.kill()


def _member(server: NatsServer, number: int) -> Cluster:
    name = f"node-{number}"
    return cluster_of(server, name="prod", node=name, user=name, password=f"secret-{number}")


async def test_the_documented_permissions_are_all_that_nodes_need(
    guarded_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = _member(guarded_nats, 1), _member(guarded_nats, 2)
    async with a_bus(one) as here, a_bus(two) as there, a_store(one) as store, a_store(two) as its:
        inbox = Inbox()
        await there.subscribe("wsr.prod.hello.*", inbox)
        await there.subscribe("wsr.prod.l.node-2.>", inbox)
        here.publish("wsr.prod.hello.node-1", b"hello")
        assert await inbox.next() == ("wsr.prod.hello.node-1", b"hello")
        here.publish("wsr.prod.l.node-2.inc2.node-1.inc1", b"link")
        assert await inbox.data() == b"link"
        await here.flush()
        written = await store.put("name.x", b"", 0)
        assert await its.list("name.") == [Entry("name.x", b"", written)]
        await store.delete("name.x", written)
        store._markers[0] = (store._markers[0][0].replace(year=2000), *store._markers[0][1:])
        await store.purge_markers()
        assert await its.put("name.x", b"", 0) == written + 2
        await its.delete("name.x", written + 2)
    assert "refuses" not in caplog.text


async def test_whole_nodes_with_only_these_permissions_are_one_cluster(
    guarded_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    entries = {"answer": TargetEntry(f"{peer_handlers.__file__}:answer")}
    one, two = (
        Node(hosts=[processes()], entries=entries, cluster=_member(guarded_nats, number))
        for number in (1, 2)
    )
    async with one, two:
        pid = await one.get_or_spawn_async("room", "answer")
        assert await two.get_or_spawn_async("room", "answer") == pid
        assert await two.call_async(pid, "double", 2) == 4
    assert "refuses" not in caplog.text
    assert "dropped" not in caplog.text


@pytest.mark.parametrize("subject", ["wsr.prod.l.node-2.inc.{}.inc", "wsr.prod.hello.{}"])
async def test_a_node_cannot_speak_for_another(
    guarded_nats: NatsServer, caplog: pytest.LogCaptureFixture, subject: str
) -> None:
    async with a_bus(_member(guarded_nats, 1)) as bus, a_bus(_member(guarded_nats, 2)) as other:
        inbox = Inbox()
        await other.subscribe("wsr.prod.l.node-2.>", inbox)
        await other.subscribe("wsr.prod.hello.*", inbox)
        forged = subject.format("node-3")
        bus.publish(forged, b"forged")
        bus.publish(forged, b"forged")
        bus.publish(subject.format("node-1"), b"its own")
        assert await inbox.data() == b"its own"
        refusal = f'NATS refuses: permissions violation for publish to "{forged}"'
        with pytest.raises(CannotJoin, match=re.escape(refusal)):
            await bus.flush()
        assert caplog.text.count(refusal) == 1


async def test_a_node_cannot_hear_what_is_for_another(guarded_nats: NatsServer) -> None:
    for subject in ("wsr.prod.l.node-2.>", "wsr.prod.i.node-2.>", "wsr.>"):
        async with a_bus(_member(guarded_nats, 1)) as bus:
            with pytest.raises(CannotJoin, match="permissions violation for subscription"):
                await bus.subscribe(subject, Inbox())


async def test_a_node_whose_user_may_not_do_all_is_told_what(
    guarded_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = cluster_of(
        guarded_nats,
        name="other",
        node="node-1",
        user="node-1",
        password="secret-1",  # noqa: S106
    )
    told = await _refusal(NatsStore(stranger, answer=60.0))
    assert 'for subscription to "wsr.other.i.node-1.' in told
    async with a_store(_member(guarded_nats, 1), answer=60.0) as store:
        store._bucket = "wsr_other"
        with pytest.raises(Unavailable, match=r'publish to "\$kv\.wsr_other\.lease\.a"'):
            await store.put("lease.a", b"", 0)
    assert "$kv.wsr_other.lease.a" in caplog.text


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_nats(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Any:
    folder = tmp_path_factory.mktemp("tls")
    mine = authority.issue_cert("127.0.0.1")
    mine.private_key_pem.write_to_path(folder / "key.pem")
    for number, blob in enumerate(mine.cert_chain_pems):
        blob.write_to_path(folder / "cert.pem", append=number > 0)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    config = f"""tls {{ cert_file: "{folder}/cert.pem", key_file: "{folder}/key.pem"
        ca_file: "{folder}/ca.pem", verify: true }}"""
    server = NatsServer(folder / "nats", config).start()
    yield server
    server.kill()


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> dict[str, Any]:
    """A node's own certificate, and the authority's."""
    mine = authority.issue_cert("node-1")
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / "node.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return {"ca": tmp_path / "ca.pem", "cert": tmp_path / "node.pem"}


async def test_bus_and_store_work_over_tls(tls_nats: NatsServer, files: dict[str, Any]) -> None:
    cluster = cluster_of(tls_nats, tls=ClusterTLS(**files))
    async with a_bus(cluster) as bus, a_store(cluster) as store:
        inbox = Inbox()
        await bus.subscribe("wsr.test.tls", inbox)
        bus.publish("wsr.test.tls", bytes(1_000_000))
        assert await inbox.data() == bytes(1_000_000)
        assert await store.put("lease.a", b"", 0) == 1
        socket = bus._connection._client
        assert socket is not None
        assert socket.socket._transport is not None
        assert socket.socket._transport.get_extra_info("ssl_object") is not None


async def test_a_certificate_that_is_not_trusted_is_told(tls_nats: NatsServer) -> None:
    for cluster in (cluster_of(tls_nats), cluster_of(tls_nats, tls=ClusterTLS())):
        told = await _refusal(NatsBus(cluster))
        assert told.startswith(f"NATS at {tls_nats.url} is not trusted: ")
        assert "tls.ca names who has signed it" in told


async def test_a_certificate_of_another_host_is_told(
    tls_nats: NatsServer, files: dict[str, Any]
) -> None:
    wrong = cluster_of(tls_nats, tls=ClusterTLS(**files, hostname="nats.example.com"))
    assert "is not trusted: Hostname mismatch" in await _refusal(NatsBus(wrong))


async def test_a_node_without_the_certificate_that_nats_asks_for_is_told(
    tls_nats: NatsServer, files: dict[str, Any]
) -> None:
    told = await _refusal(NatsBus(cluster_of(tls_nats, tls=ClusterTLS(ca=files["ca"]))))
    assert told.startswith(f"TLS with NATS at {tls_nats.url} failed: ")
    assert "CERTIFICATE" in told.upper()


async def test_files_that_are_no_certificates_are_told(
    nats: NatsServer, files: dict[str, Any], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nonsense")
    told = await _refusal(NatsBus(cluster_of(nats, tls=ClusterTLS(ca=bad))))
    assert told.startswith(f"tls.ca {bad} cannot be used: ")
    told = await _refusal(NatsBus(cluster_of(nats, tls=ClusterTLS(cert=files["ca"], key=bad))))
    assert told.startswith(f"tls.cert {files['ca']} with tls.key {bad} cannot be used: ")


@pytest.mark.parametrize("first", [False, True])
async def test_nothing_is_sent_to_a_server_that_does_not_encrypt(first: bool) -> None:
    heard: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1048576}\r\n')
        heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(pretend, "127.0.0.1", 0)
    async with server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        cluster = cluster_of(
            url,
            user="u",
            password="secret",  # noqa: S106
            tls=ClusterTLS(first=first),
        )
        told = await _refusal(NatsBus(cluster))
        assert told == f"NATS at {url} does not encrypt, and tls is set" or first
        await until(lambda: heard)
    assert b"secret" not in heard[0]
    assert b"CONNECT" not in heard[0]


async def test_tls_that_begins_before_the_hello_works(
    tmp_path: Path, authority: trustme.CA, files: dict[str, Any]
) -> None:
    mine = authority.issue_cert("127.0.0.1")
    mine.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    pem = tmp_path / "server.pem"
    config = f'tls {{ cert_file: "{pem}", key_file: "{pem}", handshake_first: true }}'
    server = NatsServer(tmp_path / "nats", config)
    server.start()
    try:
        async with a_bus(cluster_of(server, tls=ClusterTLS(**files, first=True))) as bus:
            await bus.flush()
    finally:
        server.kill()
