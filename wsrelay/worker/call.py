"""The call of the handler, and how it is interrupted."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import forks

if TYPE_CHECKING:
    import asyncio

__all__ = ["HandlerCall"]


class HandlerCall:
    """Calls the handler, once.

    `interrupt` handles the signal that ends a handler still running after its CANCEL, in such a way
    that its `finally` blocks run: the main task of an `async def` handler is cancelled, in others
    `SystemExit` is raised. Before and after the handler it does nothing. `attach` is called with
    the event loop of an `async def` handler.
    """

    def __init__(self, attach: Callable[[asyncio.AbstractEventLoop], None]) -> None:
        self._attach = attach
        self._interrupted = False
        self._running = False
        self._cancel: Callable[[], object] | None = None

    def __call__(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return what the handler returns and raise what it raises.

        If the handler gave in to an interrupt, this raises `SystemExit` with code 0.
        """
        try:
            with forks.ChildBoundary():
                result = self._run(function, args, kwargs)
            return self._run_task(result) if inspect.iscoroutine(result) else result
        except BaseException as error:
            if self._interrupted and _gave_in(error):
                raise SystemExit(0) from None
            raise

    def _run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._interrupted:  # while its script was being loaded
            raise SystemExit(0)
        try:
            self._running = True
            return function(*args, **kwargs)
        finally:
            self._running = False

    def _run_task(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        import asyncio  # noqa: PLC0415 - only asynchronous handlers pay for it

        runner = asyncio.Runner()
        loop = runner.get_loop()
        self._attach(loop)

        def cancel_main_task() -> None:
            for task in asyncio.all_tasks(loop):
                if task.get_coro() is coroutine:
                    task.cancel()

        self._cancel = lambda: loop.call_soon_threadsafe(cancel_main_task)
        try:
            # A forked child has to exit before the runner cleans up: the selector is shared with
            # its parent.
            with forks.ChildBoundary():
                return runner.run(coroutine)
        finally:
            self._cancel = lambda: None
            runner.close()

    def interrupt(self, _number: int, frame: FrameType | None) -> None:
        """Interrupt the handler if it is running; if the frame is our own, it has just returned."""
        if self._interrupted:
            return
        self._interrupted = True
        if self._cancel is not None:
            self._cancel()
        elif self._running and frame is not None and frame.f_code is not HandlerCall._run.__code__:
            raise SystemExit(0)


def _gave_in(error: BaseException) -> bool:
    """Whether this is what an interrupt raises (in a group, if a library makes one of it)."""
    if isinstance(error, BaseExceptionGroup):
        return all(_gave_in(one) for one in error.exceptions)
    if isinstance(error, SystemExit):
        return not error.code
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)
