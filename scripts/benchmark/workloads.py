"""What is measured: `workloads.toml`, typed."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct, field

__all__ = ["WORKLOADS", "Case", "Pace", "Workload"]


FarMode = Literal[
    "far-echo", "far-room", "far-call", "far-spawn", "far-start", "far-exit", "far-idle"
]
"""What the nodes of a cluster do, where clients come to one and processes run on another."""


class Pace(Struct, frozen=True, kw_only=True):
    """How thoroughly it is measured."""

    repeats: int = 5
    seconds: float = 3.0
    kills: int = 50
    idle: int = 2000
    workers: int = 50
    hurried: bool = False
    budget: float | None = None
    """Seconds after which nothing is repeated; until then each case has its share of them."""


class Case(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of a workload's cases; workloads.toml tells what the fields mean, here and below."""

    connections: int = 0
    size: int = 64
    text: str = ""
    rate: float = 0.0
    flood: bool = False
    parallel: int = 1
    pause: float = 0.0
    slow: bool = False

    @property
    def payload(self) -> bytes:
        """The message."""
        if self.text:
            return self.text.encode()
        return (b"wsrelay measures " * (self.size // 17 + 1))[: self.size]


class Workload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of work."""

    title: str
    measure: Literal["echo", "connect", "memory", "kill", "light", "timed", "gone", "idle"]
    peers: list[str]
    cases: dict[str, Case] = field(default_factory=lambda: {"": Case()})
    unit: str = ""
    mode: Literal["echo", "service", "room", "warm", "text", "json"] | FarMode = "echo"
    fresh: bool = False
    warm_up: bool = False

    @property
    def has_one_room(self) -> bool:
        """Whether all clients are in one, each of which hears what any of them says."""
        return self.mode in {"room", "far-room"}


WORKLOADS: Final = msgspec.convert(
    tomllib.loads(Path(__file__).with_name("workloads.toml").read_text()), dict[str, Workload]
)
