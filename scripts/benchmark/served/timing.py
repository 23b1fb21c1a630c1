"""A WebSocket at which a peer measures itself: `WHAT SECONDS` is answered with times, as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable

from websockets.asyncio.server import ServerConnection, serve

__all__ = ["serve_times"]

Times = Callable[[], AsyncIterator[float]]


async def serve_times(kinds: dict[str, Times]) -> None:
    """Serve at the port `BENCH_PORT`, until the end."""

    async def answer(connection: ServerConnection) -> None:
        async for text in connection:
            what, _, seconds = str(text).partition(" ")
            times, end = [], None
            measured = kinds[what]()
            await anext(measured)  # it has connected, and done everything once
            end = time.perf_counter() + float(seconds)
            while time.perf_counter() < end:
                times.append(await anext(measured))
            await measured.aclose()  # type: ignore[attr-defined]
            await connection.send(json.dumps(times))

    async with serve(answer, "127.0.0.1", int(os.environ["BENCH_PORT"]), ping_interval=None):
        await asyncio.Future()
