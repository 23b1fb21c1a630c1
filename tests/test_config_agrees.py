"""What `check` takes can be built, and what cannot be built `check` refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsrelay import HostOptions, Limits, RestartPolicy
from wsrelay.config import ConfigError
from wsrelay.gateway import assembly

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
        "max_connections",
        "max_connections_per_ip",
        "timeouts.keep_alive",
        "timeouts.header",
        "timeouts.ping_interval",
        "timeouts.ping_timeout",
        "timeouts.drain",
    ],
}
VALUES = [
    0,
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


@pytest.mark.parametrize(("kind", "key"), [(k, key) for k, keys in KEYS.items() for key in keys])
def test_what_check_takes_can_be_built(tmp_path: Path, kind: str, key: str) -> None:
    file = tmp_path / "wsrelay.yaml"
    for value in VALUES:
        entry: dict[str, Any] = {"name": "it", "kind": kind}
        if kind == "process.service":
            entry["process"] = "room"
        if kind == "http.service":
            entry["addr"] = "127.0.0.1:0"
        *outer, last = key.split(".")
        place = entry
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
        room = {"name": "room", "kind": "process.python", "module": "rooms"}
        document = {"version": "1.0", "namespace": "app", "entries": [room, entry]}
        file.write_text(yaml.safe_dump(document))
        try:
            configuration = assembly.load([file])
        except ConfigError as error:
            [problem] = error.problems
            assert problem.entry == "app:it"
            assert last in str(problem), "the key is named"
            continue
        assembly.hosts(configuration)
        assembly.services(configuration)
        for server in configuration.servers.values():
            assembly.server_options(server)


@pytest.mark.parametrize(
    ("kind", "keys", "said"),
    [
        ("process.host", {"start_timeout": "0s"}, "start_timeout is 0.0 and must be more than 0"),
        ("process.host", {"limits": {"memory": 0}}, "limits.memory is 0 and must be 1 to 2**62"),
        ("process.host", {"limits": {"cpu_time": "500ms"}}, "limits.cpu_time is 0.5 and must be"),
        ("process.service", {"lifecycle": {"restart": {"jitter": 1.0}}}, "jitter 1.0: at least 0"),
        ("http.service", {"timeouts": {"header": "0s"}}, "timeouts.header is 0s"),
    ],
)
def test_check_says_file_entry_and_key(
    tmp_path: Path, kind: str, keys: dict[str, Any], said: str
) -> None:
    file = tmp_path / "wsrelay.yaml"
    more = {"process.service": {"process": "room"}, "http.service": {"addr": ":0"}}.get(kind, {})
    room = {"name": "room", "kind": "process.python", "module": "rooms"}
    entry = {"name": "it", "kind": kind, **more, **keys}
    document = {"version": "1.0", "namespace": "app", "entries": [room, entry]}
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as raised:
        assembly.load([file])
    [problem] = raised.value.problems
    assert (problem.file, problem.entry) == (file, "app:it")
    assert problem.line > 1
    assert said in problem.message


@pytest.mark.parametrize("name", ["", "a b", "a|b", "zimmé", "{x}", "a@b"])
def test_a_host_s_name_is_one_that_a_pid_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="host name"):
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
