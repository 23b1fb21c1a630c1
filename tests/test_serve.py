"""The real `wsrelay serve` over real sockets, from the configuration to the last client."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trustme
import yaml
from running import HANDLERS, TIMEOUT, Running, client, closed, received, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

ECHO = """
from wsrelay import process

GREETING = "one"

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            answer = {"type": "text", "data": GREETING + " " + message.payload["data"]}
            process.send(message.sender, "ws.send", answer)

def forever():
    for message in process.inbox():
        pass

def deaf():
    while True:
        process.inbox().receive(timeout=None)
"""

HTTP = """
from starlette.responses import PlainTextResponse
from wsrelay import RelayResponse, process

async def connect(request):
    return RelayResponse(process.spawn("app:echo"), cancel_on_leave=True)

async def shared(request):
    return RelayResponse(process.get_or_spawn("shared", "app:echo"))

def missing(request):
    return PlainTextResponse("no such room", 404)

def mapping(request):
    return {"id": request.path_params["id"], "query": dict(request.query_params)}

def text(request):
    return "plain"

async def nothing(request):
    return None

def wrong(request):
    return 42

async def failing(request):
    raise ValueError("a secret detail")

def host(request):
    return process.spawn("app:echo").host + " " + process.spawn("app:echo", "app:light").host
"""


class Site:
    """A folder with a configuration that tests change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "wsrelay.yaml"
        (folder / "echo.py").write_text(ECHO)
        (folder / "web.py").write_text(HTTP)
        self.entries: dict[str, dict[str, Any]] = {}
        self.add("light", "process.host", stop_timeout="2s")
        self.add("heavy", "process.host", stop_timeout="2s")
        self.add("echo", "process.python", source="file://echo.py", host="heavy")
        self.add("gateway", "http.service", addr="127.0.0.1:0", timeouts={"drain": "200ms"})
        self.add(
            "router",
            "http.router",
            meta={"server": "gateway"},
            prefix="/api",
            post_middleware=["websocket_relay"],
        )

    def add(self, name: str, kind: str, **keys: Any) -> None:
        self.entries[name] = {"name": name, "kind": kind, **keys}
        self.write()

    def endpoint(self, name: str, path: str | None = None, **keys: Any) -> None:
        self.add(f"{name}_function", "function.python", source="file://web.py", method=name)
        self.add(
            f"{name}.endpoint",
            "http.endpoint",
            meta={"router": "router"},
            path=path or f"/{name}",
            func=f"{name}_function",
            **keys,
        )

    def write(self) -> None:
        entries = list(self.entries.values())
        document = {"version": "1.0", "namespace": "app", "entries": entries}
        self.file.write_text(yaml.safe_dump(document, sort_keys=False))

    def serving(self, *options: str, **settings: Any) -> Running:
        return Running(self.file, *options, **settings)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def get(url: str, method: str = "GET", **options: Any) -> httpx.Response:
    return httpx.request(method, url, trust_env=False, **options)


def refused(url: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as raised:
        connect(url, proxy=None, **options)
    return raised.value.response.status_code


def test_the_relay_s_own_form_runs_as_it_stands() -> None:
    with Running(HANDLERS / "relay.yaml") as running:
        url = running.ws("/ws/echo")
        with client(url) as one:
            one.send("hello")
            assert received(one) == "hello"
        with client(url, origin="https://app.example.com") as one:
            one.send("hello")
            assert received(one) == "hello"
        with client(url, origin=f"http://{running.address}") as one:
            one.send("hello")
            assert received(one) == "hello"
        until(lambda: not running.workers(), "the workers ended with their clients")
        assert refused(url, origin="https://evil.example") == 403
        assert running.workers() == []


def test_answers_of_endpoints_become_responses(site: Site) -> None:
    for name in ("text", "nothing", "wrong"):
        site.endpoint(name)
    site.endpoint("mapping", "/things/{id:int}")
    with site.serving() as running:
        assert get(running.http("/api/text")).text == "plain"
        assert get(running.http("/api/nothing")).status_code == 204
        answer = get(running.http("/api/things/7?x=1"))
        assert answer.json() == {"id": 7, "query": {"x": "1"}}
        assert get(running.http("/api/wrong")).status_code == 500
        line = running.stderr.line("app:wrong_function returned 42")
        assert "an endpoint returns a starlette Response" in line


def test_what_is_not_there_is_404_and_a_wrong_method_405(site: Site) -> None:
    site.endpoint("text", method=["POST", "PUT"])
    site.endpoint("missing")
    with site.serving() as running:
        assert get(running.http("/nowhere")).status_code == 404
        assert get(running.http("/api/nowhere")).status_code == 404
        answer = get(running.http("/api/text"))
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST, PUT")
        assert get(running.http("/api/text"), "PUT").text == "plain"
        assert refused(running.ws("/nowhere")) == 404
        assert refused(running.ws("/api/nowhere")) == 404
        assert refused(running.ws("/api/missing")) == 404


def test_the_traceback_of_an_endpoint_stands_in_the_log_alone(site: Site) -> None:
    site.endpoint("failing")
    with site.serving() as running:
        answer = get(running.http("/api/failing"))
        assert (answer.status_code, "secret" in answer.text) == (500, False)
        running.stderr.line("ValueError: a secret detail")
        assert refused(running.ws("/api/failing")) == 500


def test_an_entry_is_spawned_by_its_id_in_its_host_or_another(site: Site) -> None:
    site.endpoint("host")
    with site.serving() as running:
        assert get(running.http("/api/host")).text == "app:heavy app:light"


def test_health_and_readiness(site: Site) -> None:
    with site.serving() as running:
        assert get(running.http("/healthz")).text == "ok\n"
        assert get(running.http("/readyz")).text == "ready\n"


def test_a_path_that_ends_with_a_slash_answers_without_it_too(site: Site) -> None:
    site.endpoint("text", "/")
    site.endpoint("mapping", "/things/{id}/")
    site.endpoint("nothing", "/exact")
    with site.serving() as running:
        for path in ("/api", "/api/"):
            assert get(running.http(path)).text == "plain"
            assert get(running.http(path), "POST").status_code == 405
        for path in ("/api/things/7", "/api/things/7/"):
            assert get(running.http(path)).json()["id"] == "7"
        assert get(running.http("/api/exact")).status_code == 204
        assert get(running.http("/api/exact/")).status_code == 404


def test_a_folder_below_a_path_is_found_without_its_slash(site: Site) -> None:
    (site.folder / "public").mkdir()
    (site.folder / "public" / "index.html").write_text("<p>hello")
    site.add("page", "http.static", meta={"server": "gateway"}, path="/a/b", directory="public")
    with site.serving() as running:
        answer = get(running.http("/a/b"), follow_redirects=True)
        assert (answer.text, answer.url.path) == ("<p>hello", "/a/b/")
        assert get(running.http("/a/bc")).status_code == 404


def test_static_files_leave_routers_alone(site: Site) -> None:
    (site.folder / "public").mkdir()
    (site.folder / "public" / "index.html").write_text("<p>hello")
    site.add("page", "http.static", meta={"server": "gateway"}, path="/", directory="public")
    site.endpoint("text")
    with site.serving() as running:
        assert get(running.http("/")).text == "<p>hello"
        assert get(running.http("/api/text")).text == "plain"
        assert get(running.http("/api/text"), "POST").status_code == 405
        assert get(running.http("/no.html")).status_code == 404
        assert get(running.http("/healthz")).text == "ok\n"


def test_clients_are_closed_with_1012_and_the_exit_code_is_0(site: Site) -> None:
    site.endpoint("connect")
    with site.serving() as running, contextlib.ExitStack() as stack:
        url = running.ws("/api/connect")
        clients = [stack.enter_context(client(url)) for _ in range(5)]
        for one in clients:
            one.send("x")
            assert received(one) == "one x"
        running.signal(signal.SIGTERM)
        assert [closed(one) for one in clients] == [(1012, "node shuts down")] * 5
        assert running.wait() == 0


def test_a_second_signal_ends_at_once(site: Site) -> None:
    site.add("gateway", "http.service", addr="127.0.0.1:0", timeouts={"drain": "1h"})
    site.endpoint("connect")
    with site.serving() as running, client(running.ws("/api/connect")) as one:
        one.send("x")
        received(one)
        running.signal(signal.SIGTERM)
        until(lambda: not listens(running.address), "it accepts no more")
        running.signal(signal.SIGTERM)
        assert closed(one) == (1012, "node shuts down")
        assert running.wait() == 0


def test_a_client_that_waits_for_its_turn_is_still_served(site: Site) -> None:
    site.add("gateway", "http.service", addr="127.0.0.1:0", timeouts={"drain": "1h"})
    site.endpoint("shared")
    with site.serving() as running, client(running.ws("/api/shared")) as one:
        one.send("before")
        assert received(one) == "one before"
        running.signal(signal.SIGTERM)
        until(lambda: not listens(running.address), "it accepts no more")
        for i in range(100):
            one.send(f"{i}")
            assert received(one) == f"one {i}"
        one.close()
        assert running.wait() == 0


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


# Reading the configuration again


def reloaded(running: Running, said: str) -> None:
    def count() -> int:
        return sum(said in line for line in running.stderr.lines)

    before = count()
    running.signal(signal.SIGHUP)
    until(lambda: count() > before, f"{said!r} is in the log")


def test_a_reload_adds_endpoints_and_drops_no_connection(site: Site) -> None:
    site.endpoint("connect")
    with site.serving() as running, client(running.ws("/api/connect")) as one:
        assert get(running.http("/api/text")).status_code == 404
        site.endpoint("text")
        reloaded(running, "changed: app:text_function, app:text.endpoint")
        assert get(running.http("/api/text")).text == "plain"
        one.send("x")
        assert received(one) == "one x"


def test_a_reload_runs_edited_scripts_for_new_processes_and_leaves_the_old_ones(site: Site) -> None:
    site.endpoint("connect")
    with site.serving() as running, client(running.ws("/api/connect")) as old:
        (site.folder / "echo.py").write_text(ECHO.replace('"one"', '"another"'))
        reloaded(running, "changed: nothing")
        with client(running.ws("/api/connect")) as new:
            new.send("x")
            assert received(new) == "another x"
        old.send("x")
        assert received(old) == "one x"


def test_a_reload_of_a_wrong_configuration_changes_nothing(site: Site) -> None:
    site.endpoint("connect")
    with site.serving() as running, client(running.ws("/api/connect")) as one:
        site.add("light", "process.host", max_processes="many")
        reloaded(running, "must be a whole number, not 'many'")
        running.stderr.line("the configuration stays as it was")
        one.send("x")
        assert received(one) == "one x"
        site.add("light", "process.host")
        (site.folder / "echo.py").write_text("1/0")
        reloaded(running, "ZeroDivisionError")
        running.stderr.line("the configuration stays as it was")
        with client(running.ws("/api/connect")) as another:
            another.send("x")
            assert received(another) == "one x"


def test_a_reload_exchanges_hosts_and_servers(site: Site) -> None:
    site.endpoint("connect")
    path = site.folder / "extra.sock"
    with site.serving() as running, client(running.ws("/api/connect")) as one:
        site.add("heavy", "process.host", max_processes=1, stop_timeout="2s")
        site.add("extra", "http.service", addr=f"unix:{path}")
        reloaded(running, "changed: app:heavy, app:extra")
        assert refused(running.ws("/api/connect")) == 503
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport) as unix:
            assert unix.get("http://x/healthz").text == "ok\n"
        del site.entries["extra"]
        site.write()
        reloaded(running, "changed: app:extra")
        until(lambda: not path.exists(), "the socket's file is gone")
        one.send("x")
        assert received(one) == "one x"


def test_a_reload_that_finds_an_address_in_use_opens_nothing(site: Site) -> None:
    path = site.folder / "extra.sock"
    with site.serving() as running, socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        site.add("extra", "http.service", addr=f"unix:{path}")
        site.add("another", "http.service", addr=address)
        reloaded(running, f"cannot listen on {address}: the address is in use")
        assert not path.exists()
        assert get(running.http("/healthz")).text == "ok\n"


def test_a_reload_of_a_server_leaves_its_connections_with_the_options_they_began_with(
    site: Site,
) -> None:
    site.endpoint("connect")
    long = "x" * 2000
    with site.serving() as running, client(running.ws("/api/connect")) as old:
        site.add("gateway", "http.service", addr="127.0.0.1:0", max_message_size="1KB")
        reloaded(running, "changed: app:gateway")
        with client(running.ws("/api/connect")) as new:
            new.send(long)
            assert closed(new)[0] == 1009
        old.send(long)
        assert received(old) == f"one {long}"
        running.signal(signal.SIGTERM)
        assert closed(old) == (1012, "node shuts down")
        assert running.wait() == 0


def test_a_reload_that_fails_has_changed_nothing(site: Site) -> None:
    site.endpoint("host")
    with site.serving() as running:
        template = command("ps", "--json", running=running)
        before = get(running.http("/api/host")).text
        (site.folder / "no.pem").write_text("this is no certificate")
        site.add("more", "process.host", stop_timeout="2s")
        site.add("service", "process.service", process="echo", host="more")
        tls = {"cert": "no.pem", "key": "no.pem"}
        site.add("gateway", "http.service", addr="127.0.0.1:0", tls=tls)
        reloaded(running, "the configuration stays as it was")
        assert get(running.http("/api/host")).text == before
        after = command("ps", "--json", running=running)
        assert [row["host"] for row in after if row["host"] == "app:more"] == []
        assert len(after) >= len(template)


def renamed(site: Site, old: str, new: str) -> None:
    entry = site.entries.pop(old)
    site.entries["router"]["meta"] = {"server": new}
    site.entries = {new: {**entry, "name": new}, **site.entries}
    site.write()


def test_a_server_of_a_new_name_takes_the_address_over_in_a_reload(site: Site) -> None:
    address = f"127.0.0.1:{free_port()}"
    path = site.folder / "site.sock"
    site.endpoint("connect")
    site.add("gateway", "http.service", addr=address)
    site.add("local", "http.service", addr=f"unix:{path}")
    with site.serving() as running, client(running.ws("/api/connect")) as old:
        renamed(site, "gateway", "front")
        site.entries["near"] = {**site.entries.pop("local"), "name": "near"}
        site.write()
        reloaded(running, "changed: ")
        assert closed(old)[0] == 1012
        with client(running.ws("/api/connect")) as new:
            new.send("x")
            assert received(new) == "one x"
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport) as unix:
            assert unix.get("http://x/healthz").text == "ok\n"
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert not path.exists(), "the new one removes it"


def test_two_servers_change_their_addresses_in_a_reload(site: Site) -> None:
    addresses = [f"127.0.0.1:{port}" for port in (free_port(), free_port())]
    site.endpoint("text")
    site.add("gateway", "http.service", addr=addresses[0])
    site.add("other", "http.service", addr=addresses[1])
    with site.serving() as running:
        statuses = [get(f"http://{address}/api/text").status_code for address in addresses]
        assert statuses == [200, 404]
        site.entries["gateway"]["addr"], site.entries["other"]["addr"] = reversed(addresses)
        site.write()
        reloaded(running, "changed: app:gateway, app:other")
        statuses = [get(f"http://{address}/api/text").status_code for address in addresses]
        assert statuses == [404, 200]


STUBBORN = """
import pathlib, time
from wsrelay import process

def handler(folder):
    for message in process.inbox():
        pass
    pathlib.Path(folder, "cancelled").touch()
    while not pathlib.Path(folder, "go").exists():
        time.sleep(0.01)
"""


def test_a_signal_in_the_middle_of_a_reload_ends_the_node_in_order(site: Site) -> None:
    (site.folder / "stubborn.py").write_text(STUBBORN)
    site.add("patient", "process.host", stop_timeout="60s")
    site.add("stubborn", "process.python", source="file://stubborn.py", host="patient")
    site.add("keeper", "process.service", process="stubborn", args=[str(site.folder)])
    paths = [site.folder / name for name in ("old.sock", "new.sock")]
    site.add("old", "http.service", addr=f"unix:{paths[0]}")
    site.endpoint("connect")
    with site.serving() as running, client(running.ws("/api/connect")) as one:

        def running_now() -> int:
            rows = command("ps", "--json", running=running)
            return sum(row["state"] == "running" for row in rows)

        until(lambda: running_now() == 2, "the service runs")
        for name in ("keeper", "old"):
            del site.entries[name]
        site.add("new", "http.service", addr=f"unix:{paths[1]}")
        site.add("another", "process.service", process="stubborn", args=[str(site.folder)])
        running.signal(signal.SIGHUP)
        until((site.folder / "cancelled").exists, "the service that is gone is being stopped")
        running.signal(signal.SIGTERM)
        assert closed(one) == (1012, "node shuts down")
        (site.folder / "go").touch()
        assert running.wait() == 0
        running.stderr.join()
        for words in ("Traceback", "never", "service app:another"):
            assert words not in running.stderr.text
    assert [path for path in paths if path.exists()] == []


def test_a_signal_while_a_reload_waits_for_a_server_s_clients_leaves_nothing_behind(
    site: Site,
) -> None:
    path = site.folder / "front.sock"
    site.endpoint("connect")
    with site.serving() as running:
        host, _, port = running.address.rpartition(":")
        with socket.create_connection((host, int(port)), TIMEOUT) as deaf:
            deaf.sendall(
                b"GET /api/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert b" 101 " in deaf.recv(1000)
            renamed(site, "gateway", "front")
            site.entries["front"]["addr"] = f"unix:{path}"
            site.write()
            running.signal(signal.SIGHUP)
            assert deaf.recv(1000).startswith(b"\x88"), "a close frame, which it does not answer"
            running.signal(signal.SIGTERM)
            assert running.wait() == 0
        running.stderr.join()
        assert "Traceback" not in running.stderr.text
        assert "never" not in running.stderr.text
    assert not path.exists()


BROKEN_PREPARE = """
import wsrelay.gateway.server as server

usual = server.Server.prepare

async def prepare(self):
    if self.listener.unix and self.listener.unix.endswith("bad.sock"):
        raise server.AddressError("cannot accept connections: Too many open files")
    await usual(self)

server.Server.prepare = prepare
"""


def test_a_server_that_cannot_be_started_in_a_reload_changes_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(site, monkeypatch, BROKEN_PREPARE)
    site.endpoint("connect")
    paths = [site.folder / name for name in ("good.sock", "bad.sock")]
    with site.serving() as running, client(running.ws("/api/connect")) as one:
        templates = psutil.Process(running.pid).children()
        site.endpoint("text")
        site.add("heavy", "process.host", stop_timeout="3s")
        site.add("good", "http.service", addr=f"unix:{paths[0]}")
        site.add("bad", "http.service", addr=f"unix:{paths[1]}")
        site.add("gateway", "http.service", addr="127.0.0.1:0", max_message_size="1KB")
        reloaded(running, "Too many open files; the configuration stays as it was")
        assert [path for path in paths if path.exists()] == []
        assert get(running.http("/api/text")).status_code == 404
        assert psutil.Process(running.pid).children() == templates
        one.send("x" * 2000)
        assert received(one) == "one " + "x" * 2000
        with client(running.ws("/api/connect")) as new:
            new.send("x" * 2000)
            assert received(new) == "one " + "x" * 2000


def sabotage(site: Site, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the node run code before anything else of it."""
    folder = site.folder / "sabotage"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))


WAITS = """
import pathlib, time

pathlib.Path({folder!r}, "loading").touch()
deadline = time.monotonic() + 60
while not pathlib.Path({folder!r}, "go").exists() and time.monotonic() < deadline:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("script", ["echo.py", "web.py"], ids=["in the template", "in the node"])
def test_a_hangup_before_it_serves_waits_until_it_does(site: Site, script: str) -> None:
    for name in ("light", "heavy"):
        site.add(name, "process.host", stop_timeout="2s", start_timeout="60s")
    site.endpoint("mapping")
    text = (site.folder / script).read_text()
    (site.folder / script).write_text(text + WAITS.format(folder=str(site.folder)))
    with site.serving(serves=False) as running:
        until((site.folder / "loading").exists, "it is being loaded")
        site.endpoint("text")
        for _ in range(3):
            running.signal(signal.SIGHUP)
        (site.folder / "go").touch()
        running.stderr.line("changed: app:text_function, app:text.endpoint")
        lines = running.stderr.lines
        [serving] = [i for i, line in enumerate(lines) if "Serving app:gateway" in line]
        [again] = [i for i, line in enumerate(lines) if "was read again" in line]
        assert serving < again
        address = lines[serving].partition("http://")[2].split()[0]
        assert get(f"http://{address}/api/text").text == "plain"


def test_a_reload_starts_and_stops_services(site: Site) -> None:
    site.add("keeper", "process.python", source="file://echo.py", method="forever")
    with site.serving() as running:
        site.add("service", "process.service", process="keeper", host="light")
        reloaded(running, "changed: app:service")
        assert command("ps", "--json", running=running)[0]["names"] == ["app:service"]
        del site.entries["service"]
        site.write()
        reloaded(running, "changed: app:service")
        assert command("ps", "--json", running=running) == []


def test_many_reloads_leave_no_template_and_no_descriptor_behind(site: Site) -> None:
    site.endpoint("connect")
    with site.serving() as running, client(running.ws("/api/connect")) as one:
        node = psutil.Process(running.pid)

        def edit(number: int) -> None:
            (site.folder / "echo.py").write_text(f"{ECHO}\n# {number}")
            (site.folder / "web.py").write_text(f"{HTTP}\n# {number}")
            reloaded(running, "changed: nothing")

        edit(1)
        before = len(node.children()), node.num_fds()
        for number in range(2, 12):
            edit(number)
        # The first one's template has a worker still.
        until(lambda: (len(node.children()), node.num_fds()) <= before, f"no more than {before}")
        one.send("x")
        assert received(one) == "one x"


def command(*arguments: str, running: Running) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "wsrelay", *arguments, "--node", str(running.pid)],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return json.loads(done.stdout)


# Other ways to listen


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _trusting(authority: trustme.CA) -> ssl.SSLContext:
    """Not for TLS 1.3, whose tickets come while the client sends its request.

    It reads in a thread of its own, and before 3.13 Python's `ssl` has no lock for two: one request
    in 4,000 never left the client.
    """
    context = ssl.create_default_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    authority.configure_trust(context)
    return context


def test_tls(site: Site, authority: trustme.CA) -> None:
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(site.folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(site.folder / "cert.pem"))
    tls = {"cert": "cert.pem", "key": "key.pem"}
    site.add("gateway", "http.service", addr="127.0.0.1:0", tls=tls)
    site.endpoint("connect")
    with site.serving(serves=False) as running:
        address = running.stderr.line("https://").partition("https://")[2]
        with connect(f"wss://{address}/api/connect", ssl=_trusting(authority), proxy=None) as one:
            one.send("x")
            assert received(one) == "one x"


def test_a_renewed_certificate_is_served_after_a_reload_and_a_broken_one_is_not(
    site: Site,
) -> None:
    first, second = trustme.CA(), trustme.CA()

    def write(authority: trustme.CA) -> None:
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(site.folder / "key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(site.folder / "cert.pem"))

    def trusting(authority: trustme.CA) -> Any:
        return connect(url, ssl=_trusting(authority), proxy=None, open_timeout=TIMEOUT)

    write(first)
    tls = {"cert": "cert.pem", "key": "key.pem"}
    site.add("gateway", "http.service", addr="127.0.0.1:0", tls=tls)
    site.endpoint("connect")
    with site.serving(serves=False) as running:
        url = f"wss://{running.stderr.line('https://').partition('https://')[2]}/api/connect"
        with trusting(first) as old:
            write(second)
            reloaded(running, "changed: app:gateway")
            with trusting(second) as new:
                new.send("x")
                assert received(new) == "one x"
            with pytest.raises(ssl.SSLCertVerificationError):
                trusting(first)
            (site.folder / "cert.pem").write_text("half a certificate")
            reloaded(running, "cannot use certificate")
            running.stderr.line("cert.pem: ")
            running.stderr.line("the configuration stays as it was")
            with trusting(second) as new:
                new.send("x")
                assert received(new) == "one x"
            old.send("x")
            assert received(old) == "one x"


def test_only_allowed_hosts_are_served(site: Site) -> None:
    hosts = ["app.example.com", "*.example.org"]
    site.add("gateway", "http.service", addr="127.0.0.1:0", allowed_hosts=hosts)
    site.endpoint("text")
    site.endpoint("connect")
    with site.serving() as running:
        url = running.http("/api/text")
        for host in ("app.example.com", "a.example.org:443", running.address):
            assert get(url, headers={"Host": host}).text == "plain"
        assert get(url, headers={"Host": "evil.example"}).status_code == 403
        line = running.stderr.line("'evil.example'")
        assert "app:gateway: allowed_hosts" in line
        host, port = running.address.split(":")
        sock = socket.create_connection((host, int(port)))
        assert refused("ws://evil.example/api/connect", sock=sock) == 403


def test_a_unix_socket_is_removed_at_the_end(site: Site) -> None:
    path = site.folder / "site.sock"
    site.add("other", "http.service", addr="unix:site.sock")
    with site.serving() as running:
        assert path.is_socket()
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert not path.exists()


def test_logs_as_json(site: Site) -> None:
    (site.folder / "echo.py").write_text(ECHO.replace("    for m", "    1/0\n    for m", 1))
    site.endpoint("connect")
    with site.serving("--log-format", "json") as running:
        try:
            with client(running.ws("/api/connect")) as one:
                assert closed(one)[0] == 1011
        except InvalidStatus as error:
            assert error.response.status_code == 503  # noqa: PT017 - as quick as the crash
        record = json.loads(running.stderr.line("ZeroDivisionError"))
        assert record["level"] == "error"
        assert record["pid"].startswith("{local@app:heavy|")


def test_middleware_before_and_after_the_match(site: Site) -> None:
    site.add(
        "router",
        "http.router",
        meta={"server": "gateway"},
        prefix="/api",
        middleware=["ratelimit"],
        options={"ratelimit.requests": 3, "ratelimit.interval": "1h"},
        post_middleware=["token_auth", "websocket_relay"],
        post_options={"token_auth.secret": "hush", "token_auth.query": "token"},
    )
    site.endpoint("connect")
    with site.serving() as running:
        assert get(running.http("/api/nowhere")).status_code == 404
        assert refused(running.ws("/api/connect")) == 401
        with client(running.ws("/api/connect?token=hush")) as one:
            one.send("x")
            assert received(one) == "one x"
        assert get(running.http("/api/nowhere")).status_code == 429
        assert refused(running.ws("/api/connect?token=hush")) == 429
        assert get(running.http("/healthz")).status_code == 200


def test_a_function_that_judges_tokens_is_read_again_when_it_was_edited(site: Site) -> None:
    judge = site.folder / "judge.py"
    judge.write_text("def judge(token):\n    return token == 'one'\n")
    site.add(
        "gateway",
        "http.service",
        addr="127.0.0.1:0",
        middleware=["token_auth"],
        options={"token_auth.function": "file://judge.py:judge", "token_auth.query": "token"},
    )
    site.endpoint("text")
    with site.serving() as running:
        one, other = (running.http(f"/api/text?token={token}") for token in ("one", "other"))
        assert (get(one).status_code, get(other).status_code) == (200, 401)
        judge.write_text("def judge(token):\n    return token == 'other'\n")
        reloaded(running, "changed: nothing")
        assert (get(one).status_code, get(other).status_code) == (401, 200)


def test_without_a_safe_place_for_its_control_socket_a_node_runs_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsafe = site.folder / "unsafe"
    unsafe.mkdir()
    unsafe.chmod(0o755)
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(unsafe))
    with site.serving() as running:
        running.stderr.line("The node runs, but 'wsrelay ps' and the like cannot find it")
        assert get(running.http("/healthz")).text == "ok\n"
    assert list(unsafe.iterdir()) == []


def test_check_prints_what_entries_resolve_to_or_all_that_is_wrong(site: Site) -> None:
    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "wsrelay", "check", "-c", str(site.file)],
            cwd=site.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    done = check()
    assert done.returncode == 0
    [line] = [line for line in done.stdout.splitlines() if line.startswith("app:echo ")]
    assert line.split(None, 3)[3] == "source=echo.py, method=handler, host=app:heavy"
    site.add("echo", "process.python", source="file://no.py", host="heavi")
    done = check()
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"wsrelay: wsrelay.yaml:12: app:echo: key 'source': {site.folder}/no.py does not exist",
        (
            "wsrelay: wsrelay.yaml:13: app:echo: key 'host': there is no entry 'app:heavi'; "
            "did you mean 'app:heavy'?"
        ),
        "wsrelay: 2 problems in the configuration",
    ]


# What keeps it from starting


Mistake = Callable[[Site], str]


def taken(site: Site) -> str:
    site.sock = socket.create_server(("127.0.0.1", 0))  # type: ignore[attr-defined]
    address = f"127.0.0.1:{site.sock.getsockname()[1]}"  # type: ignore[attr-defined]
    site.add("gateway", "http.service", addr=address)
    return f"cannot listen on {address}: the address is in use; choose another port"


def no_server(site: Site) -> str:
    for name in ("gateway", "router"):
        del site.entries[name]
    site.write()
    return "the configuration has no http.service entry: there is nothing to serve"


def no_function(site: Site) -> str:
    site.endpoint("text")
    site.entries["text_function"]["method"] = "txt"
    site.write()
    return "app:text_function: {folder}/web.py has no function 'txt'; it defines "


def raising(site: Site) -> str:
    (site.folder / "echo.py").write_text("1/0")
    return "{folder}/echo.py cannot be imported: ZeroDivisionError: division by zero"


def bad_path(site: Site) -> str:
    site.endpoint("text", "/{id:number}")
    return "app:text.endpoint: key 'path': '/api/{id:number}' is not a path: "


def no_certificate(site: Site) -> str:
    (site.folder / "empty.pem").touch()
    tls = {"cert": "empty.pem", "key": "empty.pem"}
    site.add("gateway", "http.service", addr="127.0.0.1:0", tls=tls)
    return "app:gateway: key 'tls.cert': cannot use certificate {folder}/empty.pem: "


@pytest.mark.parametrize(
    "mistake", [taken, no_server, no_function, raising, bad_path, no_certificate]
)
def test_what_cannot_be_served_is_one_clear_line(site: Site, mistake: Mistake) -> None:
    expected = mistake(site).replace("{folder}", str(site.folder))
    with site.serving(serves=False) as running:
        assert running.wait() == 1
        assert running.stderr.line(expected).startswith("wsrelay: ")
    if (sock := getattr(site, "sock", None)) is not None:
        sock.close()


def test_no_configuration_at_all(tmp_path: Path) -> None:
    with Running(tmp_path / "no.yaml", serves=False) as running:
        assert running.wait() == 1
        running.stderr.line("no.yaml: does not exist")


@pytest.fixture
def edited(site: Site) -> Iterator[Running]:
    site.endpoint("connect")
    port = free_port()
    site.add("gateway", "http.service", addr=f"127.0.0.1:{port}", timeouts={"drain": "0s"})
    with site.serving("--reload") as running:
        yield running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def test_reload_starts_again_when_a_file_changes(site: Site, edited: Running) -> None:
    with client(edited.ws("/api/connect")) as one:
        one.send("x")
        assert received(one) == "one x"
        (site.folder / "echo.py").write_text(ECHO.replace('"one"', '"two"'))
        assert closed(one) == (1012, "node shuts down")
    until(lambda: listens(edited.address), "it accepts again")
    with client(edited.ws("/api/connect")) as one:
        one.send("x")
        assert received(one) == "two x"
    edited.signal(signal.SIGINT)
    assert edited.wait() == 0
