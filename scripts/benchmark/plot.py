"""The picture: a panel for each workload, with bars in groups by case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from matplotlib import figure

from .peers import PEERS
from .results import Figure, Key, Results, plain

__all__ = ["draw"]

_COLOURS: Final = (
    "#c0392b",
    "#34495e",
    "#7f8c8d",
    "#2980b9",
    "#16a085",
    "#8e44ad",
    "#d35400",
    "#95a5a6",
    "#27ae60",
    "#1abc9c",
    "#2c3e50",
)
_COLOUR: Final = dict(zip(PEERS, _COLOURS, strict=True))
_ANOTHER: Final = "#f1c40f"
"""The colour of another version."""
_BARS_WITH_LABELS: Final = 8

# A workload, its figures that are added up, a title, its unit and scale.
_PANELS: Final = (
    ("echo", "rate", "echo: messages/s by connections", 1, "linear"),
    ("echo", "p99", "echo: p99, ms", 1e-3, "log"),
    ("echo", "front_cpu worker_cpu", "echo: CPU per message, µs", 1e-6, "linear"),
    ("fanout", "rate", "fan-out: deliveries/s by clients", 1, "linear"),
    ("fanout", "p50", "fan-out: p50 until the last, ms", 1e-3, "log"),
    ("fanout", "front_cpu worker_cpu", "fan-out: CPU per delivery, µs", 1e-6, "log"),
    ("connect", "rate", "connects/s with a process each", 1, "linear"),
    ("worker-memory", "pss", "one more worker: PSS, MB", 1e6, "linear"),
    ("idle-memory", "uss", "one more connection: USS, KB", 1e3, "linear"),
    ("kill", "p99", "SIGKILL to close frame: p99, ms", 1e-3, "log"),
    ("light", "p99", "light room beside 4 busy: p99, ms", 1e-3, "log"),
    ("size", "rate", "echo by size: MB/s", 1, "log"),
    ("far-echo", "p50", "echo on another node by connections: p50, ms", 1e-3, "log"),
    ("far-fanout", "front_cpu worker_cpu", "fan-out from another node: CPU, µs", 1e-6, "linear"),
)


def draw(results: Results, path: Path) -> None:
    """Write the picture of all that was measured as SVG; without any of it, write none."""
    panels = []
    for workload, names, title, unit, scale in _PANELS:
        bars = _bars(results, workload, names.split(), unit)
        if bars:
            panels.append((bars, title, scale))
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    picture = figure.Figure(figsize=(12, 3.2 * rows), layout="constrained")
    axes = picture.subplots(rows, 2, squeeze=False).flat
    legend: dict[str, Any] = {}
    for axis, (bars, title, scale) in zip(axes, panels, strict=False):
        legend |= _draw(axis, bars)
        axis.set_title(title, fontsize=10)
        axis.set_yscale(scale)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    picture.legend(legend.values(), legend, loc="outside upper center", ncols=len(legend))
    picture.savefig(path)


def _bars(results: Results, workload: str, names: list[str], unit: float) -> dict[Key, Figure]:
    """Return the sum of the figures in this unit, for each repetition."""
    bars = {}
    for key, row in results.rows.items():
        if key.workload == workload and names[0] in row:
            repetitions = zip(*(row[name] for name in names), strict=True)
            bars[key] = Figure(sum(parts) / unit for parts in repetitions)
    return bars


def _draw(axis: Any, bars: Mapping[Key, Figure]) -> dict[str, Any]:
    """Draw bars, and return what stands for each peer in the legend."""
    cases = list(dict.fromkeys(key.case for key in bars))
    peers = list(dict.fromkeys(key.peer for key in bars))
    width, legend = 0.85 / len(peers), {}
    for number, peer in enumerate(peers):
        mine = {key.case: bar for key, bar in bars.items() if key.peer == peer}
        places = [cases.index(case) + (number - (len(peers) - 1) / 2) * width for case in mine]
        medians = [bar.median for bar in mine.values()]
        below = [bar.median - min(bar) for bar in mine.values()]
        above = [max(bar) - bar.median for bar in mine.values()]
        look = {"color": _COLOUR.get(peer, _ANOTHER), "error_kw": {"elinewidth": 0.7}}
        legend[peer] = axis.bar(places, medians, width, yerr=[below, above], **look)
        if len(bars) <= _BARS_WITH_LABELS:
            axis.bar_label(legend[peer], map(plain, medians), fontsize=7)
    axis.set_xticks(range(len(cases)), cases, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return legend
