"""What NATS itself takes, by nats-py: a message to another process and back, a compare-and-set.

`python -m benchmark.served.bus` measures, with the argument `echo` it is the other process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator

import nats
import uvloop
from nats.aio.msg import Msg

from .asking import PAUSE
from .timing import serve_times

_SUBJECT = "bench.echo"
_PAYLOAD = b"x" * 64


async def _echo() -> None:
    client = await nats.connect(os.environ["BENCH_NATS"])

    async def answer(message: Msg) -> None:
        await client.publish(message.reply, message.data)

    await client.subscribe(_SUBJECT, cb=answer)
    port = int(os.environ["BENCH_PORT"])
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        await asyncio.Future()


async def _round_trips() -> AsyncIterator[float]:
    client = await nats.connect(os.environ["BENCH_NATS"])
    inbox, answers = client.new_inbox(), asyncio.Queue[Msg]()
    await client.subscribe(inbox, cb=answers.put)
    try:
        while True:
            begin = time.perf_counter()
            await client.publish(_SUBJECT, _PAYLOAD, reply=inbox)
            await answers.get()
            yield time.perf_counter() - begin
    finally:
        await client.close()


async def _writes() -> AsyncIterator[float]:
    """Write new keys, each only if it is new, into a bucket such as a cluster's, at leisure."""
    client = await nats.connect(os.environ["BENCH_NATS"])
    bucket = await client.jetstream().create_key_value(bucket="bench", history=1)
    try:
        while True:
            key = f"n{time.perf_counter_ns()}"
            begin = time.perf_counter()
            await bucket.create(key, _PAYLOAD)
            yield time.perf_counter() - begin
            await asyncio.sleep(PAUSE)
    finally:
        await client.close()


if __name__ == "__main__":
    measured = {"echo": _round_trips, "call": _round_trips, "spawn": _writes}
    uvloop.run(_echo() if sys.argv[1:] else serve_times(measured))
