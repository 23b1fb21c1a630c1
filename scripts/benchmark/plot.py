"""The picture: a panel for each work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from msgspec import Struct

from .contenders import PEERS
from .figures import Figure, plain
from .results import Key, Results

__all__ = ["draw"]

_COLUMNS: Final = 2
_COLOURS: Final = ("#c0392b", "#34495e", "#7f8c8d", "#2980b9", "#16a085", "#8e44ad", "#d35400")
_ANOTHER: Final = "#f1c40f"
"""The colour of another version."""
_BARS_WITH_LABELS: Final = 8


class _Panel(Struct, frozen=True, kw_only=True):
    """What one panel shows: bars in groups by case, in the unit of its title."""

    work: str
    title: str
    names: Sequence[str]
    """Figures that are added up."""
    scale: float = 1.0
    logarithmic: bool = False


_CPU: Final = ("front_cpu", "worker_cpu")

_PANELS: Final = (
    _Panel(work="echo", title="echo: messages/s by connections", names=["rate"]),
    _Panel(work="echo", title="echo: p99, ms", names=["p99"], scale=1e3, logarithmic=True),
    _Panel(work="echo", title="echo: CPU per message, µs", names=_CPU, scale=1e6),
    _Panel(work="fanout", title="fan-out: deliveries/s by clients", names=["rate"]),
    _Panel(
        work="fanout",
        title="fan-out: p50 until the last, ms",
        names=["p50"],
        scale=1e3,
        logarithmic=True,
    ),
    _Panel(
        work="fanout",
        title="fan-out: CPU per delivery, µs",
        names=_CPU,
        scale=1e6,
        logarithmic=True,
    ),
    _Panel(work="connect", title="connects/s with a process each", names=["rate"]),
    _Panel(work="worker-memory", title="one more worker: PSS, MB", names=["pss"], scale=1e-6),
    _Panel(work="idle-memory", title="one more connection: USS, KB", names=["uss"], scale=1e-3),
    _Panel(
        work="kill",
        title="SIGKILL to close frame: p99, ms",
        names=["p99"],
        scale=1e3,
        logarithmic=True,
    ),
    _Panel(
        work="light",
        title="light room beside 4 busy: p99, ms",
        names=["p99"],
        scale=1e3,
        logarithmic=True,
    ),
    _Panel(work="size", title="echo by size: MB/s", names=["rate"], logarithmic=True),
)


def draw(results: Results, path: Path) -> None:
    """Write the picture of all that was measured."""
    panels = [panel for panel in _PANELS if _peers(results, panel)]
    if not panels:
        return
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(12, 3.2 * rows), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(results, panel, axis)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))
    figure.savefig(path)
    plt.close(figure)


def _peers(results: Results, panel: _Panel) -> list[str]:
    return list(dict.fromkeys(key.peer for key in results if _shown(results, panel, key)))


def _shown(results: Results, panel: _Panel, key: Key) -> bool:
    return key.work == panel.work and panel.names[0] in results.row(key)


def _draw(results: Results, panel: _Panel, axis: Any) -> None:
    peers = _peers(results, panel)
    keys = [key for key in results if _shown(results, panel, key)]
    cases = list(dict.fromkeys(key.case for key in keys))
    width = 0.85 / len(peers)
    for number, peer in enumerate(peers):
        mine = [key for key in keys if key.peer == peer]
        bars = [_bar(results, panel, key) for key in mine]
        places = [cases.index(key.case) + (number - (len(peers) - 1) / 2) * width for key in mine]
        drawn = axis.bar(
            places,
            [bar.median for bar in bars],
            width,
            yerr=[_reach(bars, min, -1), _reach(bars, max, 1)],
            error_kw={"elinewidth": 0.7, "ecolor": "#555555"},
            label=peer,
            color=_colour(peer),
        )
        if len(keys) <= _BARS_WITH_LABELS:
            axis.bar_label(drawn, [plain(bar.median) for bar in bars], fontsize=7)
    axis.set_title(panel.title, fontsize=10)
    axis.set_xticks(range(len(cases)), cases, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if panel.logarithmic:
        axis.set_yscale("log")


def _colour(peer: str) -> str:
    names = list(PEERS)
    return _COLOURS[names.index(peer) % len(_COLOURS)] if peer in names else _ANOTHER


def _bar(results: Results, panel: _Panel, key: Key) -> Figure:
    row = results.row(key)
    parts = zip(*(row[name].values for name in panel.names), strict=True)
    return Figure(tuple(sum(values) * panel.scale for values in parts))


def _reach(
    bars: Sequence[Figure], end: Callable[[tuple[float, ...]], float], sign: int
) -> list[float]:
    return [abs(sign * (end(bar.values) - bar.median)) for bar in bars]
