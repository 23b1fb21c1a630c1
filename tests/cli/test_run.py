"""`wsrelay run` as a user meets it: a real process, real sockets, real signals."""

from __future__ import annotations

import functools
import http
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from acting import ACTOR, Write, ended, written
from ports import free_port
from running import HANDLERS, Running, client, news, received, until
from websockets.exceptions import InvalidStatus

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without it httpx reads the system's for 0.2 s


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a script into the test's own folder."""
    return functools.partial(written, tmp_path)


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that does what its clients say and tells who it is."""
    return written(tmp_path_factory.mktemp("scripts"), "actor.py", ACTOR)


@pytest.fixture(scope="module")
def acting(actor: Path) -> Iterator[Running]:
    """A server of the actor, in `connection` scope, for tests that leave it as it was."""
    with Running(actor) as running:
        yield running


def refusal(url: str, **options: Any) -> Any:
    """Connect where it is refused; gives the response."""
    with pytest.raises(InvalidStatus) as refused, client(url, **options):
        pass
    return refused.value.response


def get(url: str, *, host: str | None = None) -> httpx.Response:
    headers = {} if host is None else {"Host": host}
    return httpx.get(url, headers=headers, trust_env=False, verify=NO_TLS)


def socket_to(running: Running) -> socket.socket:
    """For a client of a name that does not resolve to where the server is."""
    host, port = running.address.split(":")
    return socket.create_connection((host, int(port)))


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


ROOM = """
from wsrelay import Client, Room

class Here(Room):
    def on_start(self, *arguments):
        self.arguments = arguments

    def on_join(self, client: Client):
        self.broadcast(f"{client.metadata['room']}: {len(self.clients)} {self.arguments}")
"""


def test_a_target_may_be_a_room(write: Write) -> None:
    with (
        Running(f"{write('rooms.py', ROOM)}:Here", "--scope", "room") as running,
        client(running.ws("/ws/blue")) as one,
    ):
        assert received(one) == "blue: 1 ()"
        with client(running.ws("/ws/blue")) as two:
            assert [received(one), received(two)] == ["blue: 2 ()"] * 2


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
