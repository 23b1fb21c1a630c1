"""`--metrics` of `run` and `serve`, and entries of kind `http.metrics`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from acting import written
from commands import run_here
from running import Running, client, received, until
from scraped import sample
from sites import Site, get, refused, reloaded

ECHO = """
from wsrelay import process

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            process.send(message.sender, "ws.send", {"type": "text", "data": "hello"})
"""


def metrics_of(running: Running) -> str:
    return running.stderr.line("Metrics at ").partition("Metrics at ")[2]


def test_run_serves_them_at_an_address_of_their_own(tmp_path: Path) -> None:
    script = written(tmp_path, "echo.py", ECHO)
    with Running(script, "--metrics", "127.0.0.1:0", "--scope", "room") as running:
        at = metrics_of(running)
        with client(running.ws("/ws/blue")) as one:
            one.send("hello")
            assert received(one) == "hello"
            text = get(at).text
            assert sample(text, "connections") == 1
            assert sample(text, "messages_total", direction="to_clients") == 1
            assert sample(text, "processes", host="processes", state="running") == 1
        wrong = get(at.replace("metrics", "metric"))
        assert (wrong.status_code, wrong.text) == (
            404,
            "Not Found: the metrics are at /metrics\n",
        )
        assert get(at, headers={"Host": "elsewhere.example"}).status_code == 403
        assert get(running.http("/metrics")).status_code == 404, "not where clients are"
        until(lambda: sample(get(at).text, "connections_closed_total") == 1, "it is closed")


def test_a_unix_socket_will_do_and_is_removed_in_the_end(tmp_path: Path) -> None:
    script, path = written(tmp_path, "echo.py", ECHO), tmp_path / "metrics.sock"
    with Running(script, "--metrics", f"unix:{path}") as running:
        assert metrics_of(running) == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as http:
            assert sample(http.get("http://node/metrics").text, "connections") == 0
        running.interrupt()
        assert running.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize("wrong", ["9464", "localhost", "127.0.0.1:70000", "unix:", "http://a:1"])
@pytest.mark.parametrize("command", ["run", "serve"])
def test_what_is_no_address_is_refused_in_one_line(command: str, wrong: str) -> None:
    target = ["echo.py"] if command == "run" else []
    done = run_here(command, "--metrics", wrong, *target)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Error: Invalid value for '--metrics': {wrong!r} is not an address; write" in (
        " ".join(done.stderr.split())
    )


def test_an_address_in_use_ends_the_command_with_one_line(tmp_path: Path) -> None:
    script = written(tmp_path, "echo.py", ECHO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Running(script, "--metrics", address, serves=False) as running:
            assert running.wait() == 1
            running.stderr.join()
            assert running.stderr.text == (
                f"wsrelay: --metrics: cannot listen on {address}: the address is in use; choose "
                "another port"
            )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def entry(**keys: Any) -> dict[str, Any]:
    return {"kind": "http.metrics", "meta": {"server": "gateway"}, **keys}


def test_a_server_of_a_configuration_has_them_until_a_reload_takes_them_away(site: Site) -> None:
    site.add("numbers", **entry(path="/internal/metrics"))
    site.endpoint("connect")
    with site.serving("--metrics", "127.0.0.1:0") as running:
        at = running.http("/internal/metrics")
        with client(running.ws("/api/connect")):
            text = get(at).text
            assert sample(text, "connections") == 1
            assert sample(text, "process_starts_total", host="app:heavy", entry="app:echo") == 1
            assert sample(text, "process_exits_total", entry="app:echo", kind="error") == 0
            assert sample(text, "host_max_processes", host="app:light") == 256
            assert sample(get(metrics_of(running)).text, "connections") == 1
        assert get(running.http("/metrics")).status_code == 404
        assert get(at, "POST").status_code == 405
        assert refused(running.ws("/internal/metrics")) == 404
        del site.entries["numbers"]
        site.write()
        reloaded(running, "the configuration was read again")
        assert get(at).status_code == 404


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"path": "metrics"}, "key 'path': 'metrics' does not start with /"),
        ({"path": "/{room}"}, "key 'path': '/{room}' has a parameter; write it without"),
        ({"meta": {"server": "router"}}, "key 'meta.server': 'app:router' is of kind http.router"),
        ({"meta": {}}, "key 'meta.server': is missing"),
        ({"paht": "/x"}, "key 'paht': unknown key"),
        (
            {"path": "/api/text/"},
            "key 'path': GET /api/text is already used by 'app:text.endpoint'",
        ),
    ],
)
def test_mistakes_in_an_entry_are_told(site: Site, keys: dict[str, Any], problem: str) -> None:
    site.endpoint("text")
    site.add("numbers", **{**entry(), **keys})
    done = run_here("check", "-c", str(site.file))
    assert done.returncode == 1
    assert problem in done.stderr
