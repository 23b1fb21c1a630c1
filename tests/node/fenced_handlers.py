"""What runs while its node's deadline is in force, and a node to be stopped itself."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from wsrelay import Node, process

WRITER = "import sys, time\nwhile True:\n open(sys.argv[1], 'a').write('.')\n time.sleep(0.001)"


def write(path: str) -> None:
    """Write for as long as it runs."""
    while True:
        with Path(path).open("a") as file:
            file.write(".")
        time.sleep(0.001)


def have_written(path: str) -> None:
    """Start two who write, one in a process group of its own."""
    for number, group in enumerate([None, 0]):
        args = [sys.executable, "-ISc", WRITER, f"{path}{number}"]
        subprocess.Popen(args, process_group=group)
    for _ in process.inbox():
        pass


def wait(path: str) -> str:
    Path(path).touch()
    for _ in process.inbox():
        pass
    return "has ended"


def endure() -> None:
    while True:
        try:
            time.sleep(600)
        except SystemExit:  # as whoever wants to be killed
            continue


async def main(folder: Path) -> None:
    """Be a node whose fenced process writes until a deadline, and go on when a line comes."""
    async with Node() as node:
        pid = node.spawn(f"{__file__}:write", None, str(folder / "fenced"))
        assert await node.started(pid) is None
        assert await node.engine.fencing.fence(pid)
        node.engine.fencing.set_deadline(time.monotonic_ns() + 300_000_000)
        json.dump([node.templates["processes"], node.workers[pid]], sys.stdout)
        sys.stdout.write("\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        node.engine.fencing.set_deadline(time.monotonic_ns() + 600_000_000_000)
        await asyncio.to_thread(sys.stdin.readline)
        os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
