"""Waiting with a deadline; for the store, with lines in the log while it does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from wsrelay.cluster.ports import Conflict, Unavailable

__all__ = ["Asking", "wait"]

logger = logging.getLogger(__name__)

_EVERY: Final = 5.0
"""Seconds between two lines that it still does not answer."""

T = TypeVar("T")


class Asking:
    """Asks, with `patience` seconds for each answer, and is silent for `quiet` seconds of failure.

    Whatever goes wrong is `Unavailable`: nothing is known about what was asked.
    """

    def __init__(self, patience: float, clock: Callable[[], float]) -> None:
        self.quiet = 0.0
        self._patience = patience
        self._clock = clock
        self._failing: float | None = None
        """Since when there was no answer."""
        self._told: float | None = None

    async def within(self, answer: Awaitable[T]) -> T:
        """Return what the store answers; raises `Unavailable`, and `Conflict` as the store does."""
        asked = self._clock()
        try:
            async with asyncio.timeout(self._patience):
                result = await answer
        except Conflict:
            self._answered()
            raise
        except Unavailable as error:
            self._failed(asked, str(error))
            raise
        except TimeoutError:
            late = Unavailable(f"no answer within {self._patience:g} s")
            self._failed(asked, str(late))
            raise late from None
        except Exception as error:
            # A fault of a client library must not end a node that could go on with the next answer.
            if self._failing is None:
                logger.exception("the cluster's store could not be asked")
            self._failed(asked, f"{type(error).__name__}: {error}")
            raise Unavailable(str(error)) from error
        self._answered()
        return result

    def _failed(self, asked: float, why: str) -> None:
        now = self._clock()
        if self._failing is None:
            self._failing = asked
        if now - self._failing < self.quiet:
            return
        if self._told is None or now - self._told >= _EVERY:
            self._told = now
            logger.warning(
                "waiting for the cluster's store, for %.1f s: %.300s", now - self._failing, why
            )

    def _answered(self) -> None:
        if self._told is not None and self._failing is not None:
            logger.warning(
                "the cluster's store answers again, after %.1f s", self._clock() - self._failing
            )
        self._failing = self._told = None


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(None if seconds == math.inf else seconds):
            await event.wait()
