"""The load generator, a process of its own, and the bench's end of it; times in seconds.

`python -m benchmark.load DESCRIPTOR` takes orders over a socket, a JSON object a line, such as
`{"job": "echo", ...}`. So does it answer: with figures, among them which part of its core it used.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Self

import psutil
import uvloop

from .client import Client, UnexpectedError, connect, connect_all, together
from .results import percentile
from .server import MeasureError

__all__ = ["Load"]

_ANSWER = 180.0
_END_OF_JOB = 60.0
_PARALLEL = 16
_TEXT = 64


class Load:
    """The bench's end of a load generator; a broken one is replaced at the next order."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def ask(self, job: str, **options: Any) -> dict[str, float]:
        """Have a job done and return its figures; raises `MeasureError`."""
        if self._process is None:
            self._start()
        try:
            self._socket.sendall(json.dumps({"job": job, **options}).encode() + b"\n")
            line = self._answers.readline()
        except OSError:
            line = ""
        if not line:
            self._stop()
            raise MeasureError("the load generator stopped answering")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise MeasureError(str(answer["error"]))
        return answer

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_ANSWER)
        self._answers = self._socket.makefile(encoding="utf-8")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmark.load", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def _stop(self) -> None:
        """End the process; its connections go with it."""
        if self._process is not None:
            self._answers.close()
            self._socket.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def _payload(size: int) -> bytes:
    return (b"wsrelay measures " * (size // 17 + 1))[:size]


def _times(samples: Sequence[float], prefix: str = "") -> dict[str, float]:
    return {f"{prefix}p50": percentile(samples, 50), f"{prefix}p99": percentile(samples, 99)}


class _Jobs:
    """What the generator can be asked to do, with the connections that it has open by URL."""

    def __init__(self) -> None:
        self._clients: dict[str, list[Client]] = {}

    async def open(self, url: str, count: int, size: int = 0) -> dict[str, float]:
        """Open connections until there are so many; each echoes a message of `size` first."""
        clients = self._clients.setdefault(url, [])
        before = len(clients)
        await connect_all(url, count - before, _PARALLEL, clients)
        payload = _payload(size)
        for client in clients[before:] if size else ():
            if await client.ask(payload) != payload:
                raise UnexpectedError("the echo is not what was sent")
        return {}

    async def close(self, url: str) -> dict[str, float]:
        """Close what was opened."""
        await together(client.close() for client in self._clients.pop(url, []))
        return {}

    async def echo(self, url: str, seconds: float, size: int) -> dict[str, float]:
        """Keep one message in flight on each connection."""
        return await _rounds([[client] for client in self._clients[url]], seconds, size)

    async def fanout(self, url: str, seconds: float, size: int) -> dict[str, float]:
        """Let one client speak; once all have heard it, let it speak again."""
        return await _rounds([self._clients[url]], seconds, size)

    async def connects(
        self, url: str, seconds: float, parallel: int, pause: float
    ) -> dict[str, float]:
        """Connect, say something, hear it, leave, pause; so many at a time."""
        times, now, payload = array("d"), time.perf_counter, _payload(_TEXT)
        start = now()

        async def one_after_the_other() -> None:
            while now() - start < seconds:
                begin = now()
                client = await connect(url)
                await client.ask(payload)
                times.append(now() - begin)
                await client.close()
                await asyncio.sleep(pause)

        await together(one_after_the_other() for _ in range(parallel))
        return {"rate": len(times) / (now() - start), **_times(times)}

    async def kill(
        self, url: str, count: int, root: int, rate: float, *, flood: bool
    ) -> dict[str, float]:
        """Kill the process of one connection after the other, while the open ones keep busy.

        Each of them sends `rate` messages a second, or with `flood` the next one as soon as it has
        the answer. Only descendants of the process `root` are killed.
        """
        stop = _keep_busy(self._clients.get(url, []), rate, flood=flood)
        start = time.perf_counter()
        times, codes = array("d"), set()
        try:
            for _ in range(count):
                victim = await connect(url)
                pid = int(await victim.ask(b"pid"))
                if root not in (parent.pid for parent in psutil.Process(pid).parents()):
                    raise UnexpectedError(f"process {pid} is none of the server's")
                await asyncio.sleep(random.uniform(0.02, 0.04))  # noqa: S311
                begin = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                await victim.ended()
                times.append(victim.closed_at - begin)
                codes.add(victim.close_code)
                await victim.close()
        finally:
            answered = stop()
        busy_rate = answered / (time.perf_counter() - start)
        return {"code": max(codes), "busy_rate": busy_rate, **_times(times)}

    async def light(self, url: str, seconds: float, burners: int, burst: float) -> dict[str, float]:
        """Ask one room at leisure, first alone, then while others compute without a pause."""
        light, order = await connect(url), f"burn {burst}".encode()
        others: list[Client] = []
        try:
            alone = await _leisurely(light, seconds)
            await connect_all(url, burners, burners, others)
            for other in others:
                other.on_text = lambda client, _: client.send(order)
                other.send(order)
            beside = await _leisurely(light, seconds)
        finally:
            await together(client.close() for client in (light, *others))
        return {**_times(alone, "idle_"), **_times(beside)}


async def _rounds(
    groups: Sequence[Sequence[Client]], seconds: float, size: int
) -> dict[str, float]:
    """Let the first of each group speak, and again as soon as the whole group has heard it."""
    payload, times, now = _payload(size), array("d"), time.perf_counter
    done, left = asyncio.Future[None](), len(groups)
    start = now()
    end = start + seconds

    def broken(client: Client) -> None:
        if not done.done():
            done.set_exception(client.closed())

    def begin(group: Sequence[Client]) -> None:
        speaker, others, waiting, sent = group[0], len(group) - 1, len(group) - 1, now()

        def heard(_client: Client, _frame: Any) -> None:
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
            client.on_text, client.on_end = heard, broken
        speaker.send(payload)

    for group in groups:
        begin(group)
    await asyncio.wait_for(done, _END_OF_JOB)
    count = len(times) * len(groups[0])
    return {"count": count, "seconds": now() - start, **_times(times)}


async def _leisurely(client: Client, seconds: float) -> array[float]:
    times, now, payload = array("d"), time.perf_counter, _payload(_TEXT)
    end = now() + seconds
    while now() < end:
        begin = now()
        await client.ask(payload)
        times.append(now() - begin)
        await asyncio.sleep(0.004)
    return times


def _keep_busy(clients: Sequence[Client], rate: float, *, flood: bool) -> Callable[[], int]:
    """Keep connections busy; the function returned ends this and says how many answers came."""
    loop, payload = asyncio.get_running_loop(), _payload(_TEXT)
    answered, running = 0, True

    def count(client: Client, _frame: Any) -> None:
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


async def _serve(sock: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=sock)
    jobs = _Jobs()
    while line := await reader.readline():
        order = json.loads(line)
        gc.collect()
        gc.disable()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            answer = await getattr(jobs, order.pop("job"))(**order)
        except TimeoutError:
            answer = {"error": "the server did not answer in time"}
        except Exception as error:  # noqa: BLE001 (whatever it was, the bench shall know)
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["load"] = (time.process_time() - cpu) / (time.perf_counter() - wall)
        gc.enable()
        writer.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    # picows logs when large messages have to wait.
    logging.getLogger("picows").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(socket.socket(fileno=int(sys.argv[1]))))
