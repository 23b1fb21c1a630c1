"""Event loops in virtual time, one for each simulated node."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import math
import threading
import warnings
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from .scheduler import Scheduler
from .system import System

__all__ = ["VirtualLoop"]

_COST: Final = 0.00005
"""Seconds that a turn takes at most, and that pass until a loop notices what has come."""

_RESOLUTION: Final = 1e-9


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run: others are ordered by addresses."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], *, loop: VirtualLoop, **kwargs: Any
    ) -> None:
        self.number = next(loop.numbers)
        super().__init__(coroutine, loop=loop, **kwargs)

    def __hash__(self) -> int:
        return self.number


class _Future(asyncio.Future[Any]):
    """A future whose place in a set is the same in every run."""

    def __init__(self, *, loop: VirtualLoop) -> None:
        self.number = next(loop.numbers)
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


_Base: Any = asyncio.BaseEventLoop
"""Without its types: those of callbacks and their arguments are not repeated here."""


class VirtualLoop(_Base):  # type: ignore[misc]
    """The event loop of one node: it has a turn when the scheduler gives it one.

    It watches descriptors of the simulated operating system (`system`), which calls `notice`.
    `failed` is told of exceptions that nobody has handled.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        system: System,
        failed: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._scheduler = scheduler
        self._system = system
        self._is_ready = system.is_ready
        self._failed = failed
        self._watched: dict[int, asyncio.Handle] = {}
        self._noticed: dict[int, None] = {}
        """Descriptors that may be ready, in the order in which that was seen."""
        self._due = math.inf
        """When the next turn is planned; in the middle of a turn there is nothing to plan."""
        self.stalled_until = 0.0
        self.is_dead = False
        self._left: set[asyncio.Task[Any]] = set()
        self.numbers = itertools.count()
        self._scheduled: list[asyncio.TimerHandle] = []
        self._ready: Any
        self._thread_id: int | None
        self.set_task_factory(_task)

    # Time

    def time(self) -> float:
        """Return virtual time, which stands still within a turn."""
        return self._scheduler.now

    def stall(self, until: float) -> None:
        """Do nothing until that time, as a process that is stopped or starved."""
        self.stalled_until = max(self.stalled_until, until)

    def kill(self) -> None:
        """Never do anything again: from now on not even a `finally` of its coroutines is run."""
        self.is_dead = True
        self._left = asyncio.all_tasks(self)

    def bury(self) -> None:
        """End what a loop that was killed has left, in which nothing has an effect any more."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coroutines that were not begun
            for task in sorted(self._left, key=hash):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine: Any = task.get_coro()
                with contextlib.suppress(Exception):
                    coroutine.close()
        self._left = set()
        self._watched.clear()
        self.close()

    def _plan(self, when: float) -> None:
        if when < self._due:
            self._due = when = max(when, self.stalled_until)
            self._scheduler.at(when, self._turn, when)

    def _plan_soon(self) -> None:
        scheduler = self._scheduler
        if self._due > scheduler.now + _COST:
            self._plan(scheduler.now + scheduler.random.random() * _COST)

    def _turn(self, planned: float) -> None:
        if planned != self._due or self.is_dead:
            return  # an earlier one has taken its place
        scheduler, ready, scheduled = self._scheduler, self._ready, self._scheduled
        if scheduler.now < self.stalled_until:
            self._due = math.inf
            self._plan(self.stalled_until)
            return
        self._due = -math.inf
        for number in list(self._noticed):
            if (handle := self._watched.get(number)) is not None and self._is_ready(number):
                ready.append(handle)
            else:
                del self._noticed[number]
        end = scheduler.now + _RESOLUTION
        while scheduled and (scheduled[0].cancelled() or scheduled[0].when() < end):
            handle = heapq.heappop(scheduled)
            handle._scheduled = False  # type: ignore[attr-defined]
            ready.append(handle)
        scheduler.spent = 0.0
        self._thread_id = threading.get_ident()
        events._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
        finally:
            events._set_running_loop(None)
            self._thread_id = None
        self._due = math.inf
        next_turn = scheduler.now + scheduler.spent + scheduler.random.random() * _COST
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
        if ready or self._noticed:
            self._plan(next_turn)
        elif scheduled:
            self._plan(max(next_turn, scheduled[0].when()))

    # What asyncio calls

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.is_dead:
            self._ready.append(handle)
            self._plan_soon()
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.is_dead:
            heapq.heappush(self._scheduled, timer)
            timer._scheduled = True  # type: ignore[attr-defined]
            self._plan(max(when, self._scheduler.now))
        return timer

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._scheduler.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self.is_dead:
            self._failed(f"{context.get('message')}: {error!r}")

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError(f"there are no threads in virtual time: {func}")

    # Descriptors

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        """Call back whenever the descriptor is ready; writers are no different here."""
        number = _number(fd)
        self._watched[number] = asyncio.Handle(callback, args, self, None)
        self._system.end(number).notify = functools.partial(self.notice, number)
        self.notice(number)

    add_writer = add_reader

    def remove_reader(self, fd: Any) -> bool:
        """Stop calling back."""
        return self._watched.pop(_number(fd), None) is not None

    remove_writer = remove_reader

    def notice(self, number: int) -> None:
        """Look at a descriptor in the next turn."""
        if number in self._watched and number not in self._noticed and self._is_ready(number):
            self._noticed[number] = None
            self._plan_soon()


def _number(fd: Any) -> int:
    return fd if isinstance(fd, int) else fd.fileno()


def _task(
    loop: VirtualLoop, coroutine: Coroutine[Any, Any, Any], **kwargs: Any
) -> asyncio.Task[Any]:
    return _Task(coroutine, loop=loop, **kwargs)
