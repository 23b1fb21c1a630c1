"""What a process host is told at its start."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["HostOptions"]


class HostOptions(Struct, frozen=True, kw_only=True):
    """One process host (contract section 4, kind `process.host`).

    `preload` names modules and `targets` functions of scripts or modules; all are loaded once, in
    the template, and shared by every worker. Timeouts are seconds, `mailbox` is the bytes that
    other workers may have sent to one that has not taken them yet.
    """

    name: str = "processes"
    preload: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    max_processes: int = 256
    start_timeout: float = 10.0
    stop_timeout: float = 10.0
    mailbox: int = 64 * 1024 * 1024
