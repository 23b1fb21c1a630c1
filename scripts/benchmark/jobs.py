"""What the load generator can be asked to do; times in seconds."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from .client import TIMEOUT, Client, UnexpectedError, close, connect, connect_all, together
from .figures import percentile

__all__ = ["Jobs", "known"]

_PARALLEL = 16
_PATIENCE = 60.0


def _payload(size: int) -> bytes:
    return (b"wsrelay measures " * (size // 17 + 1))[:size]


def _spread(samples: Sequence[float]) -> dict[str, float]:
    return {"p50": percentile(samples, 50), "p99": percentile(samples, 99)}


class _Until:
    """A job's end: in order, or because a connection was closed under it."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._end = asyncio.Future[None]()
        for client in clients:
            client.on_end = self._broken

    def _broken(self, client: Client) -> None:
        if not self._end.done():
            why = f"a connection was closed with {client.close_code} in the middle"
            self._end.set_exception(UnexpectedError(why))

    def reached(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    async def wait(self) -> None:
        async with asyncio.timeout(_PATIENCE):
            await self._end


class Jobs:
    """What is done with the connections that are open, by the URL that they lead to."""

    def __init__(self) -> None:
        self._clients: dict[str, list[Client]] = {}

    async def open(self, url: str, count: int, warm: int = 0) -> dict[str, float]:
        """Open connections until there are so many; `warm` is the size of a message to echo."""
        clients = self._clients.setdefault(url, [])
        start = time.perf_counter()
        fresh = await connect_all(url, count - len(clients), _PARALLEL)
        clients += fresh
        seconds = time.perf_counter() - start
        if warm:
            payload = _payload(warm)
            for client in fresh:
                if await client.ask(payload) != payload:
                    raise UnexpectedError("the echo is not what was sent")
        return {"seconds": seconds}

    async def close(self, url: str) -> dict[str, float]:
        """Close what was opened."""
        clients = self._clients.pop(url, [])
        for client in clients:
            client.on_text = client.on_end = lambda _: None
        await together([close(client) for client in clients])
        return {}

    async def echo(self, url: str, seconds: float, size: int) -> dict[str, float]:
        """Keep one message in flight on each connection."""
        payload, clients = _payload(size), self._clients[url]
        times, now = array("d"), time.perf_counter
        until, left = _Until(clients), len(clients)
        start = now()
        end = start + seconds

        def answered(client: Client) -> None:
            nonlocal left
            moment = now()
            times.append(moment - client.sent_at)
            if moment < end:
                client.sent_at = moment
                client.send(payload)
            else:
                left -= 1
                if not left:
                    until.reached()

        for client in clients:
            client.on_text, client.sent_at = answered, now()
            client.send(payload)
        await until.wait()
        return {"count": len(times), "seconds": now() - start, **_spread(times)}

    async def fanout(self, url: str, seconds: float, size: int) -> dict[str, float]:
        """Let one client speak; once all have heard it, let it speak again."""
        payload, clients = _payload(size), self._clients[url]
        times, now = array("d"), time.perf_counter
        until, left = _Until(clients), len(clients)
        sent = start = now()
        end = start + seconds

        def heard(_client: Client) -> None:
            nonlocal left, sent
            left -= 1
            if left:
                return
            moment = now()
            times.append(moment - sent)
            if moment < end:
                sent, left = moment, len(clients)
                clients[0].send(payload)
            else:
                until.reached()

        for client in clients:
            client.on_text = heard
        clients[0].send(payload)
        await until.wait()
        count = len(times) * len(clients)
        return {"count": count, "seconds": now() - start, **_spread(times)}

    async def connects(
        self, url: str, seconds: float, parallel: int, pause: float = 0.0
    ) -> dict[str, float]:
        """Connect, say something, hear it, leave, pause; so many at a time."""
        times, now, payload = array("d"), time.perf_counter, _payload(64)
        start = now()

        async def one_after_the_other() -> None:
            while now() - start < seconds:
                begin = now()
                client = await connect(url)
                await client.ask(payload)
                times.append(now() - begin)
                await close(client)
                await asyncio.sleep(pause)

        await together([one_after_the_other() for _ in range(parallel)])
        return {"count": len(times), "seconds": now() - start, **_spread(times)}

    async def kill(
        self, url: str, count: int, root: int, rate: float, *, flood: bool = False
    ) -> dict[str, float]:
        """Kill the process of one connection after the other, while the open ones keep busy.

        Each of them sends `rate` messages a second, or with `flood` the next one as soon as it has
        the answer. Only descendants of the process `root` are killed.
        """
        answers = _busy(self._clients.get(url, []), rate, flood=flood)
        start = time.perf_counter()
        times, codes = array("d"), set()
        try:
            for _ in range(count):
                victim = await connect(url)
                pid = int(await victim.ask(b"pid"))
                if root not in (parent.pid for parent in psutil.Process(pid).parents()):
                    raise UnexpectedError(f"process {pid} is none of the server's")
                await asyncio.sleep(random.uniform(0.02, 0.04))  # noqa: S311
                until = _Ended(victim)
                begin = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                await until.wait()
                times.append(victim.closed_at - begin)
                codes.add(victim.close_code)
                await close(victim)
        finally:
            answered = answers()
        rest = time.perf_counter() - start
        return {"count": count, "code": max(codes), "rate": answered / rest, **_spread(times)}

    async def light(self, url: str, seconds: float, burners: int, burst: float) -> dict[str, float]:
        """Ask one room at leisure, first alone, then while others compute without a pause."""
        light = await connect(url)
        others: list[Client] = []
        try:
            idle = await _leisurely(light, seconds)
            others = await connect_all(url, burners, burners)
            order = f"burn {burst}".encode()
            for other in others:
                other.on_text = lambda client: client.send(order)
                other.send(order)
            busy = await _leisurely(light, seconds)
        finally:
            for other in others:
                other.on_text = lambda _: None
            await together([close(client) for client in (light, *others)])
        named = {f"idle_{name}": value for name, value in _spread(idle).items()}
        return {"count": len(busy), **named, **_spread(busy)}


class _Ended:
    """The moment in which a connection ends."""

    def __init__(self, client: Client) -> None:
        self._event = asyncio.Event()
        client.on_end = lambda _: self._event.set()

    async def wait(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self._event.wait()


async def _leisurely(client: Client, seconds: float) -> array[float]:
    times, now, payload = array("d"), time.perf_counter, _payload(64)
    end = now() + seconds
    while now() < end:
        begin = now()
        await client.ask(payload)
        times.append(now() - begin)
        await asyncio.sleep(0.004)
    return times


def _busy(clients: Sequence[Client], rate: float, *, flood: bool) -> Callable[[], int]:
    """Keep connections busy; the function returned ends this and says how many answers came."""
    loop, payload = asyncio.get_running_loop(), _payload(64)
    answered, running = 0, True

    def count(client: Client) -> None:
        nonlocal answered
        answered += 1
        if flood and running:
            client.send(payload)

    def tick(client: Client) -> None:
        if running and not client.close_code:
            client.send(payload)
            if not flood:
                loop.call_later(1 / rate, tick, client)

    def stop() -> int:
        nonlocal running
        running = False
        return answered

    for client in clients:
        client.on_text = count
        loop.call_later(random.uniform(0, 1 / rate), tick, client)  # noqa: S311
    return stop


def known(jobs: Jobs) -> dict[str, Any]:
    """Return the jobs by name."""
    names = ("open", "close", "echo", "fanout", "connects", "kill", "light")
    return {name: getattr(jobs, name) for name in names}
