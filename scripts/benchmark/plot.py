"""The picture: a panel for each workload, with bars in groups by case."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from matplotlib import figure

from .peers import PEERS
from .results import Figure, Key, Results, plain

__all__ = ["draw"]

_COLUMNS: Final = 2
_COLOURS: Final = ("#c0392b", "#34495e", "#7f8c8d", "#2980b9", "#16a085", "#8e44ad", "#d35400")
_COLOUR: Final = dict(zip(PEERS, _COLOURS, strict=True))
_ANOTHER: Final = "#f1c40f"
"""The colour of another version."""
_BARS_WITH_LABELS: Final = 8
_CPU: Final = ("front_cpu", "worker_cpu")


class _Panel(NamedTuple):
    """Figures of a workload, added up, in the unit of the title."""

    workload: str
    figures: tuple[str, ...]
    title: str
    unit: float = 1.0
    scale: str = "linear"


_PANELS: Final = (
    _Panel("echo", ("rate",), "echo: messages/s by connections"),
    _Panel("echo", ("p99",), "echo: p99, ms", 1e-3, "log"),
    _Panel("echo", _CPU, "echo: CPU per message, µs", 1e-6),
    _Panel("fanout", ("rate",), "fan-out: deliveries/s by clients"),
    _Panel("fanout", ("p50",), "fan-out: p50 until the last, ms", 1e-3, "log"),
    _Panel("fanout", _CPU, "fan-out: CPU per delivery, µs", 1e-6, "log"),
    _Panel("connect", ("rate",), "connects/s with a process each"),
    _Panel("worker-memory", ("pss",), "one more worker: PSS, MB", 1e6),
    _Panel("idle-memory", ("uss",), "one more connection: USS, KB", 1e3),
    _Panel("kill", ("p99",), "SIGKILL to close frame: p99, ms", 1e-3, "log"),
    _Panel("light", ("p99",), "light room beside 4 busy: p99, ms", 1e-3, "log"),
    _Panel("size", ("rate",), "echo by size: MB/s", 1.0, "log"),
)


def draw(results: Results, path: Path) -> None:
    """Write the picture of all that was measured as SVG; without any of it, write none."""
    shown = [(panel, bars) for panel in _PANELS if (bars := _bars(results, panel))]
    if not shown:
        return
    rows = -(-len(shown) // _COLUMNS)
    picture = figure.Figure(figsize=(12, 3.2 * rows), layout="constrained")
    axes = picture.subplots(rows, _COLUMNS, squeeze=False).flat
    legend: dict[str, Any] = {}
    for axis, (panel, bars) in zip(axes, shown, strict=False):
        legend |= _draw(panel, bars, axis)
    for axis in axes[len(shown) :]:
        axis.axis("off")
    picture.legend(legend.values(), legend, loc="outside upper center", ncols=len(legend))
    picture.savefig(path)


def _bars(results: Results, panel: _Panel) -> dict[Key, Figure]:
    """Return the sums of the panel's figures in its unit, for each repetition."""
    return {
        key: Figure(
            sum(parts) / panel.unit
            for parts in zip(*(row[name] for name in panel.figures), strict=True)
        )
        for key, row in results.rows.items()
        if key.workload == panel.workload and panel.figures[0] in row
    }


def _draw(panel: _Panel, bars: Mapping[Key, Figure], axis: Any) -> dict[str, Any]:
    """Draw a panel, and return what stands for each peer in the legend."""
    cases = list(dict.fromkeys(key.case for key in bars))
    peers = list(dict.fromkeys(key.peer for key in bars))
    width, legend = 0.85 / len(peers), {}
    for number, peer in enumerate(peers):
        mine = {key.case: bar for key, bar in bars.items() if key.peer == peer}
        legend[peer] = axis.bar(
            [cases.index(case) + (number - (len(peers) - 1) / 2) * width for case in mine],
            [bar.median for bar in mine.values()],
            width,
            yerr=[
                [bar.median - min(bar) for bar in mine.values()],
                [max(bar) - bar.median for bar in mine.values()],
            ],
            error_kw={"elinewidth": 0.7, "ecolor": "#555555"},
            color=_COLOUR.get(peer, _ANOTHER),
        )
        if len(bars) <= _BARS_WITH_LABELS:
            axis.bar_label(legend[peer], [plain(bar.median) for bar in mine.values()], fontsize=7)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xticks(range(len(cases)), cases, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_yscale(panel.scale)
    return legend
