"""The port `Store` over a bucket of a real NATS, of the newest version and of an old one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from gate import gate_to
from nats_ports import a_bus, a_store, cluster_of
from nats_servers import NATS, OLD_NATS, NatsServer
from support import TIMEOUT, until

from wsrelay.cluster.ports import Conflict, Entry, Unavailable
from wsrelay.peers.nats import NatsStore

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["new", "old"])
def binary(request: pytest.FixtureRequest) -> str:
    found = NATS if request.param == "new" else OLD_NATS
    if found is None:
        pytest.skip("the system has no nats-server of its own")
    return found


@pytest.fixture(scope="module")
def each_nats(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats") / "nats", binary=binary).start()
    yield server
    server.kill()


async def test_a_key_is_written_at_the_revision_that_it_has(each_nats: NatsServer) -> None:
    async with a_store(cluster_of(each_nats)) as store:
        assert await store.get("lease.a") is None
        first = await store.put("lease.a", b"one", 0)
        second = await store.put("lease.a", b"two", first)
        assert second > first
        assert await store.get("lease.a") == Entry("lease.a", b"two", second)


async def test_another_revision_than_the_expected_is_a_conflict(each_nats: NatsServer) -> None:
    async with a_store(cluster_of(each_nats)) as store:
        first = await store.put("lease.a", b"one", 0)
        for expected in (0, first + 1, first + 100):
            with pytest.raises(Conflict, match=f"lease.a is not at revision {expected}: .*{first}"):
                await store.put("lease.a", b"two", expected)
            with pytest.raises(Conflict):
                await store.delete("lease.a", expected)
        with pytest.raises(Conflict):
            await store.put("lease.b", b"none yet", first)
        assert await store.get("lease.a") == Entry("lease.a", b"one", first)


async def test_one_of_many_who_write_at_once_succeeds(each_nats: NatsServer) -> None:
    cluster = cluster_of(each_nats)
    async with a_store(cluster) as here, a_store(cluster) as there:
        outcomes = await asyncio.gather(
            *(store.put("name.x", b"", 0) for store in (here, there) * 10), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(won) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
        assert await here.get("name.x") == await there.get("name.x") == Entry("name.x", b"", won[0])


async def test_a_deleted_key_is_none_and_can_be_written_again(each_nats: NatsServer) -> None:
    async with a_store(cluster_of(each_nats)) as store:
        written = await store.put("name.x", b"one", 0)
        deleted = await store.delete("name.x", written)
        assert deleted > written
        assert await store.get("name.x") is None
        with pytest.raises(Conflict):
            await store.put("name.x", b"late", written)
        assert await store.put("name.x", b"two", 0) > deleted


async def test_the_keys_of_a_prefix_are_listed_without_the_deleted(each_nats: NatsServer) -> None:
    async with a_store(cluster_of(each_nats)) as store:
        assert await store.list("") == []
        for number in range(5):
            await store.put(f"name.{number}", b"%d" % number, 0)
        lease = await store.put("lease.name", b"", 0)
        await store.delete("name.3", 4)
        assert [(one.key, one.value) for one in await store.list("name.")] == [
            ("name.0", b"0"),
            ("name.1", b"1"),
            ("name.2", b"2"),
            ("name.4", b"4"),
        ]
        assert await store.list("le") == [Entry("lease.name", b"", lease)]
        assert len(await store.list("")) == 5


async def test_it_knows_the_highest_revision_that_it_has_seen(each_nats: NatsServer) -> None:
    cluster = cluster_of(each_nats)
    async with a_store(cluster) as here:
        assert here.sequence == 0
        first = await here.put("lease.a", b"", 0)
        second = await here.put("lease.b", b"", 0)
        await here.get("lease.a")
        assert (first, second, here.sequence) == (1, 2, 2)
        async with a_store(cluster) as there:
            assert there.sequence == 2
            await there.put("lease.c", b"", 0)
        await here.get("lease.c")
        assert here.sequence == 3


async def test_markers_of_deleted_keys_are_purged_after_an_hour_and_nothing_else_is(
    each_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_of(each_nats)
    async with a_store(cluster) as store:
        for key in ("name.gone", "name.back"):
            await store.delete(key, await store.put(key, b"one", 0))
        back = await store.put("name.back", b"two", 0)
        await store.purge_markers()
        assert await _last_of(store, "name.gone") == 2
        moments = [datetime.now(UTC).replace(year=2999)]
        monkeypatch.setattr(
            "wsrelay.peers.nats.store.datetime", type("Later", (), {"now": lambda _: moments[0]})
        )
        await store.purge_markers()
        assert await _last_of(store, "name.gone") == 0
        assert await store.get("name.back") == Entry("name.back", b"two", back)
        assert await store.put("name.gone", b"three", 0) == back + 1


async def test_old_markers_of_nodes_that_have_died_are_purged_by_who_lists_them(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_of(nats)
    async with a_store(cluster) as dead:
        await dead.delete("name.x", await dead.put("name.x", b"", 0))
    async with a_store(cluster) as store:
        moments = [datetime.now(UTC).replace(year=2999)]
        monkeypatch.setattr(
            "wsrelay.peers.nats.store.datetime", type("Later", (), {"now": lambda _: moments[0]})
        )
        assert await store.list("name.") == []
        await store.purge_markers()
        assert await _last_of(store, "name.x") == 0


async def test_everything_is_still_there_when_nats_was_killed(binary: str, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", binary=binary).start()
    try:
        async with a_store(cluster_of(server), answer=60.0) as store:
            revision = await store.put("lease.a", b"one", 0)
            server.restart()
            assert await store.get("lease.a") == Entry("lease.a", b"one", revision)
            assert await store.put("lease.a", b"two", revision) == revision + 1
    finally:
        server.kill()


async def test_what_waits_when_the_connection_is_lost_is_unavailable_at_once(
    nats: NatsServer,
) -> None:
    async with (
        gate_to(nats.port) as gate,
        a_store(cluster_of(gate.url), answer=3600.0) as store,
    ):
        gate.clients_pass.clear()
        write = asyncio.create_task(store.put("lease.a", b"", 0))
        read = asyncio.create_task(store.get("lease.a"))
        await asyncio.sleep(0)
        gate.cut()
        gate.clients_pass.set()
        async with asyncio.timeout(TIMEOUT):
            with pytest.raises(Unavailable, match="lost"):
                await write
            assert await read is None  # asked once more: it changes nothing


async def test_what_is_asked_without_a_connection_waits_for_one(own_nats: NatsServer) -> None:
    async with a_store(cluster_of(own_nats), answer=60.0) as store:
        own_nats.kill()
        await until(lambda: not store.connected)
        write = asyncio.create_task(store.put("lease.a", b"", 0))
        own_nats.start()
        assert await write == 1


async def test_an_answer_that_does_not_come_in_time_is_unavailable(own_nats: NatsServer) -> None:
    async with a_store(cluster_of(own_nats), answer=0.05) as store:
        own_nats.pause()
        with pytest.raises(Unavailable, match=r"within 0\.05 s"):
            await store.put("lease.a", b"", 0)
        with pytest.raises(Unavailable, match=r"within 0\.05 s"):
            await store.get("lease.a")
        own_nats.resume()


async def test_a_write_whose_answer_is_lost_is_found_by_reading(nats: NatsServer) -> None:
    cluster = cluster_of(nats)
    async with (
        gate_to(nats.port) as gate,
        a_store(cluster_of(gate.url, name=cluster.name)) as store,
        a_store(cluster) as other,
    ):
        gate.answers_are_lost = True
        write = asyncio.create_task(store.put("name.x", b"nonce", 0))
        while (found := await other.get("name.x")) is None:
            pass
        gate.cut()
        gate.answers_are_lost = False
        with pytest.raises(Unavailable):
            await write
        assert await store.get("name.x") == found == Entry("name.x", b"nonce", 1)


async def test_a_bus_whose_socket_is_stuck_does_not_delay_the_store(nats: NatsServer) -> None:
    async with gate_to(nats.port) as gate:
        cluster = cluster_of(gate.url)
        async with a_bus(cluster) as bus, a_store(cluster_of(nats, name=cluster.name)) as store:
            gate.clients_pass.clear()
            for _ in range(64):
                bus.publish("wsr.test.bulk", bytes(1024 * 1024))
            assert await store.put("lease.a", b"", 0) == 1
            assert bus.connected
            gate.cut()


async def test_writes_that_nats_has_lost_are_noticed(
    own_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    rewound: list[tuple[int, int]] = []
    store_dir, kept = own_nats.folder / "store", own_nats.folder / "kept"
    async with a_store(cluster_of(own_nats), answer=60.0) as store:
        store.on_rewound.append(lambda seen, now: rewound.append((seen, now)))
        await store.put("lease.a", b"1", 0)
        own_nats.stop()
        await until(lambda: not store.connected)
        shutil.copytree(store_dir, kept)
        own_nats.start()
        assert await store.put("lease.a", b"2", 1) == 2
        assert rewound == []
        own_nats.kill()
        await until(lambda: not store.connected)
        shutil.rmtree(store_dir)
        kept.rename(store_dir)
        own_nats.start()
        assert await store.get("lease.a") == Entry("lease.a", b"1", 1)
        assert rewound == [(2, 1)]
        assert store.sequence == 2
        own_nats.kill()
        await until(lambda: not store.connected)
        shutil.rmtree(store_dir)  # a container without a volume
        own_nats.start()
        assert await store.put("lease.a", b"3", 0) == 1
        assert rewound == [(2, 1), (1, 0)]
    assert "has lost writes: its last revision was 2 and is 1" in caplog.text


async def test_a_bucket_that_somebody_deletes_is_made_again(nats: NatsServer) -> None:
    async with a_store(cluster_of(nats), answer=60.0) as store:
        revision = await store.put("lease.a", b"", 0)
        for question in (store.put("lease.b", b"", 0), store.get("lease.a")):
            await store._manage("STREAM.DELETE", {})
            with pytest.raises(Unavailable):
                await question
            # nats-server may still be deleting its files, and then finds what is left of them.
            found = await store.get("lease.a")
            revision = await store.put("lease.a", b"", found.revision if found else 0)
        assert await store.get("lease.a") == Entry("lease.a", b"", revision)


async def _last_of(store: NatsStore, key: str) -> int:
    """The revision of the key's last message, a marker too; 0 for none."""
    message = await store._read(key)
    return 0 if message is None else message.seq
