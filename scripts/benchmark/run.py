"""A whole run: peers take turns at each work."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from .contenders import Peer
from .generator import Generator, MeasureError
from .results import Key, Results
from .servers import Server
from .works import Pace, Work

__all__ = ["Run"]

_SPARE_DESCRIPTORS = 100


class Run:
    """Takes measures and keeps the results; what fails is noted, and the rest goes on."""

    def __init__(
        self,
        load: Generator,
        peers: Mapping[str, Peer],
        pace: Pace,
        descriptors: int,
        *,
        cases: int,
    ) -> None:
        self.results = Results()
        self._load = load
        self._start = time.monotonic()
        self._peers = peers
        self._pace = pace
        self._descriptors = descriptors
        self._cases = cases
        self._done = 0

    def do(self, work: Work, cases: Sequence[str]) -> None:
        """Measure one work in some of its cases."""
        peers = [
            peer
            for name in work.peers
            for peer in self._peers.values()
            if peer.place == name and work.mode in peer.modes
        ]
        if work.fresh:
            self._do_fresh(work, cases, peers)
            return
        with contextlib.ExitStack() as stack:
            servers: dict[str, Server] = {}
            for peer in peers:
                with self._noted(Key(work.name, cases[0], peer.name)):
                    servers[peer.name] = stack.enter_context(peer.server(work.mode))
            for case in cases:
                if not (self._pace.hurried and case in work.slow and len(cases) > 1):
                    self._do_case(work, case, servers)

    def _do_fresh(self, work: Work, cases: Sequence[str], peers: Sequence[Peer]) -> None:
        for turn in self._turns(len(cases)):
            for case in cases:
                for peer in peers:
                    key = Key(work.name, case, peer.name)
                    self._say(key, turn)
                    with self._noted(key), peer.server(work.mode) as server:
                        self._measure(work, key, server)
                        self._load.ask("close", url=server.url)

    def _do_case(self, work: Work, case: str, servers: Mapping[str, Server]) -> None:
        if self._pace.hurried:
            crowd = work.crowd(case)
            servers = {k: server for k, server in servers.items() if crowd < self._peers[k].crowd}
        keys = {name: Key(work.name, case, name) for name in servers}
        if work.descriptors(case) * len(servers) + _SPARE_DESCRIPTORS > self._descriptors:
            why = f"the limit of {self._descriptors} open files is too low"
            self.results.failed.update(dict.fromkeys(keys.values(), why))
            return
        for name, server in servers.items():
            with self._noted(keys[name]):
                work.prepare(self._load, server, case)
        for turn in self._turns(1):
            for name, server in servers.items():
                if keys[name] not in self.results.failed:
                    self._say(keys[name], turn)
                    with self._noted(keys[name]):
                        self._measure(work, keys[name], server)
        for name, server in servers.items():
            with self._noted(keys[name]):
                self._load.ask("close", url=server.url)
            server.rest()

    def _turns(self, cases: int) -> Iterator[int]:
        """Give the turns of some cases: at least one, and no more once they are late."""
        self._done += cases
        for turn in range(self._pace.repeats):
            spent, budget = time.monotonic() - self._start, self._pace.budget
            if turn and budget and spent > budget * self._done / self._cases:
                return
            yield turn

    def _measure(self, work: Work, key: Key, server: Server) -> None:
        self.results.add(key, work.measure(self._load, server, key.case, self._pace))

    @contextlib.contextmanager
    def _noted(self, key: Key) -> Iterator[None]:
        try:
            yield
        except MeasureError as error:
            self.results.failed.setdefault(key, str(error))

    def _say(self, key: Key, turn: int) -> None:
        words = f"{key.work} {key.case}".strip()
        spent = time.monotonic() - self._start
        turns = f"{turn + 1} of {self._pace.repeats}"
        print(f"{spent:5.0f} s  {words}: {key.peer}, {turns}", file=sys.stderr)
