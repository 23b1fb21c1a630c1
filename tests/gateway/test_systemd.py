"""Taking over a port, and word to who has started the node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from running import HANDLERS, client, closed, received
from websockets.sync.client import connect

from wsrelay.gateway.systemd import InheritedSockets, SystemdNotifier

TIMEOUT = 60


@contextlib.contextmanager
def started(
    listeners: list[socket.socket], *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """`wsrelay ARGUMENTS` as a service manager starts it, with listening sockets from 3 on."""
    script = (
        "import json, os, sys\n"
        "fds = [os.dup(fd) for fd in json.loads(sys.argv[1])]\n"
        "high = [os.dup2(fd, 100 + i) for i, fd in enumerate(fds)]\n"
        "for i, fd in enumerate(high): os.dup2(fd, 3 + i)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'wsrelay', *sys.argv[2:]])\n"
    )
    fds = [listener.fileno() for listener in listeners]
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(fds), *arguments],
        env={**os.environ, "LISTEN_FDS": str(len(fds)), **environment},
        pass_fds=fds,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def serving(process: subprocess.Popen[str]) -> str:
    """Wait until it serves; gives the line that says where."""
    assert process.stderr is not None
    for line in process.stderr:
        if "http://" in line or "unix:" in line:
            return line
    raise AssertionError("it ended")


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(TIMEOUT)
        yield sock


def notice(notices: socket.socket, expected: str) -> None:
    """Wait for that word."""
    while expected not in notices.recv(1000).decode():
        pass


def test_a_new_node_takes_over_the_port_and_no_connection_is_refused() -> None:
    echo = str(HANDLERS / "echo.py")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        started([listener], "run", echo) as old,
    ):
        port = listener.getsockname()[1]
        assert f":{port}/" in serving(old)
        with (
            client(f"ws://127.0.0.1:{port}/ws") as staying,
            started([listener], "run", echo) as new,
        ):
            serving(new)
            old.send_signal(signal.SIGTERM)
            assert closed(staying)[0] == 1012
            for i in range(50):
                with client(f"ws://127.0.0.1:{port}/ws") as coming:
                    coming.send(str(i))
                    assert received(coming) == str(i)
            assert old.wait(TIMEOUT) == 0


def test_while_nobody_accepts_connections_wait() -> None:
    echo = str(HANDLERS / "echo.py")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with started([listener], "run", echo) as first:
            serving(first)
            first.terminate()
            assert first.wait(TIMEOUT) == 0
        with socket.create_connection(address) as waiting, started([listener], "run", echo):
            url = f"ws://127.0.0.1:{address[1]}/ws"
            with connect(url, sock=waiting, compression=None, open_timeout=TIMEOUT) as early:
                early.send("was here first")
                assert received(early) == "was here first"


def test_servers_of_a_configuration_find_their_sockets_by_name_and_address(tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    entries = [
        {"name": "first", "kind": "http.service", "addr": "127.0.0.1:1"},
        {"name": "second", "kind": "http.service", "addr": f"unix:{path}"},
    ]
    configuration = tmp_path / "wsrelay.yaml"
    configuration.write_text(
        yaml.safe_dump({"version": "1.0", "namespace": "app", "entries": entries})
    )
    with (
        socket.socket(socket.AF_UNIX) as unix,
        socket.create_server(("127.0.0.1", 0)) as tcp,
    ):
        unix.bind(str(path))
        unix.listen()
        options = ("serve", "-c", str(configuration))
        with started([unix, tcp], *options, LISTEN_FDNAMES="unknown:first") as node:
            serving(node)
            for family, address in (
                (socket.AF_UNIX, str(path)),
                (socket.AF_INET, tcp.getsockname()),
            ):
                with socket.socket(family) as asking:
                    asking.connect(address)
                    asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert asking.recv(100).startswith(b"HTTP/1.1 200")
            node.terminate()
            assert node.wait(TIMEOUT) == 0
        assert path.exists(), "who made it removes it"


def test_the_service_manager_is_told_ready_reloading_and_stopping(
    notices: socket.socket, tmp_path: Path
) -> None:
    configuration = tmp_path / "wsrelay.yaml"
    entry = {"name": "web", "kind": "http.service", "addr": "127.0.0.1:0"}
    configuration.write_text(
        yaml.safe_dump({"version": "1.0", "namespace": "app", "entries": [entry]})
    )
    place = {"NOTIFY_SOCKET": notices.getsockname(), "WATCHDOG_USEC": "200000"}
    with started([], "serve", "-c", str(configuration), **place) as node:
        notice(notices, "READY=1")
        notice(notices, "WATCHDOG=1")
        node.send_signal(signal.SIGHUP)
        notice(notices, "RELOADING=1\nMONOTONIC_USEC=")
        notice(notices, "READY=1")
        notice(notices, "WATCHDOG=1")
        node.terminate()
        notice(notices, "STOPPING=1")
        assert node.wait(TIMEOUT) == 0


def test_a_reload_that_fails_unexpectedly_is_over_for_the_service_manager_all_the_same(
    notices: socket.socket, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from wsrelay.gateway.deployment import Deployment\n"
        "async def reload(self, configuration): raise KeyError('a mistake of ours')\n"
        "Deployment.reload = reload\n"
    )
    configuration = tmp_path / "wsrelay.yaml"
    entry = {"name": "web", "kind": "http.service", "addr": "127.0.0.1:0"}
    configuration.write_text(
        yaml.safe_dump({"version": "1.0", "namespace": "app", "entries": [entry]})
    )
    place = {"NOTIFY_SOCKET": notices.getsockname(), "PYTHONPATH": str(tmp_path)}
    with started([], "serve", "-c", str(configuration), **place) as node:
        notice(notices, "READY=1")
        for _ in range(2):
            node.send_signal(signal.SIGHUP)
            notice(notices, "RELOADING=1")
            notice(notices, "READY=1")
        node.terminate()
        notice(notices, "STOPPING=1")
        assert node.wait(TIMEOUT) == 0
        assert node.stderr is not None
        assert node.stderr.read().count("KeyError: 'a mistake of ours'") == 2


def test_run_tells_it_too_and_workers_cannot(notices: socket.socket, tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(
        "import os\nfrom wsrelay import process\n"
        "def handler():\n"
        "    for m in process.inbox():\n"
        "        if m.topic == 'ws.join':\n"
        "            names = sorted(n for n in os.environ if n.startswith(('LISTEN', 'NOTIFY')))\n"
        "            process.send(m.sender, 'ws.send', {'type': 'text', 'data': ','.join(names)})\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        started([listener], "run", str(script), NOTIFY_SOCKET=notices.getsockname()) as node,
    ):
        notice(notices, "READY=1")
        with client(f"ws://127.0.0.1:{listener.getsockname()[1]}/ws") as websocket:
            assert received(websocket) == ""
        node.terminate()
        notice(notices, "STOPPING=1")
        assert node.wait(TIMEOUT) == 0


def test_word_reaches_an_abstract_socket_and_nobody_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    name = f"wsrelay-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(TIMEOUT)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify = SystemdNotifier()
        notify.ready()
        assert sock.recv(100) == b"READY=1"
    notify.stopping()
    assert "NOTIFY_SOCKET" not in os.environ
    SystemdNotifier().ready()


@pytest.mark.parametrize(
    ("pid", "count"), [("1", "1"), ("me", "0"), ("me", "x"), ("", "1"), ("me", "")]
)
def test_sockets_for_somebody_else_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, pid: str, count: str
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "me" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    inherited = InheritedSockets()
    assert inherited.take_any() is None
    assert inherited.take("any", 80) is None
    assert "LISTEN_FDS" not in os.environ
