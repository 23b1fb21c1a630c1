"""The bench: figures, table and goals, and one small run that is not judged by its speed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from benchmark.client import connect
from benchmark.machine import ROOT
from benchmark.peers import PEERS
from benchmark.report import GOALS, Goal, Report, table
from benchmark.results import Figure, Key, Results, percentile, plain
from benchmark.server import MeasureError
from benchmark.workloads import WORKLOADS
from running import TIMEOUT, gone, until
from websockets.asyncio.server import ServerConnection, serve

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench reads /proc")


def report(results: Results) -> Report:
    return Report(about={"machine": "a fast one"}, peers={}, skipped={}, results=results)


def results_of(*rows: tuple[str, str, str, dict[str, float]]) -> Results:
    results = Results()
    for work, case, peer, figures in rows:
        results.add(Key(work, case, peer), figures)
    return results


# Figures


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (50.5, 51), (99, 99), (100, 100)]
)
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(
    percent: float, expected: float
) -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert percentile(samples, percent) == expected


def test_one_sample_is_every_percentile_and_none_is_an_error() -> None:
    assert percentile([7.0], 1) == percentile([7.0], 99) == 7
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.5, "1.50"),
        (99.96, "100.0"),
        (123.4, "123"),
        (45678, "45,678"),
    ],
)
def test_numbers_are_written_with_three_digits_that_count(number: float, text: str) -> None:
    assert plain(number) == text


def test_a_figure_is_the_median_and_half_the_range() -> None:
    figure = Figure((90.0, 100.0, 130.0))
    assert figure.median == 100
    assert figure.text("msg/s") == "100 msg/s ±20%"
    assert Figure((100.0,)).text("msg/s") == "100 msg/s"


# Goals


def goal(**options: object) -> Goal:
    settings = {"text": "", "workload": "echo", "figures": ["rate"], **options}
    return Goal(**settings)  # type: ignore[arg-type]


def test_a_goal_compares_the_medians_of_one_run() -> None:
    results = Results()
    for rate in (10.0, 30.0, 20.0):
        results.add(Key("echo", "", "wsrelay"), {"rate": rate})
    results.add(Key("echo", "", "websocketd"), {"rate": 10.0})
    assert goal(of_peer="websocketd", at_least=2.0).value(results) == 2.0
    assert goal(of_peer="websocketd", at_least=2.0).outcome(results)["verdict"] == "met"
    assert goal(of_peer="websocketd", at_most=1.9).outcome(results)["verdict"] == "missed"


def test_a_goal_adds_figures_up_and_has_a_unit() -> None:
    cpu = {"front_cpu": 3e-6, "worker_cpu": 1e-6}
    results = results_of(("echo", "", "wsrelay", cpu))
    one = goal(figures=["front_cpu", "worker_cpu"], at_most=2.0, unit="µs", scale=1e-6)
    assert one.value(results) == pytest.approx(4)
    assert one.cells(results) == ["", "≤ 2.00 µs", "4.00 µs", "missed"]


def test_a_goal_can_be_a_ratio_of_two_figures_of_wsrelay() -> None:
    results = results_of(("light", "", "wsrelay", {"p99": 0.003, "idle_p99": 0.002}))
    one = goal(workload="light", figures=["p99"], of_figure="idle_p99", at_most=3.0)
    assert one.value(results) == pytest.approx(1.5)


def test_a_goal_can_be_a_ratio_to_so_many_times_those_of_several_peers() -> None:
    results = results_of(
        ("far-echo", "", "wsrelay", {"p50": 0.4}),
        ("far-echo", "", "alone", {"p50": 0.1}),
        ("far-echo", "", "nats", {"p50": 0.2}),
    )
    one = goal(workload="far-echo", figures=["p50"], of_sum={"alone": 1, "nats": 2}, at_most=1.0)
    assert one.value(results) == pytest.approx(0.8)
    assert one.outcome(results)["verdict"] == "met"
    results.rows.pop(Key("far-echo", "", "nats"))
    assert one.outcome(results)["verdict"] == "not measured"


def test_a_goal_without_its_peer_is_not_measured() -> None:
    results = results_of(("echo", "", "wsrelay", {"rate": 5.0}))
    one = goal(of_peer="websocketd", at_least=2.0)
    assert one.value(results) is None
    assert one.outcome(results)["verdict"] == "not measured"


@pytest.mark.parametrize("one", GOALS, ids=lambda one: one.text)
def test_goals_speak_of_workloads_cases_and_peers_that_there_are(one: Goal) -> None:
    workload = WORKLOADS[one.workload]
    assert one.case in workload.cases
    assert "wsrelay" in workload.peers
    assert not one.of_peer or one.of_peer in workload.peers
    assert set(one.of_sum) <= set(workload.peers)
    assert one.limit > 0


def test_workloads_are_for_peers_that_there_are() -> None:
    for workload in WORKLOADS.values():
        assert set(workload.peers) <= PEERS.keys()


# The report


def test_a_table_is_aligned() -> None:
    lines = table(("a", "long"), [("wide", "b")]).splitlines()
    assert lines == ["| a    | long |", "| ---- | ---- |", "| wide | b    |"]


def test_the_report_shows_figures_failures_and_a_busy_generator() -> None:
    figures = {"rate": 40_000.0, "p50": 0.00025, "p99": 0.0021, "front_cpu": 24e-6, "load": 0.97}
    results = results_of(("echo", "32", "wsrelay", figures))
    results.fail(Key("echo", "32", "websocketd"), "it fell over")
    text = report(results).text()
    [row] = [
        line for line in text.splitlines() if line.startswith("| echo 32") and "wsrelay" in line
    ]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3:] == [
        *("40,000 msg/s", "250 µs", "2.10 ms", "24.0 µs", ""),
        *("generator at 97% of its core", ""),
    ]
    assert "failed: it fell over" in text
    assert "machine: a fast one" in text


def test_the_report_names_those_who_are_missing() -> None:
    skipped = {"cowboy": "erl, erlc"}
    one = Report(about={}, peers={}, skipped=skipped, results=Results())
    assert "skipped: cowboy, no erl, erlc" in one.text()
    assert one.data()["skipped"] == skipped


def test_data_for_programs_has_every_value() -> None:
    results = Results()
    for rate in (1.0, 3.0):
        results.add(Key("echo", "1", "wsrelay"), {"rate": rate})
    [row] = report(results).data()["rows"]
    assert row["figures"]["rate"] == {"median": 2, "least": 1, "most": 3, "values": [1, 3]}
    assert row["failed"] is None


# The command


def test_the_bench_knows_wsrelay_by_its_command_and_its_public_names_only() -> None:
    """Other versions have other modules."""
    imported = {
        line.strip()
        for path in (ROOT / "scripts" / "benchmark").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) wsrelay\b", line)
    }
    assert imported == {
        "from wsrelay import process",
        "from wsrelay import Client, Room, on, process",
        "from wsrelay import PID, Client, Event, process",
        (
            "from wsrelay import Cluster, HostOptions, NameNotFound, Node, RelayResponse, "
            "WebSocketRelay"
        ),
        "from wsrelay.aio import process",
    }


def bench(
    *options: str, begin: Callable[[], object] | None = None, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        preexec_fn=begin,  # noqa: PLW1509 - the tests have no other thread here
        args=[sys.executable, "-m", "benchmark", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_small_run_writes_numbers_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    options = ["--only", "echo:1", "--peers", "wsrelay,bridge"]
    options += ["--repeats", "2", "--seconds", "0.05", "--out", str(tmp_path)]
    # Not in `tmp_path`: the name of a Unix socket, such as the bridge's fork server has, is short.
    with tempfile.TemporaryDirectory() as temporary:
        with bench(*options, TMPDIR=temporary) as process:
            said, complained = process.communicate(timeout=6 * TIMEOUT)
        assert not list(Path(temporary).iterdir())
    assert process.returncode == 0, complained
    assert "| echo 1 | wsrelay |" in said
    data = json.loads((tmp_path / "bench.json").read_text())
    row, _ = data["rows"]
    assert (row["work"], row["case"], row["peer"]) == ("echo", "1", "wsrelay")
    for name in ("rate", "p50", "p99", "front_cpu", "worker_cpu"):
        assert len(row["figures"][name]["values"]) == 2
        assert all(value > 0 for value in row["figures"][name]["values"]), name
    assert {"machine", "python", "commit"} <= set(data["about"])


@pytest.mark.skipif(PEERS["nats"].missing() != "", reason="no nats-server")
def test_what_crosses_between_two_nodes_is_measured_beside_a_single_one_and_nats(
    tmp_path: Path,
) -> None:
    options = ["--only", "far-echo", "--peers", "wsrelay,alone,nats", "--repeats", "1"]
    with bench(*options, "--seconds", "0.05", "--out", str(tmp_path)) as process:
        said, complained = process.communicate(timeout=6 * TIMEOUT)
    assert process.returncode == 0, complained + said
    rows = {
        row["peer"]: row["figures"]
        for row in json.loads((tmp_path / "bench.json").read_text())["rows"]
    }
    assert all(figures["p50"]["median"] > 0 for figures in rows.values())
    assert rows["wsrelay"]["carried"]["median"] >= 2  # there and back
    assert "carried" not in rows["alone"]
    [outcome] = [
        line for line in said.splitlines() if line.startswith("| echo of a room of another")
    ]
    assert "not measured" not in outcome


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no history: not a clone")
def test_another_version_is_measured_in_the_same_run(tmp_path: Path) -> None:
    options = ["--only", "echo:1", "--against", "HEAD", "--repeats", "1", "--seconds", "0.05"]
    with bench(*options, "--out", str(tmp_path)) as process:
        said, complained = process.communicate(timeout=6 * TIMEOUT)
    assert process.returncode == 0, complained
    data = json.loads((tmp_path / "bench.json").read_text())
    assert [row["peer"] for row in data["rows"]] == ["wsrelay", "wsrelay@HEAD"]
    assert "| work   | of wsrelay@HEAD" in said
    [ratios] = [line for line in said.splitlines() if line.startswith("| echo 1 | rate ")]
    assert "front_cpu" in ratios


def test_figures_are_compared_with_those_of_another_version() -> None:
    cpu = {"rate": 30_000.0, "front_cpu": 20e-6, "front_system": 5e-6}
    results = results_of(
        ("echo", "32", "wsrelay", cpu),
        ("echo", "32", "wsrelay@v1", {"rate": 20_000.0, "front_cpu": 40e-6}),
        ("echo", "256", "wsrelay", cpu),
    )
    one = Report(about={}, peers={}, skipped={}, results=results, against="wsrelay@v1")
    assert "| echo 32  | rate 1.500, front_cpu 0.500 |" in one.text()
    assert "20.0 µs (15.0 + 5.00)" in one.text()


def test_a_peer_that_fails_is_noted_and_the_others_are_measured(tmp_path: Path) -> None:
    fake = tmp_path / "websocketd"
    fake.write_text("#!/bin/sh\necho not today; exit 1\n")
    fake.chmod(0o755)
    options = ["--only", "echo:1", "--peers", "wsrelay,websocketd", "--repeats", "1"]
    options += ["--seconds", "0.05", "--out", str(tmp_path)]
    with bench(*options, PATH=f"{tmp_path}:{os.environ['PATH']}") as process:
        said, complained = process.communicate(timeout=6 * TIMEOUT)
    assert process.returncode == 1, complained
    failed = {
        row["peer"]: row["failed"]
        for row in json.loads((tmp_path / "bench.json").read_text())["rows"]
    }
    assert failed == {"wsrelay": None, "websocketd": "it did not start: not today"}
    assert "failed: it did not start: not today" in said


def test_a_question_fails_with_the_code_that_the_server_closed_with() -> None:
    async def refuse(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(1013)

    async def ask() -> None:
        async with serve(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            client = await connect(f"ws://127.0.0.1:{port}/")
            for _ in range(2):  # the second when it has been closed already
                with pytest.raises(MeasureError, match="closed with 1013"):
                    await client.ask(b"is anybody there?")
            await client.close()

    asyncio.run(asyncio.wait_for(ask(), TIMEOUT))


def in_the_background() -> None:
    """Ignore SIGINT, as a shell's `command &` begins; what is ignored stays so over an exec."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize(
    ("number", "begin"),
    [(signal.SIGINT, None), (signal.SIGINT, in_the_background), (signal.SIGTERM, None)],
)
def test_an_interrupted_run_leaves_no_process_behind(
    number: int, begin: Callable[[], object] | None, tmp_path: Path
) -> None:
    options = ["--only", "echo:1", "--peers", "wsrelay", "--seconds", "60", "--out", str(tmp_path)]
    with bench(*options, begin=begin) as process:
        assert process.stderr is not None
        assert "echo 1: wsrelay" in process.stderr.readline()
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert len(family) >= 3  # the node, its template, a worker
    until(lambda: all(map(gone, family)), "all its processes are gone")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "nothing"), "'nothing' is not one of 'echo', 'echo:1'"),
        (("--only", "echo:7"), "'echo:7' is not one of 'echo', 'echo:1', 'echo:32'"),
        (("--peers", "apache"), "'apache' is not one of 'wsrelay'"),
        (("--against", "no-such-branch"), "'no-such-branch' is no revision"),
    ],
)
def test_a_wrong_name_is_told(options: tuple[str, str], words: str) -> None:
    with bench(*options) as process:
        _, complained = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert words in " ".join(complained.split())
