"""What is measured, how, and of whom. Figures are in seconds and bytes."""

from __future__ import annotations

import resource
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final

from msgspec import Struct

from .generator import Generator
from .processes import memory
from .servers import Server

__all__ = ["WORKS", "Pace", "Work", "raise_descriptor_limit"]

_TEXT = 64
_WARM_UP = 0.2
_BURNERS = 4
_BURST = 0.05
_CONNECTING = 8
_LEISURE = 0.02
_VICTIMS_AND_SPARE = 300


class Pace(Struct, frozen=True, kw_only=True):
    """How thoroughly it is measured."""

    repeats: int = 5
    seconds: float = 3.0
    kills: int = 50
    idle: int = 2000
    workers: int = 50
    hurried: bool = False
    budget: float | None = None
    """Seconds after which nothing is repeated; before, each case has its share of them."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, for all processes of the bench."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Work(ABC):
    """One thing to do. A case is prepared for each peer, measured in turns, and cleared."""

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = ""
    mode: ClassVar[str] = "echo"
    peers: ClassVar[Sequence[str]]
    cases: ClassVar[Sequence[str]] = ("",)
    slow: ClassVar[Sequence[str]] = ()
    """Those that a hurried run leaves out, unless it is asked for one alone."""
    fresh: ClassVar[bool] = False
    """Whether every measure needs a server that has done nothing before."""

    def descriptors(self, case: str) -> int:
        """Return how many connections of one peer are open at once."""
        del case
        return _VICTIMS_AND_SPARE

    def crowd(self, case: str) -> int:
        """Return how many processes are busy at once."""
        del case
        return 1

    def prepare(self, load: Generator, server: Server, case: str) -> None:
        """Open what stays open through all repetitions; here nothing."""
        del load, server, case

    @abstractmethod
    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        """Return figures by name."""


def _per_piece(load: Generator, server: Server, do: str, **options: float) -> dict[str, float]:
    """Have a job done; give its rate and the CPU time for each of the things that it counts."""
    before = server.usage()
    answer = load.ask(do, url=server.url, **options)
    after = server.usage()
    front, workers = after.since(before)
    front_system, worker_system = after.system_since(before)
    count = answer.pop("count")
    cpu = {
        "front_cpu": front / count,
        "worker_cpu": workers / count,
        "front_system": front_system / count,
        "worker_system": worker_system / count,
    }
    return {"rate": count / answer.pop("seconds"), **answer, **cpu}


class _Echo(Work):
    name = "echo"
    title = "echo of 64 bytes, one message in flight on each connection"
    unit = "msg/s"
    peers = ("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "websocketd", "bridge")
    cases = ("1", "32", "256")

    def crowd(self, case: str) -> int:
        return int(case)

    def prepare(self, load: Generator, server: Server, case: str) -> None:
        load.ask("open", url=server.url, count=int(case), warm=_TEXT)
        load.ask("echo", url=server.url, seconds=_WARM_UP, size=_TEXT)
        server.settle()

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        del case
        return _per_piece(load, server, "echo", seconds=pace.seconds, size=_TEXT)


class _Fanout(Work):
    name = "fanout"
    title = "one message of 64 bytes to so many clients; p50, p99: until the last has it"
    unit = "deliveries/s"
    mode = "room"
    peers = ("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "bridge", "channels", "cowboy")
    cases = ("10", "100", "500", "2000")
    slow = ("2000",)

    def descriptors(self, case: str) -> int:
        return int(case)

    def prepare(self, load: Generator, server: Server, case: str) -> None:
        load.ask("open", url=server.url, count=int(case))
        server.settle()
        load.ask("fanout", url=server.url, seconds=0, size=_TEXT)

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        del case
        return _per_piece(load, server, "fanout", seconds=pace.seconds, size=_TEXT)


class _Connect(Work):
    name = "connect"
    title = "connect with a fresh process each, 8 at a time; p50, p99: until the first echo"
    unit = "connects/s"
    peers = ("wsrelay", "websocketd", "bridge")

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        del case
        options = {"seconds": pace.seconds, "parallel": _CONNECTING}
        answer = load.ask("connects", url=server.url, **options)
        server.rest()
        return {"rate": answer.pop("count") / answer.pop("seconds"), **answer}


class _First(Work):
    name = "first"
    title = "connect at leisure with a fresh process each; p50, p99: until the first echo"
    peers: ClassVar[Sequence[str]] = ("wsrelay", "websocketd", "bridge")

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        del case
        options = {"seconds": pace.seconds, "parallel": 1, "pause": _LEISURE}
        answer = load.ask("connects", url=server.url, **options)
        server.rest()
        del answer["count"], answer["seconds"]
        return answer


class _FirstWarm(_First):
    name = "first-warm"
    title = "the same where processes were forked ahead (`--warm 4`)"
    mode = "warm"
    peers = ("wsrelay",)


class _WorkerMemory(Work):
    name = "worker-memory"
    title = "memory of one more worker"
    peers = ("wsrelay", "websocketd", "bridge")
    fresh = True

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        del case
        few = pace.workers // 5
        load.ask("open", url=server.url, count=few, warm=_TEXT)
        before = memory(server.workers)
        answer = load.ask("open", url=server.url, count=pace.workers, warm=_TEXT)
        after, more = memory(server.workers), pace.workers - few
        pss, uss = (after.pss - before.pss) / more, (after.uss - before.uss) / more
        return {"pss": pss, "uss": uss, "load": answer["load"]}


class _IdleMemory(Work):
    name = "idle-memory"
    title = "memory of the front end for one more idle connection"
    mode = "room"
    peers = ("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "bridge", "channels", "cowboy")
    fresh = True

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        del case
        few = pace.idle // 10
        load.ask("open", url=server.url, count=few)
        server.settle()
        before = memory([server.front])
        answer = load.ask("open", url=server.url, count=pace.idle)
        server.settle()
        after = memory([server.front])
        return {"uss": (after.uss - before.uss) / (pace.idle - few), "load": answer["load"]}


class _Kill(Work):
    name = "kill"
    title = "SIGKILL of a worker until its client has the close frame, or the end of the connection"
    mode = "service"
    peers = ("wsrelay", "websocketd", "bridge")
    rates: ClassVar[dict[str, float]] = {"idle": 0, "200 x 20/s": 20, "200 flooding": 20}
    cases = tuple(rates)

    def crowd(self, case: str) -> int:
        return 200 if self.rates[case] else 1

    def prepare(self, load: Generator, server: Server, case: str) -> None:
        if self.rates[case]:
            load.ask("open", url=server.url, count=200, warm=_TEXT)
            server.settle()

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        options = {"count": pace.kills, "root": server.front, "rate": self.rates[case]}
        flood = case.endswith("flooding")
        answer = load.ask("kill", url=server.url, flood=flood, **options)
        del answer["count"]
        busy_rate = answer.pop("rate")
        return {**answer, "busy_rate": busy_rate}


class _Light(Work):
    name = "light"
    title = "echo of a light room beside 4 rooms that compute without a pause"
    mode = "service"
    peers = ("wsrelay", "uvicorn-wsproto", "websocketd")

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        del case
        options = {"seconds": pace.seconds, "burners": _BURNERS, "burst": _BURST}
        answer = load.ask("light", url=server.url, **options)
        server.rest()
        del answer["count"]
        return answer


class _Size(Work):
    name = "size"
    title = "echo of larger messages, one in flight on each of 4 connections"
    unit = "MB/s"
    peers = ("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "websocketd")
    sizes: ClassVar[dict[str, int]] = {
        "16 B": 16,
        "1 KiB": 1 << 10,
        "16 KiB": 1 << 14,
        "256 KiB": 1 << 18,
        "1 MiB": 1 << 20,
        "4 MiB": 1 << 22,
    }
    cases = tuple(sizes)

    def prepare(self, load: Generator, server: Server, case: str) -> None:
        load.ask("open", url=server.url, count=4, warm=self.sizes[case])

    def measure(self, load: Generator, server: Server, case: str, pace: Pace) -> dict[str, float]:
        size = self.sizes[case]
        figures = _per_piece(load, server, "echo", seconds=pace.seconds, size=size)
        return {**figures, "rate": figures["rate"] * size / 1e6}


WORKS: Final[dict[str, Work]] = {
    work.name: work
    for work in (
        *(_Echo(), _Fanout(), _Connect(), _First(), _FirstWarm(), _WorkerMemory()),
        *(_IdleMemory(), _Kill(), _Light(), _Size()),
    )
}
