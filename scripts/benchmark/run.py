"""A whole run: the peers take turns at each workload."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from .load import Load
from .peers import Peer
from .results import Key, Results
from .server import MeasureError, Server
from .workloads import WORKLOADS, Pace

__all__ = ["Run"]

_SPARE_DESCRIPTORS = 100

_Servers = list[tuple[Peer, Server]]


class Run:
    """Takes measures and keeps the results; what fails is noted, and the rest goes on."""

    def __init__(self, load: Load, peers: Sequence[Peer], pace: Pace) -> None:
        self.results = Results()
        self._load = load
        self._peers = peers
        self._pace = pace
        self._start = time.monotonic()
        self._share = 0.0
        # For all processes of the bench: they inherit it.
        _, self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._descriptors, self._descriptors))

    def measure(self, chosen: Mapping[str, Sequence[str]]) -> None:
        """Measure workloads in some of their cases each."""
        total = sum(map(len, chosen.values()))
        for name, cases in chosen.items():
            workload = WORKLOADS[name]
            peers = [
                peer
                for role in workload.peers
                for peer in self._peers
                if peer.name.partition("@")[0] == role and workload.mode in peer.modes
            ]
            with contextlib.ExitStack() as stack:
                servers: _Servers = []
                for peer in () if workload.fresh else peers:
                    with self._noted(Key(name, cases[0], peer.name)):
                        servers.append((peer, stack.enter_context(peer.start(workload.mode))))
                for case in cases:
                    self._share += 1 / total
                    if workload.fresh:
                        self._measure_fresh(name, case, peers)
                    elif not (self._pace.hurried and workload.cases[case].slow and len(cases) > 1):
                        self._measure_case(name, case, servers)

    def _measure_fresh(self, name: str, case: str, peers: Sequence[Peer]) -> None:
        for turn in self._turns():
            for peer in peers:
                key = Key(name, case, peer.name)
                with self._noted(key), peer.start(WORKLOADS[name].mode) as server:
                    self._take(key, turn, server)
                    self._load.ask("close", url=server.url)

    def _measure_case(self, name: str, case_name: str, servers: _Servers) -> None:
        workload = WORKLOADS[name]
        case = workload.cases[case_name]
        busy = {
            Key(name, case_name, peer.name): server
            for peer, server in servers
            if not self._pace.hurried or workload.processes(case) <= peer.processes
        }
        if case.connections * len(busy) + _SPARE_DESCRIPTORS > self._descriptors:
            why = f"the limit of {self._descriptors} open files is too low"
            self.results.failed.update(dict.fromkeys(busy, why))
            return
        for key, server in busy.items():
            with self._noted(key):
                workload.prepare(self._load, server, case)
        for turn in self._turns():
            for key, server in busy.items():
                if key not in self.results.failed:
                    with self._noted(key):
                        self._take(key, turn, server)
        for key, server in busy.items():
            with self._noted(key):
                self._load.ask("close", url=server.url)
            server.rest()

    def _turns(self) -> Iterator[int]:
        """Give a case's turns: at least one, and no more once the run is late."""
        for turn in range(self._pace.repeats):
            budget = self._pace.budget
            if turn and budget and self._seconds > budget * self._share:
                return
            yield turn

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _take(self, key: Key, turn: int, server: Server) -> None:
        turns = f"{turn + 1} of {self._pace.repeats}"
        print(f"{self._seconds:5.0f} s  {key.what}: {key.peer}, {turns}", file=sys.stderr)
        workload = WORKLOADS[key.workload]
        case = workload.cases[key.case]
        self.results.add(key, workload.run(self._load, server, case, self._pace))

    @contextlib.contextmanager
    def _noted(self, key: Key) -> Iterator[None]:
        try:
            yield
        except MeasureError as error:
            self.results.failed.setdefault(key, str(error))
