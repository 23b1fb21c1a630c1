"""Messages a second of a node's processes, from what they had received and sent before."""

from __future__ import annotations

import time
from collections.abc import Callable

from wsrelay.node import NodeInfo, ProcessInfo

__all__ = ["MessageRates"]


class MessageRates:
    """Compares what processes have received and sent with the last time that was noted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted: dict[str, tuple[float, int]] = {}
        self._rates: dict[str, float] = {}

    def note(self, info: NodeInfo) -> None:
        """Note what each process has received and sent by now."""
        now, before = self._clock(), self._noted
        self._noted = {one.pid: (now, one.received + one.sent) for one in info.processes}
        self._rates = {
            pid: (count - before[pid][1]) / (now - before[pid][0])
            for pid, (_, count) in self._noted.items()
            if pid in before and now > before[pid][0]
        }

    def of(self, process: ProcessInfo) -> float | None:
        """Return the messages a second, received and sent; None before the second look."""
        return self._rates.get(process.pid)
