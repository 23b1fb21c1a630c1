"""Links over a real NATS, which is killed and cut off meanwhile: nothing is lost nor doubled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from gate import gate_to
from nats_ports import a_bus, cluster_of
from nats_servers import NatsServer
from support import until

from wsrelay.cluster.frames import PeerFrame, PeerSendFrame
from wsrelay.cluster.peer import Peer
from wsrelay.peers.link import PeerLink
from wsrelay.peers.links import PeerLinks

pytestmark = pytest.mark.anyio

A, B = Peer("a", "1"), Peer("b", "1")


class Talk:
    """Two nodes that tell each other numbers."""

    def __init__(self) -> None:
        self.got: dict[str, list[int]] = {"a": [], "b": []}
        self.sent = 0
        self.links: list[PeerLink] = []

    def note(self, node: str) -> Callable[[PeerFrame], None]:
        def note(frame: PeerFrame) -> None:
            assert isinstance(frame, PeerSendFrame)
            self.got[node].append(int(frame.topic))

        return note

    def say(self, size: int = 50) -> None:
        for link in self.links:
            link.send(PeerSendFrame(["{a@app:processes|0-1}"], "", str(self.sent), bytes(size)))
        self.sent += 1

    async def all_is_there(self) -> None:
        await until(lambda: all(link.idle for link in self.links))
        # What a node has received it may be about to handle.
        await until(lambda: all(len(got) >= self.sent for got in self.got.values()))
        assert self.got["a"] == self.got["b"] == list(range(self.sent))


@asynccontextmanager
async def talking(*urls: str) -> AsyncIterator[Talk]:
    talk = Talk()
    clusters = [cluster_of(url) for url in urls]
    async with a_bus(clusters[0]) as one, a_bus(clusters[1]) as other:
        sides = [PeerLinks(one, "wsr.links", A), PeerLinks(other, "wsr.links", B)]
        for side, peer, node in zip(sides, (B, A), ("a", "b"), strict=True):
            await side.start()
            talk.links.append(side.open(peer, talk.note(node), pytest.fail))
        yield talk
        for side in sides:
            side.stop()


async def test_frames_of_all_sizes_arrive(nats: NatsServer) -> None:
    async with talking(nats.url, nats.url) as talk:
        for size in (0, 100, 300_000, 100, 5_000_000, 0):
            talk.say(size)
        await talk.all_is_there()
        assert all(link.statistics().resent == 0 for link in talk.links)


async def test_a_server_that_is_killed_and_started_again_loses_nothing(
    own_nats: NatsServer,
) -> None:
    async with talking(own_nats.url, own_nats.url) as talk:
        for number in range(400):
            talk.say()
            if number == 200:
                own_nats.kill()
                own_nats.start()
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        await talk.all_is_there()


async def test_connections_that_are_cut_under_load_lose_nothing(nats: NatsServer) -> None:
    async with gate_to(nats.port) as gate, talking(gate.url, nats.url) as talk:
        for number in range(500):
            talk.say(1000)
            if number % 200 == 100:
                gate.cut()
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        await talk.all_is_there()
