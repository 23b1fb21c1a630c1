"""The commands and blocks of code of the README and of the pages that go on from it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from running import HANDLERS, TIMEOUT, Typed, client, received
from websockets.sync.client import connect

ROOT = HANDLERS.parent
DOCS = ROOT / "docs"
FIRST = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (DOCS / "tutorial.md").read_text(encoding="utf-8")
HOW_TO = ("embedding", "serving", "operating", "testing", "logging")
PAGES = "\n".join([FIRST, *((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in HOW_TO)])

in_its_environment = pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / ".venv",
    reason="the scripts would prepare another environment than the one that the tests run in",
)


def blocks(language: str, text: str = PAGES) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def block(part: str) -> str:
    """The block of Python that contains the text."""
    [found] = [code for code in blocks("python") if part in code]
    return found


def commands(program: str, text: str = PAGES) -> list[str]:
    """The lines of shell that start with the program, without their comments."""
    lines = [
        line.partition("  #")[0].strip()
        for code in blocks("sh", text)
        for line in code.splitlines()
    ]
    return [line for line in lines if line.startswith(program)]


# The first example and the commands


def test_the_first_command_serves_the_first_block(tmp_path: Path) -> None:
    (tmp_path / "upper.py").write_text(blocks("python", FIRST)[0])
    [command] = commands("wsrelay run", FIRST)
    with (
        Typed(command, "--port", "0", cwd=tmp_path) as running,
        client(running.ws("/ws/blue")) as blue,
        client(running.ws("/ws/red")) as red,
    ):
        for one in (blue, red):
            one.send("hello")
            assert received(one) == "HELLO"


def test_the_tutorial_s_handlers_do_what_it_says(tmp_path: Path) -> None:
    script = tmp_path / "room.py"
    counting, telling, as_a_class, *_ = blocks("python", TUTORIAL)
    alone, together, of_a_class = commands("wsrelay run", TUTORIAL)
    script.write_text(counting)
    for command, path, seen in (
        (alone, "/ws", ["1: hello", "1: hello"]),
        (together, "/ws/blue", ["1: hello", "2: hello"]),
    ):
        with (
            Typed(command, "--port", "0", cwd=tmp_path) as running,
            client(running.ws(path)) as one,
            client(running.ws(path)) as other,
        ):
            for websocket, text in zip((one, other), seen, strict=True):
                websocket.send("hello")
                assert received(websocket) == text
    for command, code in ((together, telling), (of_a_class, as_a_class)):
        script.write_text(code)
        with (
            Typed(command, "--port", "0", cwd=tmp_path) as running,
            client(running.ws("/ws/blue")) as one,
            client(running.ws("/ws/blue")) as other,
            client(running.ws("/ws/red")) as elsewhere,
        ):
            other.send("from the other")
            one.send("from one")
            for websocket in (one, other):
                assert {received(websocket), received(websocket)} == {"from the other", "from one"}
            elsewhere.send("alone")
            assert received(elsewhere) == "alone"


def test_the_room_of_the_readme_keeps_what_was_said(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(blocks("python", FIRST)[1])
    with (
        Typed("wsrelay run chat.py:Chat --scope room", "--port", "0", cwd=tmp_path) as running,
        client(running.ws("/ws/blue")) as one,
    ):
        assert json.loads(received(one)) == {"type": "log", "texts": []}
        one.send('{"type": "say", "text": "hello"}')
        assert json.loads(received(one)) == {"type": "said", "text": "hello"}
        with client(running.ws("/ws/blue")) as other:
            assert json.loads(received(other)) == {"type": "log", "texts": ["hello"]}


@in_its_environment
@pytest.mark.parametrize("command", commands("scripts/run"))
def test_scripts_run_serves_a_page_and_a_websocket(command: str) -> None:
    with Typed(command, "--port", "0", cwd=ROOT) as running:
        assert httpx.get(running.http(), trust_env=False).status_code == 200
        path = "/ws/room" if "handlers" in command else "/ws/rooms/room"
        with client(running.ws(path), origin=running.http().rstrip("/")):
            pass


@in_its_environment
@pytest.mark.parametrize("command", commands(".venv/bin/wsrelay serve"))
def test_wsrelay_serve_serves_a_page(command: str) -> None:
    with Typed(command, cwd=ROOT) as running:
        assert httpx.get(running.http(), trust_env=False).status_code == 200


@in_its_environment
@pytest.mark.parametrize("command", commands(".venv/bin/wsrelay check"))
def test_wsrelay_check_finds_nothing_wrong(command: str) -> None:
    done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done


# Links


def _anchors(text: str) -> set[str]:
    """Headings as GitHub makes anchors of them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    named = set(re.findall(r'<a id="([^"]+)">', text))
    return named | {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (
            anchor and anchor not in _anchors(there.read_text(encoding="utf-8"))
        ):
            dead.append(link)
    assert dead == []


# Inside an application


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A folder with the README's FastAPI application and the handlers that it names."""
    shutil.copytree(HANDLERS, tmp_path / "handlers")
    (tmp_path / "app.py").write_text(block("async def connect"))
    return tmp_path


@pytest.mark.parametrize("command", commands("uvicorn"))
def test_the_application_runs_under_the_readme_s_command(command: str, application: Path) -> None:
    """With the defaults of the server, and those of a client, which offers compression."""
    with Typed(command, "--port", "0", cwd=application) as running:
        with connect(running.ws("/rooms/blue"), proxy=None) as one:
            assert '"history"' in str(received(one))
            assert "joined" in str(received(one))
            one.send('{"type": "say", "text": "hello"}')
            assert '"hello"' in str(received(one))
        assert httpx.get(running.http("/rooms/red"), trust_env=False).status_code == 426


@pytest.mark.parametrize("part", ["Supervisor(node", "from_config("])
def test_an_application_with_a_node_of_its_own_runs(part: str, application: Path) -> None:
    first, own = block("async def connect"), block(part)
    imports = "import wsrelay\nfrom wsrelay import Node, Service, Supervisor\n"
    if "from_config" in part:
        own = own.replace('"wsrelay.yaml"', '"handlers/wsrelay.yaml"')
        head, tail = first.split("app = FastAPI()\napp.add_middleware(WebSocketRelay)\n")
        code = head + imports + own + tail
    else:
        code = first.replace("app.add_middleware(WebSocketRelay)\n", "") + imports + own
    (application / "app.py").write_text(code)
    with (
        Typed(commands("uvicorn")[0], "--port", "0", cwd=application) as running,
        client(running.ws("/rooms/blue")) as one,
    ):
        assert '"history"' in str(received(one))


# Testing handlers


@pytest.mark.parametrize("part", ["def test_echo", "def test_the_chat"])
def test_the_blocks_about_testing_are_tests_that_pass(part: str, tmp_path: Path) -> None:
    test = tmp_path / "test_theirs.py"
    test.write_text(block(part))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--rootdir={tmp_path}",
            test,
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=3 * TIMEOUT,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
