"""The proxies of docs/howto, the real ones, in front of three nodes as in docs/cluster.md."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final, Self

import httpx
import pytest
import trustme
from nats_servers import NatsServer
from ports import free_port
from running import HANDLERS, news, until
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from wsrelay.config import Configuration
from wsrelay.gateway import deployment
from wsrelay.gateway.deployment import Deployment
from wsrelay.testing import RelayServer, serve
from wsrelay.values.linux import die_with_parent

DOCS: Final = HANDLERS.parent / "docs"
PAGES: Final = {"yaml": "cluster.md", "nginx": "howto/nginx.md", "haproxy": "howto/haproxy.md"}
NAME: Final = "app.example.com"
NODES: Final = ("node-1", "node-2", "node-3")
COMMANDS: Final = {
    "nginx": (
        *("-c", "config", "-p", ".", "-e", "log"),
        *("-g", "daemon off; master_process off; pid pid;"),
    ),
    "haproxy": ("-db", "-f", "config"),
}


def _block(language: str) -> str:
    page = (DOCS / PAGES[language]).read_text(encoding="utf-8")
    [found] = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return str(found)


def _adapted(config: str, instead: dict[str, str]) -> str:
    """Have it name what there is here instead of what it names."""
    for there, here in instead.items():
        assert there in config, there
        config = config.replace(there, here)
    return config


Nodes = dict[str, RelayServer]


def _clustered(configuration: Configuration) -> Deployment:
    """What `wsrelay serve` does; `wsrelay.testing` would serve each of them alone."""
    assert configuration.cluster is not None
    return Deployment(configuration, cluster=configuration.cluster.options())


@pytest.fixture(scope="module")
def running(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Three nodes with the page's configuration, one cluster."""
    folder = tmp_path_factory.mktemp("site")
    for script in ("chat.py", "chat_http.py"):
        shutil.copy(HANDLERS / script, folder)
    [servers] = re.findall(r"servers: (.*)", _block("yaml"))
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(deployment, "Deployment", _clustered)
        nodes = {}
        for name in NODES:
            instead = {
                servers: f"[{nats.url}]",
                "name: prod": f"name: prod\n  node: {name}",
                "10.0.0.0/24": "127.0.0.1",
            }
            (file := folder / f"{name}.yaml").write_text(_adapted(_block("yaml"), instead))
            nodes[name] = stack.enter_context(serve(file))
        yield nodes


@pytest.fixture
def nodes(running: Nodes) -> Iterator[Nodes]:
    """They, and no rooms left of the test."""
    yield running
    for server in running.values():
        for pid in server.workers:
            server.kill(pid)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Proxy:
    """A proxy with the page's configuration, at a free port of the loopback interface."""

    def __init__(
        self, program: str, folder: Path, addresses: list[str], authority: trustme.CA
    ) -> None:
        binary = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            pytest.skip(f"{program} is not installed")
        self.port = free_port()
        self._authority = authority
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [binary, *COMMANDS[program]]
        self._folder = folder
        mine = authority.issue_cert(NAME)
        (pem := folder / "pem").write_bytes(mine.private_key_and_cert_chain_pem.bytes())
        instead = {
            "443 ssl" if program == "nginx" else ":443 ssl": f"127.0.0.1:{self.port} ssl",
            "20000": "100",
        }
        for file in re.findall(r"/etc/\S+?\.(?:pem|key)", _block(program)):
            instead[file] = str(pem)
        for number, address in enumerate(addresses, 1):
            instead[f"10.0.0.{number}:8080"] = address
        (folder / "config").write_text(_adapted(_block(program), instead))

    def __enter__(self) -> Self:
        me = os.getpid()
        with (self._folder / "output").open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: die_with_parent(me),  # noqa: PLW1509 - it takes no lock
            )
        try:
            until(self.listens, "the proxy listens")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def listens(self) -> bool:
        assert self._process is not None
        output = (self._folder / "output").read_text()
        assert self._process.poll() is None, f"it has ended: {output}"
        with contextlib.suppress(OSError), self._socket():
            return True
        return False

    def ready(self) -> list[int]:
        """Ask as many times as there are nodes whether the node that it comes to is ready."""
        url = f"https://127.0.0.1:{self.port}/readyz"
        name = {"sni_hostname": NAME}
        with httpx.Client(trust_env=False, verify=self._context()) as client:
            return [
                client.get(url, headers={"Host": NAME}, extensions=name).status_code for _ in NODES
            ]

    def connect(self, path: str) -> ClientConnection:
        """Connect as a page of the site does."""
        return connect(
            f"wss://{NAME}{path}",
            origin=Origin(f"https://{NAME}"),
            sock=self._socket(),
            ssl=self._context(),
            proxy=None,
            ping_interval=None,
            close_timeout=2,
        )

    def _socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        # The client reads in a thread, and before Python 3.13 ssl has no lock for that.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context


def _addresses(nodes: Nodes) -> list[str]:
    return [server.http_url.removeprefix("http://") for server in nodes.values()]


@pytest.mark.parametrize("program", COMMANDS)
def test_clients_of_one_room_come_to_any_node(
    program: str, nodes: Nodes, authority: trustme.CA, tmp_path: Path
) -> None:
    with (
        Proxy(program, tmp_path, _addresses(nodes), authority) as proxy,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(proxy.connect("/ws/rooms/blue")) for _ in NODES]
        for client in clients:
            assert news(client)["type"] == "history"
        clients[0].send('{"type": "say", "text": "hello"}')
        for client in clients:
            while news(client).get("text") != "hello":
                pass
        assert [len(server.node.connections) for server in nodes.values()] == [1, 1, 1]
        assert sum(len(server.workers) for server in nodes.values()) == 1


@pytest.mark.parametrize("program", COMMANDS)
def test_no_client_notices_that_a_node_is_down(
    program: str, nodes: Nodes, authority: trustme.CA, tmp_path: Path
) -> None:
    addresses = [*_addresses(nodes)[:2], f"127.0.0.1:{free_port()}"]
    with Proxy(program, tmp_path, addresses, authority) as proxy:
        assert proxy.ready() == [200, 200, 200]
        for _ in NODES:
            with proxy.connect("/ws/rooms/blue") as client:
                assert news(client)["type"] == "history"


class _NotReady(BaseHTTPRequestHandler):
    """What a node answers that is on, and drains or has no lease."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called
        del format, args


def test_haproxy_sends_nobody_to_a_node_that_is_not_ready(
    nodes: Nodes, authority: trustme.CA, tmp_path: Path
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _NotReady) as server:
        (serving := threading.Thread(target=server.serve_forever, args=(0.01,))).start()
        addresses = [*_addresses(nodes)[:2], f"127.0.0.1:{server.server_port}"]
        try:
            with Proxy("haproxy", tmp_path, addresses, authority) as proxy:
                until(lambda: proxy.ready() == [200, 200, 200], "it is asked no more")
                assert proxy.ready() == [200, 200, 200]
        finally:
            server.shutdown()
            serving.join()
