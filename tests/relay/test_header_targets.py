"""What the header's `target` starts, when, and for how long it lives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import rooms
from relayed import client
from starlette.requests import Request
from starlette.responses import Response
from support import endpoint, processes, received, room, serving, until
from target_rooms import introduce, lives_for_its_clients
from websockets.exceptions import InvalidStatus

from wsrelay import Node, RelayResponse, WebSocketRelay, process
from wsrelay.kernel import Signal
from wsrelay.node import WorkerProcess
from wsrelay.session.header import TargetSpec
from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio

HERE = introduce.__module__


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    hosts = [processes(), processes(name="other"), processes(name="full")]
    entry = TargetEntry(f"{HERE}:introduce", "other")
    entries = {"app:room": entry, "os:getcwd": entry}
    # The first stream of uvloop opens a descriptor that the loop keeps: here, and not in a test.
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()
    async with Node(hosts=hosts, entries=entries) as node:
        node.kernel.set_hosts(
            {host.name: host.max_processes * (host.name != "full") for host in hosts}
        )
        await node.loaded()
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    yield shared
    shared.terminate_all()
    await until(lambda: not shared.workers and not shared.connections, "all are gone")


def app(node: Node, **fields: Any) -> WebSocketRelay:
    """An application that answers each request with these fields."""
    return WebSocketRelay(endpoint(lambda _: RelayResponse(**fields)), node=node)


def headed(node: Node, **fields: Any) -> WebSocketRelay:
    """The same, whatever the fields are."""
    header = {"X-WS-Relay": json.dumps(fields)}
    return WebSocketRelay(endpoint(lambda _: Response(headers=header)), node=node)


async def refusal(url: str, **options: Any) -> Any:
    with pytest.raises(InvalidStatus) as refused:
        async with client(url, **options):
            pass
    return refused.value.response


@pytest.fixture(params=["direct", "uvicorn"])
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# What is started, and where


async def test_a_target_without_a_name_is_started_for_each_connection_and_ends_with_it(
    node: Node, front_end: str
) -> None:
    async with serving(app(node, target=introduce, args=["a", {"b": 1}]), front_end) as url:
        async with client(url) as one, client(url) as two:
            told = [str(await received(each)).split(" ", 1) for each in (one, two)]
            assert [args for _, args in told] == ["['a', {'b': 1}]"] * 2
            assert {int(os_pid) for os_pid, _ in told} == set(node.workers.values())
        await until(lambda: not node.workers, "both have ended")


async def test_clients_who_name_a_target_meet_in_one_process(node: Node, front_end: str) -> None:
    async with serving(app(node, target=introduce, name="blue"), front_end) as url:
        async with client(url) as one, client(url) as two:
            assert await received(one) == await received(two)
            assert node.lookup("blue") in node.workers
        await until(lambda: not node.connections)
        assert node.workers, "without `end_when_empty` it lives on"


async def test_a_process_of_the_name_is_found_whoever_has_started_it(node: Node) -> None:
    pid = node.get_or_spawn("blue", room(rooms.echo))
    async with serving(app(node, target=introduce, name="blue")) as url, client(url) as one:
        await one.send("hello")
        assert await received(one) == "hello"
        assert [*node.workers] == [pid]


async def test_a_process_of_the_name_is_found_though_its_host_is_full(node: Node) -> None:
    named = {"target": introduce, "name": "blue"}
    async with serving(app(node, **named)) as url, client(url) as one:
        first = await received(one)
        async with serving(app(node, **named, host="full")) as full, client(full) as two:
            assert await received(two) == first
        assert len(node.workers) == 1


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({"target": "app:room"}, "other"),
        ({"target": "app:room", "host": "processes"}, "processes"),
        ({"target": "os:getcwd"}, "other"),  # it wins over the module's function
        ({"target": f"{HERE}:introduce"}, "processes"),
        ({"target": f"{HERE}:introduce", "host": "other"}, "other"),
    ],
)
async def test_a_target_runs_in_the_host_given_else_its_entry_s_else_the_first(
    node: Node, fields: dict[str, str], host: str
) -> None:
    async with serving(app(node, **fields)) as url, client(url) as one:
        await received(one)
        assert [pid.host for pid in node.workers] == [host]


def in_main() -> None:
    introduce("main")


async def test_a_function_of_the_script_that_runs_is_sent_as_spawn_sends_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("__main__.in_main", in_main, raising=False)
    async with serving(app(node, target="__main__:in_main")) as url, client(url) as one:
        assert "['main']" in str(await received(one))


# What is not started


async def test_a_plain_request_gets_426_and_starts_nothing(node: Node) -> None:
    async with serving(app(node, target=introduce, name="blue")) as url:
        host, port = url.removeprefix("ws://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 426")
        writer.close()
    assert not node.workers


async def test_an_upgrade_that_cannot_come_about_starts_nothing(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: Request) -> Response:
        return RelayResponse(target=introduce, subprotocol="chat")

    async with serving(WebSocketRelay(endpoint(answer), node=node)) as url:
        assert (await refusal(url, origin="https://evil.example")).status_code == 403
        assert (await refusal(url, subprotocols=["other"])).status_code == 500
    assert "'chat' was not offered" in caplog.text
    assert not node.workers


async def test_a_client_that_leaves_before_the_answer_starts_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        asked.set()
        await gone.wait()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return RelayResponse(target=introduce)

    starts: list[Any] = []
    monkeypatch.setattr(node, "find_target", starts.append)
    async with serving(WebSocketRelay(endpoint(answer), node=node)) as url:
        attempt = asyncio.create_task(refusal(url))
        await asked.wait()
        attempt.cancel()
        await asyncio.wait({attempt})
        gone.set()
    assert asked.is_set()
    assert not starts


async def test_a_node_that_shuts_down_starts_nothing() -> None:
    async with Node(hosts=[processes()]) as node:
        async with serving(app(node, target=introduce)) as url:
            node.drain()
            assert (await refusal(url)).status_code == 503
        assert not node.workers


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"target": "nonsense"}, "target 'nonsense' is neither path/to/script.py:function nor"),
        (
            {"target": "app:rooom"},
            "target 'app:rooom': .*there is no module 'app' .*; this node has the entries app:room",
        ),
        ({"target": f"{HERE}:nobody"}, f"target '{HERE}:nobody': .*has no function 'nobody'"),
        ({"target": "/none.py"}, "target '/none.py': .*/none.py does not exist"),
        ({"target": f"/{'x' * 300}.py"}, "cannot be read: File name too long"),
        ({"target": "builtins:nobody"}, "builtins has no function 'nobody'"),  # it has no file
        ({"target": "app:room", "host": "nowhere"}, "no process host 'nowhere'; this node has"),
        ({"target": "__main__:nobody"}, "has no function 'nobody'"),
        ({"target": "app:room", "end_when_empty": "1s"}, "end_when_empty is '1s' and there is no"),
    ],
)
async def test_a_target_that_is_wrong_gets_500_and_the_log_says_what_is_right(
    node: Node, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], told: str
) -> None:
    async with serving(headed(node, **fields)) as url:
        assert (await refusal(url)).status_code == 500
    [line] = [r.message for r in caplog.records if "X-WS-Relay" in r.message]
    assert "500: X-WS-Relay: " in line
    assert re.search(told, line), line


async def test_a_name_that_a_connection_has_gets_500(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(app(node, target=introduce)) as url, client(url) as one:
        await received(one)
        [connection] = node.connections
        node.register("blue", connection)
        async with serving(app(node, target=introduce, name="blue")) as other:
            assert (await refusal(other)).status_code == 500
    assert f"the name 'blue' belongs to {connection}, which is a connection" in caplog.text


async def test_a_full_host_gets_503_and_when_to_come_again(node: Node) -> None:
    async with serving(app(node, target=introduce, host="full")) as url:
        response = await refusal(url)
    assert response.status_code == 503
    assert "retry-after" in response.headers


async def test_a_target_that_fails_to_start_gets_503(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = tmp_path / "failing.py"
    script.write_text("raise ValueError('no database')")
    async with serving(app(node, target=str(script), name="blue")) as url:
        assert (await refusal(url)).status_code == 503
    assert "no database" in caplog.text
    assert not node.workers


async def test_a_target_that_does_not_start_in_time_gets_503(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As opposed to one that does not exist."""
    script = tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(600)\ndef handler(): pass\n")
    async with serving(app(node, target=str(script))) as url:
        attempt = asyncio.create_task(refusal(url))
        await until(lambda: node.workers)
        [only] = node.engine.processes.values()
        only.signal_after(0, Signal.START_TIMEOUT)
        assert (await attempt).status_code == 503
    assert "start timeout" in caplog.text


# When it ends


async def test_a_process_ends_so_long_after_its_last_client(node: Node, front_end: str) -> None:
    ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    named = app(node, target=room(rooms.echo), name="blue", end_when_empty=0)
    async with serving(named, front_end) as url, client(url) as one:
        async with client(url) as two:
            await two.send("hello")
            assert await received(two) == "hello"
            node.when_ended(node.lookup("blue"), ended.set_result)
        await one.send("still here")
        assert await received(one) == "still here"
        await one.close()
        assert (await ended).error is None


def why_it_ends() -> list[str]:
    for message in process.inbox():
        if message.topic == "ws.join":
            process.send(message.sender, "ws.send", {"type": "text", "data": "in"})
    event = process.events().receive()
    return [event.kind, event.reason]


async def test_it_is_cancelled_for_that_reason(node: Node) -> None:
    async with serving(app(node, target=why_it_ends, name="blue", end_when_empty=0.01)) as url:
        async with client(url) as one:
            await received(one)
            ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            node.when_ended(node.lookup("blue"), ended.set_result)
        assert (await ended).value == ["CANCEL", "end_when_empty"]


async def test_who_starts_it_decides_when_it_ends(node: Node) -> None:
    node.get_or_spawn("blue", room(rooms.echo))
    async with serving(app(node, target=introduce, name="blue", end_when_empty=0)) as url:
        async with client(url) as one:
            await one.send("hello")
            await received(one)
        await until(lambda: not node.connections)
        [only] = node.engine.processes.values()
        assert only.end_when_empty is None
        assert not is_ending(only)


def is_ending(worker: WorkerProcess) -> bool:
    """Whether it will be cancelled because it is empty."""
    return worker._empty is not None


def spec(**fields: Any) -> TargetSpec:
    return TargetSpec(target=room(rooms.echo), name="blue", **fields)


async def test_a_client_on_its_way_keeps_a_process(node: Node) -> None:
    one = await node.find_target(spec(end_when_empty=0.0))
    two = await node.find_target(spec(end_when_empty=0.0))
    [only] = node.engine.processes.values()
    assert one.pid == two.pid == only.pid
    one.over()
    one.over()
    assert not is_ending(only)
    assert only.arrivals == 1
    two.over()
    assert is_ending(only)
    await until(lambda: only.pid not in node.workers, "it has ended")


async def test_a_client_on_its_way_to_a_pid_keeps_a_process_from_its_start(node: Node) -> None:
    arrival = await node.arrive(node.spawn(lives_for_its_clients))
    [only] = node.engine.processes.values()
    await until(lambda: only.end_when_empty == 0)
    assert not is_ending(only)
    arrival.over()
    await until(lambda: only.pid not in node.workers, "it has ended")


async def test_a_client_that_comes_in_time_keeps_a_process(node: Node) -> None:
    arrival = await node.find_target(spec(end_when_empty=60.0))
    [only] = node.engine.processes.values()
    arrival.over()
    assert is_ending(only)
    async with serving(app(node, target=introduce, name="blue")) as url, client(url) as one:
        assert not is_ending(only)
        await one.send("hello")
        assert await received(one) == "hello"
        assert [*node.workers] == [only.pid]
    await until(lambda: is_ending(only), "it is empty again")


async def test_a_client_that_gives_up_during_the_start_leaves_a_process_that_ends(
    node: Node,
) -> None:
    finding = asyncio.create_task(node.find_target(spec(end_when_empty=0.0)))
    await asyncio.sleep(0)  # it has been launched, and nothing else has happened since
    [only] = node.engine.processes.values()
    assert only.arrivals == 1
    finding.cancel()
    await until(lambda: only.pid not in node.workers, "it has ended")
    assert only.arrivals == 0


@pytest.mark.parametrize("exists", [False, True])
async def test_an_upgrade_that_a_time_limit_cuts_off_ends_the_process_that_is_for_it_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    waits = asyncio.Event()

    async def started(_: Any) -> None:
        waits.set()
        await asyncio.Event().wait()

    def answer(_: Request) -> RelayResponse:
        target = room(rooms.echo)
        if exists:
            return RelayResponse(process.spawn(target), cancel_on_leave=True)
        return RelayResponse(target=target)

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        asking = asyncio.create_task(relay(scope, receive, send))
        await waits.wait()
        asking.cancel()
        await asyncio.wait({asking})

    monkeypatch.setattr(node.engine, "started", started)
    relay = WebSocketRelay(endpoint(answer), node=node)
    async with serving(limited, lifespan="off") as url:
        assert (await refusal(url)).status_code == 500
    assert waits.is_set()
    await until(lambda: not node.workers, "it has ended")
