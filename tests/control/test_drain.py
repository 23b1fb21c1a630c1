"""`wsrelay drain`: whatever runs the node ends as at SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_here
from running import TIMEOUT, Running, client, closed, until

ROOM = '''
import pathlib, sys
from wsrelay import process

def room():
    """Live until it is cancelled, and then say so in a file."""
    for message in process.inbox():
        if message.topic == "ws.message":
            process.send(message.sender, "ws.send", {"type": "text", "data": "here"})
    pathlib.Path(__file__).with_name("ended").touch()
'''

UVICORN = """
import contextlib, pathlib
import uvicorn
from starlette.applications import Starlette
from room import room
from wsrelay import Node

node = Node()

@contextlib.asynccontextmanager
async def lifespan(app):
    async with node:
        await node.started(node.spawn(room))
        yield
    pathlib.Path("lifespan").touch()

if __name__ == "__main__":
    uvicorn.run(Starlette(lifespan=lifespan), port=0, log_level="warning")
"""

BARE = """
import asyncio
from room import room
from wsrelay import Node

async def main():
    node = Node()
    async with node:
        await node.started(node.spawn(room))
        await asyncio.get_running_loop().create_future()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "room.py").write_text(ROOM)
    return tmp_path


def drain() -> None:
    done = run_here("drain")
    assert done.stdout == "node local drains, and ends when its clients and processes have\n"


def test_run_ends_in_order(folder: Path) -> None:
    with Running(f"{folder / 'room.py'}:room") as running, client(running.ws()) as one:
        one.send("hello")
        assert one.recv(TIMEOUT) == "here"
        drain()
        assert closed(one) == (1012, "node shuts down")
        assert running.wait() == 0
        running.stderr.join()
        assert "node local drains and ends: its control socket asks for it" in running.stderr.text
    assert (folder / "ended").exists()


@pytest.mark.parametrize(("program", "ended"), [(UVICORN, "lifespan"), (BARE, "ended")])
def test_an_embedded_node_ends_in_order_and_its_program_as_at_sigterm(
    folder: Path, program: str, ended: str
) -> None:
    (folder / "program.py").write_text(program)
    with subprocess.Popen([sys.executable, "program.py"], cwd=folder) as running:
        try:
            until(lambda: [*(folder / "run").glob("*.sock")], "it runs")
            until(lambda: "(running)" in run_here("tree").stdout, "its process runs")
            drain()
            assert running.wait(TIMEOUT) == -signal.SIGTERM  # uvicorn, too, ends by it at last
            assert (folder / "ended").exists()
            assert (folder / ended).exists()
        finally:
            running.kill()
