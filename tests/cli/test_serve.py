"""The real `wsrelay serve` over real sockets, from the configuration to the last client."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme
from running import HANDLERS, TIMEOUT, Running, client, closed, received, until
from sites import ECHO, Site, get, listens, refused, reloaded
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


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
