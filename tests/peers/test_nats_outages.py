"""NATS goes away in every way, and comes back: nothing hangs, and nothing is sent late."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from gate import gate_to
from nats_ports import Inbox, a_bus, a_store, cluster_of
from nats_servers import NatsServer, nats_cluster
from support import until

from wsrelay.peers.nats import NatsBus, NatsStore, client, connection
from wsrelay.peers.options import Cluster

pytestmark = pytest.mark.anyio


async def _is_back(bus: NatsBus, store: NatsStore, inbox: Inbox, subject: str) -> None:
    """Both are connected, and what is sent now arrives as the first of what is sent."""
    await until(lambda: bus.connected and store.connected)
    bus.publish(subject, b"after")
    while not (data := await inbox.data()).startswith(b"after"):
        assert data.startswith(b"before"), data
    entry = await store.get("lease.a")
    assert entry is not None
    assert await store.put("lease.a", b"after", entry.revision) == entry.revision + 1


@pytest.mark.parametrize("seconds", [0.0, 1.9])
async def test_bus_and_store_are_back_after_nats_was_killed(
    own_nats: NatsServer, seconds: float
) -> None:
    cluster = cluster_of(own_nats)
    async with a_bus(cluster) as bus, a_store(cluster, answer=60.0) as store:
        inbox = Inbox()
        await bus.subscribe("wsr.test.kill", inbox)
        await store.put("lease.a", b"before", 0)
        bus.publish("wsr.test.kill", b"before")
        own_nats.kill()
        await until(lambda: not bus.connected)
        bus.publish("wsr.test.kill", b"between")
        await asyncio.sleep(seconds)  # the outage itself
        own_nats.start()
        await _is_back(bus, store, inbox, "wsr.test.kill")


async def test_a_nats_that_stands_still_for_5_s_is_left_and_nothing_unsent_arrives_later(
    own_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = cluster_of(own_nats)
    async with a_bus(cluster) as bus, a_store(cluster, answer=60.0) as store:
        inbox = Inbox()
        await bus.subscribe("wsr.test.pause", inbox)
        await store.put("lease.a", b"before", 0)
        own_nats.pause()
        began = time.monotonic()
        for number in range(32):  # more than all socket buffers hold
            bus.publish("wsr.test.pause", b"before" + bytes([number]) * 1_000_000)
        await until(lambda: not bus.connected)
        bus.publish("wsr.test.pause", b"between")
        assert time.monotonic() - began > 2
        await asyncio.sleep(5 - (time.monotonic() - began))
        own_nats.resume()
        await _is_back(bus, store, inbox, "wsr.test.pause")
    assert "no answer to 3 pings" in caplog.text


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings, and repeated log lines, come twenty times as often."""
    monkeypatch.setattr(client, "_PING", client._PING / 20)
    monkeypatch.setattr(connection, "_TELL", connection._TELL / 20)


@pytest.mark.usefixtures("impatient")
async def test_a_hung_connection_is_given_up_for_another(nats: NatsServer) -> None:
    async with gate_to(nats.port) as gate, a_bus(cluster_of(gate.url)) as bus:
        inbox = Inbox()
        await bus.subscribe("wsr.test.hung", inbox)
        gate.clients_pass.clear()
        for _ in range(32):
            bus.publish("wsr.test.hung", bytes(1_000_000))
        await until(lambda: not bus.connected)
        gate.clients_pass.set()
        await until(lambda: bus.connected)
        assert gate.connections > 1
        while True:
            bus.publish("wsr.test.hung", b"after")
            if await inbox.data() == b"after":
                break


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_has_stopped_reading_is_given_up(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        inbox = Inbox()
        await bus.subscribe("wsr.test.deaf", inbox)
        alive = bus._connection._client
        assert alive is not None
        again = asyncio.Event()
        bus.on_connected.append(again.set)
        alive._client._reading_task.cancel()  # type: ignore[union-attr]  # its errors end it, too
        await until(again.is_set)
        bus.publish("wsr.test.deaf", b"heard")
        assert await inbox.data() == b"heard"
    assert "no answer to 3 pings" in caplog.text


@pytest.mark.usefixtures("impatient")
async def test_a_stall_of_this_process_is_not_taken_for_one_of_nats(nats: NatsServer) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        told: list[bool] = []
        bus.on_disconnected.append(lambda: told.append(True))
        for _ in range(3):
            time.sleep(5 * client._PING)  # noqa: ASYNC251 - the stall
            await bus.flush()
        assert not told


@pytest.mark.usefixtures("impatient")
async def test_it_is_told_every_few_seconds_that_nats_is_away(
    own_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_bus(cluster_of(own_nats)) as bus:
        own_nats.kill()
        await until(lambda: caplog.text.count("the bus has waited for it for") > 2)
        own_nats.start()
        await until(lambda: bus.connected)
    assert f"no connection to NATS at {own_nats.url}: " in caplog.text
    assert f"the bus has NATS at {own_nats.url} again, after " in caplog.text


async def test_in_a_cluster_of_nats_the_bucket_has_three_replicas_and_one_server_may_die(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with nats_cluster(tmp_path) as servers:
        cluster = Cluster([servers[0].url], node="node-1", timeout=60)
        async with a_store(cluster) as store:  # waits for NATS to elect its leader
            info = await store._manage("STREAM.INFO", {})
            assert info.config is not None
            assert info.config.num_replicas == 3
        async with a_bus(cluster) as bus:
            inbox = Inbox()
            await bus.subscribe("wsr.test.three", inbox)
            again = asyncio.Event()
            bus.on_connected.append(again.set)
            servers[0].kill()  # the only one that was named; it has told of the others
            await until(again.is_set)
            bus.publish("wsr.test.three", b"over another")
            assert await inbox.data() == b"over another"
    assert "replicas" not in caplog.text
