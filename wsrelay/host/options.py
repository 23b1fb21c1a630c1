"""What a process host is told at its start."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from .isolation import Isolation
from .limits import Limits

__all__ = ["HostOptions"]

_NAME: Final = re.compile(r"[\w.:/-]+", re.ASCII)
"""What stands in PIDs."""

_LEAST: Final = 1e-9
_MOST: Final = 2**62
"""The system takes no larger limits."""


class HostOptions(Struct, frozen=True, kw_only=True):
    """One process host (contract section 4, kind `process.host`).

    `preload` names modules and `targets` functions of scripts or modules; all are loaded once, in
    the template, within `start_timeout`, and shared by every worker. `arguments` are in `sys.argv`,
    behind the script's path. `warm` processes are forked ahead and wait, beside `max_processes`.
    Timeouts are seconds, `mailbox` is the bytes that other workers may have sent
    to one that has not taken them yet. `spawn_rate` is how many are started in a second, the
    others wait; `log_rate` how many log records a second one may write, the others are dropped and
    counted. `nice` is the workers' absolute niceness. Raises `ValueError` for what cannot be.
    """

    name: str = "processes"
    preload: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    max_processes: int = 256
    warm: int = 0
    start_timeout: float = 10.0
    stop_timeout: float = 10.0
    mailbox: int = 64 * 1024 * 1024
    spawn_rate: float = 1000.0
    log_rate: float = 500.0
    limits: Limits = Limits()
    nice: int | None = None
    isolation: Isolation = Isolation()

    def __post_init__(self) -> None:
        """Refuse what cannot be, before any process is started."""
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(f"host name {self.name!r:.80} must be made of A-Z a-z 0-9 _ . : / -")
        limits = self.limits
        ranges: list[tuple[str, float | None, float, float, str]] = [
            ("max_processes", self.max_processes, 0, _MOST, "0 or more"),
            ("warm", self.warm, 0, _MOST, "0 or more"),
            ("start_timeout", self.start_timeout, _LEAST, _MOST, "more than 0 seconds"),
            ("stop_timeout", self.stop_timeout, 0, _MOST, "0 seconds or more"),
            ("mailbox", self.mailbox, 0, _MOST, "0 bytes or more"),
            ("spawn_rate", self.spawn_rate, _LEAST, _MOST, "more than 0 a second"),
            ("log_rate", self.log_rate, 1, _MOST, "1 a second or more"),
            ("limits.memory", limits.memory, 1, _MOST, "1 to 2**62 bytes"),
            ("limits.cpu_time", limits.cpu_time, 1, _MOST, "1s or more"),
            ("limits.open_files", limits.open_files, 16, _MOST, "16 or more"),
            ("limits.processes", limits.processes, 1, _MOST, "1 or more"),
            ("nice", self.nice, -20, 19, "-20 to 19"),
        ]
        for name, given, least, most, wanted in ranges:
            if given is not None and not least <= given <= most:
                raise ValueError(f"host {self.name}: {name} is {given!r} and must be {wanted}")
