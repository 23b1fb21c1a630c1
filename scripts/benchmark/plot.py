"""The picture: a panel for each workload, with bars in groups by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

from .peers import PEERS
from .results import Figure, Key, Results, plain

__all__ = ["draw"]

_COLUMNS: Final = 2
_COLOURS: Final = ("#c0392b", "#34495e", "#7f8c8d", "#2980b9", "#16a085", "#8e44ad", "#d35400")
_COLOUR: Final = dict(zip(PEERS, _COLOURS, strict=True))
_ANOTHER: Final = "#f1c40f"
"""The colour of another version."""
_BARS_WITH_LABELS: Final = 8


class _Panel(NamedTuple):
    """Figures of a workload, added up, in the unit of the title."""

    workload: str
    figures: str
    title: str
    unit: float = 1.0
    logarithmic: bool = False


_PANELS: Final = (
    _Panel("echo", "rate", "echo: messages/s by connections"),
    _Panel("echo", "p99", "echo: p99, ms", 1e-3, logarithmic=True),
    _Panel("echo", "front_cpu worker_cpu", "echo: CPU per message, µs", 1e-6),
    _Panel("fanout", "rate", "fan-out: deliveries/s by clients"),
    _Panel("fanout", "p50", "fan-out: p50 until the last, ms", 1e-3, logarithmic=True),
    _Panel(
        "fanout", "front_cpu worker_cpu", "fan-out: CPU per delivery, µs", 1e-6, logarithmic=True
    ),
    _Panel("connect", "rate", "connects/s with a process each"),
    _Panel("worker-memory", "pss", "one more worker: PSS, MB", 1e6),
    _Panel("idle-memory", "uss", "one more connection: USS, KB", 1e3),
    _Panel("kill", "p99", "SIGKILL to close frame: p99, ms", 1e-3, logarithmic=True),
    _Panel("light", "p99", "light room beside 4 busy: p99, ms", 1e-3, logarithmic=True),
    _Panel("size", "rate", "echo by size: MB/s", logarithmic=True),
)


def draw(results: Results, path: Path) -> None:
    """Write the picture of all that was measured."""
    shown = [(panel, bars) for panel in _PANELS if (bars := _bars(results, panel))]
    if not shown:
        return
    rows = -(-len(shown) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(12, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, (panel, bars) in zip(axes.flat, shown, strict=False):
        _draw(panel, bars, axis)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    figure.savefig(path)
    plt.close(figure)


def _bars(results: Results, panel: _Panel) -> dict[Key, Figure]:
    bars, names = {}, panel.figures.split()
    for key in results:
        row = results.row(key)
        if key.workload == panel.workload and names[0] in row:
            parts = zip(*(row[name].values for name in names), strict=True)
            bars[key] = Figure(tuple(map(sum, parts))).divided(panel.unit)
    return bars


def _draw(panel: _Panel, bars: dict[Key, Figure], axis: Any) -> None:
    peers = list(dict.fromkeys(key.peer for key in bars))
    cases = list(dict.fromkeys(key.case for key in bars))
    width = 0.85 / len(peers)
    for number, peer in enumerate(peers):
        mine = {key.case: bar for key, bar in bars.items() if key.peer == peer}
        medians = [bar.median for bar in mine.values()]
        drawn = axis.bar(
            [cases.index(case) + (number - (len(peers) - 1) / 2) * width for case in mine],
            medians,
            width,
            yerr=[
                [bar.median - min(bar.values) for bar in mine.values()],
                [max(bar.values) - bar.median for bar in mine.values()],
            ],
            error_kw={"elinewidth": 0.7, "ecolor": "#555555"},
            label=peer,
            color=_COLOUR.get(peer, _ANOTHER),
        )
        if len(bars) <= _BARS_WITH_LABELS:
            axis.bar_label(drawn, map(plain, medians), fontsize=7)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xticks(range(len(cases)), cases, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.logarithmic:
        axis.set_yscale("log")
