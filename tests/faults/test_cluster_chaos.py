"""Killing at random on three nodes under client traffic; afterwards the books must balance."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cluster_chaos import CLIENTS, DISASTERS, ENTRIES, NODES, ClusterChaos
from clusters import nodes_over
from nats_servers import NatsServer

pytestmark = pytest.mark.anyio


async def test_after_random_kills_on_three_nodes_every_book_balances_and_nothing_is_left(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    async with nodes_over(
        own_nats.url,
        tmp_path,
        *NODES,
        entries=ENTRIES,
        targets=[ENTRIES["place"]],
        stop_timeout=15.0,
    ) as cluster:
        chaos = ClusterChaos(cluster, own_nats, tmp_path / "journal")
        try:
            await run(chaos)
            problems = list(chaos.problems())
            assert not problems, "\n".join([f"{len(problems)} wrong:", *problems[:20]])
            assert await chaos.incarnations() == chaos.lives, "no node has died that was not killed"
            assert not await cluster[chaos.keeper].names(), "the bucket has no name"
        except BaseException as error:
            error.add_note(chaos.seed)
            raise
    assert set(chaos.disasters) == set(DISASTERS)
    assert set(chaos.stays_ended()) >= {1000, 1006, 1011, 4001}
    assert len(chaos.stays) > 2 * CLIENTS
    assert any(len({*stay.rooms}) > 1 for stay in chaos.stays)


async def run(chaos: ClusterChaos) -> None:
    await chaos.open()
    async with asyncio.TaskGroup() as guests:
        for guest in chaos.guests:
            guests.create_task(guest.run())
        await chaos.reign()
        await chaos.rest()
        assert any(guest.works for guest in chaos.guests)
        await chaos.close()
    await chaos.end()
