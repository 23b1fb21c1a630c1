"""The port `Bus` over a real NATS."""

from __future__ import annotations

import asyncio

import pytest
from nats_ports import Inbox, a_bus, cluster_of
from nats_servers import NatsServer
from support import until

pytestmark = pytest.mark.anyio


async def test_what_is_published_arrives_in_its_order(nats: NatsServer) -> None:
    cluster = cluster_of(nats)
    async with a_bus(cluster) as here, a_bus(cluster) as there:
        inbox = Inbox()
        await there.subscribe("wsr.test.l.b.>", inbox)
        sent = [b"%d" % number * (1 + number % 7) for number in range(1000)]
        for data in sent:
            here.publish("wsr.test.l.b.1.a.2", data)
        here.publish("wsr.test.l.other.1.a.2", b"for somebody else")
        here.publish("wsr.test.l.b.1.a.2", b"the end")
        assert [await inbox.data() for _ in sent] == sent
        assert await inbox.next() == ("wsr.test.l.b.1.a.2", b"the end")


async def test_what_is_published_right_after_subscribing_is_received(nats: NatsServer) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        inboxes = [Inbox() for _ in range(20)]
        for number, inbox in enumerate(inboxes):
            await bus.subscribe(f"wsr.test.own.{number}", inbox)
            bus.publish(f"wsr.test.own.{number}", b"%d" % number)
        assert [await inbox.data() for inbox in inboxes] == [b"%d" % n for n in range(20)]


async def test_the_largest_message_that_nats_takes_arrives(nats: NatsServer) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        inbox = Inbox()
        await bus.subscribe("wsr.test.large", inbox)
        data = bytes(range(256)) * (bus.max_payload // 256)
        assert len(data) == 1024 * 1024
        bus.publish("wsr.test.large", data)
        bus.publish("wsr.test.large", b"")
        assert [await inbox.data(), await inbox.data()] == [data, b""]


async def test_a_message_that_nats_does_not_take_is_refused_before_it_is_sent(
    nats: NatsServer,
) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        inbox = Inbox()
        await bus.subscribe("wsr.test.too-large", inbox)
        with pytest.raises(ValueError, match="1048577 bytes are more than NATS takes: 1048576"):
            bus.publish("wsr.test.too-large", b"x" * (1024 * 1024 + 1))
        bus.publish("wsr.test.too-large", b"goes on")
        assert await inbox.data() == b"goes on"


@pytest.mark.parametrize(
    "subject", ["", "a b", "a\r\nPUB b 0\r\n", "a..b", ".a", "a.", "a.*", "a.>", "a.\N{SNOWMAN}"]
)
async def test_a_subject_that_is_none_is_refused(nats: NatsServer, subject: str) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        with pytest.raises(ValueError, match="is not a subject to publish to"):
            bus.publish(subject, b"")


async def test_what_a_callback_raises_is_logged_and_the_next_message_comes(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        inbox = Inbox()

        def callback(subject: str, data: bytes) -> None:
            if data == b"bad":
                raise ZeroDivisionError
            inbox(subject, data)

        await bus.subscribe("wsr.test.raises", callback)
        bus.publish("wsr.test.raises", b"bad")
        bus.publish("wsr.test.raises", b"good")
        assert await inbox.data() == b"good"
        assert "what came on wsr.test.raises was not taken" in caplog.text


async def test_all_that_was_published_before_the_bus_is_closed_arrives(nats: NatsServer) -> None:
    cluster = cluster_of(nats)
    async with a_bus(cluster) as there:
        inbox = Inbox()
        await there.subscribe("wsr.test.last", inbox)
        async with a_bus(cluster) as here:
            for number in range(50):
                here.publish("wsr.test.last", b"%d" % number * 50_000)
        assert not here.connected
        for number in range(50):
            assert (await inbox.data()).startswith(b"%d" % number)


async def test_what_is_published_without_a_connection_is_never_sent(own_nats: NatsServer) -> None:
    cluster = cluster_of(own_nats)
    told: list[str] = []
    async with a_bus(cluster) as bus:
        inbox = Inbox()
        await bus.subscribe("wsr.test.outage", inbox)
        bus.on_disconnected.append(lambda: told.append("disconnected"))
        bus.on_connected.append(lambda: told.append("connected"))
        own_nats.kill()
        await until(lambda: not bus.connected)
        bus.publish("wsr.test.outage", b"lost")
        own_nats.start()
        await until(lambda: bus.connected)
        bus.publish("wsr.test.outage", b"sent")  # its subscriptions are those of before
        assert await inbox.data() == b"sent"
        assert told == ["disconnected", "connected"]
    assert told == ["disconnected", "connected", "disconnected"]


async def test_what_is_published_while_the_connection_is_being_lost_is_dropped(
    nats: NatsServer,
) -> None:
    async with a_bus(cluster_of(nats)) as bus:
        alive = bus._connection._client
        assert alive is not None
        again = asyncio.Event()
        bus.on_connected.append(again.set)
        alive.socket.abort()
        assert bus.connected  # it is told in the next turn of the loop
        bus.publish("wsr.test.dropped", b"small")
        bus.publish("wsr.test.dropped", bytes(100_000))
        await until(again.is_set)


async def test_a_callback_of_the_connection_that_raises_harms_nobody(
    own_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async with a_bus(cluster_of(own_nats)) as bus:
        bus.on_disconnected.append(fail)
        bus.on_connected.append(fail)
        again = asyncio.Event()
        bus.on_connected.append(again.set)
        own_nats.restart()
        await until(again.is_set)
    assert "what follows a change of the connection has failed" in caplog.text
