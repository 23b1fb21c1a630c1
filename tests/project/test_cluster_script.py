"""The README's command for three nodes: `scripts/cluster`, as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from clustering.node import ChatNode
from clustering.program import StartError
from running import Typed, client, closed, news, until
from test_readme import FIRST, ROOT, commands, in_its_environment
from websockets.sync.client import ClientConnection


def entered(stack: ExitStack, address: str, room: str, name: str) -> ClientConnection:
    """Enter a room, and wait until one is there."""
    websocket = stack.enter_context(client(f"ws://{address}/ws/rooms/{room}?name={name}"))
    assert news(websocket)["type"] == "history"
    return websocket


def heard(websocket: ClientConnection, text: str) -> None:
    """Read until somebody has said it, or it is news."""
    while news(websocket).get("text") != text:
        pass


def say(websocket: ClientConnection, text: str) -> None:
    websocket.send(f'{{"type": "say", "text": "{text}"}}')


@in_its_environment
def test_one_room_is_on_three_ports_and_a_node_that_is_killed_takes_only_its_own_along() -> None:
    [command] = commands("scripts/cluster", FIRST)
    with Typed(command, "--port", "0", cwd=ROOT) as running, ExitStack() as stack:
        running.stderr.line("Press Ctrl-C to stop them")
        said = running.stderr.text
        told = re.findall(r"^  http://(\S+)/  (node-\d), OS pid (\d+)$", said, re.MULTILINE)
        assert [name for _, name, _ in told] == ["node-1", "node-2", "node-3"]
        addresses, pids = [address for address, _, _ in told], [int(pid) for *_, pid in told]
        blue = [entered(stack, addresses[n - 1], "blue", f"at-{n}") for n in (1, 2, 3)]
        red = [entered(stack, addresses[n - 1], "red", f"at-{n}") for n in (3, 1)]
        for room in (blue, red):
            for one in room:
                say(one, "hello")
                for other in room:
                    heard(other, "hello")
        # The one who was there first has the room: blue is on node-1, and red on node-3.
        os.kill(pids[2], signal.SIGKILL)
        assert running.stderr.line("node-3 has ended") == "node-3 has ended: SIGKILL"
        assert "run handlers/chat.py:Chat " in running.stderr.line("--node node-3")
        assert closed(blue.pop())[0] == closed(red.pop(0))[0] == 1006
        say(blue[0], "on with it")
        heard(blue[1], "on with it")
        heard(blue[0], "at-3 left")
        assert closed(red.pop()) == (1012, "target's node is gone")
        red.append(entered(stack, addresses[1], "red", "again"))
        heard(red[0], "again joined")
        running.interrupt()
        assert running.wait() == 0
        assert {closed(one)[0] for one in (*blue, *red)} == {1012}
        until(lambda: not running.family(), "nothing is left")
        assert "Traceback" not in running.stderr.text


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "clustering", "--port", str(port)],
            env={**os.environ, "PYTHONPATH": "scripts"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    said = f"cannot listen on 127.0.0.1:{port}: the address is in use; choose another port"
    assert (done.returncode, done.stderr) == (1, f"wsrelay: {said}\n")


@pytest.mark.anyio
async def test_a_node_that_does_not_start_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = ChatNode("node-1", "nats://127.0.0.1:1", port := taken.getsockname()[1])
        async with asyncio.timeout(60):
            with pytest.raises(StartError, match=r"^node-1 did not start: exit code 1$"):
                await node.serving()
        await node.stop()
    said = f"node-1 | wsrelay: cannot listen on 127.0.0.1:{port}: "
    assert [line[: len(said)] for line in capfd.readouterr().err.splitlines()] == [said]
