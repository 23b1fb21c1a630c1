"""Where the log cannot be written the node goes on, and ends with its own exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from ports import free_port
from running import TIMEOUT, client, closed, received, until
from websockets.exceptions import InvalidMessage

SCRIPT = """
import logging
from wsrelay import process

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            for _ in range(200):
                logging.warning("%s", message.payload["data"] * 1000)
            process.send(message.sender, "ws.send", {"type": "text", "data": "logged"})
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "chatty.py"
    path.write_text(SCRIPT)
    return path


@contextlib.contextmanager
def running(script: Path, stderr: int | IO[bytes]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    command = [sys.executable, "-m", "wsrelay", "run", "--port", str(port), str(script)]
    with subprocess.Popen(command, stderr=stderr, start_new_session=True) as node:
        try:
            yield node, f"ws://127.0.0.1:{port}/ws"
        finally:
            node.kill()


def talks(url: str) -> bool:
    try:
        with client(url) as websocket:
            for _ in range(10):
                websocket.send("x")
                assert received(websocket) == "logged"
    except (OSError, InvalidMessage):
        return False  # it does not listen yet
    return True


def ends_well(node: subprocess.Popen[bytes], url: str) -> None:
    with client(url) as websocket:
        node.send_signal(signal.SIGTERM)
        assert closed(websocket)[0] == 1012
    assert node.wait(TIMEOUT) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(script: Path) -> None:
    with Path("/dev/full").open("wb") as full, running(script, full) as (node, url):
        until(lambda: talks(url), "it serves")
        ends_well(node, url)


def test_a_reader_that_stops_reading(script: Path) -> None:
    """Megabytes of log into a pipe of 64 KB that nobody empties."""
    reading, writing = os.pipe()
    try:
        with running(script, writing) as (node, url):
            until(lambda: talks(url), "it serves")
            os.set_blocking(writing, False)
            with pytest.raises(BlockingIOError):
                os.write(writing, b"x" * 100_000)
            os.set_blocking(writing, True)
            ends_well(node, url)
    finally:
        os.close(reading)
        os.close(writing)


def test_a_reader_that_is_gone(script: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with running(script, writing) as (node, url):
            until(lambda: talks(url), "it serves")
            ends_well(node, url)
    finally:
        os.close(writing)
