"""The key `cluster` of a configuration."""

from __future__ import annotations

import socket
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from wsrelay import Cluster, ClusterTLS, from_config
from wsrelay.cli.serve import check
from wsrelay.config import ConfigError, Configuration
from wsrelay.config.cluster import ClusterSection, ClusterTLSSection
from wsrelay.gateway import assembly
from wsrelay.gateway.deployment import Deployment

LOCAL = "is 'local', which every node that is in no cluster is called"
HEAD = 'version: "1.0"\nnamespace: app\nentries: []\ncluster:\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "x.yaml") -> Path:
    """A file whose cluster is this, from line 5 on."""
    path = Path(name)
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(text).strip("\n"), "  ") + "\n")
    return path


def loaded(text: str, **environment: str) -> Configuration:
    return assembly.load([written(text)], environment)


def cluster(text: str, **environment: str) -> Cluster:
    section = loaded(text, **environment).cluster
    assert section is not None
    return section.options()


def problems(*paths: Path) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        assembly.load(paths, {})
    return [str(problem) for problem in raised.value.problems]


def test_it_has_the_options_of_a_cluster_with_their_defaults() -> None:
    assert set(ClusterSection.model_fields) == set(Cluster.__struct_fields__)
    assert set(ClusterTLSSection.model_fields) == set(ClusterTLS.__struct_fields__)
    assert cluster("servers: nats://a:1\nnode: b") == Cluster("nats://a:1", node="b")


def test_everything_that_can_be_said() -> None:
    for name in ("ca.pem", "node.pem", "node.key"):
        Path(name).touch()
    assert cluster(
        """
        servers: ["nats://a", "tls://b:2"]
        name: prod
        node: ${NODE}
        lease: 18s
        user: u
        password: ${SECRET}
        timeout: 1m
        tls: {ca: ca.pem, cert: node.pem, key: node.key, hostname: nats, first: true}
        """,
        NODE="node-1.example.com",
        SECRET="p",  # noqa: S106
    ) == Cluster(
        ["nats://a", "tls://b:2"],
        name="prod",
        node="node-1",
        lease=18,
        user="u",
        password="p",  # noqa: S106
        timeout=60,
        tls=ClusterTLS(
            ca=Path("ca.pem").absolute(),
            cert=Path("node.pem").absolute(),
            key=Path("node.key").absolute(),
            hostname="nats",
            first=True,
        ),
    )


def test_the_machine_s_name_is_known_without_the_shell_s_variable() -> None:
    text = "servers: nats://a\nnode: x-${HOSTNAME}"
    assert cluster(text, HOSTNAME="given").node == "x-given"
    assert cluster(text).node == f"x-{socket.gethostname()}".partition(".")[0]
    assert cluster("servers: nats://a\nnode: ${HOSTNAME:-other}").node == "other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x", "x.yaml:4: key 'cluster.servers': is missing"),
        (
            "servers: nats://a\nserver: b",
            "x.yaml:6: key 'cluster.server': unknown key; did you mean 'servers'?",
        ),
        (
            "servers: 3",
            "x.yaml:5: key 'cluster.servers': is 3 and must be a list of 'nats://HOST:PORT'",
        ),
        (
            "servers: nats://a\nlease: 2s",
            "x.yaml:6: key 'cluster.lease': is 2.0 and must be 3s to 1h",
        ),
        (
            "servers: nats://a\nnode: local",
            f"x.yaml:6: key 'cluster.node': {LOCAL}",
        ),
        (
            "servers: nats://a\nuser: u\npassword: 12",
            "x.yaml:7: key 'cluster.password': is ... and must be text",
        ),
        (
            "servers: nats://a\ntls:\n  ca: no.pem",
            "x.yaml:7: key 'cluster.tls.ca': {folder}/no.pem does not exist",
        ),
        (
            "servers: nats://a\ntls: {keys: x}",
            "x.yaml:6: key 'cluster.tls.keys': unknown key; did you mean 'key'?",
        ),
        ("3", "x.yaml:4: key 'cluster': must be a mapping, not 3"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(written(text)) == [expected.replace("{folder}", str(tmp_path))]


def test_one_file_says_which_cluster_it_is() -> None:
    first, second = written("servers: nats://a"), written("servers: nats://a", "y.yaml")
    assert problems(first, second) == ["y.yaml:4: key 'cluster': there is one already at x.yaml:4"]


def test_check_shows_it_without_secrets_and_connects_to_nobody() -> None:
    path = written("servers: nats://u:secret@127.0.0.1:1\nnode: a\nname: prod")
    done = CliRunner().invoke(check, ["-c", str(path)])
    assert done.exit_code == 0
    assert done.output.split() == [
        "cluster",
        "x.yaml:4",
        "servers=('nats://127.0.0.1:1',),",
        "name='prod',",
        "node='a',",
        "lease=6.0,",
        "timeout=30.0",
    ]


def test_a_node_made_of_it_has_its_name() -> None:
    path = written("servers: nats://127.0.0.1:1\nnode: a")
    assert from_config(path).name == "a"
    assert from_config(path, name="b").name == "b"


@pytest.mark.anyio
async def test_another_cluster_is_no_change_for_a_node_that_runs() -> None:
    deployment = Deployment(loaded("servers: nats://a\nnode: a"))
    changed = loaded("servers: nats://b\nnode: a")
    with pytest.raises(assembly.AssemblyError, match="cluster: what it says"):
        await deployment.reload(changed)
    await deployment.node.aclose()
