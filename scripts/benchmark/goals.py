"""The goals of `goals.toml`, beside what was measured."""

from __future__ import annotations

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
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"
    scale: float = 1.0

    @property
    def limit(self) -> float:
        """The one of its two limits that it has."""
        [limit] = [limit for limit in (self.at_least, self.at_most) if limit is not None]
        return limit

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
        value, at_least = self.value(results), self.at_least is not None
        if value is None:
            verdict = "not measured"
        else:
            met = value >= self.limit if at_least else value <= self.limit
            verdict = "met" if met else "missed"
        return {
            "goal": self.text,
            "limit": self.limit,
            "at_least": at_least,
            "unit": self.unit,
            "value": value,
            "verdict": verdict,
        }

    def cells(self, results: Results) -> list[str]:
        """Return the same as a row of the table."""
        outcome = self.outcome(results)
        limit = f"{'≥' if outcome['at_least'] else '≤'} {plain(self.limit)} {self.unit}"
        shown = "" if outcome["value"] is None else f"{plain(outcome['value'])} {self.unit}"
        return [self.text, limit, shown, outcome["verdict"]]


GOALS: Final = msgspec.convert(
    tomllib.loads(Path(__file__).with_name("goals.toml").read_text())["goals"], list[Goal]
)
