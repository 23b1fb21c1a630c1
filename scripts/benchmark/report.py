"""The tables for people, with the goals of `goals.toml`, and the same for programs."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from .results import Figure, Key, Results, plain
from .workloads import WORKLOADS

__all__ = ["GOALS", "Goal", "Report", "table"]

_SATURATED = 0.9
"""From this part of its core on, the generator may be what was measured."""

_HEAD = ("work", "peer", "throughput", "p50", "p99", "CPU front end", "CPU workers", "else")
_TIMES = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
_BYTES = {"MB": 1e6, "KB": 1e3}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table whose columns are aligned in the source, too."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def _listed(lines: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in lines)


def _in_unit(figure: Figure | None, units: Mapping[str, float]) -> str:
    """Write it in the first of the units that is not too large, otherwise in the last."""
    if figure is None or not any(figure):
        return ""
    fitting = [unit for unit, scale in units.items() if figure.median >= scale]
    unit = [*fitting, [*units][-1]][0]
    return figure.text(unit, units[unit])


def _cpu(row: Mapping[str, Figure], of: str) -> str:
    """Write the time per message, and how much of it was user and system time."""
    total, system = row.get(f"{of}_cpu"), row.get(f"{of}_system")
    text = _in_unit(total, {"µs": 1e-6})
    if not (text and total and system):
        return text
    user = max(total.median - system.median, 0.0)
    return f"{text} ({plain(user * 1e6)} + {plain(system.median * 1e6)})"


class Goal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One goal; `goals.toml` says what its fields mean."""

    text: str
    workload: str
    case: str = ""
    figures: list[str]
    of_peer: str = ""
    of_figure: str = ""
    of_sum: Mapping[str, float] = {}
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
        if self.of_sum:
            keys = {Key(self.workload, self.case, peer): part for peer, part in self.of_sum.items()}
            parts = [(results.total(key, self.figures), part) for key, part in keys.items()]
            whole = sum(total * part for total, part in parts if total is not None)
            return None if any(total is None for total, _ in parts) else value / whole
        if not (self.of_peer or self.of_figure):
            return value / self.scale
        key = Key(self.workload, self.case, self.of_peer or "wsrelay")
        other = results.total(key, [self.of_figure] if self.of_figure else self.figures)
        return value / other if other else None

    def outcome(self, results: Results) -> dict[str, Any]:
        """Return the goal, what was measured, and `met`, `missed` or `not measured`."""
        value, verdict = self.value(results), "not measured"
        if value is not None:
            verdict = "met" if self.at_least <= value <= self.at_most else "missed"
        limit = {"limit": self.limit, "at_least": bool(self.at_least), "unit": self.unit}
        return {"goal": self.text, **limit, "value": value, "verdict": verdict}

    def cells(self, results: Results) -> list[str]:
        """Return the same as a row of the table."""
        value, verdict = self.value(results), self.outcome(results)["verdict"]
        limit = f"{'≥' if self.at_least else '≤'} {plain(self.limit)} {self.unit}"
        return [self.text, limit, "" if value is None else f"{plain(value)} {self.unit}", verdict]


GOALS: Final = msgspec.convert(
    tomllib.loads(Path(__file__).with_name("goals.toml").read_text())["goals"], list[Goal]
)


class Report(Struct, kw_only=True):
    """All that a run has found."""

    about: Mapping[str, str]
    peers: Mapping[str, str]
    """The versions of those that were measured."""
    skipped: Mapping[str, str]
    """What is missing of those that were not."""
    results: Results
    against: str | None = None
    """The name of another version of wsrelay that was measured, too."""

    def text(self) -> str:
        """Write it for people."""
        rows = self.results.rows
        titles = {key.workload: WORKLOADS[key.workload].title for key in rows}
        parts = [
            _listed(self.about.items()),
            _listed(self.peers.items()),
            _listed(("skipped", f"{name}, no {what}") for name, what in self.skipped.items()),
            table(_HEAD, [self._cells(key, row) for key, row in rows.items()]),
            _listed(titles.items()),
            self._comparison(self.against) if self.against else "",
            table(("goal", "limit", "this run", ""), [g.cells(self.results) for g in GOALS]),
        ]
        return "\n\n".join(filter(None, parts))

    def _comparison(self, other: str) -> str:
        """Write each median as a multiple of the other version's in the same run."""
        lines = []
        for key, row in self.results.rows.items():
            if key.peer == "wsrelay":
                theirs = self.results.rows.get(key._replace(peer=other), {})
                shared = [name for name in row if name in theirs and theirs[name].median]
                ratios = [f"{name} {row[name].median / theirs[name].median:.3f}" for name in shared]
                lines.append([key.what, ", ".join(ratios)])
        return table(("work", f"of {other}"), lines)

    def _cells(self, key: Key, row: Mapping[str, Figure]) -> list[str]:
        rate = row["rate"].text(WORKLOADS[key.workload].unit) if "rate" in row else ""
        times = [_in_unit(row.get(name), _TIMES) for name in ("p50", "p99")]
        notes = ", ".join(self._notes(key, row))
        return [key.what, key.peer, rate, *times, _cpu(row, "front"), _cpu(row, "worker"), notes]

    def _notes(self, key: Key, row: Mapping[str, Figure]) -> Iterable[str]:
        for name in ("pss", "uss"):
            if name in row:
                yield f"{name.upper()} {_in_unit(row[name], _BYTES)}"
        if "idle_p99" in row:
            p50, p99 = (_in_unit(row[name], _TIMES) for name in ("idle_p50", "idle_p99"))
            yield f"alone p50 {p50}, p99 {p99}"
        if "carried" in row:
            yield f"NATS carries {row['carried'].text()}"
        if "code" in row:
            yield f"code {row['code'].median:.0f}"
        if "busy_rate" in row and row["busy_rate"].median:
            yield f"beside {plain(row['busy_rate'].median)} msg/s"
        if "load" in row and max(row["load"]) >= _SATURATED:
            yield f"generator at {max(row['load']):.0%} of its core"
        if key in self.results.failed:
            yield f"failed: {self.results.failed[key]}"

    def data(self) -> dict[str, Any]:
        """Return it for programs; times in seconds, memory in bytes."""
        rows = []
        for key, row in self.results.rows.items():
            about = {"work": key.workload, "case": key.case, "peer": key.peer}
            about["unit"] = WORKLOADS[key.workload].unit
            figures = {name: figure.data() for name, figure in row.items()}
            rows.append({**about, "failed": self.results.failed.get(key), "figures": figures})
        return {
            "about": self.about,
            "peers": self.peers,
            "skipped": self.skipped,
            "rows": rows,
            "goals": [goal.outcome(self.results) for goal in GOALS],
        }
