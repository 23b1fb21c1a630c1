"""What wsrelay wants to reach, each as a limit of a figure or of a ratio within one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from .figures import plain
from .results import Results

__all__ = ["GOALS", "Goal", "Outcome"]


class Goal(Struct, frozen=True, kw_only=True):
    """A figure of wsrelay, perhaps divided by another, shall be at least or at most the limit."""

    text: str
    work: str
    case: str = ""
    names: Sequence[str]
    """The figures' names; several are added up."""
    limit: float
    at_least: bool = False
    unit: str = "x"
    scale: float = 1.0
    peer: str = ""
    """Whose figures are the divisor."""
    divisor: str = ""
    """The name of another figure of wsrelay that is the divisor."""

    def outcome(self, results: Results) -> Outcome:
        """Compare with what was measured."""
        value = self._sum(results, "wsrelay", self.names)
        if self.peer or self.divisor:
            names = [self.divisor] if self.divisor else self.names
            other = self._sum(results, self.peer or "wsrelay", names)
            value = value / other if value is not None and other else None
        return Outcome(self, None if value is None else value / self.scale)

    def _sum(self, results: Results, peer: str, names: Sequence[str]) -> float | None:
        total = 0.0
        for name in names:
            value = results.median(self.work, self.case, peer, name)
            if value is None:
                return None
            total += value
        return total


class Outcome(Struct, frozen=True):
    """A goal, and its figure in this run, if there is one."""

    goal: Goal
    value: float | None

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `not measured`."""
        if self.value is None:
            return "not measured"
        goal = self.goal
        met = self.value >= goal.limit if goal.at_least else self.value <= goal.limit
        return "met" if met else "missed"

    def cells(self) -> list[str]:
        """Return the goal's row."""
        goal = self.goal
        limit = f"{'≥' if goal.at_least else '≤'} {plain(goal.limit)} {goal.unit}"
        value = "" if self.value is None else f"{plain(self.value)} {goal.unit}"
        return [goal.text, limit, value, self.verdict]


_CPU: Final = ("front_cpu", "worker_cpu")
_LATE: Final = "until the close frame"

GOALS: Final = (
    Goal(
        text="echo, 32 connections: messages/s, of in-process uvicorn + wsproto",
        work="echo",
        case="32",
        names=["rate"],
        peer="uvicorn-wsproto",
        limit=1.15,
        at_least=True,
    ),
    Goal(
        text="echo, 32 connections: messages/s, of websocketd",
        work="echo",
        case="32",
        names=["rate"],
        peer="websocketd",
        limit=1.0,
        at_least=True,
    ),
    Goal(
        text="echo, 1 connection: p50, of websocketd",
        work="echo",
        case="1",
        names=["p50"],
        peer="websocketd",
        limit=1.0,
    ),
    Goal(
        text="fan-out to 500: CPU per delivery, of cowboy",
        work="fanout",
        case="500",
        names=_CPU,
        peer="cowboy",
        limit=0.75,
    ),
    Goal(
        text="connects/s with a fresh process each, of websocketd",
        work="connect",
        names=["rate"],
        peer="websocketd",
        limit=2.0,
        at_least=True,
    ),
    Goal(
        text="memory of one more worker (PSS)",
        work="worker-memory",
        names=["pss"],
        limit=2.5,
        unit="MB",
        scale=1e6,
    ),
    Goal(
        text="memory of one more idle connection (USS of the front end)",
        work="idle-memory",
        names=["uss"],
        limit=12,
        unit="KB",
        scale=1e3,
    ),
    *(
        Goal(
            text=f"SIGKILL {_LATE}, {busy}: {name}",
            work="kill",
            case=case,
            names=[name],
            limit=limit,
            unit="ms",
            scale=1e-3,
        )
        for case, busy in (("idle", "idle"), ("200 x 20/s", "200 busy connections"))
        for name, limit in (("p50", 3.0), ("p99", 15.0))
    ),
    Goal(
        text="light room's p99 beside 4 rooms that compute, of its idle p99",
        work="light",
        names=["p99"],
        divisor="idle_p99",
        limit=3.0,
    ),
)
