from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import HANDLERS, until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from wsrelay import HostFailed, RelayResponse, WebSocketRelay, from_config, process
from wsrelay.config import ConfigError
from wsrelay.testing import RelayServer, serve

ECHO = HANDLERS / "echo.py"


def shout() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            data = message.payload["data"]
            if data == "crash":
                raise ValueError(data)
            process.send(message.sender, "ws.send", {"type": "text", "data": data.upper()})


def test_a_handler_is_tested_in_three_lines(relay_server: Callable[..., RelayServer]) -> None:
    client = relay_server(str(ECHO)).connect()
    client.send("hello")
    client.expect("hello")


def test_a_room_with_two_clients() -> None:
    chat = serve(f"{HANDLERS}/chat.py:Chat", scope="room")
    with chat as server, server.connect("/ws/a?name=Ada") as ada:
        ada.expect({"type": "history", "messages": []})
        ada.expect(lambda message: "Ada joined" in message)
        with server.connect("/ws/a?name=Bob") as bob:
            news = {"type": "news", "text": "Bob joined", "members": ["Ada", "Bob"]}
            ada.expect(news)
            bob.expect(news, skip=True)
            bob.send({"type": "say", "text": "hi"})
            ada.expect(re.compile('.*"text":"hi".*'))
        assert len(server.workers) == 1


def test_a_function_of_the_test_is_a_handler(relay_server: Callable[..., RelayServer]) -> None:
    greeting = "from here"

    def handler() -> None:
        for message in process.inbox():
            if message.topic == "ws.join":
                process.send(message.sender, "ws.send", {"type": "text", "data": greeting})

    relay_server(handler).connect().expect(greeting)


def test_a_crash_and_a_kill_are_close_frames(relay_server: Callable[..., RelayServer]) -> None:
    server = relay_server(shout)
    one = server.connect()
    one.send("crash")
    one.expect_close(1011, "target process crashed")
    other = server.connect()
    other.send("x")
    other.expect("X")
    [pid] = server.workers
    server.kill(pid)
    other.expect_close(1011, "target process killed (SIGKILL)")


def test_what_did_not_come_as_expected_is_told(relay_server: Callable[..., RelayServer]) -> None:
    client = relay_server(shout).connect()
    client.send("a")
    client.send("b")
    client.expect(...)
    for expected, shown in (
        ("C", "'C'"),
        ({"a": 1}, "{'a': 1}"),
        (re.compile("x+"), "text like 'x+'"),
    ):
        with pytest.raises(AssertionError) as raised:
            client.expect(expected)
        assert str(raised.value) == f"expected {shown}, got 'B'; before that: 'A'"
        client.send("b")
    client.expect("B")
    nothing = r"^expected a message, got nothing within 0\.01 s; before that: 'A', 'B'$"
    with pytest.raises(AssertionError, match=nothing):
        client.receive(0.01)
    with pytest.raises(AssertionError, match=r"^expected 'C', got nothing within 0\.01 s; "):
        client.expect("C", 0.01)
    client.expect_nothing(0.01)
    client.send("c")
    with pytest.raises(AssertionError, match=r"^expected nothing, got 'C'; before that: 'A', 'B'$"):
        client.expect_nothing(5)
    client.send("crash")
    with pytest.raises(AssertionError) as raised:
        client.expect_close(1000)
    first, log, *traceback = str(raised.value).splitlines()
    assert first == (
        "expected close 1000, got close 1011 target process crashed; before that: 'A', 'B'"
    )
    assert re.fullmatch(r"ERROR \{local@processes\|.*\} crashed: ValueError: crash", log)
    assert traceback[-1] == "    ValueError: crash"
    with pytest.raises(AssertionError, match=r"^expected 'D', got close 1011 target process "):
        client.expect("D")
    with pytest.raises(AssertionError, match=r"^expected nothing, got close 1011 target process "):
        client.expect_nothing()


def test_a_mismatch_shows_what_was_logged_since_the_client_last_sent(
    relay_server: Callable[..., RelayServer],
) -> None:
    def handler() -> None:
        for message in process.inbox():
            if message.topic == "ws.message":
                logging.getLogger("room").warning("heard %s", message.payload["data"])
                process.send(message.sender, "ws.send", {"type": "text", "data": "what?"})

    server, other = relay_server(handler), relay_server(handler).connect()
    client, [pid] = server.connect(), server.workers
    client.send("one")
    client.expect("what?")
    other.send("elsewhere")
    other.expect("what?")
    client.send("two")
    with pytest.raises(AssertionError) as raised:
        client.expect("yes")
    assert str(raised.value) == (
        f"expected 'yes', got 'what?'; before that: 'what?'\nWARNING {pid} room: heard two"
    )


def application(answer: Callable[[Request], Response], **options: Any) -> Starlette:
    app = Starlette(routes=[Route("/ws", answer)], **options)
    app.add_middleware(WebSocketRelay)
    return app


def test_an_application_is_served_with_its_lifespan(
    relay_server: Callable[..., RelayServer],
) -> None:
    life = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        life.append("began")
        yield
        life.append("ended")

    app = application(lambda _: RelayResponse(process.spawn(shout)), lifespan=lifespan)
    relay_server(shout)  # another node beside it
    with serve(app) as server, server.connect() as client:
        assert life == ["began"]
        client.send("hello")
        client.expect("HELLO")
        [pid] = server.workers
        assert server.node.pid().id.split(".")[0] == pid.id.split(".")[0]
        server.kill(pid)
        client.expect_close(1011, "target process killed (SIGKILL)")
    assert life == ["began", "ended"]


def test_an_application_that_does_not_start_fails_the_test() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        Path("/no/database").read_text()
        yield

    app = application(lambda _: Response(), lifespan=lifespan)
    with pytest.raises(RuntimeError, match="the application did not start"), serve(app):
        pass


def test_an_application_takes_no_options_and_may_have_no_node() -> None:
    app = Starlette()
    with pytest.raises(TypeError, match="an application takes no options"):
        serve(app, scope="room")
    with serve(app) as server, pytest.raises(RuntimeError, match="is it wrapped by WebSocketRelay"):
        _ = server.node


def test_a_configuration_is_served_on_free_ports_with_its_services(
    relay_server: Callable[..., RelayServer],
) -> None:
    one = relay_server(HANDLERS / "wsrelay.yaml")
    other = relay_server(str(HANDLERS / "wsrelay.yaml"))  # at the same time, with the same address
    for server in (one, other):
        assert server.urls == {"app:gateway": server.url}
        assert server.http_url == server.url.replace("ws://", "http://")
        assert httpx.get(f"{server.http_url}/readyz", trust_env=False).status_code == 200
        client = server.connect("/ws/rooms/blue?name=Ada")
        client.expect(lambda message: "Ada joined" in message, skip=True)
        assert server.node.lookup("app:manager.service") in server.workers
        assert len(server.workers) == 2
    assert one.url != other.url


def test_a_configuration_with_several_servers_has_a_url_for_each(tmp_path: Path) -> None:
    (tmp_path / "whose_path.py").write_text("def who(request): return request.url.path\n")
    file = tmp_path / "two.yml"
    entries: list[dict[str, Any]] = [
        {"name": "who", "kind": "function.python", "source": "file://whose_path.py"}
    ]
    for name in ("public", "admin"):
        router, path = f"{name}_router", f"/{name}"
        entries += [
            {"name": name, "kind": "http.service", "addr": f"unix:{name}.sock"},
            {"name": router, "kind": "http.router", "meta": {"server": name}},
            {"name": f"{name}.who", "kind": "http.endpoint", "meta": {"router": router},
             "path": path, "func": "who"},
        ]  # fmt: skip
    entries[0]["method"] = "who"
    file.write_text(json.dumps({"version": "1.0", "namespace": "app", "entries": entries}))
    with serve(file) as server:
        assert list(server.urls) == ["app:public", "app:admin"]
        assert server.url == server.urls["app:public"]
        for name in ("public", "admin"):
            place = server.urls[f"app:{name}"].replace("ws", "http", 1)
            assert httpx.get(f"{place}/{name}", trust_env=False).text == f"/{name}"
        with pytest.raises(InvalidStatus):
            server.connect(f"{server.urls['app:admin']}/nowhere")


def test_a_configuration_that_is_wrong_fails_the_test_with_all_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text('version: "1.0"\nnamespace: app\nentries:\n- {name: x, kind: nothing}\n')
    with pytest.raises(ConfigError, match=r"wrong\.yaml:4"), serve(file):
        pass
    file.write_text('version: "1.0"\nnamespace: app\nentries: []\n')
    with pytest.raises(RuntimeError, match=r"no http\.service entry"), serve(file):
        pass
    with pytest.raises(TypeError, match="a configuration takes no options"):
        serve(file, scope="room")


def test_an_application_with_a_node_from_a_configuration_is_served_again_and_again() -> None:
    node = from_config(HANDLERS / "wsrelay.yaml")

    def connect_to(_: Request) -> Response:
        return RelayResponse(process.get_or_spawn("room", "app:room"))

    app = Starlette(routes=[Route("/ws", connect_to)], lifespan=node.lifespan)
    app.add_middleware(WebSocketRelay, node=node)
    for _ in range(2):
        with serve(app) as server, server.connect() as client:
            assert server.node is node
            client.expect(re.compile('.*"text":"guest-1 joined".*'), skip=True)


def test_headers_and_cookies_are_sent_as_a_browser_would(
    relay_server: Callable[..., RelayServer],
) -> None:
    def handler() -> None:
        for message in process.inbox():
            if message.topic == "ws.join":
                headers = message.payload["metadata"]["headers"]
                data = {name: headers.get(name) for name in ("cookie", "x-mine")}
                process.send(message.sender, "ws.send", {"type": "text", "data": json.dumps(data)})

    server = relay_server(handler)
    client = server.connect(headers={"X-Mine": "1"}, cookies={"session": "abc", "theme": "dark"})
    client.expect({"cookie": "session=abc; theme=dark", "x-mine": "1"})
    server.connect(headers=[("X-Mine", "2")]).expect({"cookie": None, "x-mine": "2"})
    with pytest.raises(InvalidStatus) as refused:
        server.connect(origin="https://evil.example")
    assert refused.value.response.status_code == 403
    [note] = refused.value.__notes__
    assert "Origin 'https://evil.example' is not that of Host" in note


def test_expect_can_skip_messages_until_one_fits(relay_server: Callable[..., RelayServer]) -> None:
    client = relay_server(shout).connect()
    for data in "abcdefghijklmno":
        client.send(data)
    assert client.expect("C", skip=True) == "C"
    client.expect("D")
    client.expect(re.compile("[FG]"), skip=True)
    with pytest.raises(AssertionError) as raised:
        client.expect("Z", 1.0, skip=True)
    assert str(raised.value) == (
        "expected 'Z', got nothing else within 1 s; skipped: "
        "'G', 'H', 'I', 'J', 'K', 'L', 'M', 'N', 'O'; before that: 'B', 'C', 'D', 'E', 'F'"
    )
    for _ in range(20):
        client.send("x")
    client.send("crash")
    with pytest.raises(AssertionError) as raised:
        client.expect("Z", skip=True)
    first = str(raised.value).partition("\n")[0]
    assert first == (
        "expected 'Z', got close 1011 target process crashed; skipped: 10 others and "
        f"{', '.join(10 * [repr('X')])}; before that: 'B', 'C', 'D', 'E', 'F'"
    )


FAILING = """
import re

import pytest
from wsrelay import process

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            process.send(message.sender, "ws.send", {"type": "text", "data": "what?"})

def test_expect(relay_server):
    client = relay_server(handler).connect()
    client.send("a")
    client.expect("yes")

def test_skip(relay_server):
    relay_server(handler).connect().expect("yes", 0.1, skip=True)

def test_receive(relay_server):
    relay_server(handler).connect().receive(0.1)

def test_close(relay_server):
    relay_server(handler).connect().expect_close(1000, timeout=0.1)

def test_nothing(relay_server):
    client = relay_server(handler).connect()
    client.send("a")
    client.expect_nothing(20)

def test_refused(relay_server):
    relay_server(handler).connect(origin="https://evil.example")

def test_script(relay_server):
    relay_server(SCRIPT)

def test_configuration(relay_server):
    relay_server("nowhere.yaml")
"""


def test_failures_show_the_lines_of_the_test_only(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("1/0")
    test = tmp_path / "test_theirs.py"
    test.write_text(FAILING.replace("SCRIPT", repr(str(script))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "8 failed" in done.stdout, done.stdout
    places = re.findall(r"^(\S+\.py):\d+: ", done.stdout, re.MULTILINE)
    assert set(places) == {"test_theirs.py"}, done.stdout
    for place in ("wsrelay/testing", "websockets/", "contextlib"):
        assert place not in done.stdout, done.stdout
    assert 'File "' + str(script) in done.stdout  # the traceback of the handler's own code


@pytest.mark.anyio
async def test_an_async_test_uses_it_as_well(relay_server: Callable[..., RelayServer]) -> None:
    server = await asyncio.to_thread(relay_server, shout)
    async with connect(f"{server.url}/ws", proxy=None) as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "HELLO"
    client = server.connect()
    client.send("hello")
    client.expect("HELLO")


def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())
    with serve(shout) as server:
        server.connect().send("x")
        server.connect()
        assert set(threading.enumerate()) != before
    assert set(threading.enumerate()) == before
    assert logging.getLogger("wsrelay").handlers == []


def test_without_pytest_it_is_there_too() -> None:
    program = "import wsrelay.testing, sys; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_handler_that_cannot_be_loaded_fails_the_test(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("1/0")
    with pytest.raises(HostFailed, match="ZeroDivisionError"), serve(str(script)):
        pass


def test_several_servers_run_in_one_test(relay_server: Callable[..., RelayServer]) -> None:
    one, other = relay_server(shout).connect(), relay_server(str(ECHO)).connect()
    one.send("x")
    other.send("x")
    one.expect("X")
    other.expect("x")


def test_the_fixture_is_there_for_every_project(tmp_path: Path) -> None:
    test = tmp_path / "test_theirs.py"
    test.write_text(
        "def test_echo(relay_server):\n"
        f"    client = relay_server({str(ECHO)!r}).connect()\n"
        "    client.send('hello')\n"
        "    client.expect('hello')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "1 passed" in done.stdout, done.stdout


def test_its_processes_end_with_the_test() -> None:
    with serve(shout) as server, server.connect() as client:
        client.send("x")
        client.expect("X")
        [os_pid] = server.workers.values()
    assert os_pid is not None
    until(
        lambda: not Path(f"/proc/{os_pid}").exists() or os.getpgid(os_pid) != os_pid, "it is gone"
    )
