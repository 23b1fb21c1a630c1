"""What is measured, how, in which cases, and of whom. Figures are in seconds and bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import psutil
from msgspec import Struct, field

from .load import Load
from .server import Server

__all__ = ["WORKLOADS", "Case", "Pace", "Workload"]

_WARM_UP = 0.2
_BURNERS = 4
_BURST = 0.05


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


class Case(Struct, frozen=True, kw_only=True):
    """One of a workload's cases."""

    connections: int = 0
    """Opened before the first measure, and kept through all repetitions."""
    size: int = 64
    """Of a message, in bytes."""
    rate: float = 0.0
    """Messages a second of each connection."""
    flood: bool = False
    """The next message follows each answer at once, whatever the rate."""
    parallel: int = 1
    pause: float = 0.0
    slow: bool = False
    """A hurried run leaves it out, unless it is asked for this one alone."""


Measure = Callable[[Load, Server, Case, Pace], dict[str, float]]


class Workload(Struct, frozen=True, kw_only=True):
    """One kind of work. A case is prepared for each peer, measured in turns, and cleared."""

    name: str
    title: str
    measure: Measure
    """Returns figures by name."""
    peers: tuple[str, ...]
    cases: Mapping[str, Case] = field(default_factory=lambda: {"": Case()})
    unit: str = ""
    """Of the figure `rate`."""
    mode: str = "echo"
    fresh: bool = False
    """Whether every measure needs a server that has done nothing before."""
    warm_up: Measure | None = None

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
                self.warm_up(load, server, case, Pace(seconds=_WARM_UP))
                server.settle()


def _pieces(job: str, load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    """Have a job done; give its rate, and the CPU time of each piece of work that it counts."""
    before = server.usage()
    answer = load.ask(job, url=server.url, seconds=pace.seconds, size=case.size)
    used = server.usage().since(before)
    count = answer.pop("count")
    rate = count / answer.pop("seconds")
    return {"rate": rate, **answer, **{name: value / count for name, value in used.items()}}


def _echo(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    return _pieces("echo", load, server, case, pace)


def _fanout(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    return _pieces("fanout", load, server, case, pace)


def _megabytes(load: Load, server: Server, case: Case, pace: Pace) -> dict[str, float]:
    figures = _pieces("echo", load, server, case, pace)
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
    options = {"burners": _BURNERS, "burst": _BURST}
    figures = load.ask("light", url=server.url, seconds=pace.seconds, **options)
    server.rest()
    return figures


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        Workload(
            name="echo",
            title="echo of 64 bytes, one message in flight on each connection",
            measure=_echo,
            peers=("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "websocketd", "bridge"),
            cases={str(count): Case(connections=count) for count in (1, 32, 256)},
            unit="msg/s",
            warm_up=_echo,
        ),
        Workload(
            name="fanout",
            title="one message of 64 bytes to so many clients; p50, p99: until the last has it",
            measure=_fanout,
            peers=("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "bridge", "channels", "cowboy"),
            cases={
                str(count): Case(connections=count, slow=count > 500)  # noqa: PLR2004
                for count in (10, 100, 500, 2000)
            },
            unit="deliveries/s",
            mode="room",
            warm_up=_fanout,
        ),
        Workload(
            name="connect",
            title="connect with a fresh process each, 8 at a time; p50, p99: until the first echo",
            measure=_connects,
            peers=("wsrelay", "websocketd", "bridge"),
            cases={"": Case(parallel=8)},
            unit="connects/s",
        ),
        Workload(
            name="first",
            title="connect at leisure with a fresh process each; p50, p99: until the first echo",
            measure=_first,
            peers=("wsrelay", "websocketd", "bridge"),
            cases={"": Case(pause=0.02)},
        ),
        Workload(
            name="first-warm",
            title="the same where processes were forked ahead (`--warm 4`)",
            measure=_first,
            peers=("wsrelay",),
            cases={"": Case(pause=0.02)},
            mode="warm",
        ),
        Workload(
            name="worker-memory",
            title="memory of one more worker",
            measure=_worker_memory,
            peers=("wsrelay", "websocketd", "bridge"),
            fresh=True,
        ),
        Workload(
            name="idle-memory",
            title="memory of the front end for one more idle connection",
            measure=_idle_memory,
            peers=("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "bridge", "channels", "cowboy"),
            mode="room",
            fresh=True,
        ),
        Workload(
            name="kill",
            title="SIGKILL of a worker until its client has the close frame, or the end of the "
            "connection",
            measure=_kill,
            peers=("wsrelay", "websocketd", "bridge"),
            cases={
                "idle": Case(),
                "200 x 20/s": Case(connections=200, rate=20),
                "200 flooding": Case(connections=200, rate=20, flood=True),
            },
            mode="service",
        ),
        Workload(
            name="light",
            title="echo of a light room beside 4 rooms that compute without a pause",
            measure=_light,
            peers=("wsrelay", "uvicorn-wsproto", "websocketd"),
            mode="service",
        ),
        Workload(
            name="size",
            title="echo of larger messages, one in flight on each of 4 connections",
            measure=_megabytes,
            peers=("wsrelay", "uvicorn-wsproto", "uvicorn-sansio", "websocketd"),
            cases={
                name: Case(connections=4, size=size)
                for name, size in {
                    "16 B": 16,
                    "1 KiB": 1 << 10,
                    "16 KiB": 1 << 14,
                    "256 KiB": 1 << 18,
                    "1 MiB": 1 << 20,
                    "4 MiB": 1 << 22,
                }.items()
            },
            unit="MB/s",
        ),
    )
}
