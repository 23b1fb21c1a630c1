"""`wsrelay serve` reads its configuration again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ports import free_port
from running import TIMEOUT, Running, client, closed, received, until
from sites import ECHO, HTTP, Site, get, refused, reloaded


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


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
