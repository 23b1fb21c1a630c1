"""The page, the dashboard and the alerts name what there is, and all that there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from wsrelay.metrics import METRICS, PREFIX
from wsrelay.values.numbers import Bound, Refusal

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))

SERIES = {
    f"{metric.full_name}{suffix}"
    for metric in METRICS
    for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
}
OF_PROCESS = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
}


def table(heading: str) -> list[list[str]]:
    """The rows of the table below that heading, as cells."""
    _, _, below = PAGE.partition(f"\n{heading}\n")
    rows = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert rows is not None
    lines = rows[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def coded(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def named(queries: str) -> set[str]:
    """The metrics that queries name."""
    return set(re.findall(rf"\b{PREFIX}\w+|\bprocess_\w+(?=[{{\[ ])", queries))


def test_the_page_has_each_metric_with_its_type_and_labels() -> None:
    told = [
        (coded(name)[0], kind, tuple(coded(its)))
        for name, kind, its, *_ in table("## What there is")
    ]
    assert told == [(metric.name, metric.kind, metric.labels) for metric in METRICS]


def test_the_page_has_each_reason_and_each_bound() -> None:
    reasons = [name for row in table("### Why upgrades are refused") for name in coded(row[0])]
    assert sorted(reasons) == sorted(get_args(Refusal))
    bounds = [name for row in table("### Bounds") for name in coded(row[0])]
    assert sorted(bounds) == sorted(get_args(Bound))


def test_the_dashboard_asks_for_what_there_is() -> None:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    for query in queries:
        assert named(query), query
        assert named(query) <= SERIES | OF_PROCESS, query
        assert "$instance" in query
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name) for query in queries for name in named(query)
    }
    unshown = {metric.full_name for metric in METRICS} - shown
    assert unshown == {
        f"{PREFIX}{name}" for name in ("node_info", "node_draining", "max_buffered_bytes")
    }
    for one in panels:
        assert one["title"]
        assert one["description"].endswith(".")


def test_the_dashboard_s_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def rules() -> str:
    [found] = [one for one in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "alert:" in one]
    return str(found)


def test_the_alerts_ask_for_what_there_is() -> None:
    expressions = re.findall(r"expr: (.*)", rules())
    assert len(expressions) == rules().count("alert:") >= 10
    for expression in expressions:
        assert named(expression), expression
        assert named(expression) <= SERIES | OF_PROCESS, expression


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)"
)
def test_promtool_takes_the_alerts_and_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules())
    [scrape] = [
        one for one in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "scrape_configs" in one
    ]
    (tmp_path / "prometheus.yml").write_text(scrape)
    for arguments in (["check", "rules", "rules.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(
            ["promtool", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
