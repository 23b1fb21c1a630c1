"""The table, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from .figures import Figure, plain
from .goals import GOALS
from .results import Key, Results
from .works import WORKS

__all__ = ["Report"]

SATURATED = 0.9
"""From this part of its core on, the generator may be what was measured."""

_HEAD = ("work", "peer", "throughput", "p50", "p99", "CPU front end", "CPU workers", "else")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def _duration(figure: Figure | None, *, unit: str = "") -> str:
    if figure is None or not any(figure.values):
        return ""
    for scale, name in _TIMES:
        if name == unit or (not unit and figure.median >= scale):
            break
    return Figure(tuple(value / scale for value in figure.values)).text(name)


def _cpu(row: Mapping[str, Figure], of: str) -> str:
    """Write the time for each piece, and how much of it was user and system time."""
    total, system = row.get(f"{of}_cpu"), row.get(f"{of}_system")
    text = _duration(total, unit="µs")
    if total is None or system is None or not text:
        return text
    user = max(total.median - system.median, 0.0)
    return f"{text} ({plain(user * 1e6)} + {plain(system.median * 1e6)})"


def _bytes(figure: Figure) -> str:
    scale, name = (1e6, "MB") if figure.median >= 1e6 else (1e3, "KB")  # noqa: PLR2004
    return Figure(tuple(value / scale for value in figure.values)).text(name)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table whose columns are aligned in the source, too."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


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
        parts = ["\n".join(f"- {name}: {value}" for name, value in self.about.items())]
        parts += ["\n".join(f"- {name}: {version}" for name, version in self.peers.items())]
        if self.skipped:
            lines = [f"- skipped: {name}, no {what}" for name, what in self.skipped.items()]
            parts.append("\n".join(lines))
        parts.append(table(_HEAD, [self._cells(key) for key in self.results]))
        used = dict.fromkeys(key.work for key in self.results)
        parts.append("\n".join(f"- {name}: {WORKS[name].title}" for name in used))
        if self.against:
            parts.append(self._comparison(self.against))
        goals = [goal.outcome(self.results).cells() for goal in GOALS]
        parts.append(table(("goal", "limit", "this run", ""), goals))
        return "\n\n".join(parts)

    def _comparison(self, other: str) -> str:
        """Write each median as a multiple of the other version's in the same run."""
        rows = []
        for key in self.results:
            if key.peer != "wsrelay":
                continue
            theirs = self.results.row(Key(key.work, key.case, other))
            ratios = [
                f"{name} {figure.median / theirs[name].median:.3f}"
                for name, figure in self.results.row(key).items()
                if name in theirs and theirs[name].median
            ]
            rows.append([f"{key.work} {key.case}".strip(), ", ".join(ratios)])
        return table(("work", f"of {other}"), rows)

    def _cells(self, key: Key) -> list[str]:
        work = WORKS[key.work]
        row = self.results.row(key)
        rate = row.get("rate")
        return [
            f"{key.work} {key.case}".strip(),
            key.peer,
            rate.text(work.unit) if rate else "",
            _duration(row.get("p50")),
            _duration(row.get("p99")),
            _cpu(row, "front"),
            _cpu(row, "worker"),
            ", ".join(self._notes(key, row)),
        ]

    def _notes(self, key: Key, row: Mapping[str, Figure]) -> list[str]:
        notes = [f"{name.upper()} {_bytes(row[name])}" for name in ("pss", "uss") if name in row]
        if "idle_p99" in row:
            idle = _duration(row["idle_p50"]), _duration(row["idle_p99"])
            notes.append(f"alone p50 {idle[0]}, p99 {idle[1]}")
        if "code" in row:
            notes.append(f"code {row['code'].median:.0f}")
        if "busy_rate" in row and row["busy_rate"].median:
            notes.append(f"beside {plain(row['busy_rate'].median)} msg/s")
        if "load" in row and max(row["load"].values) >= SATURATED:
            notes.append(f"generator at {max(row['load'].values):.0%} of its core")
        if key in self.results.failed:
            notes.append(f"failed: {self.results.failed[key]}")
        return notes

    def data(self) -> dict[str, Any]:
        """Return it for programs; times in seconds, memory in bytes."""
        outcomes = [goal.outcome(self.results) for goal in GOALS]
        return {
            "about": dict(self.about),
            "peers": dict(self.peers),
            "skipped": dict(self.skipped),
            "rows": [self._row(key) for key in self.results],
            "goals": [
                {
                    "goal": outcome.goal.text,
                    "limit": outcome.goal.limit,
                    "at_least": outcome.goal.at_least,
                    "unit": outcome.goal.unit,
                    "value": outcome.value,
                    "verdict": outcome.verdict,
                }
                for outcome in outcomes
            ],
        }

    def _row(self, key: Key) -> dict[str, Any]:
        return {
            "work": key.work,
            "case": key.case,
            "peer": key.peer,
            "unit": WORKS[key.work].unit,
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
