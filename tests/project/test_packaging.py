"""What is installed with which extras: a wheel of the tree, in empty environments."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
from running import HANDLERS
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from wsrelay.values import extras

ROOT = HANDLERS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
APART = {"dev", "tracing"}
"""Extras for developers of wsrelay, and one that no command needs."""

INSTALLING = 240.0
"""Seconds for one call of pip."""
ANSWERING = 60.0

SERVER = """\
version: "1.0"
namespace: app
entries:
  - name: server
    kind: http.service
    addr: "127.0.0.1:0"
    health: true
"""


def _names(requirements: Sequence[str]) -> set[str]:
    return {re.split(r"[^\w.-]", one)[0].lower() for one in requirements}


def test_all_holds_every_extra_that_a_command_needs() -> None:
    [listed] = EXTRAS["all"]
    assert set(listed.removeprefix("wsrelay[").removesuffix("]").split(",")) == (
        EXTRAS.keys() - APART - {"all"}
    )


def test_the_extra_that_a_message_names_brings_the_module() -> None:
    """And every package of such an extra is one whose absence is explained."""
    distributions = packages_distributions()
    brought: dict[str, set[str]] = {}
    for module, extra in extras.MODULES.items():
        brought.setdefault(extra, set()).update(
            name.lower().replace("_", "-") for name in distributions[module]
        )
    assert brought == {name: _names(EXTRAS[name]) for name in EXTRAS.keys() - APART - {"all"}}


def test_the_middleware_alone_loads_no_server() -> None:
    code = "import sys\nfrom wsrelay import WebSocketRelay, process\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=ANSWERING
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "wsrelay" in loaded
    servers = {"uvicorn", "wsproto", "h11", "websockets", "uvloop", "hypercorn"}
    assert loaded & {*servers, "click", *extras.MODULES} == set()


def _pip(*arguments: str | Path) -> None:
    """Run pip; the test is skipped where the package index cannot be reached."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        "15",
    ]
    done = subprocess.run(
        [*pip, *arguments], capture_output=True, text=True, check=False, timeout=INSTALLING
    )
    if done.returncode and re.search("connection|resolv|timed out", done.stderr, re.IGNORECASE):
        pytest.skip(f"the package index cannot be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr


class Environment:
    """A virtual environment with the wheel in it."""

    def __init__(self, folder: Path, requirement: str) -> None:
        self.folder = folder
        venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(venv, check=True, timeout=INSTALLING)
        self._path = folder / "bin"
        runtime = folder / "runtime"
        runtime.mkdir(0o700)
        (folder / "empty").mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
        self.environment = {**kept, "XDG_RUNTIME_DIR": str(runtime), "NO_COLOR": "1"}
        # Our own pip: to put one into the environment, and to compile all, takes as long again.
        _pip("--python", self._path / "python", "install", "--quiet", "--no-compile", requirement)

    def packages(self) -> set[str]:
        code = "from importlib.metadata import distributions as all\n"
        listed = self.python(f"{code}print(*(one.name for one in all()), sep='\\n')")
        return {name.lower() for name in listed.stdout.splitlines()}

    def command(self, *arguments: str, feed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._path / "wsrelay", *arguments],
            capture_output=True,
            check=False,
            text=True,
            input=feed,
            cwd=self.folder / "empty",
            env=self.environment,
            timeout=ANSWERING,
        )

    def start(self, *arguments: str) -> Served:
        return Served([str(self._path / "wsrelay"), *arguments], self)

    def python(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._path / "python", "-c", code],
            capture_output=True,
            check=False,
            text=True,
            cwd=self.folder / "empty",
            env=self.environment,
            timeout=ANSWERING,
        )


class Served:
    """A command of that environment that serves, until the end of the block."""

    def __init__(self, command: list[str], environment: Environment) -> None:
        self._log = environment.folder / f"log-{time.monotonic_ns()}"
        self._command = command
        self._environment = environment

    def __enter__(self) -> str:
        """Return where it serves, as `127.0.0.1:port`."""
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                cwd=self._environment.folder / "empty",
                env=self._environment.environment,
            )
        deadline = time.monotonic() + ANSWERING
        while not (found := re.search(r"http://([\d.]+:\d+)", text := self._log.read_text())):
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.__exit__()
                raise AssertionError(f"it does not serve:\n{text}")
            time.sleep(0.02)
        return found[1]

    def __exit__(self, *_exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(ANSWERING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "wsrelay", source / "wsrelay")
    try:
        there = int(version("setuptools").partition(".")[0]) >= 77
    except PackageNotFoundError:
        there = False
    options = ["--no-deps", *(["--no-build-isolation"] if there else [])]
    _pip("wheel", "--quiet", *options, "--wheel-dir", folder, source)
    [built] = folder.glob("wsrelay-*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("bare") / "e", str(wheel))


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("full") / "e", f"{wheel}[all]")


def _first_example(folder: Path) -> Path:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    script = folder / "empty" / "first.py"
    script.write_text(next(code for code in blocks if "process.inbox" in code))
    return script


def _commands(environment: Environment) -> list[str]:
    done = environment.command("--help")
    assert done.returncode == 0, done.stderr
    return re.findall(r"^  ([a-z]+)  ", done.stdout, re.MULTILINE)


def _socket(address: str) -> str:
    return urllib.parse.urlunsplit(("ws", address, "/ws", "", ""))


def _answers(address: str) -> None:
    with connect(_socket(address), open_timeout=ANSWERING) as client:
        client.send("hello")
        assert str(client.recv(ANSWERING)).lower().endswith("hello")


def test_the_wheel_has_the_files_that_are_no_code(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel).namelist()
    package = ROOT / "wsrelay"
    # Python, C and byte code are seen to by setuptools, and by the tests that run them.
    others = [
        path.relative_to(ROOT).as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".c", ".so", ".pyc")
    ]
    ours = {"wsrelay/relay/wsrelay.js", "wsrelay/relay/wsrelay.css", "wsrelay/gateway/page.html"}
    assert ours <= set(others) <= set(packed)


def test_without_extras_at_most_15_packages_are_installed(bare: Environment) -> None:
    packages = bare.packages()
    assert "wsrelay" in packages
    assert len(packages) <= 15, packages


def test_without_extras_the_first_example_of_the_readme_runs(bare: Environment) -> None:
    with bare.start("run", str(_first_example(bare.folder)), "--port", "0") as address:
        _answers(address)
        listed = bare.command("ps")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert listed.stdout.startswith("PID ")
        for command in ("tree", "connections", "logs", "ps --json"):
            done = bare.command(*command.split())
            assert done.returncode == 0, (command, done.stderr)


def test_without_extras_the_console_is_served_with_its_files(bare: Environment) -> None:
    with bare.start("console", "--port", "0") as address:
        with pytest.raises(urllib.error.HTTPError) as locked:
            urllib.request.urlopen(f"http://{address}/", timeout=ANSWERING)
        assert b"the address with its token" in locked.value.read()
    code = "from wsrelay.console import pages\nprint(*pages._files())"
    assert {"index.html", "console.js", "console.css"} <= set(bare.python(code).stdout.split())


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("serve -c app.yaml", "config"),
        ("check", "config"),
        ("top --json", "cli"),
        ("connect ws://127.0.0.1:1/ws", "cli"),
        ("run first.py --reload", "reload"),
    ],
)
def test_a_command_without_its_extra_names_the_command_that_brings_it(
    bare: Environment, command: str, extra: str
) -> None:
    _first_example(bare.folder)
    done = bare.command(*command.split())
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("wsrelay: ")
    assert line.endswith(f"pip install 'wsrelay[{extra}]'")


def test_from_config_without_its_extra_names_the_command_that_brings_it(bare: Environment) -> None:
    done = bare.python("import wsrelay\nwsrelay.from_config('app.yaml')")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("wsrelay.errors.MissingExtra: ")
    assert last.endswith("pip install 'wsrelay[config]'")


def test_help_lists_every_command_with_and_without_extras(
    bare: Environment, full: Environment
) -> None:
    listed = _commands(bare)
    assert listed == _commands(full)
    assert {"run", "serve", "top", "connect"} <= set(listed)


@pytest.fixture
def watched(full: Environment) -> Iterator[str]:
    with full.start("run", str(_first_example(full.folder)), "--port", "0", "--reload") as address:
        yield address


def test_with_all_extras_every_command_works(full: Environment, watched: str) -> None:
    # See below, and in tests/control and tests/console.
    ran = {"run", "serve", "check", "call", "nodes", "drain", "console", "trace", "close"}

    def works(*command: str, feed: str = "") -> str:
        ran.add(command[0])
        done = full.command(*command, feed=feed)
        assert done.returncode == 0, (command, done.stderr)
        # `connect` says there how it ended, `logs` what it looks at.
        assert command[0] in ("connect", "logs") or not done.stderr, (command, done.stderr)
        return done.stdout

    shown = ("ps", "tree", "connections", "connections --json", "logs", "top", "top --json")
    for end, before in (("cancel", shown), ("kill", ())):
        with connect(_socket(watched), open_timeout=ANSWERING) as client:
            client.send("hello")
            client.recv(ANSWERING)
            for command in before:
                works(*command.split())
            [room] = json.loads(works("ps", "--json"))
            works("send", room["pid"], "topic", '{"some": "data"}')
            for command in ("show", "stack"):
                works(command, room["pid"])
            asked = full.command("call", room["pid"], "topic", "--timeout", "100ms")
            assert asked.returncode == 1, asked  # this handler answers nobody
            assert len(asked.stderr.splitlines()) == 1, asked.stderr
            works(end, room["pid"])
            with pytest.raises(ConnectionClosed):
                client.recv(ANSWERING)
    assert room["pid"].rpartition("|")[2].rstrip("}") in works("ends")
    assert "hello" in works("connect", _socket(watched), feed="hello\n").lower()
    for shell in ("bash", "zsh", "fish"):
        assert "wsrelay" in works("completion", shell)
    assert ran == set(_commands(full))


def test_with_all_extras_a_configuration_is_checked_and_served(full: Environment) -> None:
    file = full.folder / "empty" / "wsrelay.yaml"
    file.write_text(SERVER)
    done = full.command("check")
    assert done.returncode == 0, done.stderr
    assert "app:server" in done.stdout
    with full.start("serve") as address:
        health = urllib.parse.urlunsplit(("http", address, "/healthz", "", ""))
        with urllib.request.urlopen(health, timeout=ANSWERING) as answer:  # noqa: S310 - ours
            assert answer.status == HTTPStatus.OK
