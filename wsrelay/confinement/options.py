"""Which options a process host has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final, Literal

from msgspec import Struct

from wsrelay.values.bounds import MOST, Bounds, InvalidOptions, wrong
from wsrelay.values.rights import Rights

from .isolation import Isolation
from .limits import Limits

__all__ = ["HostOptions"]

_NAME: Final = re.compile(r"[\w.:/-]+", re.ASCII)
"""What may be part of a PID."""

_NAME_SAID: Final = "A-Z a-z 0-9 _ . : / -"

_RIGHTS: Final = ("may_spawn", "may_control", "may_name")

_LEAST: Final = 1e-9

_SOONEST: Final = 0.1
"""Seconds of the shortest stall: the busiest machine lets a worker wait for less than that."""

_ACTIONS: Final = ("log", "terminate")


class HostOptions(Struct, frozen=True, kw_only=True):
    """The options of one process host, the kind `process.host` of `docs/configuration.md`.

    `preload` names modules and `targets` functions of scripts or modules; all of them are loaded
    once, in the template, within `start_timeout`, and shared by every worker. `arguments` go into
    `sys.argv`, after the script's path. `warm` processes are forked ahead and wait; they come on
    top of `max_processes`, and there can be no more of them than that. Timeouts are in seconds.
    `mailbox` is how many bytes other workers may have sent to one that has not yet taken them.
    A worker that has messages waiting and takes none for `stall` seconds (None: never) is logged
    as stalled; with the `stall_action` `terminate` it is then ended, else (`log`) not.
    `spawn_rate` is how many are started in a second; further ones wait. `log_rate` is how many log
    records a second one may write, and how many lines to its standard output and error; further
    ones are left out and counted. With `raw_output` these streams, and the terminal, are the node's
    own. `nice` is the workers' absolute niceness. `may_spawn` and `may_control` (hosts' names) and
    `may_name` (patterns such as `room:*`) are what the processes of a walled-in host may do beyond
    it. Raises `InvalidOptions`, a `ValueError`, with everything that is wrong.
    """

    bounds: ClassVar[Mapping[str, Bounds]] = {
        "max_processes": Bounds(1, MOST, "1 or more", whole=True),
        "start_timeout": Bounds(_LEAST, MOST, "more than 0 seconds"),
        "stop_timeout": Bounds(0, MOST, "0 seconds or more"),
        "mailbox": Bounds(0, MOST, "0 to 2**62 bytes", whole=True),
        "stall": Bounds(_SOONEST, MOST, "0.1s or more"),
        "spawn_rate": Bounds(_LEAST, MOST, "more than 0 a second"),
        "log_rate": Bounds(1, MOST, "1 a second or more"),
        "limits.memory": Bounds(1, MOST, "1 to 2**62 bytes", whole=True),
        "limits.cpu_time": Bounds(1, MOST, "1s or more"),
        "limits.open_files": Bounds(16, MOST, "16 or more", whole=True),
        "limits.processes": Bounds(1, MOST, "1 or more", whole=True),
        "limits.cpus": Bounds(0.01, 10_000, "0.01 to 10000"),
        "limits.memory_total": Bounds(16 * 1024**2, MOST, "16MB to 2**62 bytes", whole=True),
        "limits.processes_total": Bounds(2, 2**22, "2 to 2**22", whole=True),
        "nice": Bounds(-20, 19, "-20 to 19", whole=True),
    }
    """By option; `warm` is bounded by `max_processes`."""

    name: str = "processes"
    preload: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    max_processes: int = 256
    warm: int = 0
    start_timeout: float = 10.0
    stop_timeout: float = 10.0
    mailbox: int = 64 * 1024 * 1024
    stall: float | None = None
    stall_action: Literal["log", "terminate"] = "log"
    spawn_rate: float = 1000.0
    log_rate: float = 500.0
    raw_output: bool = False
    limits: Limits = Limits()
    nice: int | None = None
    isolation: Isolation = Isolation()
    may_spawn: tuple[str, ...] = ()
    may_control: tuple[str, ...] = ()
    may_name: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is wrong before any process is started."""
        problems = wrong(self, self.bounds)
        if _NAME.fullmatch(self.name) is None:
            problems.append(("name", f"is {self.name!r:.80} and must be made of {_NAME_SAID}"))
        if not any(name == "max_processes" for name, _ in problems):
            most = self.max_processes
            warm = Bounds(0, most, f"0 to max_processes, which is {most}", whole=True)
            problems += wrong(self, {"warm": warm})
        if self.stall_action not in _ACTIONS:
            given = f"is {self.stall_action!r:.80} and must be one of {', '.join(_ACTIONS)}"
            problems.append(("stall_action", given))
        elif self.stall_action != "log" and self.stall is None:
            problems.append(("stall_action", f"is {self.stall_action}, which needs `stall`"))
        problems += self._wrong_rights()
        if self.raw_output and self.isolation.walled:
            problems.append(("raw_output", "gives the node's streams away: not with isolation"))
        if problems:
            raise InvalidOptions(problems, f"host {self.name:.80}")

    @property
    def rights(self) -> Rights | None:
        """What its processes may do to those of other hosts; None: anything."""
        if not self.isolation.walled:
            return None
        return Rights(self.name, self.may_spawn, self.may_control, self.may_name)

    def _wrong_rights(self) -> list[tuple[str, str]]:
        problems = []
        for option in _RIGHTS:
            given = getattr(self, option)
            if not isinstance(given, tuple) or not all(
                isinstance(one, str) and one for one in given
            ):
                problems.append(
                    (option, f"is {given!r:.80} and must be texts in a tuple, none empty")
                )
            elif given and not self.isolation.walled:
                problems.append(
                    (
                        option,
                        "needs user, filesystem or network: hosts without them may do all of that",
                    )
                )
        return problems
