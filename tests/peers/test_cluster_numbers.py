"""The numbers of a node in a cluster: its lease, its links, the messages that cross them."""

from __future__ import annotations

from pathlib import Path

import pytest
import rooms
from nats_servers import NatsServer
from peers_over_nats import clustered
from scraped import Moved, sample, text
from support import Journal, client, received, relay_to, room, serving, until

from wsrelay import WebSocketRelay
from wsrelay.node import describe
from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio

ENTRIES = {"echo": TargetEntry(room(rooms.echo)), "record": TargetEntry(room(rooms.record))}


async def test_what_crosses_is_counted_once_in_the_cluster_and_links_that_end_too(
    nats: NatsServer, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    async with clustered(nats, ENTRIES, "a", "b") as [a, b]:
        here, there = Moved(a), Moved(b)
        assert here.by("cluster_members", state="up") == 0
        echo, record = b.spawn("echo"), b.spawn("record", None, str(journal.path))
        for pid in (echo, record):
            assert await b.started(pid) is None
        async with serving(WebSocketRelay(relay_to(echo), node=a)) as url, client(url) as one:
            await one.send("hello")
            assert await received(one) == "hello"
            assert {info.sent for info in describe(a).connections} == {1}
        a.send(record, "greet", None)
        await journal.line("greet")
        for direction in ("from_clients", "to_clients"):
            await here.to(1, "messages_total", direction=direction)
            await here.to(5, "message_bytes_total", direction=direction)
            assert there.by("messages_total", direction=direction) == 0
        assert there.by("messages_total", direction="between_processes") == 1
        assert here.by("messages_total", direction="between_processes") == 0
        await until(lambda: here.by("connections_closed_total", code="1000") == 1)
        assert there.by("connections_closed_total") == 0
        for moved in (here, there):
            assert moved.by("cluster_link_bytes_total", direction="sent") > 100
            assert moved.by("cluster_link_bytes_total", direction="received") > 100
        await until(
            lambda: sample(text(a), "cluster_link_unacknowledged_bytes") == 0, "all has arrived"
        )
        assert sample(text(a), "cluster_link_backlog_bytes") == 0
        sent = here.by("cluster_link_bytes_total", direction="sent")
        await b.aclose()
        await until(lambda: here.by("cluster_members", state="gone") == 1, "b has left")
        assert here.by("cluster_link_bytes_total", direction="sent") >= sent
        assert sample(text(a), "cluster_link_delay_seconds") == 0


async def test_a_lease_that_is_not_renewed_gets_old(own_nats: NatsServer) -> None:
    async with clustered(own_nats, ENTRIES, "a") as [a]:
        own_nats.pause()
        try:
            await until(lambda: sample(text(a), "cluster_lease_age_seconds") > 1, "it gets old")
        finally:
            own_nats.resume()
        await until(lambda: sample(text(a), "cluster_lease_age_seconds") < 1, "it is renewed")
