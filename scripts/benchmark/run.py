"""A whole run: the peers take turns at each workload."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from .load import Load
from .peers import Peer
from .results import Key, Results
from .server import MeasureError
from .workloads import WORKLOADS, Pace

__all__ = ["Run"]

_PATIENCE = 180.0
"""Seconds that anything asked of a server may take, besides those for which it is measured."""


class Run:
    """Takes measures and keeps the results; what fails is noted, and the rest goes on."""

    def __init__(self, peers: Sequence[Peer], pace: Pace) -> None:
        self.results = Results()
        self._peers = peers
        self._pace = pace
        self._start = time.monotonic()
        self._share = 0.0

    async def measure(self, chosen: Mapping[str, Sequence[str]]) -> None:
        """Measure workloads in some of their cases each."""
        total = sum(map(len, chosen.values()))
        for name, cases in chosen.items():
            workload = WORKLOADS[name]
            peers = [
                peer
                for role in workload.peers
                for peer in self._peers
                if peer.name.partition("@")[0] == role
            ]
            async with contextlib.AsyncExitStack() as stack:
                loads: list[tuple[Peer, Load]] = []
                for peer in () if workload.fresh else peers:
                    async with self._noted(Key(name, cases[0], peer.name)):
                        server = await stack.enter_async_context(peer.start(workload.mode))
                        loads.append((peer, Load(server, workload)))
                for case in cases:
                    self._share += 1 / total
                    if workload.fresh:
                        await self._measure_fresh(name, case, peers)
                    elif not (self._pace.hurried and workload.cases[case].slow and len(cases) > 1):
                        await self._measure_case(name, case, loads)

    async def _measure_fresh(self, name: str, case: str, peers: Sequence[Peer]) -> None:
        workload = WORKLOADS[name]
        for turn in self._turns():
            for peer in peers:
                key = Key(name, case, peer.name)
                async with self._noted(key), peer.start(workload.mode) as server:
                    load = Load(server, workload)
                    await self._take(key, turn, load)
                    await load.close()

    async def _measure_case(
        self, name: str, case_name: str, loads: Sequence[tuple[Peer, Load]]
    ) -> None:
        workload = WORKLOADS[name]
        case = workload.cases[case_name]
        processes = 1 if workload.has_one_room else case.connections
        busy = {
            Key(name, case_name, peer.name): load
            for peer, load in loads
            if not self._pace.hurried or processes <= peer.processes
        }
        for key, load in busy.items():
            async with self._noted(key):
                await load.prepare(case)
        for turn in self._turns():
            for key, load in busy.items():
                if key not in self.results.failed:
                    async with self._noted(key):
                        await self._take(key, turn, load)
                        if not case.connections:
                            await load.server.rest()
        for key, load in busy.items():
            async with self._noted(key):
                await load.close()
            await load.server.rest()

    def _turns(self) -> Iterator[int]:
        """Yield a case's turns: at least one, and no more once the run is late."""
        for turn in range(self._pace.repeats):
            budget = self._pace.budget
            if turn and budget and self._seconds > budget * self._share:
                return
            yield turn

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._start

    async def _take(self, key: Key, turn: int, load: Load) -> None:
        turns = f"{turn + 1} of {self._pace.repeats}"
        print(f"{self._seconds:5.0f} s  {key.what}: {key.peer}, {turns}", file=sys.stderr)
        case = WORKLOADS[key.workload].cases[key.case]
        self.results.add(key, await load.measure(case, self._pace))

    @contextlib.asynccontextmanager
    async def _noted(self, key: Key) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_PATIENCE + 2 * self._pace.seconds):
                yield
        except TimeoutError:
            self.results.fail(key, "the server did not answer in time")
        except Exception as error:  # noqa: BLE001 (whatever it was, the rest goes on)
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            kind = "" if isinstance(error, MeasureError) else f"{type(error).__name__}: "
            self.results.fail(key, f"{kind}{error}")
