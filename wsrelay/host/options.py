"""What a process host is told at its start."""

from __future__ import annotations

from msgspec import Struct

from .isolation import Isolation
from .limits import Limits

__all__ = ["HostOptions"]


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
        checks = [
            ("max_processes", self.max_processes, self.max_processes >= 0, "0 or more"),
            ("warm", self.warm, self.warm >= 0, "0 or more"),
            ("start_timeout", self.start_timeout, self.start_timeout > 0, "more than 0 seconds"),
            ("stop_timeout", self.stop_timeout, self.stop_timeout >= 0, "0 seconds or more"),
            ("mailbox", self.mailbox, self.mailbox >= 0, "0 bytes or more"),
            ("spawn_rate", self.spawn_rate, self.spawn_rate > 0, "more than 0 a second"),
            ("log_rate", self.log_rate, self.log_rate >= 1, "1 a second or more"),
            ("limits.memory", memory := self.limits.memory, memory is None or memory > 0, "bytes"),
            ("limits.cpu_time", cpu := self.limits.cpu_time, cpu is None or cpu >= 1, "1s or more"),
            ("limits.open_files", n := self.limits.open_files, n is None or n >= 16, "16 or more"),  # noqa: PLR2004
            ("limits.processes", n := self.limits.processes, n is None or n >= 1, "1 or more"),
            ("nice", self.nice, self.nice is None or -20 <= self.nice <= 19, "-20 to 19"),  # noqa: PLR2004
        ]
        for name, given, right, wanted in checks:
            if not right:
                raise ValueError(f"host {self.name}: {name} is {given!r} and must be {wanted}")
