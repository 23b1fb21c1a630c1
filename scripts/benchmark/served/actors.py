"""Ray: calls of an actor, and the creation of one until it answers its first call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import ray

from .timing import serve_times


class Answering:
    """One actor."""

    def answer(self, value: str) -> str:
        """Return it."""
        return value


Actor: Any = ray.remote(num_cpus=0)(Answering)


def _ready() -> None:
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)


async def _calls() -> AsyncIterator[float]:
    _ready()
    actor = Actor.remote()
    while True:
        begin = time.perf_counter()
        ray.get(actor.answer.remote("x" * 64))
        yield time.perf_counter() - begin
        await asyncio.sleep(0)


async def _starts() -> AsyncIterator[float]:
    _ready()
    while True:
        begin = time.perf_counter()
        actor = Actor.remote()
        ray.get(actor.answer.remote(""))
        yield time.perf_counter() - begin
        ray.kill(actor)


if __name__ == "__main__":
    asyncio.run(serve_times({"call": _calls, "start": _starts}))
