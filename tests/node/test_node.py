"""A node by itself: what it logs, its end, its event loops."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from pathlib import Path

import psutil
import pytest
import rooms
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support import client, processes, received, relay_to, room, serving, until

from wsrelay import (
    PID,
    HostFailed,
    Node,
    NotAProcess,
    RelayResponse,
    RestartPolicy,
    Result,
    Service,
    Supervisor,
    UnknownHost,
    WebSocketRelay,
    process,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it wants the next httpx, which nobody has yet
    from starlette.testclient import TestClient

pytestmark = pytest.mark.anyio

# Dead letters, and what stands in the log


async def test_a_message_to_nobody_is_one_dead_letter(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(deaf)), node=node)
    async with serving(app) as url, client(url) as one:
        [target] = await until(lambda: node.connections and node.workers)
        node.cancel(target)
        before = node.dead_letters
        await one.send("hello")
        await until(lambda: node.dead_letters == before + 1, "the client's message")
        await one.close()
        await until(lambda: not node.connections)
        assert node.dead_letters == before + 2, "the client's message and its ws.leave"
        node.terminate(target)


def deaf() -> None:
    threading.Event().wait()


def loud(size: int) -> None:
    raise ValueError("x" * size)


async def test_what_processes_say_of_their_end_stands_shortened_in_the_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[Result] = []
    node.when_ended(node.spawn(loud, None, 5_000_000), results.append)
    [result] = await until(lambda: results)
    assert len(result.error.message) > 50_000  # whoever monitors it gets far more of it
    [line] = [text for text in caplog.messages if "crashed" in text]
    assert len(line) < 100_000
    assert "characters ..." in line
    assert "in loud" in line


async def test_a_service_s_failure_stands_shortened_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node(hosts=[processes()])
    policy = RestartPolicy(initial_delay=0.01, max_attempts=2)
    Supervisor(node, [Service(name="loud", target=loud, args=(5_000_000,), restart=policy)])
    async with node:
        await until(lambda: "is given up" in caplog.text)
    assert max(map(len, caplog.messages)) < 100_000


def spawner(host: str | None) -> str:
    with pytest.raises(UnknownHost) as raised:
        process.spawn("nobody.py", host)
    return str(raised.value)


async def test_an_unknown_host_is_named(node: Node) -> None:
    await node.loaded()
    results: list[Result] = []
    node.when_ended(node.spawn(waits_for_host), results.append)
    [pid] = node.workers
    await node.started(pid)
    await node.reconfigure([processes(name="other")], {})
    node.send(pid, "go")
    [result] = await until(lambda: results)
    assert "no process host 'processes'; this node has other" in result.value


def waits_for_host() -> str:
    process.inbox().receive()
    return spawner(None)


# Its end


class Slow:
    """A companion that takes its time, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[str] = []
        self.may_stop = asyncio.Event()
        self._error = error

    def start(self) -> None:
        self.events.append("start")

    async def stop(self) -> None:
        self.events.append("stop")
        if self._error is not None:
            raise self._error
        await self.may_stop.wait()
        self.events.append("stopped")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines come soon after the stop timeout."""
    monkeypatch.setattr("wsrelay.node.node._MARGIN", 0.1)


def unkillable(node: Node, monkeypatch: pytest.MonkeyPatch) -> PID:
    """A process whose kill at the stop timeout is lost."""
    pid = node.spawn(room(rooms.deaf))
    worker = node.engine.processes.get(pid)
    assert worker is not None
    monkeypatch.setattr(worker, "kill", lambda: None)
    return pid


@pytest.mark.usefixtures("hasty")
async def test_companions_are_stopped_and_processes_killed_where_the_end_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(hosts=[processes(stop_timeout=0.1)])
    first, failing, last = Slow(), Slow(ValueError("no")), Slow()
    for companion in (first, failing, last):
        node.accompany(companion)
    first.may_stop.set()
    node.start()
    pid = unkillable(node, monkeypatch)
    await until(lambda: node.workers[pid])
    os_pid = node.workers[pid]
    await node.aclose()
    assert last.events == ["start", "stop"], "it does not stop: the others are not to wait for it"
    assert failing.events == ["start", "stop"]
    assert first.events == ["start", "stop", "stopped"]
    assert "1 workers do not end and are killed" in caplog.text
    assert "does not stop" in caplog.text
    assert "cannot be stopped" in caplog.text
    assert not psutil.pid_exists(os_pid or 0)
    assert not node.running


async def test_who_closes_a_node_that_is_closing_waits_for_the_same_end() -> None:
    node = Node(hosts=[processes()])
    companion = Slow()
    node.accompany(companion)
    node.start()
    await node.started(node.spawn(room(rooms.echo)))
    closings = [asyncio.create_task(node.aclose()) for _ in range(3)]
    await until(lambda: "stop" in companion.events)
    late = asyncio.create_task(node.aclose())
    await asyncio.sleep(0)
    assert not any(task.done() for task in (*closings, late))
    companion.may_stop.set()
    await asyncio.gather(*closings, late)
    assert companion.events == ["start", "stop", "stopped"]
    assert not node.running
    await node.aclose()


async def test_a_node_whose_end_is_cancelled_kills_all_and_can_start_anew() -> None:
    node = Node(hosts=[processes(stop_timeout=3600)])
    node.start()
    pid = node.spawn(deaf)
    await node.started(pid)
    os_pid = node.workers[pid]
    closing = asyncio.create_task(node.aclose())
    await until(lambda: node.draining)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not node.running
    assert not psutil.pid_exists(os_pid or 0)
    async with node:
        assert await node.started(node.spawn(room(rooms.echo))) is None


async def test_a_node_can_be_closed_while_its_templates_load(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(3600)\ndef handler(): pass\n")
    node = Node(hosts=[processes(targets=(str(script),), stop_timeout=0.1)])
    loading = asyncio.create_task(node.loaded())
    await until(lambda: node.running and any(node.templates.values()))
    pid = node.spawn(room(rooms.echo))
    await node.aclose()
    with pytest.raises(HostFailed):
        await loading
    assert pid not in node.workers


async def test_a_node_can_be_closed_while_new_templates_load(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(3600)\ndef handler(): pass\n")
    node = Node(hosts=[processes()])
    await node.loaded()
    for end in ("aclose", "cancel"):
        others = [processes(), processes(name="slow", targets=(str(script),))]
        changing = asyncio.create_task(node.reconfigure(others, {}))
        await until(lambda: node._templates._fresh and node._templates._fresh[-1].os_pid)
        if end == "cancel":
            changing.cancel()
        else:
            await node.aclose()
        with pytest.raises((HostFailed, asyncio.CancelledError)):
            await changing
        assert "slow" not in node.templates
        node.start()
    await node.aclose()


async def test_a_companion_that_cannot_start_leaves_the_node_as_it_was() -> None:
    class Failing(Slow):
        def start(self) -> None:
            raise ValueError("not today")

    node = Node(hosts=[processes()])
    node.accompany(Failing())
    with pytest.raises(ValueError, match="not today"):
        node.start()
    assert not node.running
    with pytest.raises(NotAProcess):
        process.pid()


async def test_a_hurry_ends_a_node_whose_processes_have_an_hour() -> None:
    node = Node(hosts=[processes(stop_timeout=3600)])
    Supervisor(node, [Service(name="service", target=deaf)])
    node.start()
    await node.started(node.lookup("service"))
    await node.started(node.spawn(deaf))
    closing = asyncio.create_task(node.aclose(3600))
    await until(lambda: node.draining)
    node.terminate_all()
    await closing
    assert not node.running


# Its event loops


def started_in_a_loop_of_its_own(node: Node, *, orderly: bool = True) -> int:
    """Run a worker in an event loop that ends; gives its OS process id."""

    async def use() -> int:
        node.start()
        pid = node.spawn(room(rooms.echo))
        assert await node.started(pid) is None
        # Its own word that it runs may be here before that of its template.
        return int(await until(lambda: node.workers[pid]))

    if orderly:
        return asyncio.run(use())
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(use())
    finally:
        loop.close()


@pytest.mark.parametrize("orderly", [True, False], ids=["asyncio.run", "loop.close"])
def test_a_node_whose_event_loop_is_over_starts_anew_in_the_next(orderly: bool) -> None:
    node = Node(hosts=[processes()])
    Supervisor(node, [Service(name="service", target=room(rooms.echo))])
    before = descriptors()
    os_pids = [started_in_a_loop_of_its_own(node, orderly=orderly) for _ in range(3)]

    async def close() -> None:
        node.start()
        assert await node.started(node.lookup("service")) is None
        await node.aclose()

    asyncio.run(close())
    assert not node.running
    left = [psutil.Process(os_pid) for os_pid in os_pids if psutil.pid_exists(os_pid)]
    assert not psutil.wait_procs(left, 10)[1]
    assert descriptors() <= before + 2, "the resource tracker's, and one more"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def test_a_loop_that_ends_ends_its_node_and_says_that_nobody_has_closed_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node(hosts=[processes()])
    os_pid = started_in_a_loop_of_its_own(node)
    assert not psutil.pid_exists(os_pid)
    assert not node.running
    assert "its event loop ends and nobody has closed it" in caplog.text


def endpoints() -> WebSocketRelay:
    async def connect(_: Request) -> Response:
        return RelayResponse(process.get_or_spawn("room", room(rooms.echo)))

    async def plain(_: Request) -> Response:
        return PlainTextResponse(process.get_or_spawn("room", room(rooms.echo)))

    app = FastAPI()
    app.router.routes += [Route("/ws", connect), Route("/plain", plain)]
    return WebSocketRelay(app)


def test_the_test_client_works_without_its_with() -> None:
    testing = TestClient(endpoints())
    for i in range(3):
        with testing.websocket_connect("/ws") as one:
            one.send_text(f"hello {i}")
            assert one.receive_text() == f"hello {i}"
        assert testing.get("/plain").text.startswith("{local@")


def test_the_test_client_works_with_its_with_again_and_again() -> None:
    app = endpoints()
    for i in range(2):
        with (
            TestClient(app) as testing,
            testing.websocket_connect("/ws") as one,
            testing.websocket_connect("/ws") as two,
        ):
            two.send_text(f"hello {i}")
            assert two.receive_text() == f"hello {i}"
            one.send_text("and again")
            assert one.receive_text() == "and again"


def test_two_event_loops_at_once_are_told_what_to_do() -> None:
    testing = TestClient(endpoints())
    with testing.websocket_connect("/ws") as one:
        with pytest.raises(RuntimeError, match=r"`with TestClient\(app\) as client:` gives all"):
            testing.websocket_connect("/ws").__enter__()
        one.send_text("hello")
        assert one.receive_text() == "hello"


_APP = endpoints()


@pytest.mark.parametrize("number", range(2))
async def test_an_application_is_used_in_the_loop_of_each_test(number: int) -> None:
    async with serving(_APP) as url, client(f"{url}/ws") as one:
        await one.send(f"{number}")
        assert await received(one) == f"{number}"
