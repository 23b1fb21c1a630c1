"""What `check` takes can be built, and what cannot be built `check` refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from click.testing import CliRunner
from starlette.routing import Route

from wsrelay import HostOptions, Limits, Node, RestartPolicy, Service, from_config
from wsrelay.cli.serve import serve
from wsrelay.config import ConfigError, ConfigProblem
from wsrelay.confinement import cgroup
from wsrelay.confinement.cgroup import CgroupError
from wsrelay.gateway import assembly, middleware
from wsrelay.gateway.address import Listener
from wsrelay.gateway.server import Server, ServerOptions

KEYS = {
    "process.host": [
        "max_processes",
        "warm",
        "start_timeout",
        "stop_timeout",
        "spawn_rate",
        "nice",
        "limits.memory",
        "limits.cpu_time",
        "limits.open_files",
        "limits.processes",
        "limits.cpus",
        "limits.memory_total",
        "limits.processes_total",
        "limits.mailbox",
        "limits.log_rate",
    ],
    "process.service": [
        "lifecycle.stable_threshold",
        "lifecycle.restart.initial_delay",
        "lifecycle.restart.max_delay",
        "lifecycle.restart.backoff_factor",
        "lifecycle.restart.jitter",
        "lifecycle.restart.max_attempts",
    ],
    "http.service": [
        "max_message_size",
        "max_head_size",
        "max_connections",
        "max_connections_per_ip",
        "max_buffered",
        "timeouts.keep_alive",
        "timeouts.header",
        "timeouts.message",
        "timeouts.body",
        "timeouts.response",
        "timeouts.ping_interval",
        "timeouts.ping_timeout",
        "timeouts.drain",
    ],
}
VALUES = [
    0,
    16,
    0.0,
    -1,
    1e-300,
    1.0,
    2**70,
    math.nan,
    math.inf,
    "0s",
    "1ms",
    "500ms",
    "99999h",
    "9999TB",
]


ROOM = {"name": "room", "kind": "process.python", "module": "rooms"}
NEEDED: dict[str, dict[str, Any]] = {
    "process.service": {"process": "room"},
    "http.service": {"addr": "127.0.0.1:0"},
}


class Written:
    """A file with entries, one key a line."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "wsrelay.yaml"

    def write(self, *entries: dict[str, Any]) -> None:
        document = {"version": "1.0", "namespace": "app", "entries": [*entries]}
        self.file.write_text(yaml.safe_dump(document, sort_keys=False))

    def entry(self, kind: str, **keys: Any) -> None:
        self.write(ROOM, {"name": "it", "kind": kind, **NEEDED.get(kind, {}), **keys})

    def problems(self) -> list[ConfigProblem]:
        try:
            assembly.load([self.file])
        except ConfigError as error:
            return error.problems
        return []

    def keys(self) -> list[str]:
        """What is wrong, each on the line of its key, or of what is around one that is left out."""
        lines = self.file.read_text().splitlines()
        for problem in self.problems():
            there, _, _ = lines[problem.line - 1].strip(" -").partition(":")
            left_out = f"{problem.key.rpartition('.')[2]}:" not in self.file.read_text()
            assert there in problem.key.split(".")[-2 if left_out else -1 :], str(problem)
        return [problem.key for problem in self.problems()]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


@pytest.fixture
def any_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system be one that has a cgroup for every limit."""
    monkeypatch.setattr(assembly, "check_cgroup", lambda _limits: None)


def nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


@pytest.mark.usefixtures("any_cgroup")
@pytest.mark.parametrize(("kind", "key"), [(k, key) for k, keys in KEYS.items() for key in keys])
def test_what_check_takes_can_be_built(written: Written, kind: str, key: str) -> None:
    refused = 0
    for value in VALUES:
        written.entry(kind, **nested(key, value))
        if written.problems():
            refused += 1
            assert written.keys() in ([key], [f"{key.rpartition('.')[0]}.max_delay"])
            continue
        configuration = assembly.load([written.file])
        assembly.hosts(configuration)
        assembly.services(configuration)
        for server in configuration.servers.values():
            Server(None, Listener(), server.build(ServerOptions))
    assert 0 < refused < len(VALUES)


@pytest.mark.parametrize(
    ("kind", "keys", "key", "said"),
    [
        (
            "process.host",
            {"start_timeout": "0s"},
            "start_timeout",
            "is 0.0 and must be more than 0 seconds",
        ),
        ("process.host", {"limits": {"memory": 0}}, "limits.memory", "is 0 and must be 1 to 2**62"),
        (
            "process.host",
            {"limits": {"cpu_time": "500ms"}},
            "limits.cpu_time",
            "is 0.5 and must be 1s or more",
        ),
        (
            "process.host",
            {"warm": 9, "max_processes": 8},
            "warm",
            "is 9 and must be 0 to max_processes, which is 8",
        ),
        (
            "process.service",
            {"lifecycle": {"restart": {"jitter": 1.0}}},
            "lifecycle.restart.jitter",
            "is 1.0 and must be 0 or more and less than 1",
        ),
        (
            "process.service",
            {"lifecycle": {"restart": {"max_delay": "1ms"}}},
            "lifecycle.restart.max_delay",
            "is 0.001s and must not be shorter than initial_delay, which is 1s",
        ),
        (
            "http.service",
            {"timeouts": {"header": "0s"}},
            "timeouts.header",
            "is 0.0 and must be more than 0 seconds",
        ),
        (
            "http.service",
            {"addr": f"{'a' * 64}.example:80"},
            "addr",
            "is not a host name: a part is empty or over 63 characters",
        ),
        (
            "http.service",
            {"addr": f"unix:/{'a' * 107}"},
            "addr",
            "is too long: a socket's path has at most",
        ),
    ],
)
def test_check_says_file_line_entry_and_key(
    written: Written, kind: str, keys: dict[str, Any], key: str, said: str
) -> None:
    written.entry(kind, **keys)
    [problem] = written.problems()
    assert (problem.file, problem.entry) == (written.file, "app:it")
    assert written.keys() == [key]
    assert said in problem.message


def test_all_that_is_wrong_with_an_entry_is_told_at_once(written: Written) -> None:
    written.entry(
        "process.host",
        max_processes="many",
        start_timeout="0s",
        nice=99,
        group="games",
        typo=1,
        limits={"memory": "lots", "open_files": 1, "mailbox": 2**70, "log_rate": 0},
    )
    assert written.keys() == [
        "max_processes",
        "start_timeout",
        "nice",
        "group",
        "typo",
        "limits.memory",
        "limits.open_files",
        "limits.mailbox",
        "limits.log_rate",
    ]
    restart = {"initial_delay": "0s", "backoff_factor": 0.5, "jitter": "some"}
    written.entry("process.service", lifecycle={"stable_threshold": "x", "restart": restart})
    assert written.keys() == [
        "lifecycle.stable_threshold",
        "lifecycle.restart.initial_delay",
        "lifecycle.restart.backoff_factor",
        "lifecycle.restart.jitter",
    ]


def test_limits_of_a_whole_host_are_refused_where_the_system_cannot_keep_them(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Limits) -> None:
        raise CgroupError("there is none. Do this")

    monkeypatch.setattr(cgroup, "find", refuse)
    written.entry("process.host", limits={"cpus": 1.5, "memory_total": "2GB"})
    assert written.keys() == ["limits.cpus"]
    assert "cannot be kept: there is none. Do this" in written.problems()[0].message
    with pytest.raises(ConfigError):
        from_config(written.file)
    written.entry("process.host", limits={"memory": "2GB"})
    assert written.keys() == []


def test_options_of_a_list_of_middleware_that_is_none_are_not_called_unknown(
    written: Written,
) -> None:
    options = {"ratelimit.requests": 1}
    written.entry("http.service", middleware="ratelimit", options=options)
    assert written.keys() == ["middleware"]


@pytest.mark.parametrize(
    "path", ["/{a", "/{a}/{a}", "/{a:number}", "/{room}/{room:int}", "/x/{prefix}"]
)
def test_a_path_that_serve_cannot_route_is_refused(written: Written, path: str) -> None:
    server = {"name": "web", "kind": "http.service", "addr": ":0"}
    router = {
        "name": "api",
        "kind": "http.router",
        "meta": {"server": "web"},
        "prefix": "/{prefix}",
    }
    function = {"name": "f", "kind": "function.python", "module": "web"}
    endpoint = {"name": "it", "kind": "http.endpoint", "meta": {"router": "api"}, "func": "f"}
    written.write(server, router, function, {**endpoint, "path": path})
    try:
        Route(f"/{{prefix}}{path}", lambda _: None)
    except (ValueError, AssertionError):
        assert written.keys() == ["path"]
        assert "is not a path" in written.problems()[0].message
    else:
        assert written.problems() == []


def test_a_folder_s_path_that_serve_cannot_route_is_refused(
    written: Written, tmp_path: Path
) -> None:
    server = {"name": "web", "kind": "http.service", "addr": ":0"}
    static = {"name": "it", "kind": "http.static", "meta": {"server": "web"}}
    written.write(server, {**static, "path": "/{path}", "directory": str(tmp_path)})
    assert written.keys() == ["path"]


def test_a_certificate_that_cannot_be_loaded_is_refused(written: Written, tmp_path: Path) -> None:
    authority = trustme.CA()
    one, other = (authority.issue_cert("localhost") for _ in range(2))
    one.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    one.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    written.entry("http.service", tls={"cert": "cert.pem", "key": "key.pem"})
    assert written.problems() == []
    written.entry("http.service", tls={"cert": "cert.pem", "key": "other.pem"}, max_head_size=0)
    assert written.keys() == ["max_head_size"]
    written.entry("http.service", tls={"cert": "cert.pem", "key": "other.pem"})
    assert written.keys() == ["tls.cert"]
    assert "cannot use certificate" in written.problems()[0].message


MIDDLEWARE: dict[str, dict[str, Any]] = {
    "websocket_relay": {},
    "cors": {},
    "compress": {},
    "ratelimit": {"ratelimit.requests": 1},
    "real_ip": {"real_ip.trusted": "10.0.0.0/8"},
    "token_auth": {"token_auth.secret": "hush"},
}
OPTIONS = [
    (name, f"{'wsrelay' if name == 'websocket_relay' else name}.{field.alias}", needed)
    for name, needed in MIDDLEWARE.items()
    for field in middleware.MIDDLEWARE[name].options.model_fields.values()
    if field.alias != "function"  # user's code, which only `serve` loads
]


def test_the_options_of_all_middleware_are_tried() -> None:
    assert set(MIDDLEWARE) == set(middleware.MIDDLEWARE)


@pytest.mark.parametrize(("name", "key", "needed"), OPTIONS)
def test_middleware_that_check_takes_can_be_built(
    written: Written, name: str, key: str, needed: dict[str, Any]
) -> None:
    for value in (*VALUES, 10**400, "", "x", "*", "é", [], ["*"], ["x", "é"], True, None):
        options = {**needed, key: value}
        written.entry("http.service", middleware=[name], options=options)
        if problems := written.problems():
            assert all(problem.key.startswith("options.") for problem in problems) or (
                [problem.key for problem in problems] == ["middleware"]  # of several options
            )
        else:
            middleware.wrap(nobody, [name], options, Node())


async def nobody(*_: object) -> None: ...


@pytest.mark.parametrize("name", ["", "a b", "a@b", "a|b", "zimmé", "{x}", "a:b"])
def test_a_node_s_name_is_one_that_a_pid_can_have(name: str) -> None:
    with pytest.raises(ValueError, match=r"node: name is .* and must be made of"):
        Node(name=name)
    told = CliRunner().invoke(serve, ["--node", name])
    assert told.exit_code == 2
    assert "is not made of A-Z a-z 0-9" in told.output


@pytest.mark.parametrize("name", ["", "a b", "a|b", "zimmé", "{x}", "a@b"])
def test_a_host_s_name_is_one_that_a_pid_can_have(name: str) -> None:
    with pytest.raises(ValueError, match=r"name is .* and must be made of"):
        HostOptions(name=name)


@pytest.mark.parametrize(
    "options",
    [
        {"start_timeout": math.nan},
        {"spawn_rate": math.inf},
        {"stop_timeout": math.inf},
        {"limits": Limits(memory=2**70)},
    ],
)
def test_options_in_code_name_what_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* and must be"):
        HostOptions(**options)


def test_a_policy_s_delays_are_finite() -> None:
    with pytest.raises(ValueError, match="max_delay"):
        RestartPolicy(max_delay=math.inf)


@pytest.mark.parametrize("threshold", [-1, math.nan, math.inf])
def test_a_service_s_threshold_is_a_time(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"service 'it': stable_threshold is .* and must be"):
        Service(name="it", target="room", stable_threshold=threshold)


def test_all_that_is_wrong_with_options_in_code_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"a: spawn_rate is 0 .*; nice is 'x' .*; warm is True"):
        HostOptions(name="a", spawn_rate=0, nice="x", warm=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"initial_delay is 0 .*; jitter is 1"):
        RestartPolicy(initial_delay=0, jitter=1)


def test_a_short_keep_alive_is_not_rounded_to_none() -> None:
    server = Server(None, Listener(), ServerOptions(keep_alive=0.4))
    assert server.config.timeout_keep_alive == 0.4
