from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wsrelay import Filesystem, Isolation, config
from wsrelay.config import Address, ConfigError, Configuration
from wsrelay.config.entries import KINDS
from wsrelay.gateway import assembly, middleware
from wsrelay.values.rights import Rights

CONTRACT = """\
version: "1.0"
namespace: app
entries:
  - name: processes
    kind: process.host
    preload: [numpy]
    max_processes: 256
    start_timeout: 10s
    stop_timeout: 10s
    limits: {memory: 512MB, cpu_time: 10m, open_files: 256, mailbox: 64MB}
    nice: 5
  - name: room
    kind: process.python
    source: file://handlers/chat.py
    method: room
  - name: manager
    kind: process.python
    source: file://handlers/chat.py
  - name: connect
    kind: function.python
    source: file://handlers/chat_http.py
    method: connect
  - name: gateway
    kind: http.service
    addr: ":8080"
    max_message_size: 16MB
  - name: ws_router
    kind: http.router
    meta: {server: gateway}
    prefix: /ws
    post_middleware: [websocket_relay]
    post_options:
      wsrelay.allowed.origins: "https://app.example.com, https://*.example.org"
      wsrelay.outbox.limit: 4MB
      wsrelay.outbox.overflow: close
  - name: connect.endpoint
    kind: http.endpoint
    meta: {router: ws_router}
    method: GET
    path: /rooms/{room}
    func: connect
  - name: page
    kind: http.static
    meta: {server: gateway}
    path: /
    directory: ./public
  - name: manager.service
    kind: process.service
    process: manager
    host: processes
    lifecycle:
      auto_start: true
      stable_threshold: 5s
      restart: {initial_delay: 1s, max_delay: 90s, backoff_factor: 2.0, jitter: 0.1, max_attempts: 0}
"""  # noqa: E501 - as it stands in the documentation

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file; beside it are the scripts and folders that configurations name."""
    (tmp_path / "handlers").mkdir()
    for name in ("chat.py", "chat_http.py"):
        (tmp_path / "handlers" / name).touch()
    (tmp_path / "public").mkdir()

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def load(*paths: Path, **environment: str) -> Configuration:
    return config.load(paths, environment, middleware.check)


def with_entries(*entries: Mapping[str, Any], namespace: str = "app") -> str:
    data = {"version": "1.0", "namespace": namespace, "entries": list(entries)}
    return yaml.safe_dump(data, sort_keys=False)


def test_the_configuration_of_the_documentation_is_read(write: Write, tmp_path: Path) -> None:
    configuration = load(write("wsrelay.yaml", CONTRACT))
    host = configuration.hosts["app:processes"]
    assert (host.preload, host.max_processes, host.nice) == (["numpy"], 256, 5)
    assert (host.start_timeout, host.limits.cpu_time) == (10.0, 600.0)
    assert (host.limits.memory, host.limits.mailbox) == (512 << 20, 64 << 20)
    assert configuration.processes["app:room"].target == f"{tmp_path}/handlers/chat.py:room"
    assert configuration.processes["app:manager"].method == "handler"
    server = configuration.servers["app:gateway"]
    assert server.addr == Address(host="", port=8080)
    assert server.max_message_size == 16 << 20
    assert configuration.routers["app:ws_router"].meta.server == "app:gateway"
    endpoint = configuration.endpoints["app:connect.endpoint"]
    assert (endpoint.meta.router, endpoint.func) == ("app:ws_router", "app:connect")
    assert endpoint.method == ["GET"]
    assert configuration.statics["app:page"].directory == tmp_path / "public"
    service = configuration.services["app:manager.service"]
    assert (service.process, service.host) == ("app:manager", "app:processes")
    assert service.lifecycle.restart.max_delay == 90.0


def test_its_entries_become_hosts_targets_and_services(write: Write, tmp_path: Path) -> None:
    configuration = load(write("wsrelay.yaml", CONTRACT))
    [host] = assembly.hosts(configuration)
    scripts = tmp_path / "handlers"
    assert host.name == "app:processes"
    assert host.targets == (f"{scripts}/chat.py:room", f"{scripts}/chat.py:handler")
    assert (host.limits.memory, host.limits.open_files, host.nice) == (512 << 20, 256, 5)
    assert assembly.entries(configuration)["app:room"].target == f"{scripts}/chat.py:room"
    [service] = assembly.services(configuration)
    assert (service.name, service.target) == ("app:manager.service", "app:manager")


def test_a_host_forks_ahead_as_many_as_it_is_told(write: Write) -> None:
    entry = {"name": "processes", "kind": "process.host", "warm": 3}
    [host] = assembly.hosts(load(write("wsrelay.yaml", with_entries(entry))))
    assert host.warm == 3


def test_an_isolation_becomes_that_of_the_host(write: Write, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    entry = {
        "name": "sealed",
        "kind": "process.host",
        "user": "nobody",
        "group": 65534,
        "umask": "027",
        "working_directory": "data",
        "environment": ["PATH", "LC_*"],
        "filesystem": {"read": ["/usr/share"], "write": ["data"]},
        "network": "none",
        "no_new_privs": True,
        "core_dumps": True,
        "limits": {"processes": 64},
    }
    [host] = assembly.hosts(load(write("wsrelay.yaml", with_entries(entry))))
    assert host.limits.processes == 64
    assert host.isolation == Isolation(
        user="nobody",
        group="65534",
        umask=0o027,
        working_directory=str(tmp_path / "data"),
        environment=("PATH", "LC_*"),
        filesystem=Filesystem(read=("/usr/share",), write=(str(tmp_path / "data"),)),
        network="none",
        no_new_privs=True,
        core_dumps=True,
    )


def test_what_a_walled_in_host_may_do_names_hosts_by_their_ids(write: Write) -> None:
    rights = {"may_spawn": ["b", "base:c"], "may_control": ["a"], "may_name": ["room:*"]}
    walled = {"name": "a", "kind": "process.host", "network": "none", **rights}
    write("conf/a.yaml", with_entries(walled, {"name": "b", "kind": "process.host"}))
    other = with_entries({"name": "c", "kind": "process.host"}, namespace="base")
    folder = write("conf/b.yaml", other).parent
    host = assembly.hosts(load(folder))[0]
    assert host.rights == Rights("app:a", ("app:b", "base:c"), ("app:a",), ("room:*",))


def test_references_reach_across_files_and_namespaces(write: Write) -> None:
    host = {"name": "heavy", "kind": "process.host"}
    room = {
        "name": "room",
        "kind": "process.python",
        "module": "rooms",
        "host": "base:heavy",
    }
    write("conf/b.yml", with_entries(host, namespace="base"))
    folder = write("conf/a.yaml", with_entries(room, namespace="app")).parent
    configuration = load(folder)
    assert configuration.processes["app:room"].host == "base:heavy"
    assert [file.name for file in configuration.files] == ["a.yaml", "b.yml"]
    assert configuration.where["base:heavy"].line == 4


def test_paths_are_relative_to_the_file_that_names_them(write: Write, tmp_path: Path) -> None:
    write("deep/room.py", "")
    entry = {"name": "room", "kind": "process.python", "source": "file://room.py"}
    configuration = load(write("deep/wsrelay.yaml", with_entries(entry)))
    assert configuration.processes["app:room"].source == tmp_path / "deep" / "room.py"


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("${N}", {"N": "7"}, 7),
        ("${N:-9}", {}, 9),
        ("1${N}", {"N": "2"}, 12),
        ("${N:-9}", {"N": "3"}, 3),
    ],
)
def test_variables_of_the_environment_are_put_in(
    write: Write, text: str, environment: dict[str, str], expected: int
) -> None:
    entry = {"name": "processes", "kind": "process.host", "max_processes": "TEXT"}
    document = with_entries(entry).replace("TEXT", text)
    configuration = load(write("wsrelay.yaml", document), **environment)
    assert configuration.hosts["app:processes"].max_processes == expected


def test_a_path_in_an_option_is_relative_to_its_file_too(write: Write, tmp_path: Path) -> None:
    entry = {
        "name": "gateway",
        "kind": "http.service",
        "addr": ":0",
        "middleware": ["token_auth"],
        "options": {"token_auth.function": "file://auth.py:judge"},
    }
    configuration = load(write("deep/wsrelay.yaml", with_entries(entry)))
    assert configuration.servers["app:gateway"].options == {
        "token_auth.function": f"{tmp_path}/deep/auth.py:judge"
    }


def test_a_quoted_variable_stays_text_and_a_doubled_dollar_is_none(write: Write) -> None:
    options = {"token_auth.secret": "${SECRET}", "token_auth.cookie": "$${x}"}
    entry = {
        "name": "gateway",
        "kind": "http.service",
        "addr": ":0",
        "middleware": ["token_auth"],
        "options": options,
    }
    document = with_entries(entry).replace("${SECRET}", '"${SECRET}"')
    configuration = load(write("wsrelay.yaml", document), SECRET="123")  # noqa: S106 - of the test
    assert configuration.servers["app:gateway"].options == {
        "token_auth.secret": "123",
        "token_auth.cookie": "${x}",
    }


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":8080", Address(host="", port=8080)),
        ("127.0.0.1:1", Address(host="127.0.0.1", port=1)),
        ("[::1]:65535", Address(host="::1", port=65535)),
        ("localhost:1", Address(host="localhost", port=1)),
        ("[::]:1", Address(host="::", port=1)),
        ("unix:/run/x.sock", Address(path=Path("/run/x.sock"))),
    ],
)
def test_addresses(write: Write, text: str, address: Address) -> None:
    entry = {"name": "gateway", "kind": "http.service", "addr": text}
    configuration = load(write("wsrelay.yaml", with_entries(entry)))
    assert configuration.servers["app:gateway"].addr == address


def test_an_entry_that_did_not_change_is_equal_wherever_it_stands(write: Write) -> None:
    entry = {"name": "processes", "kind": "process.host"}
    one = load(write("one.yaml", with_entries(entry)))
    other = load(
        write("other.yaml", "\n\n" + with_entries({**entry, "nice": 1}, {**entry, "name": "b"}))
    )
    again = load(write("again.yaml", "# moved\n\n" + with_entries(entry)))
    assert one.entries == again.entries
    assert one.entries["app:processes"] != other.entries["app:processes"]


def test_what_check_prints_names_no_secret(write: Write) -> None:
    entry = {
        "name": "gateway",
        "kind": "http.service",
        "addr": ":0",
        "middleware": ["token_auth"],
        "options": {"token_auth.secret": "hush"},
    }
    [row] = config.rows(load(write("wsrelay.yaml", with_entries(entry))))
    assert row[:2] == ("app:gateway", "http.service")
    assert "hush" not in "".join(row)


_TEXTS = st.sampled_from(["app", "processes", "process.host", ":1", "1.0", "name", "${X}", "/"])
_KEYS = st.sampled_from(
    ["version", "namespace", "entries", "name", "kind", "addr", "meta", "limits", "options", "path"]
)
_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=12,
)
_ENTRIES = st.dictionaries(_KEYS, _DATA, max_size=6)
_KINDS = st.sampled_from(sorted(KINDS))


@settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(_KINDS, _ENTRIES), max_size=4), st.booleans())
@example([("http.router", {"name": "a", "meta": {"server": "app:a"}, "options": {}})], True)
def test_no_document_gives_anything_but_problems_with_their_places(
    tmp_path: Path, drafts: list[tuple[str, dict[str, Any]]], named: bool
) -> None:
    entries = [{**entry, "kind": kind} for kind, entry in drafts]
    if named:
        entries = [{**entry, "name": f"e{i}"} for i, entry in enumerate(entries)]
    file = tmp_path / "any.yaml"
    file.write_text(with_entries(*entries))
    problems = []
    try:
        load(file)
    except ConfigError as error:
        problems = error.problems
        assert problems, error  # noqa: PT017 - a document may be right, too
    assert all(problem.line > 0 and problem.message for problem in problems)


@given(st.text(max_size=60))
@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_text_gives_anything_but_problems(tmp_path: Path, text: str) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        load(file)
