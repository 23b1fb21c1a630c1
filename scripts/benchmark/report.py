"""The tables for people, and the same for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    if figure is None or not any(figure):
        return ""
    fitting = [unit for unit, scale in units.items() if figure.median >= scale]
    unit = [*fitting, [*units][-1]][0]
    return figure.text(unit, units[unit])


def _cpu(row: Mapping[str, Figure], of: str) -> str:
    """Write the time for each piece, and how much of it was user and system time."""
    total, system = row.get(f"{of}_cpu"), row.get(f"{of}_system")
    text = _in_unit(total, {"µs": 1e-6})
    if not (text and total and system):
        return text
    user = max(total.median - system.median, 0.0)
    return f"{text} ({plain(user * 1e6)} + {plain(system.median * 1e6)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table whose columns are aligned in the source, too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in (head, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(f"| {line} |" for line in lines)


def _listed(lines: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in lines)


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
                ratios = [
                    f"{name} {figure.median / theirs[name].median:.3f}"
                    for name, figure in row.items()
                    if name in theirs and theirs[name].median
                ]
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
        if "code" in row:
            yield f"code {row['code'].median:.0f}"
        if "busy_rate" in row and row["busy_rate"].median:
            yield f"beside {plain(row['busy_rate'].median)} msg/s"
        if max(row.get("load", (0.0,))) >= _SATURATED:
            yield f"generator at {max(row['load']):.0%} of its core"
        if key in self.results.failed:
            yield f"failed: {self.results.failed[key]}"

    def data(self) -> dict[str, Any]:
        """Return it for programs; times in seconds, memory in bytes."""
        return {
            "about": self.about,
            "peers": self.peers,
            "skipped": self.skipped,
            "rows": [
                {
                    "work": key.workload,
                    "case": key.case,
                    "peer": key.peer,
                    "unit": WORKLOADS[key.workload].unit,
                    "failed": self.results.failed.get(key),
                    "figures": {
                        name: {
                            "median": figure.median,
                            "least": min(figure),
                            "most": max(figure),
                            "values": list(figure),
                        }
                        for name, figure in row.items()
                    },
                }
                for key, row in self.results.rows.items()
            ],
            "goals": [goal.outcome(self.results) for goal in GOALS],
        }
