"""What stands in docs/security.md and has no better place: each threat as somebody would try it."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import rooms
from support import client, endpoint, received, relay_to, room, serving, until
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from wsrelay import Node, RelayResponse, WebSocketRelay, process

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


class Evil:
    """Writes down where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return note_pid, (self.path,)


def note_pid(path: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


def nothing(*_: Any) -> None:
    pass


def spawn_with(path: str) -> int:
    """Send what is dangerous to unpickle through everything that carries code."""
    process.spawn(nothing, None, Evil(path))
    process.get_or_spawn("evil", nothing, None, Evil(path))
    process.exec(nothing, None, Evil(path), timeout=20)
    return os.getpid()


async def test_the_node_unpickles_nothing_that_a_worker_sent(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "pids"
    results: list[Any] = []
    node.when_ended(node.spawn(spawn_with, None, str(path)), results.append)
    await until(lambda: results, "the worker has ended")
    await until(lambda: path.exists() and len(path.read_text().split()) == 3, "all were unpickled")
    pids = {int(pid) for pid in path.read_text().split()}
    assert len(pids) == 3, "each in the process that it was for"
    assert os.getpid() not in pids
    assert results[0].value not in pids


async def test_query_strings_and_cookies_are_in_no_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """They carry tokens, since a browser can set no headers on a WebSocket."""
    caplog.set_level(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    path, headers = "/x?token=hunter2", {"Cookie": "session=hunter2", "Authorization": "hunter2"}
    gone = node.spawn(room(rooms.echo))
    node.terminate(gone)
    await until(lambda: gone not in node.workers, "it is gone")
    answers = {
        "dead target": lambda _: RelayResponse(gone),
        "bad header": lambda _: RelayResponse("{x|1}", metadata={"token": "x"}),
        "foreign origin": lambda _: RelayResponse(gone),
    }
    for name, answer in answers.items():
        origin = Origin("https://evil.example") if name == "foreign origin" else None
        async with serving(WebSocketRelay(endpoint(answer), node=node)) as url:
            with pytest.raises(InvalidStatus):
                async with client(f"{url}{path}", additional_headers=headers, origin=origin):
                    pass
    alive = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with (
        serving(alive) as url,
        client(f"{url}{path}", additional_headers=headers) as websocket,
    ):
        await websocket.send("hello")
        assert await received(websocket) == "hello"
    assert "503" in caplog.text
    assert "403" in caplog.text
    assert "hunter2" not in caplog.text


NAMED = r"`(tests/[\w/]+\.py)(?:::(\w+))?`"


def test_every_test_that_the_documentation_names_exists() -> None:
    for page in ("security.md", "reliability.md"):
        for file, function in re.findall(NAMED, (ROOT / "docs" / page).read_text()):
            content = (ROOT / file).read_text()
            assert not function or f"def {function}(" in content, f"{page}: {file}::{function}"


def test_every_test_that_a_page_names_by_its_function_alone_exists() -> None:
    there = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    functions = set(re.findall(r"^\s*(?:async )?def (test_\w+)\(", there, re.MULTILINE))
    for page in sorted((ROOT / "docs").glob("*.md")):
        missing = set(re.findall(r"`(test_\w+)`", page.read_text())) - functions
        assert not missing, f"{page.name}: {missing}"


def test_each_sentence_of_the_security_page_names_its_test() -> None:
    """A test behind a sentence is for those before it too; what is quoted is advice, no promise."""
    text = (ROOT / "docs" / "security.md").read_text()
    _, *sections = re.split(r"^## .*$", text, flags=re.MULTILINE)
    blocks = [
        block
        for section in sections
        for block in re.split(r"\n(?:\s*\n|(?=\s*(?:- |\|)))", section.strip())
        if not block.startswith(("#", ">", "| threat |", "| written by |", "| --- |"))
    ]
    assert len(blocks) > 50
    bare = []
    for block in blocks:
        *_, behind = re.split(NAMED, block)
        if re.search(r"\w", behind):
            bare.append(behind.strip())
    assert not bare, "\n\n".join(bare)
