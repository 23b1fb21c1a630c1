"""What is measured (workloads.toml), and how. Figures are in seconds and bytes."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil
from msgspec import Struct, field

from .load import Load
from .server import Server

__all__ = ["WORKLOADS", "Case", "Pace", "Workload"]

_WARM_UP = 0.2


class Pace(Struct, frozen=True, kw_only=True):
    """How thoroughly it is measured."""

    repeats: int = 5
    seconds: float = 3.0
    kills: int = 50
    idle: int = 2000
    workers: int = 50
    hurried: bool = False
    budget: float | None = None
    """Seconds after which nothing is repeated; until then each case has its share of them."""


class Case(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of a workload's cases; workloads.toml tells what the fields mean, here and below."""

    connections: int = 0
    size: int = 64
    rate: float = 0.0
    flood: bool = False
    parallel: int = 1
    pause: float = 0.0
    slow: bool = False


class Workload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of work."""

    title: str
    measure: str
    peers: list[str]
    cases: dict[str, Case] = field(default_factory=lambda: {"": Case()})
    unit: str = ""
    mode: Literal["echo", "service", "room", "warm"] = "echo"
    fresh: bool = False
    warm_up: bool = False

    def processes(self, case: Case) -> int:
        """Return how many processes of a peer are busy at once."""
        return 1 if self.mode == "room" else case.connections

    def prepare(self, load: Load, server: Server, case: Case) -> None:
        """Open what stays open through all repetitions, and warm it up."""
        if case.connections:
            size = 0 if self.mode == "room" else case.size
            load.ask("open", url=server.url, count=case.connections, size=size)
            server.settle()
        if self.warm_up:
            self.run(load, server, case, Pace(seconds=_WARM_UP))
            server.settle()

    def run(self, load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
        """Measure once; returns figures by name, or raises `MeasureError`."""
        return _MEASURES[self.measure](load, server, case, pace)


def _echo(
    load: Load, server: Server, case: Case, pace: Pace, *, job: str = "echo"
) -> dict[str, float]:
    """Have a job done; give its rate, and the CPU time of each piece of work that it counts."""
    before = server.usage()
    answer = load.ask(job, url=server.url, seconds=pace.seconds, size=case.size)
    used = server.usage().since(before)
    count = answer.pop("count")
    rate = count / answer.pop("seconds")
    return {"rate": rate, **answer, **{name: value / count for name, value in used.items()}}


def _fanout(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    return _echo(load, server, case, pace, job="fanout")


def _megabytes(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    figures = _echo(load, server, case, pace)
    return {**figures, "rate": figures["rate"] * case.size / 1e6}


def _connects(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    options = {"parallel": case.parallel, "pause": case.pause}
    figures = load.ask("connects", url=server.url, seconds=pace.seconds, **options)
    server.rest()
    return figures


def _first(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    figures = _connects(load, server, case, pace)
    del figures["rate"]  # it tells how long the pauses are
    return figures


def _memory(pids: Iterable[int]) -> dict[str, int]:
    """Return the bytes of some processes: with their share of shared pages (PSS), and without."""
    pss = uss = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            info = psutil.Process(pid).memory_full_info()
            pss, uss = pss + info.pss, uss + info.uss
    return {"pss": pss, "uss": uss}


def _worker_memory(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    few = pace.workers // 5
    load.ask("open", url=server.url, count=few, size=case.size)
    before = _memory(server.workers)
    load.ask("open", url=server.url, count=pace.workers, size=case.size)
    after = _memory(server.workers)
    return {kind: (after[kind] - before[kind]) / (pace.workers - few) for kind in after}


def _idle_memory(load: Load, server: Server, _case: Case, pace: Pace) -> dict[str, float]:
    few = pace.idle // 10
    load.ask("open", url=server.url, count=few)
    server.settle()
    before = _memory([server.front])
    load.ask("open", url=server.url, count=pace.idle)
    server.settle()
    return {"uss": (_memory([server.front])["uss"] - before["uss"]) / (pace.idle - few)}


def _kill(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    options = {"rate": case.rate, "flood": case.flood}
    return load.ask("kill", url=server.url, count=pace.kills, root=server.front, **options)


def _light(load: Load, server: Server, _case: Case, pace: Pace) -> dict[str, float]:
    figures = load.ask("light", url=server.url, seconds=pace.seconds, burners=4, burst=0.05)
    server.rest()
    return figures


_MEASURES: Final = {
    "echo": _echo,
    "fanout": _fanout,
    "megabytes": _megabytes,
    "connects": _connects,
    "first": _first,
    "worker_memory": _worker_memory,
    "idle_memory": _idle_memory,
    "kill": _kill,
    "light": _light,
}

WORKLOADS: Final = msgspec.convert(
    tomllib.loads(Path(__file__).with_name("workloads.toml").read_text()), dict[str, Workload]
)
