"""The table, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from .goals import GOALS
from .results import Figure, Key, Results, plain
from .workloads import WORKLOADS

__all__ = ["Report", "table"]

_SATURATED = 0.9
"""From this part of its core on, the generator may be what was measured."""

_HEAD = ("work", "peer", "throughput", "p50", "p99", "CPU front end", "CPU workers", "else")
_TIMES = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
_BYTES = {"MB": 1e6, "KB": 1e3}


def _in_unit(figure: Figure | None, units: Mapping[str, float]) -> str:
    """Write it in the first of the units that is not too large, or else in the last."""
    if figure is None or not any(figure.values):
        return ""
    fitting = [name for name in units if figure.median >= units[name]]
    name = (fitting or list(units))[0 if fitting else -1]
    return figure.divided(units[name]).text(name)


def _cpu(row: Mapping[str, Figure], of: str) -> str:
    """Write the time for each piece, and how much of it was user and system time."""
    total, system = row.get(f"{of}_cpu"), row.get(f"{of}_system")
    text = _in_unit(total, {"µs": _TIMES["µs"]})
    if total is None or system is None or not text:
        return text
    user = max(total.median - system.median, 0.0)
    return f"{text} ({plain(user * 1e6)} + {plain(system.median * 1e6)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table whose columns are aligned in the source, too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def _listed(lines: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


class Report(Struct, kw_only=True):
    """All that a run has to tell."""

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
        parts = [_listed(self.about), _listed(self.peers)]
        parts.append("\n".join(f"- skipped: {name}, no {w}" for name, w in self.skipped.items()))
        parts.append(table(_HEAD, [self._cells(key) for key in self.results]))
        parts.append(_listed({key.workload: WORKLOADS[key.workload].title for key in self.results}))
        if self.against:
            parts.append(self._comparison(self.against))
        goals = [goal.cells(self.results) for goal in GOALS]
        parts.append(table(("goal", "limit", "this run", ""), goals))
        return "\n\n".join(filter(None, parts))

    def _comparison(self, other: str) -> str:
        """Write each median as a multiple of the other version's in the same run."""
        rows = []
        for key in self.results:
            if key.peer == "wsrelay":
                theirs = self.results.row(key._replace(peer=other))
                ratios = [
                    f"{name} {figure.median / theirs[name].median:.3f}"
                    for name, figure in self.results.row(key).items()
                    if name in theirs and theirs[name].median
                ]
                rows.append([key.what, ", ".join(ratios)])
        return table(("work", f"of {other}"), rows)

    def _cells(self, key: Key) -> list[str]:
        row = self.results.row(key)
        rate = row.get("rate")
        return [
            key.what,
            key.peer,
            rate.text(WORKLOADS[key.workload].unit) if rate else "",
            _in_unit(row.get("p50"), _TIMES),
            _in_unit(row.get("p99"), _TIMES),
            _cpu(row, "front"),
            _cpu(row, "worker"),
            ", ".join(self._notes(key, row)),
        ]

    def _notes(self, key: Key, row: Mapping[str, Figure]) -> list[str]:
        notes = [
            f"{name.upper()} {_in_unit(row[name], _BYTES)}"
            for name in ("pss", "uss")
            if name in row
        ]
        if "idle_p99" in row:
            p50, p99 = (_in_unit(row[name], _TIMES) for name in ("idle_p50", "idle_p99"))
            notes.append(f"alone p50 {p50}, p99 {p99}")
        if "code" in row:
            notes.append(f"code {row['code'].median:.0f}")
        if "busy_rate" in row and row["busy_rate"].median:
            notes.append(f"beside {plain(row['busy_rate'].median)} msg/s")
        if "load" in row and max(row["load"].values) >= _SATURATED:
            notes.append(f"generator at {max(row['load'].values):.0%} of its core")
        if key in self.results.failed:
            notes.append(f"failed: {self.results.failed[key]}")
        return notes

    def data(self) -> dict[str, Any]:
        """Return it for programs; times in seconds, memory in bytes."""
        return {
            "about": dict(self.about),
            "peers": dict(self.peers),
            "skipped": dict(self.skipped),
            "rows": [self._row(key) for key in self.results],
            "goals": [goal.outcome(self.results) for goal in GOALS],
        }

    def _row(self, key: Key) -> dict[str, Any]:
        return {
            "work": key.workload,
            "case": key.case,
            "peer": key.peer,
            "unit": WORKLOADS[key.workload].unit,
            "failed": self.results.failed.get(key),
            "figures": {
                name: {
                    "median": figure.median,
                    "least": min(figure.values),
                    "most": max(figure.values),
                    "values": list(figure.values),
                }
                for name, figure in self.results.row(key).items()
            },
        }
