"""`wsrelay run` as a user meets it: a real process, real sockets, real signals."""

from __future__ import annotations

import contextlib
import http
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from running import HANDLERS, TIMEOUT, Running, client, closed, gone, news, received, until
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from wsrelay import __main__ as command

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without it httpx reads the system's for 0.2 s
ROOT = str(Path(command.__file__).parent)
GRACE = 2.0
"""Seconds that `wsrelay run` gives its workers at the end."""

ACTOR = """
    import contextlib, json, logging, os, signal, subprocess, sys, time
    from wsrelay import process

    def tell(client, **news):
        process.send(client, "ws.send", {"type": "text", "data": json.dumps(news)})

    def crash():
        raise ZeroDivisionError("on purpose")

    def handler():
        for message in process.inbox():
            client = message.payload["client_pid"]
            match message.topic:
                case "ws.join":
                    metadata = message.payload["metadata"]
                    tell(client, os_pid=os.getpid(), pid=process.pid(), metadata=metadata)
                case "ws.heartbeat":
                    tell(client, **message.payload)
                case "ws.message":
                    match message.payload["data"].split(" ", 1):
                        case ["say", text]:
                            tell(client, said=text)
                        case ["crash"]:
                            crash()
                        case ["print", text]:
                            print(text)
                        case ["print_error", text]:
                            print(text, file=sys.stderr)
                        case ["log", text]:
                            logging.getLogger("actor").warning(text)
                        case ["input"]:
                            tell(client, read=sys.stdin.read())
                        case ["breakpoint"]:
                            breakpoint()
                        case ["spin"]:
                            tell(client, spinning=True)
                            while True:
                                pass
                        case ["deaf"]:
                            signal.signal(signal.SIGTERM, signal.SIG_IGN)
                            tell(client, deaf=True)
                            while True:
                                with contextlib.suppress(SystemExit):
                                    time.sleep(600)
                        case ["grandchild"]:
                            code = "import time; time.sleep(600)"
                            child = subprocess.Popen(
                                [sys.executable, "-c", code], start_new_session=True
                            )
                            tell(client, os_pid=child.pid)
        print("ended in order")
"""


Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a script into the test's own folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that does what its clients say and tells who it is."""
    path = tmp_path_factory.mktemp("scripts") / "actor.py"
    path.write_text(textwrap.dedent(ACTOR))
    return path


@pytest.fixture(scope="module")
def acting(actor: Path) -> Iterator[Running]:
    """A server of the actor, in `connection` scope, for tests that leave it as it was."""
    with Running(actor) as running:
        yield running


@pytest.fixture(scope="module")
def in_rooms(actor: Path) -> Iterator[Running]:
    """A server of the actor in `room` scope."""
    with Running(actor, "--scope", "room", "--room-linger", "500ms") as running:
        yield running


def refusal(url: str, **options: Any) -> Any:
    """Connect where it is refused; gives the response."""
    with pytest.raises(InvalidStatus) as refused, client(url, **options):
        pass
    return refused.value.response


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(url: str, *, host: str | None = None) -> httpx.Response:
    headers = {} if host is None else {"Host": host}
    return httpx.get(url, headers=headers, trust_env=False, verify=NO_TLS)


def socket_to(running: Running) -> socket.socket:
    """For a client of a name that does not resolve to where the server is."""
    host, port = running.address.split(":")
    return socket.create_connection((host, int(port)))


def ended(os_pid: int) -> bool:
    try:
        return gone(psutil.Process(os_pid))
    except psutil.NoSuchProcess:
        return True


# Serving


def test_a_client_talks_to_the_handler() -> None:
    with Running(HANDLERS / "echo.py") as running, client(running.ws()) as websocket:
        for data in ("héllo", "", b"\x00\xff", b""):
            websocket.send(data)
            assert received(websocket) == data


@pytest.mark.parametrize(
    ("scope", "processes", "path"),
    [
        ("connection", "a process for each connection", "/chat"),
        ("room", "a process for each room", "/chat/<room>"),
        ("shared", "one process for all connections", "/chat"),
    ],
)
def test_the_first_line_says_what_is_served_how_and_where(
    actor: Path, scope: str, processes: str, path: str
) -> None:
    with Running(actor, "--scope", scope, "--path", "/chat") as running:
        assert running.stderr.line("Serving") == (
            f"Serving {actor}:handler ({processes}) at ws://{running.address}{path}"
        )
        assert running.stderr.line("Open") == (
            f"Open http://{running.address}/ in a browser. Press Ctrl-C to stop."
        )


def test_a_target_may_name_another_function_and_be_a_coroutine(write: Write) -> None:
    script = write(
        "coroutine.py",
        """
        from wsrelay.aio import process

        async def greet():
            async for message in process.inbox():
                if message.topic == "ws.join":
                    payload = {"type": "text", "data": "hello"}
                    await process.send(message.sender, "ws.send", payload)
        """,
    )
    with Running(f"{script}:greet") as running, client(running.ws()) as websocket:
        assert received(websocket) == "hello"


def test_a_target_may_be_a_module_of_the_current_folder(write: Write) -> None:
    actor = write("my_actor.py", ACTOR)
    with (
        Running("my_actor:handler", cwd=actor.parent) as running,
        client(running.ws()) as websocket,
    ):
        assert news(websocket)["os_pid"] in running.workers()


@pytest.mark.parametrize("options", [[], ["--reload"]])
def test_what_stands_behind_two_dashes_is_in_the_script_s_sys_argv(
    write: Write, options: list[str]
) -> None:
    script = write("tells.py", "import sys\nprint(*sys.argv)\ndef handler(): pass\n")
    given = ["--model", "x", "--reload"]
    with Running(script, *options, port=free_port(), arguments=given) as running:
        running.stderr.line(f"output: {script} --model x --reload")


def test_a_relative_path_starts_at_the_current_folder(write: Write) -> None:
    actor = write("my_actor.py", ACTOR)
    with (
        Running("my_actor.py", cwd=actor.parent) as running,
        client(running.ws()) as websocket,
    ):
        assert news(websocket)["os_pid"] in running.workers()


def test_in_connection_scope_each_client_has_a_process_that_ends_with_it(acting: Running) -> None:
    with client(acting.ws()) as one, client(acting.ws()) as two:
        leaving, staying = news(one)["os_pid"], news(two)["os_pid"]
        assert leaving != staying
        assert {leaving, staying} <= set(acting.workers())
        one.close()
        until(lambda: ended(leaving), "the process of the client that left is gone")
        two.send("say still here")
        assert news(two) == {"said": "still here"}
    until(lambda: ended(staying), "the other process is gone too")


def test_a_client_that_vanishes_takes_its_process_with_it(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        os_pid = news(websocket)["os_pid"]
        websocket.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: ended(os_pid), "its process is gone")


def test_in_room_scope_a_path_is_a_process(in_rooms: Running) -> None:
    paths = ["/ws/a", "/ws/b", "/ws/a", "/ws/b/c", "/ws", "/ws/a?x=1"]
    os_pids = {}
    with (
        client(in_rooms.ws(paths[0])) as one,
        client(in_rooms.ws(paths[1])) as two,
        client(in_rooms.ws(paths[2])) as three,
        client(in_rooms.ws(paths[3])) as four,
        client(in_rooms.ws(paths[4])) as five,
        client(in_rooms.ws(paths[5])) as six,
    ):
        os_pids = {
            number: news(websocket)["os_pid"]
            for number, websocket in enumerate((one, two, three, four, five, six), 1)
        }
        assert os_pids[1] == os_pids[3] == os_pids[6]
        assert len(set(os_pids.values())) == 4
        assert set(os_pids.values()) <= set(in_rooms.workers())


def test_in_shared_scope_all_clients_meet_in_one_process(actor: Path) -> None:
    with (
        Running(actor, "--scope", "shared") as running,
        client(running.ws()) as one,
        client(running.ws("/ws/a")) as two,
        client(running.ws("/ws/b")) as three,
    ):
        os_pids = {news(websocket)["os_pid"] for websocket in (one, two, three)}
        assert [*os_pids] == running.workers()


def test_metadata_tells_the_path_the_room_the_query_the_headers_and_the_client(
    in_rooms: Running,
) -> None:
    url = in_rooms.ws("/ws/big%20room/2?name=Ada&empty=")
    with client(url, additional_headers={"X-Mine": "1"}) as websocket:
        metadata = news(websocket)["metadata"]
        host, port = websocket.socket.getsockname()[:2]
    assert set(metadata) == {"path", "room", "query", "headers", "client"}
    assert metadata["path"] == "/ws/big room/2"
    assert metadata["room"] == "big room/2"
    assert metadata["query"] == {"name": "Ada", "empty": ""}
    assert metadata["headers"]["x-mine"] == "1"
    assert metadata["headers"]["host"] == in_rooms.address
    assert metadata["client"] == [host, port]


def test_metadata_keeps_what_is_repeated(in_rooms: Running) -> None:
    repeated = [
        ("X-Forwarded-For", "203.0.113.1"),
        ("Cookie", "a=1"),
        ("X-Forwarded-For", "203.0.113.2, 203.0.113.3"),
        ("Cookie", "b=2"),
    ]
    url = in_rooms.ws("/ws/repeated?tag=x&name=Ada&tag=y")
    with client(url, additional_headers=repeated) as websocket:
        metadata = news(websocket)["metadata"]
    assert metadata["query"] == {"tag": "y", "name": "Ada"}  # texts, whatever a client repeats
    assert metadata["query_lists"] == {"tag": ["x", "y"]}
    headers = metadata["headers"]
    assert headers["x-forwarded-for"] == "203.0.113.1, 203.0.113.2, 203.0.113.3"
    assert headers["cookie"] == "a=1; b=2"


def test_rooms_whose_encoded_names_differ_are_different_rooms(in_rooms: Running) -> None:
    rooms = {
        "a/b": "a/b",
        "a%2Fb": "a%2Fb",
        "caf%E9": "caf%E9",
        "caf%E8": "caf%E8",
        "caf%C3%A9": "café",
        "%63af%C3%A9": "café",
    }
    with contextlib.ExitStack() as stack:
        told = [
            news(stack.enter_context(client(in_rooms.ws(f"/ws/{path}"))))  # each keeps its room
            for path in rooms
        ]
    assert [one["metadata"]["room"] for one in told] == [*rooms.values()]
    os_pids = [one["os_pid"] for one in told]
    assert len(set(os_pids)) == 5
    assert os_pids[-1] == os_pids[-2]


def test_subprotocol_selects_what_the_handler_speaks_and_the_offer_is_in_the_metadata(
    actor: Path,
) -> None:
    with Running(actor, "--subprotocol", "chat.v1", "--subprotocol", "chat.v2") as running:
        for offer, selected in (
            (["bearer.abc", "chat.v2", "chat.v1"], "chat.v2"),
            (["chat.v1"], "chat.v1"),
            (["other"], None),
        ):
            names = [Subprotocol(name) for name in offer]
            with client(running.ws(), subprotocols=names) as websocket:
                assert news(websocket)["metadata"]["subprotocols"] == offer
                assert websocket.subprotocol == selected
        running.stderr.line("--subprotocol")
        assert "bearer.abc" not in running.stderr.text
        with client(running.ws()) as websocket:
            assert "subprotocols" not in news(websocket)["metadata"]


def test_a_room_outlives_its_last_client_by_the_linger_and_then_ends(in_rooms: Running) -> None:
    with client(in_rooms.ws("/ws/lingering")) as websocket:
        os_pid = news(websocket)["os_pid"]
        left = time.monotonic()
    until(lambda: ended(os_pid), "the room is gone")
    assert time.monotonic() - left >= 0.5
    with client(in_rooms.ws("/ws/lingering")) as websocket:
        assert news(websocket)["os_pid"] != os_pid


def test_a_client_that_returns_in_between_meets_the_same_room_and_keeps_it(
    in_rooms: Running,
) -> None:
    with client(in_rooms.ws("/ws/returning")) as websocket:
        os_pid = news(websocket)["os_pid"]
    with client(in_rooms.ws("/ws/returning")) as websocket:
        assert news(websocket)["os_pid"] == os_pid
        # Another room's linger begins later and so ends after what would have ended this one.
        with client(in_rooms.ws("/ws/clock")) as clock:
            clock_pid = news(clock)["os_pid"]
        until(lambda: ended(clock_pid), "the other room is gone")
        websocket.send("say still here")
        assert news(websocket) == {"said": "still here"}
        assert not ended(os_pid)
    until(lambda: ended(os_pid), "the room is gone")


def test_a_room_without_linger_lets_its_client_in_and_ends_as_soon_as_it_is_empty(
    actor: Path,
) -> None:
    with Running(actor, "--scope", "room", "--room-linger", "0s") as running:
        with client(running.ws("/ws/a")) as one, client(running.ws("/ws/a")) as two:
            os_pid = news(one)["os_pid"]
            assert news(two)["os_pid"] == os_pid
            one.close()
            two.send("say still here")
            assert news(two) == {"said": "still here"}
        until(lambda: ended(os_pid), "the room is gone")


def test_heartbeat_sends_the_handler_heartbeats(actor: Path) -> None:
    with (
        Running(actor, "--heartbeat", "20ms") as running,
        client(running.ws("/ws/h")) as websocket,
    ):
        news(websocket)
        first, second = news(websocket), news(websocket)
        assert first["metadata"]["room"] == "h"
        assert first["message_count"] == 0
        assert second["uptime"] > first["uptime"] > 0


def test_a_foreign_origin_gets_403_and_allowed_ones_pass(actor: Path) -> None:
    origins = "https://app.example.com, https://*.example.org"
    with Running(actor, "--origins", origins) as running:
        for foreign in ("https://evil.example", "null", "https://example.org"):
            assert refusal(running.ws(), origin=foreign).status_code == http.HTTPStatus.FORBIDDEN
            line = running.stderr.line(foreign)
            assert running.address in line
            assert "--origins" in line
        assert running.workers() == []
        for allowed in (
            f"http://{running.address}",
            "https://app.example.com",
            "https://a.example.org",
        ):
            with client(running.ws(), origin=allowed) as websocket:
                assert "os_pid" in news(websocket)


def test_on_a_loopback_address_only_loopback_names_are_hosts(acting: Running) -> None:
    """A page of another site can have its own name resolve to 127.0.0.1 (DNS rebinding)."""
    until(lambda: not acting.workers(), "earlier tests' processes are gone")
    _, _, port = acting.address.partition(":")
    for name in ("localhost", "app.localhost", "127.0.0.1"):
        assert get(acting.http(), host=f"{name}:{port}").status_code == http.HTTPStatus.OK
    evil = f"evil.example:{port}"
    for path in ("/", "/ws", "/healthz", "/missing"):
        assert get(acting.http(path), host=evil).status_code == http.HTTPStatus.FORBIDDEN
    url, origin = f"ws://{evil}/ws", f"http://{evil}"
    response = refusal(url, sock=socket_to(acting), origin=origin)
    assert response.status_code == http.HTTPStatus.FORBIDDEN
    line = acting.stderr.line(evil)
    assert "/: 403: Host" in line
    assert "--allowed-hosts" in line
    assert acting.workers() == []


def test_allowed_hosts_says_more(actor: Path) -> None:
    with Running(actor, "--allowed-hosts", "app.example.com, *.example.org") as running:
        for name in ("app.example.com", "a.example.org:4433", "localhost"):
            assert get(running.http(), host=name).status_code == http.HTTPStatus.OK
            with client(
                f"ws://{name}/ws", sock=socket_to(running), origin=f"https://{name}"
            ) as one:
                assert "os_pid" in news(one)
        for name in ("example.org", "evil.example"):
            assert get(running.http(), host=name).status_code == http.HTTPStatus.FORBIDDEN


def test_on_all_interfaces_every_host_is_served(actor: Path) -> None:
    with Running(actor, "--host", "0.0.0.0") as running:  # noqa: S104 - it is what is tested
        assert get(running.http(), host="app.example.com").status_code == http.HTTPStatus.OK


def test_localhost_is_both_loopback_addresses(actor: Path) -> None:
    with Running(actor, "--host", "localhost") as running:
        name, _, port = running.address.partition(":")
        assert name == "localhost"
        for address in ("127.0.0.1", "[::1]"):
            with client(f"ws://{address}:{port}/ws") as websocket:
                assert "os_pid" in news(websocket)
        running.signal(signal.SIGTERM)
        assert running.wait() == 0


def test_health_and_readiness(acting: Running) -> None:
    assert get(acting.http("/healthz")).text == "ok\n"
    assert get(acting.http("/readyz")).text == "ready\n"


def test_an_upgrade_where_nothing_is_is_404(acting: Running) -> None:
    until(lambda: not acting.workers(), "earlier tests' processes are gone")
    for path in ("/nowhere", "/wsx", "/ws%2Fblue"):
        assert refusal(acting.ws(path)).status_code == http.HTTPStatus.NOT_FOUND
    assert acting.workers() == []


def test_more_than_max_processes_gets_503_until_one_has_left(actor: Path) -> None:
    with Running(actor, "--max-processes", "1") as running:
        with client(running.ws()) as websocket:
            os_pid = news(websocket)["os_pid"]
            response = refusal(running.ws())
            assert response.status_code == http.HTTPStatus.SERVICE_UNAVAILABLE
            assert response.headers["retry-after"]
            websocket.send("say still here")
            assert news(websocket) == {"said": "still here"}
        until(lambda: ended(os_pid), "the process is gone")
        until(lambda: not running.workers(), "it is reaped")
        with client(running.ws()) as websocket:
            assert news(websocket)["os_pid"] != os_pid
        assert "Traceback" not in running.stderr.text


def test_with_warm_a_client_gets_a_process_that_was_there_before_it(actor: Path) -> None:
    with Running(actor, "--warm", "2") as running:
        until(lambda: len(running.workers()) == 2, "two wait")
        ahead = running.workers()
        with client(running.ws()) as websocket:
            assert news(websocket)["os_pid"] in ahead
            until(lambda: len(running.workers()) == 3, "another one has taken its place")


def test_path_moves_the_websocket_and_the_page_knows(actor: Path) -> None:
    with Running(actor, "--path", "/chat/") as running:
        for path, room in (("/chat", ""), ("/chat/a", "a")):
            with client(running.ws(path)) as websocket:
                assert news(websocket)["metadata"]["room"] == room
        assert refusal(running.ws("/ws")).status_code == http.HTTPStatus.NOT_FOUND
        assert '"/chat"' in get(running.http()).text


def test_static_serves_a_folder_in_place_of_the_page(tmp_path: Path, actor: Path) -> None:
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "index.html").write_text("<p>mine</p>")
    (folder / "app.js").write_text("let mine")
    with Running(actor, "--static", str(folder)) as running:
        assert get(running.http()).text == "<p>mine</p>"
        script = get(running.http("/app.js"))
        assert script.text == "let mine"
        assert "javascript" in script.headers["content-type"]
        assert get(running.http("/missing")).status_code == http.HTTPStatus.NOT_FOUND
        with client(running.ws()) as websocket:
            assert "os_pid" in news(websocket)


def test_the_page_at_the_root_names_the_websocket_path(acting: Running) -> None:
    response = get(acting.http())
    assert response.status_code == http.HTTPStatus.OK
    assert response.headers["content-type"].startswith("text/html")
    assert "<title>wsrelay</title>" in response.text
    assert '"/ws"' in response.text
    assert "src=" not in response.text, "the page needs no other resource"


@pytest.mark.parametrize("path", ["/ws", "/ws/a"])
def test_plain_http_on_the_websocket_path_gets_426_and_starts_nothing(
    acting: Running, path: str
) -> None:
    until(lambda: not acting.workers(), "earlier tests' processes are gone")
    response = get(acting.http(path))
    assert response.status_code == http.HTTPStatus.UPGRADE_REQUIRED
    assert response.headers["upgrade"] == "websocket"
    assert acting.workers() == []


def test_two_rooms_of_life_run_in_two_processes() -> None:
    with (
        Running(HANDLERS / "life.py", "--scope", "room") as running,
        client(running.ws("/ws/one")) as one,
        client(running.ws("/ws/two")) as two,
        client(running.ws("/ws/two")) as three,
    ):
        first, second, third = (news(websocket)["os_pid"] for websocket in (one, two, three))
        assert first != second == third
        assert running.workers() == sorted([first, second])


# What handlers write


def test_what_a_handler_prints_is_in_the_log_line_by_line_with_its_pid(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        pid = news(websocket)["pid"]
        for order, text in (("print", "first line"), ("print", "sécond"), ("print_error", "third")):
            websocket.send(f"{order} {text}")
            assert acting.stderr.line(text).endswith(f" INFO    {pid} output: {text}")
    assert acting.stdout.text == ""


def test_what_a_handler_logs_arrives_on_standard_error_with_its_pid(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        pid = news(websocket)["pid"]
        websocket.send("log something odd")
        line = acting.stderr.line("something odd")
        assert pid in line
        assert "WARNING" in line
        assert "actor" in line
        assert acting.stderr.text.count("something odd") == 1
        assert "something odd" not in acting.stdout.text


def test_logging_that_the_script_sets_up_does_not_double_the_lines(write: Write) -> None:
    script = write(
        "loud.py", "import logging\nlogging.basicConfig(level=10)\n" + textwrap.dedent(ACTOR)
    )
    with Running(script) as running, client(running.ws()) as websocket:
        news(websocket)
        for text in ("log once", "say done"):
            websocket.send(text)
        news(websocket)
        running.stderr.line("once")
        websocket.close()
        running.stderr.line("output: ended in order")
        assert running.stderr.text.count("once") == 1


def test_standard_input_is_empty(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        news(websocket)
        websocket.send("input")
        assert news(websocket) == {"read": ""}


# Faults


def test_a_handler_that_raises_is_logged_with_its_pid_and_closes_its_client_with_1011(
    actor: Path,
) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as crashing,
        client(running.ws()) as other,
    ):
        pid = news(crashing)["pid"]
        news(other)
        crashing.send("crash")
        assert closed(crashing) == (1011, "target process crashed")
        assert pid in running.stderr.line("ZeroDivisionError: on purpose")
        running.stderr.line("in crash")
        log = running.stderr.text
        assert log.count("Traceback") == 1
        assert f'File "{actor}"' in log
        assert ROOT not in log, "the traceback shows wsrelay's own frames"
        other.send("say still here")
        assert news(other) == {"said": "still here"}
        with client(running.ws()) as later:
            assert "os_pid" in news(later)


def test_breakpoint_in_a_handler_says_why_it_cannot_and_what_to_do(actor: Path) -> None:
    with Running(actor) as running, client(running.ws()) as websocket:
        pid = news(websocket)["pid"]
        websocket.send("breakpoint")
        assert closed(websocket) == (1011, "target process crashed")
        assert pid in running.stderr.line("breakpoint() needs a terminal")
        assert "debugpy.listen" in running.stderr.text


def test_kill_9_of_a_worker_closes_its_client_with_1011_and_others_go_on(actor: Path) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as one,
        client(running.ws()) as other,
    ):
        victim = news(one)
        news(other)
        os.kill(victim["os_pid"], signal.SIGKILL)
        assert closed(one) == (1011, "target process killed (SIGKILL)")
        assert "SIGKILL" in running.stderr.line(victim["pid"])
        other.send("say still here")
        assert news(other) == {"said": "still here"}
        with client(running.ws()) as later:
            assert "os_pid" in news(later)


def test_kill_9_of_a_room_empties_it_and_the_next_client_finds_a_new_one(
    in_rooms: Running,
) -> None:
    with (
        client(in_rooms.ws("/ws/victim")) as one,
        client(in_rooms.ws("/ws/victim")) as two,
    ):
        os_pid = news(one)["os_pid"]
        os.kill(os_pid, signal.SIGKILL)
        for websocket in (one, two):
            assert closed(websocket)[0] == 1011
    with client(in_rooms.ws("/ws/victim")) as websocket:
        assert news(websocket)["os_pid"] != os_pid


def test_kill_9_of_the_template_ends_its_workers_and_the_node_starts_another(actor: Path) -> None:
    with Running(actor) as running:
        template = running.template
        with client(running.ws()) as websocket:
            os_pid = news(websocket)["os_pid"]
            template.kill()
            assert closed(websocket)[0] == 1011
            until(lambda: ended(os_pid), "the worker is gone")
        with client(running.ws()) as websocket:
            assert news(websocket)["os_pid"] != os_pid
        assert running.template.pid != template.pid
        assert "Traceback" not in running.stderr.text


# Bad input


def run_to_the_end(target: str | Path, *options: str, **settings: Any) -> str:
    """Run what cannot be served; gives its standard error."""
    with Running(target, *options, serves=False, **settings) as running:
        assert running.wait() != 0
        until(lambda: not running.family(), "nothing is left running", 1)
        running.stderr.join()
        assert running.stdout.text == ""
        return running.stderr.text


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("missing.py", "missing.py does not exist"),
        ("folder.py", "folder.py is a folder"),
        ("module_that_is_not_there:handler", "no module 'module_that_is_not_there'"),
        ("package_that_is_not_there.rooms:handler", "no module 'package_that_is_not_there'"),
        ("good.py:nothing", "has no function 'nothing'; it defines handler, other"),
        ("good:nothing", "has no function 'nothing'; it defines handler, other"),
        ("good.py:NUMBER", "'NUMBER' is no function"),
        ("empty.py", "has no function 'handler'; it defines no function"),
    ],
)
def test_a_target_that_cannot_be_loaded_gets_one_line(
    write: Write, target: str, complaint: str
) -> None:
    folder = write("good.py", "NUMBER = 3\ndef handler(): ...\ndef other(): ...\n").parent
    write("empty.py", "")
    (folder / "folder.py").mkdir()
    complaints = run_to_the_end(target, cwd=folder).splitlines()
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith("wsrelay: ")
    assert complaint in complaints[0]


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("", "target ''"),
        (".", "target '.'"),
        ("no target", "target 'no target'"),
        ("good.py:", "target 'good.py:'"),
        ("good.py:1st", "'1st' is not a function name"),
        ("good", "target 'good'"),
        ("good:handler:other", "target 'good:handler:other'"),
    ],
)
def test_a_malformed_target_is_a_wrong_usage(write: Write, target: str, complaint: str) -> None:
    folder = write("good.py", "def handler(): ...\n").parent
    complaints = run_to_the_end(target, cwd=folder).splitlines()
    assert complaints[-1].startswith("Error: Invalid value for 'TARGET'")
    assert complaint in complaints[-1]
    assert "Traceback" not in "".join(complaints)


@pytest.mark.parametrize(
    ("text", "error", "shown"),
    [
        ("def f():\n    1 / 0\n\nf()\n", "ZeroDivisionError: division by zero", "line 2, in f"),
        ("def handler(:\n", "SyntaxError: invalid syntax", "line 1"),
        (
            "import nothing_like_this\n",
            "ModuleNotFoundError: No module named 'nothing_like_this'",
            "line 1",
        ),
        ("import sys\n\nsys.exit(3)\n", "SystemExit: 3", "line 3"),
        ("raise KeyboardInterrupt\n", "KeyboardInterrupt", "line 1"),
    ],
    ids=["raises", "syntax-error", "import-error", "exits", "interrupts"],
)
def test_a_script_that_raises_shows_its_own_traceback_once(
    write: Write, text: str, error: str, shown: str
) -> None:
    script = write("broken.py", text)
    complaint = run_to_the_end(script)
    line = complaint.splitlines()[-1]
    assert line == f"wsrelay: {script} cannot be imported: {error}"
    assert complaint.count(f'File "{script}"') in (1, text.count("f()"))
    assert shown in complaint
    assert complaint.count("Traceback") <= 1, "shown twice"
    assert ROOT not in complaint, "the traceback shows wsrelay's own frames"


def test_a_script_whose_top_level_does_not_end_is_given_up_and_says_where_it_stands(
    write: Write,
) -> None:
    script = write("endless.py", "while True:\n    pass\n")
    line = run_to_the_end(script, "--start-timeout", "500ms").splitlines()[-1]
    assert "loading takes longer than the start timeout of 0.5 s" in line
    assert re.search(f"stands at line [12] of {script}[.] .*--start-timeout", line)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_script_that_ends_the_process_at_import_is_an_error_too(
    write: Write, leaves: bool
) -> None:
    order = "os._exit(0)" if leaves else "os.kill(os.getpid(), signal.SIGKILL)"
    script = write("broken.py", f"import os, signal\n{order}\n")
    complaints = run_to_the_end(script).splitlines()
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith("wsrelay: ")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--allowed-hosts", "https://app.example.com"], "it has no scheme and no port"),
        (["--subprotocol", "a b"], "'a b'"),
        (["--scope", "universe"], "'universe' is not one of 'connection', 'room', 'shared'"),
        (["--heartbeat", "often"], "'often' is not a duration; write it like '30s'"),
        (["--heartbeat", "1us"], "'1us' is too short"),
        (["--origins", "example.com"], "allowed origin 'example.com' is none of"),
        (["--path", "ws"], "'ws' is not a path"),
        (["--room-linger", "5"], "'5' is not a duration"),
        (["--room-linger", "-1s"], "'-1s' is too short"),
        (["--start-timeout", "0s"], "'0s' is too short"),
        (["--static", "missing-folder"], "'missing-folder' does not exist"),
        (["--static", __file__], "is a file"),
        (["--port", "65536"], "65536 is not in the range"),
        (["--port", "http"], "'http' is not a valid integer"),
        (["--max-processes", "0"], "0 is not in the range"),
        (["--warm", "300"], "is 300 and must be 0 to max_processes, which is 256"),
        (["--memory", "0"], "is 0 and must be 1 to 2**62 bytes"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_a_wrong_option_gets_a_line_that_names_it(options: list[str], complaint: str) -> None:
    complaints = run_to_the_end(HANDLERS / "echo.py", *options).splitlines()
    assert complaints[-1].startswith("Error: ")
    assert options[0] in complaints[-1]
    assert complaint in complaints[-1]
    assert "Traceback" not in "".join(complaints)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        complaint = run_to_the_end(HANDLERS / "echo.py", port=port)
    assert complaint == (
        f"wsrelay: cannot listen on 127.0.0.1:{port}: the address is in use; choose another port"
    )


def test_an_unknown_host_is_named() -> None:
    complaints = run_to_the_end(HANDLERS / "echo.py", "--host", "nowhere.invalid").splitlines()
    assert len(complaints) == 1, complaints
    assert complaints[0].startswith("wsrelay: cannot listen on nowhere.invalid:")


# The end


def end(running: Running, how: str) -> None:
    if how == "Ctrl-C":
        running.interrupt()
    else:
        running.signal(signal.SIGTERM)


@pytest.fixture(params=["Ctrl-C", "SIGTERM"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_end_in_order_closes_clients_with_1012_and_leaves_nothing(
    actor: Path, how: str
) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as one,
        client(running.ws()) as two,
    ):
        for websocket in (one, two):
            news(websocket)
        end(running, how)
        for websocket in (one, two):
            assert closed(websocket) == (1012, "node shuts down")
        assert running.wait() == 0
        until(lambda: not running.family(), "nothing is left running", 1)
        running.stderr.join()
        assert running.stderr.text.count("output: ended in order") == 2
        assert "Traceback" not in running.stderr.text
        assert "ERROR" not in running.stderr.text


def test_the_end_without_clients_comes_at_once(how: str) -> None:
    with Running(HANDLERS / "echo.py") as running:
        end(running, how)
        assert running.wait(GRACE - 0.5) == 0


def test_the_end_waits_the_grace_time_for_a_deaf_handler_and_then_kills_it(
    actor: Path, how: str
) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as spinning,
        client(running.ws()) as deaf,
        client(running.ws()) as other,
    ):
        for websocket, order in ((spinning, "spin"), (deaf, "deaf"), (other, "grandchild")):
            news(websocket)
            websocket.send(order)
            news(websocket)
        end(running, how)
        for websocket in (spinning, deaf, other):
            assert closed(websocket) == (1012, "node shuts down")
        assert running.wait(GRACE + 2) == 0
        until(lambda: not running.family(), "nothing is left running", 1)


def test_a_second_signal_ends_at_once(actor: Path, how: str) -> None:
    with Running(actor) as running, client(running.ws()) as websocket:
        news(websocket)
        websocket.send("spin")
        news(websocket)
        end(running, how)
        assert closed(websocket)[0] == 1012
        end(running, how)
        assert running.wait(GRACE - 0.5) == 0
        until(lambda: not running.family(), "nothing is left running", 1)


def test_a_client_that_does_not_answer_the_close_frame_does_not_hold_up_the_end(
    actor: Path, how: str
) -> None:
    with Running(actor) as running:
        host, port = running.address.split(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.sendall(
                b"GET /ws HTTP/1.1\r\nHost: localhost\r\n"
                b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert silent.recv(64).startswith(b"HTTP/1.1 101")
            until(running.workers, "its process runs")
            end(running, how)
            assert running.wait(GRACE + 3) == 0


@pytest.fixture
def loading(write: Write) -> Iterator[Running]:
    """A server whose script is still being imported, and will be for long."""
    script = write("slow.py", "import time\nprint('loading', flush=True)\ntime.sleep(600)\n")
    with Running(script, serves=False) as running:
        running.stderr.line("output: loading")
        yield running


def test_the_end_while_the_script_still_loads_comes_in_order_too(
    loading: Running, how: str
) -> None:
    end(loading, how)
    assert loading.wait(GRACE + 2) == 0
    until(lambda: not loading.family(), "nothing is left running", 1)
    assert "Traceback" not in loading.stderr.text


def test_kill_9_of_the_node_while_the_script_still_loads_leaves_nothing(
    loading: Running,
) -> None:
    loading.signal(signal.SIGKILL)
    loading.wait()
    until(lambda: not loading.family(), "nothing is left running", 1)


def test_kill_9_of_the_node_leaves_no_process_behind(actor: Path) -> None:
    with (
        Running(actor) as running,
        client(running.ws()) as idle,
        client(running.ws()) as spinning,
        client(running.ws()) as deaf,
        client(running.ws()) as parent,
    ):
        os_pids = {running.pid, running.template.pid}
        for websocket in (idle, spinning, deaf, parent):
            os_pids.add(news(websocket)["os_pid"])
        for websocket, order in ((spinning, "spin"), (deaf, "deaf")):
            websocket.send(order)
            news(websocket)
        parent.send("grandchild")
        os_pids.add(news(parent)["os_pid"])
        assert len(os_pids) == 7
        assert os_pids < {process.pid for process in running.family()}, "and a resource tracker"
        running.signal(signal.SIGKILL)
        running.wait()
        # One that is about to end loses its mark first.
        until(lambda: all(ended(os_pid) for os_pid in os_pids), "all have ended", 1)
        until(lambda: not running.family(), "nothing is left running", 1)


# The command


def test_the_command_explains_itself() -> None:
    command = [sys.executable, "-m", "wsrelay"]
    for arguments in (["--help"], ["run", "--help"], ["-h"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("Usage: wsrelay")
        assert done.stderr == ""
    done = subprocess.run([*command, "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Missing argument 'TARGET'" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_output_cannot_be_written_ends_with_a_line_that_says_so(
    acting: Running, unbuffered: str
) -> None:
    node = ["--node", f":{acting.address.rpartition(':')[2]}"]
    seen = [[name, *node] for name in ("ps", "tree", "connections", "top")]
    as_json = [[*command, "--json"] for command in seen]
    others = [["--help"], ["completion", "bash"], ["check", "-c", f"{HANDLERS}/relay.yaml"]]
    for arguments in (*seen, *as_json, *others):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "wsrelay", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
                text=True,
                check=False,
            )
        said = "wsrelay: the output cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, said), arguments


# Limits and edits


def test_memory_limits_each_process(tmp_path: Path) -> None:
    script = tmp_path / "hungry.py"
    script.write_text(
        "from wsrelay import process\n"
        "def handler():\n"
        "    process.inbox().receive()\n"
        "    bytearray(500 << 20)\n"
    )
    with Running(script, "--memory", "400MB") as running, client(running.ws()) as one:
        assert closed(one) == (1011, "target process crashed (memory limit)")
        running.stderr.line("memory limit of 400MB reached")


def test_a_size_that_is_none_is_a_wrong_option() -> None:
    with Running(HANDLERS / "echo.py", "--memory", "lots", serves=False) as running:
        assert running.wait() == 2
        running.stderr.line("'lots' is not a size; write it like '512MB', '64KB' or '1.5GB'")


def test_reload_starts_the_script_again_when_it_is_edited(tmp_path: Path) -> None:
    script = tmp_path / "greet.py"
    text = (
        "from wsrelay import process\n"
        "def handler():\n"
        "    for message in process.inbox():\n"
        "        process.send(message.sender, 'ws.send', {'type': 'text', 'data': 'one'})\n"
    )
    script.write_text(text)
    with Running(script, "--reload", port=free_port()) as running:
        with client(running.ws()) as one:
            assert received(one) == "one"
            script.write_text(text.replace("one", "two"))
            assert closed(one) == (1012, "node shuts down")
        until(lambda: len([x for x in running.stderr.lines if "Serving" in x]) == 2, "it serves")
        with client(running.ws()) as one:
            assert received(one) == "two"
        running.interrupt()
        assert running.wait() == 0


@pytest.mark.parametrize("edited", ["greet.py", "greeting.py"])
def test_reload_sees_an_edit_that_byte_code_is_not_told_from(tmp_path: Path, edited: str) -> None:
    """An edit within the same second, and of the same size: the file's time is set to that."""
    texts = {
        "greeting.py": "TEXT = 'one'\n",
        "greet.py": (
            "import greeting\n"
            "from wsrelay import process\n"
            "AND = 'one'\n"
            "def handler():\n"
            "    for message in process.inbox():\n"
            "        data = f'{greeting.TEXT} {AND}'\n"
            "        process.send(message.sender, 'ws.send', {'type': 'text', 'data': data})\n"
        ),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    file = tmp_path / edited
    before = file.stat().st_mtime_ns
    with Running(tmp_path / "greet.py", "--reload", port=free_port()) as running:
        with client(running.ws()) as one:
            assert received(one) == "one one"
            other = tmp_path / "other.tmp"
            other.write_text(texts[edited].replace("'one'", "'two'"))
            os.utime(other, ns=(before, before))
            other.rename(file)
            assert closed(one) == (1012, "node shuts down")
        until(lambda: len([x for x in running.stderr.lines if "Serving" in x]) == 2, "it serves")
        with client(running.ws()) as one:
            assert "two" in str(received(one))
        running.interrupt()
        assert running.wait() == 0


def test_one_ctrl_c_under_reload_lets_a_handler_come_to_its_end(write: Write) -> None:
    script = write(
        "ends.py",
        """
        import time
        from wsrelay import process

        def handler():
            for message in process.inbox():
                process.send(message.sender, "ws.send", {"type": "text", "data": "here"})
                try:
                    while True:
                        time.sleep(0.01)
                finally:
                    print("finally ran")
        """,
    )
    with Running(script, "--reload", port=free_port()) as running:
        with client(running.ws()) as one:
            assert received(one) == "here"
            running.interrupt()
            assert running.wait() == 0
        running.stderr.line("output: finally ran")
    assert "terminated" not in running.stderr.text


@pytest.mark.parametrize("closed_ones", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_it_serves_and_ends_where_standard_streams_are_closed(
    actor: Path, closed_ones: str
) -> None:
    port = free_port()
    arguments = [sys.executable, "-m", "wsrelay", "run", str(actor), "--port", str(port)]
    started = subprocess.Popen(["/bin/sh", "-c", f'exec "$@" {closed_ones}', "sh", *arguments])
    try:

        def connected() -> bool:
            try:
                with client(f"ws://127.0.0.1:{port}/ws") as one:
                    return "os_pid" in news(one)
            except (OSError, InvalidHandshake):
                assert started.poll() is None
                return False

        until(connected, "it serves")
        started.send_signal(signal.SIGINT)
        assert started.wait(TIMEOUT) == 0
    finally:
        started.kill()
        started.wait()


def test_a_current_folder_that_was_removed_is_told_in_one_line(actor: Path, tmp_path: Path) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    shell = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    command = [sys.executable, "-m", "wsrelay", "run", str(actor), "--port", "0"]
    ended = subprocess.run(
        ["/bin/sh", "-c", shell, "sh", str(removed), *command],
        capture_output=True,
        check=False,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "wsrelay: the template cannot be started: the current folder was removed\n"
    )
