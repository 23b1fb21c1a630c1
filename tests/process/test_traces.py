"""Traces: which spans there are, and what their parents are, across processes."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import rooms
import traced_handlers
from exits import Exits
from one_node import left_as_found, running_node
from starlette.requests import Request
from starlette.responses import JSONResponse
from support import client, endpoint, processes, received, relay_to, room, serving, until
from traces import CLIENT, TRACEPARENT, Spans, outside, traced

from wsrelay import CallError, HostOptions, Node, RelayResponse, WebSocketRelay, tracing
from wsrelay.aio import process as aio_process
from wsrelay.values.targets import label

pytestmark = pytest.mark.anyio
pytest_plugins = ["traced_here"]

UPGRADE = "GET /{path:path}"
FROM_CLIENT = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    hosts = [
        processes(targets=(traced(traced_handlers.begin), room(rooms.echo))),
        HostOptions(name="full"),
    ]
    async with running_node(*hosts) as node:
        node.kernel.set_hosts({"processes": 100, "full": 0})
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


# Starts and lives


async def test_a_start_and_a_life_are_spans_and_the_handler_s_belong_to_the_life(
    node: Node, spans: Spans, path: str
) -> None:
    target = traced(traced_handlers.begin)
    with outside():
        pid = node.spawn(target, None, path)
    life = await spans.one(f"process {target}")
    began, ours, work = (
        await spans.one(f"spawn {target}"),
        await spans.one("outside"),
        await spans.one("work"),
    )
    assert work.is_child_of(life)
    assert life.is_child_of(began)
    assert began.is_child_of(ours)
    about = {"wsrelay.pid": pid, "wsrelay.target": target, "wsrelay.host": "processes"}
    assert began.about == about
    assert life.about == {**about, "wsrelay.exit.kind": "normal"}
    assert {life.status, began.status} == {"UNSET"}


async def test_a_start_outside_of_spans_begins_a_trace(node: Node, spans: Spans, path: str) -> None:
    target = traced(traced_handlers.begin)
    node.spawn(target, None, path)
    began = await spans.one(f"spawn {target}")
    assert began.parent is None
    assert (await spans.one("work")).trace == began.trace


async def test_a_crash_is_an_error_with_its_traceback_and_its_log_has_the_trace(
    node: Node, spans: Spans, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = traced(traced_handlers.crash)
    node.spawn(target, None, path)
    life = await spans.one(f"process {target}")
    assert (life.status, life.about["wsrelay.exit.kind"]) == ("ERROR", "error")
    assert life.events == ("exception",)
    [crashed] = [record for record in caplog.records if "crashed" in record.getMessage()]
    assert (vars(crashed)["trace_id"], vars(crashed)["span_id"]) == (life.trace, life.id)
    [began] = spans.named(f"spawn {target}")
    assert began.status == "UNSET", "it did start"


@pytest.mark.parametrize(
    ("how", "kind", "status"), [("cancel", None, "UNSET"), ("terminate", "terminated", "UNSET")]
)
async def test_what_was_asked_to_end_is_no_error(
    node: Node, spans: Spans, path: str, how: str, kind: str | None, status: str
) -> None:
    target = traced(traced_handlers.answer)
    pid = node.spawn(target, None, path)
    await node.started(pid)
    getattr(node, how)(pid)
    life = await spans.one(f"process {target}")
    assert (life.about["wsrelay.exit.kind"], life.status) == (kind or "normal", status)


async def test_a_process_that_leaves_is_an_error(node: Node, spans: Spans, path: str) -> None:
    target = traced(traced_handlers.leave)
    node.spawn(target, None, path)
    life = await spans.one(f"process {target}")
    assert (life.status, life.about["wsrelay.exit.kind"]) == ("ERROR", "exit")


async def test_a_start_that_fails_is_an_error_of_start_and_life(
    node: Node, spans: Spans, path: str
) -> None:
    target = f"{traced_handlers.__file__}:nobody"
    node.spawn(target, None, path)
    life = await spans.one(f"process {target}")
    began = await spans.one(f"spawn {target}")
    assert (life.status, began.status) == ("ERROR", "ERROR")
    assert life.about["wsrelay.exit.kind"] == "start_failed"


@pytest.mark.parametrize("how", ["spawn", "get_or_spawn", "exec"])
async def test_what_a_process_starts_in_a_span_belongs_to_that(
    node: Node, spans: Spans, path: str, how: str
) -> None:
    node.spawn(traced(traced_handlers.start), None, path, how)
    work = await spans.one("work")
    life = await spans.one("process traced_handlers:begin")
    began, start = await spans.one("spawn traced_handlers:begin"), await spans.one("start")
    assert work.is_child_of(life)
    assert life.is_child_of(began)
    assert began.is_child_of(start)


async def test_who_configures_it_in_a_handler_that_imports_it_late_joins_by_hand(
    node: Node, spans: Spans, path: str
) -> None:
    target = traced(traced_handlers.late)
    node.spawn(target, None, path)
    life = await spans.one(f"process {target}")
    assert (await spans.one("inside")).is_child_of(life)


async def test_a_process_that_waits_for_its_name_is_one_start(
    node: Node, spans: Spans, path: str
) -> None:
    target = traced(traced_handlers.answer)
    first = node.get_or_spawn("name", target, None, path)
    await node.started(first)
    node.cancel(first)
    second = node.get_or_spawn("name", target, None, path)
    assert second != first
    await node.started(second)
    lives = await until(lambda: spans.named(f"spawn {target}")[1:], "the second has started")
    assert lives[0].about["wsrelay.pid"] == second


async def test_what_a_node_does_for_a_process_is_not_in_the_span_of_who_came_first(
    spans: Spans, path: str
) -> None:
    """Its readers, and so all that they cause later, run in the context in which they began."""
    seen: list[dict[str, str]] = []
    async with Node(hosts=[processes()]) as node:
        node.engine.on_exit.append(lambda *_: seen.append(tracing.ids()))
        with outside():  # the host's template starts here
            node.spawn(traced(traced_handlers.begin), None, path)
            assert tracing.ids()
        await until(lambda: seen, "it has ended")
    assert seen == [{}]
    assert await spans.one("work")


def test_an_exporter_that_never_ends_holds_a_worker_up_for_a_moment_only(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def force_flush() -> None:
        begun.set()
        end.wait()

    monkeypatch.setattr(spans.provider, "force_flush", force_flush)
    monkeypatch.setattr(tracing, "_PATIENCE", 0.001)
    tracing.flush()
    begun.wait()
    end.set()


# Messages


@pytest.mark.parametrize("face", ["pass_on", "aio_pass_on"])
@pytest.mark.parametrize("how", ["send", "send to many", "send_after", "broadcast", "large"])
async def test_a_message_carries_the_context_of_its_sender_s_span(
    node: Node, spans: Spans, path: str, how: str, face: str
) -> None:
    receiver = node.spawn(traced(traced_handlers.receive), None, path)
    between = node.spawn(traced(getattr(traced_handlers, face)), None, path, receiver, how)
    with outside():
        node.send(between, "go", 1)
    got, passed, ours = [await spans.one(name) for name in ("got note", "pass on", "outside")]
    assert got.is_child_of(passed)
    assert passed.is_child_of(ours)
    node.send(between, "end")


async def test_a_timer_of_the_node_s_carries_it_too(node: Node, spans: Spans, path: str) -> None:
    receiver = node.spawn(traced(traced_handlers.receive), None, path)
    with outside():
        node.send_after(0.001, receiver, "note")
    assert (await spans.one("got note")).is_child_of(await spans.one("outside"))


async def test_a_message_outside_of_spans_leaves_its_handler_in_the_span_of_its_life(
    node: Node, spans: Spans, path: str
) -> None:
    target = traced(traced_handlers.receive)
    node.send(node.spawn(target, None, path), "note")
    got, life = await spans.one("got note"), await spans.one(f"process {target}")
    assert got.is_child_of(life)


async def test_who_does_not_use_the_message_s_context_stays_in_the_span_of_its_life(
    node: Node, spans: Spans, path: str
) -> None:
    target = traced(traced_handlers.receive_plainly)
    with outside():
        node.send(node.spawn(target, None, path), "note")
    got, life = await spans.one("got note"), await spans.one(f"process {target}")
    assert got.is_child_of(life)


async def test_a_process_without_opentelemetry_gets_the_same_messages_and_arguments(
    node: Node, spans: Spans
) -> None:
    def take(*given: Any, **named: Any) -> list[Any]:
        from wsrelay import process  # noqa: PLC0415 - pickled by value

        message = process.inbox().receive()
        return [given, named, message.payload, message.sender, str(type(message.sender))]

    exits = Exits(node)
    with outside():
        pid = node.spawn(take, None, 1, two=[2])
        node.send(pid, "topic", {"a": None})
    assert (await exits.of(pid)).value == [
        [1],
        {"two": [2]},
        {"a": None},
        node.pid(),
        "<class 'wsrelay.values.trace_context.TracedPID'>",
    ]
    assert await spans.one(f"process {label(take)}")


# Calls


@pytest.mark.parametrize("face", ["ask", "aio_ask"])
async def test_a_call_is_a_span_of_the_caller_and_one_of_the_callee_up_to_its_reply(
    node: Node, spans: Spans, path: str, face: str
) -> None:
    exits = Exits(node)
    callee = node.spawn(traced(traced_handlers.answer), None, path)
    asked = traced(getattr(traced_handlers, face))
    caller = node.spawn(asked, None, path, callee, "double", 21)
    assert (await exits.of(caller)).value == 42
    call, answer = await spans.one("call double"), await spans.one("answer double")
    assert (call.kind, answer.kind) == ("CLIENT", "SERVER")
    assert call.is_child_of(await spans.one("ask"))
    assert answer.is_child_of(call)
    assert (await spans.one("compute")).is_child_of(answer)
    rpc = {"rpc.system.name": "wsrelay", "rpc.method": "double"}
    assert call.about == {**rpc, "wsrelay.to": callee}
    assert answer.about == {**rpc, "wsrelay.from": caller}


async def test_a_refusal_is_an_error_of_both(node: Node, spans: Spans, path: str) -> None:
    callee = node.spawn(traced(traced_handlers.answer), None, path)
    with outside(), pytest.raises(CallError, match="not today"):
        await aio_process.call(callee, "refuse")
    call, answer = await spans.one("call refuse"), await spans.one("answer refuse")
    assert answer.is_child_of(call)
    assert call.is_child_of(await spans.one("outside"))
    assert (call.status, answer.status) == ("ERROR", "ERROR")


async def test_what_is_answered_later_is_a_span_until_then(
    node: Node, spans: Spans, path: str
) -> None:
    callee = node.spawn(traced(traced_handlers.answer), None, path)
    with pytest.raises(TimeoutError):
        await aio_process.call(callee, "later", timeout=0.01)
    assert (await spans.one("call later")).status == "ERROR"
    assert not spans.named("answer later")
    node.send(callee, "now")
    assert (await spans.one("answer later")).status == "UNSET"


async def test_a_callee_that_raises_has_an_error_of_its_span(
    node: Node, spans: Spans, path: str
) -> None:
    callee = node.spawn(traced(traced_handlers.answer), None, path)
    with pytest.raises(Exception, match="while answering"):
        await aio_process.call(callee, "raise")
    answer = await spans.one("answer raise")
    assert (answer.status, answer.events) == ("ERROR", ("exception",))


# Clients and rooms


@pytest.mark.parametrize("front_end", ["direct", "uvicorn", "hypercorn"])
@pytest.mark.parametrize("hall", [traced_handlers.Hall, traced_handlers.AioHall])
async def test_a_room_s_spans_for_a_client_belong_to_the_upgrade_and_that_to_the_client(
    node: Node, spans: Spans, path: str, hall: Any, front_end: str
) -> None:
    target = traced(hall)
    app = WebSocketRelay(
        endpoint(lambda _: RelayResponse(target=target, args=(path,))),
        node=node,
    )
    async with (
        serving(app, front_end) as url,
        client(f"{url}/?token=secret", additional_headers=FROM_CLIENT) as websocket,
    ):
        assert await received(websocket) == "welcome"
        await websocket.send("one")
        assert await received(websocket) == "one"
        await websocket.send(b"news")
        assert await received(websocket) == '{"topic":"news","data":"news"}'
        [connection] = node.connections
        [process] = node.workers
    upgrade = await spans.one(UPGRADE)
    assert (upgrade.trace, upgrade.parent, upgrade.state) == (*CLIENT, "vendor=1")
    assert upgrade.kind == "SERVER"
    assert (
        upgrade.about.items()
        >= {
            "http.request.method": "GET",
            "http.response.status_code": 101,
            "http.route": "/{path:path}",
            "url.path": "/",
            "url.scheme": "ws",
            "client.address": "127.0.0.1",
            "server.address": "127.0.0.1",
            "wsrelay.pid": connection,
            "wsrelay.target_pid": process,
        }.items()
    )
    assert "secret" not in str(upgrade.about)
    for name in ("join", "text one", "binary"):
        assert (await spans.one(name)).is_child_of(upgrade)
    life, began = await spans.one(f"process {target}"), await spans.one(f"spawn {target}")
    assert (await spans.one("starts")).is_child_of(life)
    assert life.is_child_of(began)
    assert began.is_child_of(upgrade)


@pytest.mark.parametrize("hall", [traced_handlers.Hall, traced_handlers.AioHall])
async def test_a_room_answers_and_takes_messages_in_their_contexts(
    node: Node, spans: Spans, path: str, hall: Any
) -> None:
    pid = node.spawn(traced(hall), None, path)
    with outside():
        node.send(pid, "note", "hello")
        assert await aio_process.call(pid, "double", 4) == 8
    ours, call, answer = [
        await spans.one(name) for name in ("outside", "call double", "answer double")
    ]
    assert (await spans.one("note")).is_child_of(ours)
    assert call.is_child_of(ours)
    assert answer.is_child_of(call)
    assert (await spans.one("compute")).is_child_of(answer)
    with pytest.raises(CallError):
        await aio_process.call(pid, "double", "four")
    refused = await until(lambda: spans.named("answer double")[1:], "the refusal's span")
    assert [span.status for span in refused] == ["ERROR"]


async def test_two_clients_of_a_room_have_a_trace_each_and_keep_it_with_new_metadata(
    node: Node, spans: Spans, path: str
) -> None:
    pid = node.spawn(traced(traced_handlers.Hall), None, path)
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        client(url) as first,
        client(url) as second,
    ):
        await received(first)
        await received(second)
        for websocket, text in ((first, "a"), (second, "b")):
            await websocket.send(text)
            assert await received(websocket) == text
        for connection in node.connections:
            node.send(connection, "ws.control", {"metadata": {"other": 1}})
        await first.send("c")
        assert await received(first) == "c"
        with outside():  # clients get what they are sent, and no context
            node.send(node.connections, "ws.send", {"type": "text", "data": "to all"})
        assert [await received(first), await received(second)] == ["to all", "to all"]
    upgrades = {span.id: span for span in spans.named(UPGRADE)}
    a, b, c = [await spans.one(f"text {text}") for text in "abc"]
    assert {a.parent, b.parent} == upgrades.keys()
    assert (a.trace, a.parent) == (c.trace, c.parent)
    assert a.trace != b.trace


# Upgrades


@pytest.mark.parametrize(
    "header", ["garbage", f"ff{TRACEPARENT[2:]}", f"00-{'0' * 32}-{CLIENT[1]}-01", ""]
)
async def test_a_malformed_traceparent_is_ignored(
    node: Node, spans: Spans, path: str, header: str
) -> None:
    pid = node.spawn(traced(traced_handlers.Hall), None, path)
    given = {"traceparent": header, "tracestate": "a=" + "v" * 5000}
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        client(url, additional_headers=given) as websocket,
    ):
        assert await received(websocket) == "welcome"
    upgrade = await spans.one(UPGRADE)
    assert upgrade.parent is None
    assert (await spans.one("join")).is_child_of(upgrade)


async def test_a_huge_tracestate_is_left_out(node: Node, spans: Spans, path: str) -> None:
    pid = node.spawn(traced(traced_handlers.Hall), None, path)
    given = {"traceparent": TRACEPARENT, "tracestate": "a=" + "v" * 5000}
    async with (
        serving(WebSocketRelay(relay_to(pid), node=node)) as url,
        client(url, additional_headers=given) as websocket,
    ):
        assert await received(websocket) == "welcome"
    join = await spans.one("join")
    assert (join.trace, join.state) == (CLIENT[0], "")


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_a_refused_upgrade_has_its_status(node: Node, spans: Spans, front_end: str) -> None:
    async def refused(app: Any, expected: int, **options: Any) -> None:
        app = WebSocketRelay(app, node=node, native=False, **options)
        async with serving(app, front_end) as url:
            address = url.replace("ws", "http", 1)
            upgrade = {
                "connection": "upgrade",
                "upgrade": "websocket",
                "sec-websocket-version": "13",
                "sec-websocket-key": "x3JJHMbDL1EzLkh9GBhXDw==",
                "origin": "http://elsewhere.example",
            }
            async with httpx.AsyncClient() as http:
                assert (await http.get(address, headers=upgrade)).status_code == expected

    everywhere = {"allowed_origins": "*"}
    await refused(endpoint(lambda _: RelayResponse("{processes|none}")), 403)
    await refused(endpoint(lambda _: RelayResponse("{processes|none}")), 503, **everywhere)
    await refused(endpoint(lambda _: RelayResponse(target="no such")), 500, **everywhere)
    await refused(endpoint(lambda _: JSONResponse({}, 418)), 418, **everywhere)
    found = [span for span in spans.all() if span.kind == "SERVER"]
    told = [(span.about["http.response.status_code"], span.status) for span in found]
    assert told == [(403, "UNSET"), (503, "ERROR"), (500, "ERROR"), (418, "UNSET")]
    assert [span.about.get("error.type") for span in found] == [None, "503", "500", None]


async def test_the_application_is_asked_by_the_upgrade_and_what_it_starts_belongs_to_it(
    node: Node, spans: Spans, path: str
) -> None:
    """Also if it looks at the header, as instrumentation of frameworks does."""
    asked: list[str] = []

    def answer(request: Request) -> RelayResponse:
        asked.append(request.headers["traceparent"])
        with outside():
            return RelayResponse(node.spawn(traced(traced_handlers.Hall), None, path))

    async with (
        serving(WebSocketRelay(endpoint(answer), node=node)) as url,
        client(url, additional_headers=FROM_CLIENT) as websocket,
    ):
        assert await received(websocket) == "welcome"
    upgrade, ours = await spans.one(UPGRADE), await spans.one("outside")
    assert asked == [f"00-{upgrade.trace}-{upgrade.id}-01"]
    assert ours.is_child_of(upgrade)
    assert (await spans.one(f"spawn {traced(traced_handlers.Hall)}")).is_child_of(ours)


async def test_a_span_of_middleware_around_is_the_parent_of_the_upgrade(
    node: Node, spans: Spans, path: str
) -> None:
    pid = node.spawn(traced(traced_handlers.Hall), None, path)
    inner = WebSocketRelay(relay_to(pid), node=node)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with outside():
            await inner(scope, receive, send)

    async with (
        serving(app) as url,
        client(url, additional_headers=FROM_CLIENT) as websocket,
    ):
        assert await received(websocket) == "welcome"
    upgrade = await spans.one(UPGRADE)
    around = await until(
        lambda: [span for span in spans.named("outside") if span.id == upgrade.parent],
        "the span around the upgrade has ended",
    )
    assert upgrade.is_child_of(around[0])
    assert upgrade.trace != CLIENT[0], "the middleware did not look at the header"


# Without a provider


async def test_without_a_provider_nothing_is_added_anywhere(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The API is installed and imported, and a client sends a traceparent."""
    caplog.set_level(logging.DEBUG)
    path = str(tmp_path / "spans")
    exits = Exits(node)
    pid = node.spawn(traced(traced_handlers.tell), None, path)
    assert (await exits.of(pid)).value == ["0" * 32, "0" * 16]
    assert node.engine.processes.get(pid) is None
    hall = node.spawn(traced(traced_handlers.Hall), None, path)
    async with (
        serving(WebSocketRelay(relay_to(hall), node=node)) as url,
        client(url, additional_headers=FROM_CLIENT) as websocket,
    ):
        assert await received(websocket) == "welcome"
        process = node.engine.processes[hall]
        assert process.spans is None
    found = Spans(tmp_path / "spans")
    await until(lambda: found.named("join"), "its own span")
    assert [span.parent for span in found.all()] == [None, None], "those of the room alone"
    assert not [record for record in caplog.records if "trace_id" in vars(record)]
