"""`wsrelay run` and `serve` as nodes of one cluster, with a real NATS."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from acting import ACTOR, written
from click.testing import CliRunner
from nats_servers import NatsServer
from ports import free_port
from running import Running, client, closed, received, until
from sites import Site, get

from wsrelay import PID
from wsrelay.cli.run import run


def test_a_room_is_one_process_whichever_node_its_clients_come_to(
    nats: NatsServer, tmp_path: Path
) -> None:
    script = written(tmp_path, "actor.py", ACTOR)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = written(elsewhere, "actor.py", ACTOR)
    options = ["--scope", "room", "--cluster", nats.url]
    with (
        Running(script, *options, "--node", "a.example.com") as a,
        Running(copy, *options, "--node", "b", "--cluster-timeout", "5s") as b,
    ):
        with client(a.ws("/ws/lobby")) as first, client(b.ws("/ws/lobby")) as second:
            told, again = json.loads(received(first)), json.loads(received(second))
            assert told["os_pid"] == again["os_pid"]
            assert PID(told["pid"]).node == "a", "its first client came there"
            second.send("say hello")
            assert json.loads(received(second)) == {"said": "hello"}
            a.signal(signal.SIGTERM)
            assert closed(second)[0] == 1012
        with client(b.ws("/ws/lobby")) as third:
            assert PID(json.loads(received(third))["pid"]).node == "b"


@pytest.fixture
def site(tmp_path: Path, nats: NatsServer) -> Site:
    site = Site(tmp_path)
    site.cluster = {"servers": [nats.url], "name": tmp_path.name, "lease": "3s"}
    site.endpoint("shared")
    return site


def test_a_node_says_by_readyz_that_it_has_no_lease_and_when_it_has_one_again(
    site: Site, own_nats: NatsServer
) -> None:
    site.cluster["servers"] = own_nats.url
    site.write()
    with site.serving("--node", "a") as running:
        assert get(running.http("/readyz")).text == "ready\n"
        own_nats.pause()
        until(lambda: get(running.http("/readyz")).status_code == 503, "it is frozen")
        frozen = get(running.http("/readyz"))
        assert frozen.text.startswith("not ready: its processes with names are frozen: no lease ")
        assert get(running.http("/healthz")).status_code == 200
        own_nats.resume()
        until(lambda: get(running.http("/readyz")).status_code == 200, "it goes on")


@pytest.fixture
def plain_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats") / "plain", jetstream=None).start()
    yield server
    server.kill()


def test_what_keeps_a_node_from_joining_is_one_line(
    site: Site, plain_nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("others")
    script = written(folder, "actor.py", ACTOR)
    nobody = f"127.0.0.1:{free_port()}"
    with site.serving("--node", "a"), contextlib.ExitStack() as stack:
        other = Site(folder)
        other.cluster = {**site.cluster, "lease": "4s"}
        other.write()
        failing = {
            f"no connection to NATS at nats://{nobody}: Connection refused": Running(
                script, "--cluster", nobody, "--cluster-timeout", "300ms", serves=False
            ),
            "NATS runs without JetStream": Running(
                script, "--cluster", plain_nats.url, serves=False
            ),
            "a node named 'a' is in the cluster already (": site.serving(
                "--node", "a", serves=False
            ),
            "a lease of 3 s, here 4 s": other.serving("--node", "b", serves=False),
        }
        for running in failing.values():
            stack.enter_context(running)
        for expected, running in failing.items():
            assert running.wait() == 1
            assert running.stderr.text.splitlines()[-1].startswith("wsrelay: ")
            assert expected in running.stderr.text.splitlines()[-1]
            assert "Traceback" not in running.stderr.text


MISTAKES = {
    "only nats:// and tls:// are supported": ["--cluster", "http://127.0.0.1"],
    "'--node': is 'local', which every node": ["--cluster", "127.0.0.1", "--node", "local"],
    "'--node': is '.b' and must be": ["--cluster", "127.0.0.1", "--node", ".b"],
    "'a b' is not made of": ["--node", "a b"],
    "'soon' is not a duration": ["--cluster", "127.0.0.1", "--cluster-timeout", "soon"],
    "--cluster-timeout belongs to a cluster: give --cluster too": ["--cluster-timeout", "3s"],
}


@pytest.mark.parametrize("expected", MISTAKES)
def test_options_that_make_no_cluster_are_refused(expected: str) -> None:
    done = CliRunner().invoke(run, [*MISTAKES[expected], "script.py"])
    assert done.exit_code == 2
    assert expected in done.output
