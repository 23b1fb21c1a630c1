"""The frame of all runs: virtual time from a seed, and what has been broken in it."""

from __future__ import annotations

import gc
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from msgspec import Struct

from .loops import VirtualLoop
from .patches import patched
from .scheduler import Scheduler
from .system import Os, System

__all__ = ["Outcome", "Place", "Run"]


class Outcome(Struct):
    """What a run has shown: the promises that it broke, each with what happened."""

    seed: int
    broken: list[tuple[str, str]]
    digest: str
    trace: list[str]
    steps: int


class Run(ABC):
    """One run; `seed` decides everything that happens in it, up to the first broken promise."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.scheduler = Scheduler(seed)
        self.system = System()
        self.os = Os(self.system)
        self.broken: list[tuple[str, str]] = []

    def note(self, line: str) -> None:
        """Write a line of the trace."""
        self.scheduler.note(line)

    def broke(self, promise: str, what: str) -> None:
        """Note a promise that does not hold."""
        self.note(f"BROKEN {promise}: {what}")
        self.broken.append((promise, what))
        self.scheduler.stop()

    def run(self) -> Outcome:
        """Run all of it."""
        collects = gc.isenabled()
        gc.disable()
        try:
            with patched(self):
                try:
                    self.stages()
                except Exception:  # noqa: BLE001 - this run has failed, and tells how
                    self.broke("no defect", traceback.format_exc())
                finally:
                    self.dispose()
        finally:
            if collects:
                gc.enable()
        scheduler = self.scheduler
        trace = list(scheduler.trace)
        return Outcome(self.seed, self.broken, scheduler.digest, trace, scheduler.count)

    @abstractmethod
    def stages(self) -> None:
        """Let things happen, and check what must hold."""

    @abstractmethod
    def dispose(self) -> None:
        """Leave nothing in this interpreter, however the run has ended."""


class Place:
    """Where a node runs: a machine with an event loop of its own."""

    def __init__(self, run: Run, name: str) -> None:
        self.name = name
        self.scheduler = run.scheduler
        self.system = run.system
        self.os = run.os
        self._broke = run.broke
        self.loop = self.new_loop()

    def new_loop(self) -> VirtualLoop:
        """Return the event loop of another life."""
        loop = VirtualLoop(self.scheduler, self.system, self._failed)
        loop.machine = self
        return loop

    def _failed(self, what: str) -> None:
        self._broke("no defect", f"{self.name}: {what}")

    def draw(self, low: float, high: float) -> float:
        """Draw seconds, mostly few of them."""
        chance = self.scheduler.random.random()
        return low + (high - low) * chance * chance * chance

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call in the node's event loop."""
        if not self.loop.is_dead:
            self.loop.call_soon(function, *args)

    def do(self, function: Callable[..., Coroutine[Any, Any, object]], *args: Any) -> None:
        """Begin a coroutine; to be called in the node's event loop."""
        self.loop.create_task(function(*args))
