"""Traces over two nodes: what crosses has its context with it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import traced_handlers
from exits import Exits
from guests import front
from pair import Cluster, cluster
from support import client, processes, received
from traces import CLIENT, TRACEPARENT, Spans, outside, traced

from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio
pytest_plugins = ["sharing", "traced_here"]

ENTRIES = {"begin": TargetEntry(traced(traced_handlers.begin))}
HOSTS = (processes(targets=(traced(traced_handlers.begin),)),)
CLUSTER = functools.partial(cluster, *HOSTS, entries=ENTRIES)


@pytest.mark.parametrize("how", ["send", "send to many", "send_after", "broadcast", "large"])
async def test_a_message_to_another_node_carries_its_context(
    nodes: Cluster, spans: Spans, path: str, how: str
) -> None:
    receiver = nodes["b"].spawn(traced(traced_handlers.receive), None, path)
    between = nodes["a"].spawn(traced(traced_handlers.pass_on), None, path, receiver, how)
    with outside():
        nodes["b"].send(between, "go", 1)
    got, passed, ours = [await spans.one(name) for name in ("got note", "pass on", "outside")]
    assert got.is_child_of(passed)
    assert passed.is_child_of(ours)


async def test_a_call_of_another_node_s_process_is_one_trace(
    nodes: Cluster, spans: Spans, path: str
) -> None:
    exits = Exits(nodes["a"])
    callee = nodes["b"].spawn(traced(traced_handlers.answer), None, path)
    caller = nodes["a"].spawn(traced(traced_handlers.ask), None, path, callee, "double", 21)
    assert (await exits.of(caller)).value == 42
    call, answer = await spans.one("call double"), await spans.one("answer double")
    assert call.is_child_of(await spans.one("ask"))
    assert answer.is_child_of(call)


async def test_what_is_started_on_another_node_belongs_to_who_has_asked(
    nodes: Cluster, spans: Spans, path: str
) -> None:
    start = traced(traced_handlers.start)
    nodes["a"].spawn(start, None, path, "elsewhere", "begin", "processes@b")
    began, life = await spans.one("spawn begin"), await spans.one("process begin")
    assert began.is_child_of(await spans.one("start"))
    assert life.is_child_of(began)
    assert (await spans.one("work")).is_child_of(life)
    assert life.about["wsrelay.pid"].startswith("{b@processes|")


async def test_an_http_handler_starts_on_another_node_in_its_span(
    nodes: Cluster, spans: Spans, path: str
) -> None:
    with outside():
        nodes["a"].spawn("begin", "processes@b", path)
    assert (await spans.one("spawn begin")).is_child_of(await spans.one("outside"))


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_a_client_s_context_comes_to_its_room_on_another_node(
    nodes: Cluster, spans: Spans, path: str, front_end: str
) -> None:
    hall = nodes["b"].spawn(traced(traced_handlers.Hall), None, path)
    told: dict[str, Any] = {"additional_headers": {"traceparent": TRACEPARENT}}
    async with front(nodes["a"], hall, front_end) as url, client(url, **told) as websocket:
        assert await received(websocket) == "welcome"
        await websocket.send("hello")
        assert await received(websocket) == "hello"
    [upgrade] = [span for span in spans.all() if span.kind == "SERVER"]
    assert (upgrade.trace, upgrade.parent) == CLIENT
    for name in ("join", "text hello"):
        assert (await spans.one(name)).is_child_of(upgrade)
