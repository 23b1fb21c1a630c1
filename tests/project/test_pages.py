"""The code of the pages whose blocks have a name above: each is a file, and their tests pass."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest
from pages import DOCS, files, written
from running import TIMEOUT, Running, client, received, until

from wsrelay import process
from wsrelay.cli.main import main
from wsrelay.testing import RelayServer

HOW_TO: Final = sorted((DOCS / "howto").glob("*.md"))
PAGES: Final = [DOCS / "tutorial.md", *HOW_TO]

TESTED_ELSEWHERE: Final = {"nginx", "haproxy", "systemd", "docker", "debugging"}
"""By what runs these programs: below, and in test_proxies.py."""

_SHELL = re.compile(r"^```(sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _tests() -> list[tuple[Path, str, str]]:
    """Each test of each page: the page, the file, and the test's name."""
    return [
        (page, name, part.name)
        for page in PAGES
        for name, code in files(page).items()
        if name.startswith("test_")
        for part in ast.parse(code).body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("page", "file", "test"), [pytest.param(*one, id=f"{one[0].stem}-{one[2]}") for one in _tests()]
)
def test_what_a_page_says_that_its_code_does(
    page: Path, file: str, test: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    code = written(page, folder)[file]
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, f"{page.name}: {file}", "exec"), namespace)  # noqa: S102 - it is ours
    asked = namespace[test].__code__
    fixtures = asked.co_varnames[: asked.co_argcount]
    namespace[test](**{name: request.getfixturevalue(name) for name in fixtures})


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_has_code_that_is_run(page: Path) -> None:
    """What stands in a block of Python is a file, and no file is without a test."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"^```python$", text, re.MULTILINE)) == len(
        [name for name in files(page) if name.endswith(".py")]
    )
    assert any(name.startswith("test_") for name in files(page)) or page.stem in TESTED_ELSEWHERE


# Commands


def _parsed(words: list[str]) -> None:
    """Hold that a command of `wsrelay` has these options; its arguments may be anything."""
    _, command, rest = main.resolve_command(click.Context(main), words)
    assert command is not None
    command.make_parser(click.Context(command)).parse_args(rest)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_the_commands_of_a_page_have_the_options_that_it_gives_them(page: Path) -> None:
    for language, block in _SHELL.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if language == "console" and not line.startswith("$ "):
                continue  # it is printed
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and Path(words[0]).name == "wsrelay":
                _parsed(words[1:])


def _block(page: str, name: str) -> str:
    return files(DOCS / "howto" / page)[name]


# systemd


def test_the_units_of_a_service_are_good_and_start_it_with_options_that_there_are(
    tmp_path: Path,
) -> None:
    page = files(DOCS / "howto" / "systemd.md")
    commands = re.findall(r"^ExecStart=\S+/wsrelay (.*)$", "\n".join(page.values()), re.MULTILINE)
    assert commands
    for words in map(str.split, commands):
        _parsed(words)
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    (program := tmp_path / "program").write_text("#!/bin/sh\n")
    program.chmod(0o755)
    older = page["wsrelay.service"].replace("notify-reload", "notify")
    older = older.replace("[Service]\n", page["older.conf"])
    for name, text in {**page, "older.service": older}.items():
        if name.endswith(".conf") or ("notify-reload" in text and _systemd(verify) < SINCE):
            continue
        adapted = re.sub(r"/srv/app/\.venv/bin/\w+", str(program), text)
        (tmp_path / name).write_text(adapted.replace("User=app", "User=root"))
    (tmp_path / "wsrelay.service").touch()
    done = subprocess.run(
        [verify, "verify", "--man=no", *map(str, tmp_path.glob("*.service"))],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert told == []


SINCE: Final = 253
"""The version of systemd since which there is `Type=notify-reload`."""


def _systemd(command: str) -> int:
    told = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    return int(told.stdout.split()[1])


# Docker


def test_the_command_of_the_container_serves_and_its_health_is_seen(tmp_path: Path) -> None:
    file = _block("docker.md", "Dockerfile").replace("\\\n", " ")
    lists = {
        name: json.loads(words)
        for name, words in re.findall(r"^([A-Z]+).*?(\[.*\])$", file, re.MULTILINE)
    }
    (tmp_path / "room.py").write_text(_block("docker.md", "room.py"))
    run, script, *options = lists["CMD"]
    assert [*lists["ENTRYPOINT"], run] == ["wsrelay", "run"]
    at = options.index("--port")
    port = options[at + 1]
    assert f"EXPOSE {port}\n" in file
    options[at : at + 2] = []
    options[options.index("0.0.0.0")] = "127.0.0.1"  # noqa: S104 - it is taken out
    with Running(script, *options, cwd=tmp_path) as running:
        with client(running.ws("/ws/blue")) as one:
            one.send("hello")
            assert received(one) == "HELLO"
        python, *words = lists["HEALTHCHECK"]
        assert python == "python"
        here = [word.replace(f"127.0.0.1:{port}", running.address) for word in words]
        assert here != words
        done = subprocess.run([sys.executable, *here], check=False, timeout=TIMEOUT)
        assert done.returncode == 0


# py-spy and debugpy


@pytest.fixture
def work(folder: Path, relay_server: Callable[..., RelayServer]) -> RelayServer:
    """The room of the page on debugging."""
    (folder / "work.py").write_text(_block("debugging.md", "work.py"))
    return relay_server("work.py:Work", scope="room")


def test_the_room_of_the_page_on_debugging_opens_a_port_when_it_is_asked_to(
    work: RelayServer, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("debugpy")
    blue = work.connect("/ws/blue")
    blue.send("hello")
    blue.expect("HELLO")
    work._call(lambda: process.send("room:blue", "debug"))
    until(lambda: "attach a debugger to 127.0.0.1:" in caplog.text, "it says where")
    blue.send("goes on")
    blue.expect("GOES ON")


def test_a_stack_of_the_page_on_debugging_is_seen_from_outside(work: RelayServer) -> None:
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("py-spy is not installed")
    with work.connect("/ws/blue"):
        [os_pid] = work.workers.values()
        done = subprocess.run(
            [program, "dump", "--pid", str(os_pid)],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    if "ermission" in done.stderr:
        pytest.skip("the system does not allow it")
    assert f"Process {os_pid}: wsrelay: room:blue " in done.stdout
    assert "_serve (wsrelay/room.py:" in done.stdout
