"""The load: the connections to one server, and what is measured with them, in seconds and bytes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import time
from array import array
from collections.abc import Callable, Iterator, Sequence

import psutil

from .client import Client, connect, together
from .results import percentile
from .server import MeasureError, Server, memory
from .workloads import Case, Pace, Workload

__all__ = ["Load"]

_PARALLEL = 16
_WARM_UP = 0.2
_BURNERS = 4
_IDLE = 3.0
_BURN = b"burn 0.05"

_Figures = dict[str, float]


class Load:
    """Puts the load of a workload on one server.

    The methods that `Workload.measure` names measure once and return figures by name. All methods
    raise `MeasureError`, also within an `ExceptionGroup`, when the server does not do what it
    should, and they pass on the errors of the connections.
    """

    def __init__(self, server: Server, workload: Workload) -> None:
        self.server = server
        self._workload = workload
        self._room = workload.has_one_room
        self._clients: list[Client] = []

    async def measure(self, case: Case, pace: Pace) -> _Figures:
        """Measure once."""
        measure = "timed" if self.server.times_itself else self._workload.measure
        figures: _Figures = await getattr(self, measure)(case, pace)
        return figures

    async def prepare(self, case: Case) -> None:
        """Open what stays open through all repetitions, and warm it up."""
        if case.connections and not self.server.times_itself:
            await self._open(case.connections, case)
            await self.server.settle()
        if self._workload.warm_up:
            await self.measure(case, Pace(seconds=_WARM_UP))
            await self.server.settle()

    async def close(self) -> None:
        """Close what was opened."""
        clients, self._clients = self._clients, []
        await together(client.close() for client in clients)

    async def _open(self, count: int, case: Case) -> None:
        """Open connections until there are so many; outside rooms each of them echoes once."""
        payload = case.payload

        async def add() -> None:
            client = await connect(self.server.url)
            self._clients.append(client)
            if not self._room and await client.ask(payload) != payload and not case.text:
                raise MeasureError("the echo is not what was sent")

        while (missing := count - len(self._clients)) > 0:
            await together(add() for _ in range(min(missing, _PARALLEL)))

    async def echo(self, case: Case, pace: Pace) -> _Figures:
        """Keep a message in flight on each connection, or in a room one that all of them hear.

        The CPU time is that of each message, or of each delivery.
        """
        groups = [self._clients] if self._room else [[client] for client in self._clients]
        before = self.server.clocks()
        carried = self.server.carried()
        with _gauge() as gauge:
            times, seconds = await _rounds(groups, pace.seconds, case.payload)
        used = self.server.used(before)
        if carried is not None:
            gauge["carried"] = ((self.server.carried() or 0) - carried) / len(times)
        count = len(times) * len(groups[0])
        rate = count / seconds * (case.size / 1e6 if self._workload.unit == "MB/s" else 1)
        cpu = {name: value / count for name, value in used.items()}
        return {"rate": rate, **_percentiles(times), **cpu, **gauge}

    async def connect(self, case: Case, pace: Pace) -> _Figures:
        """Connect, send a text, get it back, leave and pause, several at a time."""
        times, now, payload = array("d"), time.perf_counter, case.payload

        async def one_after_the_other() -> None:
            while now() - start < pace.seconds:
                begin = now()
                client = await connect(self.server.url)
                await client.ask(payload)
                times.append(now() - begin)
                await client.close()
                await asyncio.sleep(case.pause)

        with _gauge() as gauge:
            start = now()
            await together(one_after_the_other() for _ in range(case.parallel))
        # With pauses, the rate would only say how long they are.
        rate = {} if case.pause else {"rate": len(times) / (now() - start)}
        return {**rate, **_percentiles(times), **gauge}

    async def memory(self, case: Case, pace: Pace) -> _Figures:
        """Measure the workers' memory, or in a room the front end's, for each further connection.

        Of the front end, only the memory that it shares with no other process is reported.
        """
        count, kinds = (pace.idle, ["uss"]) if self._room else (pace.workers, ["pss", "uss"])
        readings = []
        for opened in (count // 5, count):
            await self._open(opened, case)
            await self.server.settle()
            readings.append(memory([self.server.front] if self._room else self.server.workers))
        few, many = readings
        return {kind: (many[kind] - few[kind]) / (count - count // 5) for kind in kinds}

    async def kill(self, case: Case, pace: Pace) -> _Figures:
        """Kill the process of one connection after the other, while the open ones keep busy.

        Only descendants of the server's front end are killed.
        """
        times, code = array("d"), 0
        with _gauge() as gauge, _busy(self._clients, case) as answered:
            start = time.perf_counter()
            for _ in range(pace.kills):
                victim = await connect(self.server.url)
                process = psutil.Process(int(await victim.ask(b"pid")))
                if self.server.front not in process.parents():
                    raise MeasureError(f"process {process.pid} is none of the server's")
                await asyncio.sleep(random.uniform(0.02, 0.04))  # noqa: S311
                begin = time.perf_counter()
                os.kill(process.pid, signal.SIGKILL)
                await victim.transport.wait_disconnected()
                times.append(victim.closed_at - begin)
                code = max(code, victim.close_code)
            rate = answered() / (time.perf_counter() - start)
        return {"code": code, "busy_rate": rate, **_percentiles(times), **gauge}

    async def timed(self, _: Case, pace: Pace) -> _Figures:
        """Have the server take the times of what the workload's mode says, one after the other."""
        client = await connect(self.server.url)
        what = self._workload.mode.removeprefix("far-")
        times = json.loads(await client.ask(f"{what} {pace.seconds}".encode()))
        await client.close()
        return _percentiles(times)

    async def gone(self, _: Case, __: Pace) -> _Figures:
        """Kill the node of a process, and wait until another node tells who monitors it."""
        client = await connect(self.server.url)
        await client.ask(b"watch")
        told = asyncio.create_task(client.ask(b"exit"))
        # At any moment between two renewals of its lease.
        await asyncio.sleep(random.uniform(1.0, 2.0))  # noqa: S311
        far = self.server.programs[-2]
        begin = time.perf_counter()
        far.kill()
        await told
        took = time.perf_counter() - begin
        await client.close()
        return {"p50": took, "p99": took}

    async def idle(self, _: Case, pace: Pace) -> _Figures:
        """Measure a node without clients: its CPU in each second, its memory, what NATS carries."""
        await asyncio.sleep(_IDLE)  # whatever a start has left to do
        carried, before, begin = self.server.carried(), self.server.clocks(), time.perf_counter()
        await asyncio.sleep(max(_IDLE, pace.seconds))
        seconds = time.perf_counter() - begin
        used = {name: value / seconds for name, value in self.server.used(before).items()}
        figures = {**used, "uss": float(memory([self.server.front])["uss"])}
        if carried is not None:
            figures["carried"] = ((self.server.carried() or 0) - carried) / seconds
        return figures

    async def light(self, case: Case, pace: Pace) -> _Figures:
        """Ask one room at leisure, first alone, then while others compute without a pause."""
        try:
            with _gauge() as gauge:
                await self._open(1, case)
                alone = await _leisurely(self._clients[0], pace.seconds)
                await self._open(1 + _BURNERS, case)
                for other in self._clients[1:]:
                    _repeat(other, _BURN)
                beside = await _leisurely(self._clients[0], pace.seconds)
        finally:
            await self.close()
        return {**_percentiles(alone, "idle_"), **_percentiles(beside), **gauge}


def _percentiles(times: Sequence[float], prefix: str = "") -> _Figures:
    return {f"{prefix}p{percent}": percentile(times, percent) for percent in (50, 99)}


@contextlib.contextmanager
def _gauge() -> Iterator[_Figures]:
    """Report the part of a core that the generator used as `load`; garbage collection is off."""
    figures: _Figures = {}
    gc.collect()
    gc.disable()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield figures
        figures["load"] = (time.process_time() - cpu) / (time.perf_counter() - wall)
    finally:
        gc.enable()


async def _rounds(
    groups: Sequence[Sequence[Client]], seconds: float, payload: bytes
) -> tuple[Sequence[float], float]:
    """Let the first of each group speak, and again as soon as the whole group has heard it.

    Returns the time of each round, and of all of them.
    """
    times, now = array("d"), time.perf_counter
    done, left = asyncio.Future[None](), len(groups)
    start = now()
    end = start + seconds

    def begin(group: Sequence[Client]) -> None:
        speaker, others, waiting, sent = group[0], len(group) - 1, len(group) - 1, now()

        def heard(_frame: object) -> None:
            nonlocal left, waiting, sent
            if waiting:
                waiting -= 1
                return
            moment = now()
            times.append(moment - sent)
            if moment < end:
                waiting, sent = others, moment
                speaker.send(payload)
                return
            left -= 1
            if not left and not done.done():
                done.set_result(None)

        for client in group:
            client.on_text = heard
            client.fail_at_end(done)
        speaker.send(payload)

    for group in groups:
        begin(group)
    await done
    return times, now() - start


async def _leisurely(client: Client, seconds: float) -> Sequence[float]:
    times, now, payload = array("d"), time.perf_counter, Case().payload
    end = now() + seconds
    while now() < end:
        begin = now()
        await client.ask(payload)
        times.append(now() - begin)
        await asyncio.sleep(0.004)
    return times


def _repeat(client: Client, text: bytes) -> None:
    """Send a text, and again after each answer."""
    client.on_text = lambda _frame: client.send(text)
    client.send(text)


@contextlib.contextmanager
def _busy(clients: Sequence[Client], case: Case) -> Iterator[Callable[[], int]]:
    """Keep connections busy meanwhile; yields a function that counts the answers so far.

    Each sends `rate` messages a second, or with `flood` the next one after each answer.
    """
    loop, payload = asyncio.get_running_loop(), case.payload
    answered, running = 0, True

    def begin(client: Client) -> None:
        def count(_frame: object) -> None:
            nonlocal answered
            answered += 1
            if case.flood and running:
                client.send(payload)

        def tick() -> None:
            if running and not client.close_code:
                client.send(payload)
                if not case.flood:
                    loop.call_later(1 / case.rate, tick)

        client.on_text = count
        loop.call_later(random.uniform(0, 1 / case.rate), tick)  # noqa: S311

    for client in clients:
        begin(client)
    try:
        yield lambda: answered
    finally:
        running = False
