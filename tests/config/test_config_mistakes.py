"""Each kind of mistake in a configuration file, with the exact message."""

# ruff: noqa: E501 - messages are compared as they are printed
from __future__ import annotations

from pathlib import Path

import pytest

from wsrelay.config import ConfigError
from wsrelay.gateway import assembly

HOST = "{name: processes, kind: process.host}"
SERVER = '{name: gateway, kind: http.service, addr: "127.0.0.1:1"}'
ROUTER = "{name: api, kind: http.router, meta: {server: gateway}}"
FUNCTION = "{name: connect, kind: function.python, module: app}"
ROOM = "{name: room, kind: process.python, module: app}"


def problems(path: Path, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        assembly.load([path], environment)
    return [str(problem) for problem in raised.value.problems]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def entries(*lines: str) -> Path:
    """A file whose entries stand in line 4 and after it."""
    path = Path("x.yaml")
    listed = "".join(f"  - {line}\n" for line in lines)
    path.write_text(f'version: "1.0"\nnamespace: app\nentries:\n{listed}')
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "x.yaml:1: is not a mapping with the keys version, namespace, entries"),
        ("[1]", "x.yaml:1: is not a mapping with the keys version, namespace, entries"),
        ("a: [", "x.yaml:1: is not YAML: expected the node content, but found '<stream end>'"),
        (
            "namespace: app\nentries: []",
            "x.yaml:1: key 'version': is missing; write \"1.0\"",
        ),
        (
            'version: "2"\nnamespace: app\nentries: []',
            "x.yaml:1: key 'version': is '2', not \"1.0\"",
        ),
        (
            'version: "1.0"\nentries: []',
            "x.yaml:1: key 'namespace': is missing; write one like 'app'",
        ),
        (
            'version: "1.0"\nnamespace: "a b"\nentries: []',
            "x.yaml:2: key 'namespace': 'a b' is not a name; write one like 'app'",
        ),
        (
            'version: "1.0"\nnamespace: app',
            "x.yaml:1: key 'entries': is missing; entries are a list of mappings",
        ),
        (
            'version: "1.0"\nnamespace: app\nentries: 3',
            "x.yaml:3: key 'entries': is not a list; entries are a list of mappings",
        ),
        (
            'version: "1.0"\nnamespace: app\nentires: []\nentries: []',
            "x.yaml:3: key 'entires': unknown key; did you mean 'entries'?",
        ),
        (
            'version: "1.0"\nnamespace: app\nnamespace: b\nentries: []',
            "x.yaml:3: key 'namespace' is already set on line 2",
        ),
    ],
)
def test_a_file_that_is_no_configuration(text: str, expected: str) -> None:
    Path("x.yaml").write_text(text)
    assert problems(Path("x.yaml")) == [expected]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert problems(Path("no.yaml")) == ["no.yaml: does not exist"]
    Path("empty").mkdir()
    assert problems(Path("empty")) == ["empty: the folder has no *.yaml in it"]
    assert tmp_path == Path.cwd()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["3"], "x.yaml:4: entry 1 must be a mapping, not 3"),
        (
            ["{kind: process.host}"],
            "x.yaml:4: entry 1: key 'name': is missing; write one like 'room' or 'room.endpoint'",
        ),
        (
            ["{name: 'a b', kind: process.host}"],
            (
                "x.yaml:4: entry 1: key 'name': 'a b' is not a name; write one like 'room' or "
                "'room.endpoint'"
            ),
        ),
        (
            ["{name: a, kind: process.hots}"],
            "x.yaml:4: app:a: key 'kind': 'process.hots' is not a kind; did you mean 'process.host'?",
        ),
        (
            [HOST, HOST],
            "x.yaml:5: app:processes: key 'name': this id is already used at x.yaml:4",
        ),
        (
            ["{name: a, kind: process.host, max_proceses: 3}"],
            "x.yaml:4: app:a: key 'max_proceses': unknown key; did you mean 'max_processes'?",
        ),
        (
            ["{name: a, kind: process.host, limits: {memroy: 1MB}}"],
            "x.yaml:4: app:a: key 'limits.memroy': unknown key; did you mean 'memory'?",
        ),
        (
            ["{name: a, kind: process.host, max_processes: many}"],
            "x.yaml:4: app:a: key 'max_processes': must be a whole number, not 'many'",
        ),
        (
            ["{name: a, kind: process.host, max_processes: 0}"],
            "x.yaml:4: app:a: key 'max_processes': is 0 and must be 1 or more",
        ),
        (
            ["{name: a, kind: process.host, nice: 20}"],
            "x.yaml:4: app:a: key 'nice': is 20 and must be -20 to 19",
        ),
        (
            ["{name: zimmé, kind: process.host}"],
            (
                "x.yaml:4: app:zimmé: key 'name': is 'app:zimmé' and must be made of A-Z a-z 0-9 _ "
                ". : / -"
            ),
        ),
        (
            ["{name: a, kind: process.host, umask: 027}"],
            "x.yaml:4: app:a: key 'umask': 23 is not a umask; write it in quotes, as in '027'",
        ),
        (
            ["{name: a, kind: process.host, network: off}"],
            "x.yaml:4: app:a: key 'network': must be host or none, not False",
        ),
        (
            ["{name: a, kind: process.host, group: games}"],
            "x.yaml:4: app:a: key 'group': 'games' needs a user",
        ),
        (
            ["{name: a, kind: process.host, filesystem: {read: [nowhere]}}"],
            "x.yaml:4: app:a: key 'filesystem.read.0': {cwd}/nowhere does not exist",
        ),
        (
            ["{name: a, kind: process.host, preload: numpy}"],
            "x.yaml:4: app:a: key 'preload': must be a list, not 'numpy'",
        ),
        (
            ["{name: a, kind: process.host, preload: [a-b]}"],
            "x.yaml:4: app:a: key 'preload.0': 'a-b' is not a module name like 'package.module'",
        ),
        (
            ["{name: a, kind: process.host, limits: 3}"],
            "x.yaml:4: app:a: key 'limits': must be a mapping, not 3",
        ),
        (
            ["{name: a, kind: process.host, start_timeout: 10}"],
            (
                "x.yaml:4: app:a: key 'start_timeout': 10 is not a duration; write it like '30s', "
                "'1m30s' or '500ms'"
            ),
        ),
        (
            ["{name: a, kind: process.host, limits: {memory: lots}}"],
            (
                "x.yaml:4: app:a: key 'limits.memory': 'lots' is not a size; write it like '512MB', "
                "'64KB' or '1.5GB'"
            ),
        ),
        (
            ["{name: a, kind: http.service}"],
            "x.yaml:4: app:a: key 'addr': is missing",
        ),
        (
            ["{name: a, kind: http.service, addr: localhost}"],
            (
                "x.yaml:4: app:a: key 'addr': 'localhost' is not an address; write ':8080', "
                "'127.0.0.1:8080', '[::1]:8080' or 'unix:path.sock'"
            ),
        ),
        (
            ["{name: a, kind: http.service, addr: ':70000'}"],
            (
                "x.yaml:4: app:a: key 'addr': ':70000' is not an address; write ':8080', "
                "'127.0.0.1:8080', '[::1]:8080' or 'unix:path.sock'"
            ),
        ),
        (
            ["{name: a, kind: http.service, addr: ':1', health: maybe}"],
            "x.yaml:4: app:a: key 'health': must be true or false, not 'maybe'",
        ),
        (
            ["{name: a, kind: http.service, addr: ':1', allowed_hosts: [a.example, 'https://b']}"],
            (
                "x.yaml:4: app:a: key 'allowed_hosts': allowed host 'https://b' is none of "
                "app.example.com, *.example.com, 192.0.2.1, *; it has no scheme and no port"
            ),
        ),
        (
            [SERVER, '{name: b, kind: http.service, addr: "127.0.0.1:1"}'],
            "x.yaml:5: app:b: key 'addr': 127.0.0.1:1 is already used by 'app:gateway'",
        ),
        (
            ["{name: a, kind: process.python, source: 'file://no.py'}"],
            "x.yaml:4: app:a: key 'source': {cwd}/no.py does not exist",
        ),
        (
            ["{name: a, kind: process.python, source: 'no.py'}"],
            "x.yaml:4: app:a: key 'source': 'no.py' is not of the form 'file://path/to/script.py'",
        ),
        (
            ["{name: a, kind: process.python}"],
            "x.yaml:4: app:a: needs either 'source' (file://path.py) or 'module'",
        ),
        (
            ["{name: a, kind: process.python, module: app, method: 'a b'}"],
            "x.yaml:4: app:a: key 'method': 'a b' is not a function name",
        ),
        (
            ["{name: a, kind: process.host, network: none, may_control: [procesess]}", HOST],
            (
                "x.yaml:4: app:a: key 'may_control.0': there is no entry 'app:procesess'; did you "
                "mean 'app:processes'?"
            ),
        ),
        (
            ["{name: a, kind: process.host, network: none, may_spawn: [room]}", ROOM],
            (
                "x.yaml:4: app:a: key 'may_spawn.0': 'app:room' is of kind process.python, not "
                "process.host"
            ),
        ),
        (
            ["{name: a, kind: process.host, may_spawn: [processes]}", HOST],
            (
                "x.yaml:4: app:a: key 'may_spawn': needs user, filesystem or network: hosts "
                "without them may do all of that"
            ),
        ),
        (
            ["{name: a, kind: process.host, network: none, may_name: ['']}"],
            "x.yaml:4: app:a: key 'may_name': is ('',) and must be texts in a tuple, none empty",
        ),
        (
            ["{name: a, kind: process.host, network: none, may_spawn: processes}", HOST],
            "x.yaml:4: app:a: key 'may_spawn': must be a list, not 'app:processes'",
        ),
        (
            ["{name: a, kind: process.host, may_name: [b], group: games}"],
            "x.yaml:4: app:a: key 'group': 'games' needs a user",
        ),
        (
            ["{name: a, kind: process.python, module: app, host: procesess}", HOST],
            (
                "x.yaml:4: app:a: key 'host': there is no entry 'app:procesess'; did you mean "
                "'app:processes'?"
            ),
        ),
        (
            [HOST, "{name: a, kind: process.service, process: processes}"],
            (
                "x.yaml:5: app:a: key 'process': 'app:processes' is of kind process.host, not "
                "process.python"
            ),
        ),
        (
            ["{name: a, kind: http.static, meta: {server: b}, directory: .}"],
            "x.yaml:4: app:a: key 'meta.server': there is no entry 'app:b'; there is none",
        ),
        (
            [SERVER, "{name: a, kind: http.static, meta: {server: gateway}, directory: ./no}"],
            "x.yaml:5: app:a: key 'directory': {cwd}/no does not exist",
        ),
        (
            [SERVER, "{name: a, kind: http.router, meta: {server: gateway}, prefix: ws}"],
            "x.yaml:5: app:a: key 'prefix': 'ws' does not start with /",
        ),
        (
            [
                SERVER,
                ROUTER,
                FUNCTION,
                (
                    "{name: a, kind: http.endpoint, meta: {router: api}, path: /, func: connect, "
                    "method: FETCH}"
                ),
            ],
            (
                "x.yaml:7: app:a: key 'method': 'FETCH' is not one of GET, HEAD, POST, PUT, PATCH, "
                "DELETE, OPTIONS"
            ),
        ),
        (
            [
                SERVER,
                ROUTER,
                FUNCTION,
                "{name: a, kind: http.endpoint, meta: {router: api}, path: /x, func: connect}",
                "{name: b, kind: http.endpoint, meta: {router: api}, path: /x, func: connect}",
            ],
            "x.yaml:8: app:b: key 'path': GET /x is already used by 'app:a'",
        ),
        (
            [
                SERVER,
                ROUTER,
                FUNCTION,
                "{name: a, kind: http.endpoint, meta: {router: api}, path: /x, func: connect}",
                "{name: b, kind: http.endpoint, meta: {router: api}, path: /x/, func: connect}",
            ],
            "x.yaml:8: app:b: key 'path': GET /x is already used by 'app:a'",
        ),
        (
            [
                ROOM,
                (
                    "{name: a, kind: process.service, process: room, "
                    "lifecycle: {restart: {initial_delay: 1ms}}}"
                ),
            ],
            (
                "x.yaml:5: app:a: key 'lifecycle.restart.initial_delay': is 0.001 and must be 10ms "
                "or more"
            ),
        ),
        (
            [ROOM, "{name: a, kind: process.service, process: room, lifecycle: {scope: all}}"],
            "x.yaml:5: app:a: key 'lifecycle.scope': must be node or cluster, not 'all'",
        ),
        (
            [
                SERVER,
                (
                    "{name: a, kind: http.router, meta: {server: gateway}, "
                    "post_middleware: [websocket_rely]}"
                ),
            ],
            (
                "x.yaml:5: app:a: key 'post_middleware': there is no middleware 'websocket_rely'; "
                "did you mean 'websocket_relay'?"
            ),
        ),
        (
            [
                SERVER,
                (
                    "{name: a, kind: http.router, meta: {server: gateway}, "
                    "post_middleware: [websocket_relay], post_options: {wsrelay.outbox.limt: 4MB}}"
                ),
            ],
            (
                "x.yaml:5: app:a: key 'post_options.wsrelay.outbox.limt': unknown key; did you mean "
                "'outbox.limit'?"
            ),
        ),
        (
            [
                SERVER,
                (
                    "{name: a, kind: http.router, meta: {server: gateway}, "
                    "options: {ratelimit.requests: 4}}"
                ),
            ],
            (
                "x.yaml:5: app:a: key 'options.ratelimit.requests': unknown option; it belongs to "
                "'ratelimit', which is not in the list"
            ),
        ),
        (
            [
                SERVER,
                (
                    "{name: a, kind: http.router, meta: {server: gateway}, "
                    "post_middleware: [websocket_relay], post_options: "
                    "{wsrelay.outbox.overflow: explode}}"
                ),
            ],
            (
                "x.yaml:5: app:a: key 'post_options.wsrelay.outbox.overflow': is 'explode' and "
                "must be one of close, pause, drop"
            ),
        ),
        (
            ["{name: a, kind: process.host, max_processes: '${NO}'}"],
            "x.yaml:4: ${NO} is not set in the environment and has no default: ${NO:-...}",
        ),
    ],
)
def test_an_entry_that_is_wrong(lines: list[str], expected: str) -> None:
    assert problems(entries(*lines))[0] == expected.replace("{cwd}", str(Path.cwd()))


def test_all_mistakes_of_all_files_are_told_at_once() -> None:
    folder = Path("conf")
    folder.mkdir()
    for name in ("a.yaml", "b.yaml"):
        bad = f"  - {{name: {name[0]}, kind: process.host, nice: 99, typo: 1}}\n"
        (folder / name).write_text(f'version: "1.0"\nnamespace: app\nentries:\n{bad}')
    places = [problem.partition(": ")[0] for problem in problems(folder)]
    assert places == ["conf/a.yaml:4", "conf/a.yaml:4", "conf/b.yaml:4", "conf/b.yaml:4"]


def test_a_reference_to_an_entry_of_unknown_kind_is_no_second_mistake() -> None:
    bad = entries(SERVER.replace("http.service", "http.servce"), ROUTER)
    assert len(problems(bad)) == 1
