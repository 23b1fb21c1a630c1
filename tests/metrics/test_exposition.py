"""What is read: the text, its form, the places where it is served, and a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import rooms
from fastapi import FastAPI
from one_node import left_as_found, running_node
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from scraped import sample, samples
from support import TIMEOUT, client, processes, received, relay_to, room, serving, until

from wsrelay import Node, WebSocketRelay, metrics
from wsrelay.control import ControlClient, ControlSocket
from wsrelay.errors import MissingExtra
from wsrelay.metrics import METRICS, PREFIX, numbers_of, text_of

pytestmark = pytest.mark.anyio

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana.json"

UNITS = ("seconds", "bytes", "info")
"""Base units, in which every name that has one must end (https://prometheus.io/docs/practices)."""

LABELS = {"node", "version", "host", "entry", "state", "kind", "code", "reason", "direction"}
LABELS |= {"bound"}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs prometheus and promtool (Debian's package prometheus)",
)


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with running_node(processes()) as node:
        yield node


# Its form


async def test_the_text_is_what_prometheus_parses_with_help_and_type_for_each_metric(
    shared: Node,
) -> None:
    async with left_as_found(shared):
        pid = shared.spawn(room(rooms.echo))
        await shared.started(pid)
        text, kind = text_of(shared)
    assert kind.startswith("text/plain; version=")
    families = {f.name: f for f in text_string_to_metric_families(text.decode())}
    expected = {
        one.full_name.removesuffix("_total"): one
        for one in METRICS
        if not one.name.startswith("cluster_")
    }
    assert {name for name in families if name.startswith(PREFIX)} == {*expected}
    for name, metric in expected.items():
        family = families[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for one in family.samples:
            assert {*one.labels} - {"le"} == {*metric.labels}
    assert "process_resident_memory_bytes" in families, "of the front end's OS process"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_says_what_is_counted_in_base_units(metric: metrics.Metric) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+|[a-z]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"milli|micro|kilo|mega|_ms\b|_kb\b|percent|minutes", metric.name)
    for unit in UNITS:
        if unit in metric.name.split("_"):
            assert metric.name.removesuffix("_total").endswith(unit)
    if metric.kind == "histogram":
        assert metric.name.endswith("_seconds")
    assert {*metric.labels} <= LABELS
    assert re.fullmatch(r"[A-Z].*\.", metric.help)
    assert not re.search(r"\n|  ", metric.help)


async def test_labels_are_of_the_configuration_whatever_processes_are_called(shared: Node) -> None:
    """However many rooms there were, there are as many series as before."""
    async with left_as_found(shared):
        await _visit_a_room(shared, "first")
        before = samples(text_of(shared)[0].decode()).keys()
        for number in range(5):
            await _visit_a_room(shared, f"room-{number}")
        text = text_of(shared)[0].decode()
        assert samples(text).keys() == before
        assert not re.search(r"room-|first|rooms\.py|127\.0\.0\.1|\|", text)


async def _visit_a_room(node: Node, name: str) -> None:
    pid = node.get_or_spawn(name, room(rooms.echo))
    await node.started(pid)
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
        await one.send("hello")
        await received(one)
    node.terminate(pid)
    await until(lambda: pid not in node.workers)


# As JSON


async def test_the_control_socket_tells_the_same_as_json_and_as_text(
    shared: Node, tmp_path: Path
) -> None:
    async with left_as_found(shared), ControlSocket(shared, tmp_path / "run") as control:
        assert control.path is not None
        pid = shared.spawn(room(rooms.echo))
        await shared.started(pid)
        transport = httpx.AsyncHTTPTransport(uds=str(control.path))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as http:
            numbers = (await http.get("/numbers")).json()
            text = (await http.get("/metrics")).text
            missing = await http.get("/metric")
        assert missing.status_code == 404
        again = await asyncio.to_thread(ControlClient(control.path).numbers)
        assert {**again, "loop_lag_seconds": None} == {**numbers, "loop_lag_seconds": None}
        assert [*numbers] == [metric.name for metric in METRICS]
        for state in numbers["processes"]:
            value = state.pop("value")
            assert sample(text, "processes", **state) == value
        started = numbers["process_start_seconds"][-1]
        assert started["host"] == "processes"
        assert started["value"]["count"] == started["value"]["buckets"]["+Inf"] > 0
        assert sample(text, "process_start_seconds_sum") == started["value"]["sum"]
        assert numbers["connections"] == 0
        assert numbers["cluster_lease_age_seconds"] is None


async def test_numbers_are_plain_json(shared: Node) -> None:
    assert json.loads(json.dumps(numbers_of(shared)))["node_info"][0]["node"] == "local"


# Where it is served


@pytest.mark.parametrize(
    ("mount", "path", "status"),
    [
        (None, "/metrics", 200),
        (None, "/metrics/", 200),
        (None, "/metrics?x=1", 200),
        (None, "/", 404),
        (None, "/metric", 404),
        (None, "/metrics/more", 404),
        (None, "/other/metrics", 404),
        ("/metrics", "/metrics", 200),
        ("/metrics", "/metrics/", 200),
        ("/metrics", "/metrics/more", 404),
        ("/ops", "/ops/metrics", 200),
        ("/ops", "/ops", 404),
    ],
)
async def test_the_application_answers_at_its_path_alone_also_where_it_is_mounted(
    shared: Node, mount: str | None, path: str, status: int
) -> None:
    app: Any = metrics.app(shared)
    if mount is not None:
        around = FastAPI()
        around.mount(mount, app)
        app = around
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://node", follow_redirects=True
    ) as http:
        answer = await http.get(path)
        assert answer.status_code == status
        if status == 200:
            assert sample(answer.text, "connections") == 0
        else:
            assert answer.text == "Not Found: the metrics are at /metrics\n"


async def test_only_reading_is_allowed(shared: Node) -> None:
    async with serving(metrics.app(shared)) as url:
        base = url.replace("ws", "http", 1)
        async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
            answer = await http.post("/metrics")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
            assert answer.text == "Method Not Allowed: metrics are read with GET\n"
            head = await http.head("/metrics")
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["content-length"]) > 1000
            accept = {"accept": "application/openmetrics-text; version=1.0.0"}
            answer = await http.get("/metrics", headers=accept)
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            assert answer.text.endswith("# EOF\n")


async def test_without_prometheus_client_the_extra_is_named(
    shared: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtra, match=r"wsrelay\[metrics\]"):
        metrics.app(shared)
    async with ControlSocket(shared, tmp_path / "run") as control:
        transport = httpx.AsyncHTTPTransport(uds=str(control.path))
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as http:
            answer = await http.get("/metrics")
            assert answer.status_code == 501
            assert "wsrelay[metrics]" in answer.json()["error"]
            assert (await http.get("/numbers")).status_code == 200


# With Prometheus itself


@needs_prometheus
async def test_promtool_has_nothing_to_say(shared: Node) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        ["promtool", "check", "metrics"],
        input=text_of(shared)[0],
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


CONFIGURATION = """
global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}
scrape_configs:
  - job_name: wsrelay
    static_configs: [{{targets: ["{target}"]}}]
"""


@needs_prometheus
async def test_prometheus_scrapes_a_loaded_node_and_answers_queries(
    shared: Node, tmp_path: Path
) -> None:
    async with left_as_found(shared):
        pid = shared.spawn(room(rooms.echo))
        app = metrics.app(shared)
        async with (
            serving(WebSocketRelay(relay_to(pid), node=shared)) as url,
            client(url) as one,
            serving(app) as scraped,
        ):
            for _ in range(50):
                await one.send("hello")
                await received(one)
            target = scraped.removeprefix("ws://")
            (tmp_path / "prometheus.yml").write_text(CONFIGURATION.format(target=target))
            text = text_of(shared)[0].decode()
            sent = sample(text, "messages_total", direction="to_clients")
            assert sent >= 50
            await _queried(tmp_path, free_port(), f"{sent:g}")


async def _queried(folder: Path, port: int, sent: str) -> None:
    """Have Prometheus scrape the target, and ask it for all that the dashboard shows."""
    prometheus = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        cwd=folder,
    )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10
        ) as http:
            echoed = await _answer(http, 'wsrelay_messages_total{direction="to_clients"}')
            assert echoed["metric"]["job"] == "wsrelay"
            assert echoed["value"][1] == sent
            assert (await _answer(http, "wsrelay_connections"))["value"][1] == "1"
            assert (await _answer(http, "up"))["value"][1] == "1"
            assert (await _answer(http, "rate(wsrelay_loop_lag_seconds_count[10s]) > 0"))["value"]
            for query in queries():
                answer = await http.get("/api/v1/query", params={"query": filled_in(query)})
                assert answer.status_code == 200, (query, answer.text)
    finally:
        prometheus.terminate()
        await prometheus.wait()


async def _answer(http: httpx.AsyncClient, query: str) -> Any:
    """Ask until there is a result, and return that."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT
    while asyncio.get_running_loop().time() < deadline:
        try:
            answer = await http.get("/api/v1/query", params={"query": query})
            if answer.status_code == 200 and (found := answer.json()["data"]["result"]):
                return found[0]
        except httpx.TransportError:
            pass  # it is starting
        await asyncio.sleep(0.02)
    raise AssertionError(f"no answer to {query}")


def queries() -> list[str]:
    """All queries of the dashboard."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def filled_in(query: str) -> str:
    return query.replace("$__rate_interval", "1m").replace("$instance", ".*")
