"""The goals of `goals.toml`, beside what was measured."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any, Final

import msgspec

from .results import Key, Results, plain

__all__ = ["GOALS", "Goal"]


class Goal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One goal; `goals.toml` says what its fields mean."""

    text: str
    workload: str
    case: str = ""
    figures: list[str]
    of_peer: str = ""
    of_figure: str = ""
    at_least: float = 0.0
    at_most: float = math.inf
    unit: str = "x"
    scale: float = 1.0

    @property
    def limit(self) -> float:
        """The one of its two limits that it has."""
        return self.at_least or self.at_most

    def value(self, results: Results) -> float | None:
        """Return what was measured, in the goal's unit; None if it was not."""
        value = results.total(Key(self.workload, self.case, "wsrelay"), self.figures)
        if value is None:
            return None
        if not (self.of_peer or self.of_figure):
            return value / self.scale
        key = Key(self.workload, self.case, self.of_peer or "wsrelay")
        other = results.total(key, [self.of_figure] if self.of_figure else self.figures)
        return value / other if other else None

    def outcome(self, results: Results) -> dict[str, Any]:
        """Return the goal, what was measured, and `met`, `missed` or `not measured`."""
        value = self.value(results)
        met = value is not None and self.at_least <= value <= self.at_most
        return {
            "goal": self.text,
            "limit": self.limit,
            "at_least": bool(self.at_least),
            "unit": self.unit,
            "value": value,
            "verdict": "not measured" if value is None else "met" if met else "missed",
        }

    def cells(self, results: Results) -> list[str]:
        """Return the same as a row of the table."""
        value, verdict = self.value(results), self.outcome(results)["verdict"]
        limit = f"{'≥' if self.at_least else '≤'} {plain(self.limit)} {self.unit}"
        return [self.text, limit, "" if value is None else f"{plain(value)} {self.unit}", verdict]


GOALS: Final = msgspec.convert(
    tomllib.loads(Path(__file__).with_name("goals.toml").read_text())["goals"], list[Goal]
)
