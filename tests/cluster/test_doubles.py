from __future__ import annotations

import asyncio

import pytest
from doubles import BusDouble, Network, Server, StoreDouble, virtually

from wsrelay.cluster.ports import Bus, Conflict, Entry, Store, Unavailable


def test_a_store_changes_a_key_only_from_the_revision_that_is_expected() -> None:
    async def main() -> None:
        store: Store = StoreDouble(Server(Network()), "a")
        assert await store.get("key") is None
        assert await store.put("key", b"1", 0) == 1
        with pytest.raises(Conflict):
            await store.put("key", b"2", 0)
        assert await store.put("key", b"2", 1) == 2
        assert await store.get("key") == Entry("key", b"2", 2)
        assert await store.list("k") == [Entry("key", b"2", 2)]
        assert await store.delete("key", 2) == 3
        assert await store.get("key") is None
        assert await store.put("key", b"3", 0) == 4
        assert store.sequence == 4

    virtually(main())


def test_what_the_store_did_stays_done_when_its_answer_is_lost() -> None:
    async def main() -> None:
        network = Network()
        store = StoreDouble(Server(network), "a")
        network.lose_answer = lambda node, key: (node, key) == ("a", "key")
        with pytest.raises(Unavailable):
            await store.put("key", b"1", 0)
        network.lose_answer = lambda _node, _key: False
        assert await store.get("key") == Entry("key", b"1", 1)

    virtually(main())


def test_a_write_may_arrive_after_its_node_has_given_up() -> None:
    async def main() -> None:
        network = Network()
        store = StoreDouble(Server(network), "a")
        network.delay = lambda _node: 1.5
        with pytest.raises(Unavailable):
            await store.put("key", b"1", 0)
        network.delay = lambda _node: 0.0
        assert await store.get("key") is None
        await asyncio.sleep(0.6)
        assert await store.get("key") == Entry("key", b"1", 1)

    virtually(main())


def test_a_bus_keeps_the_order_and_a_cut_loses_the_tail() -> None:
    async def main() -> None:
        network = Network()
        one, other = BusDouble(network, "a"), BusDouble(network, "b")
        bus: Bus = other
        came: list[tuple[str, bytes]] = []
        told: list[str] = []
        other.on_disconnected.append(lambda: told.append("away"))
        other.on_connected.append(lambda: told.append("back"))
        await bus.subscribe("x.>", lambda subject, data: came.append((subject, data)))
        delays = iter([0.3, 0.0, 0.1, 0.0])
        network.delay = lambda _node: next(delays)
        one.publish("x.1", b"first")
        one.publish("x.2", b"second")
        one.publish("y", b"not wanted")
        await asyncio.sleep(1)
        assert came == [("x.1", b"first"), ("x.2", b"second")]
        network.delay = lambda _node: 0.1
        one.publish("x.3", b"lost")
        network.cut("b")
        await asyncio.sleep(1)
        network.heal("b")
        await asyncio.sleep(1)
        one.publish("x.4", b"last")
        await asyncio.sleep(1)
        assert [data for _, data in came] == [b"first", b"second", b"last"]
        assert told == ["away", "back"]

    virtually(main())
