"""The node under the soak: a real `wsrelay serve` with the configuration in `site`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from wsrelay.control import ControlClient, NodeGone, find_nodes
from wsrelay.node import NodeInfo

__all__ = ["Node", "Sample"]

_SITE = Path(__file__).with_name("site")
_PATIENCE = 20.0


class Sample(NamedTuple):
    """The node at one moment: sizes in bytes, and counts."""

    rss: int
    workers_rss: int
    descriptors: int
    processes: int
    connections: int


class Node:
    """A node in `folder`, from start to end; `problems` has lines of its log among others."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self._folder = folder
        self._environment = environment
        self.problems: list[str] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        """Start it and wait until it serves."""
        shutil.copytree(_SITE, self._folder, dirs_exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        run = self._folder / "run"
        run.mkdir(mode=0o700)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsrelay", "serve", "-c", "wsrelay.yaml", "--log-level", "warning"),
            cwd=self._folder,
            env={
                **os.environ,
                **self._environment,
                "PORT": str(port),
                "WSRELAY_RUNTIME_DIR": str(run),
            },
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._serving = asyncio.Event()
        self._reading = asyncio.create_task(self._read_log())
        async with asyncio.timeout(_PATIENCE):
            await self._serving.wait()
        if not self.running:
            raise RuntimeError("the node did not start")
        self.url = f"ws://127.0.0.1:{port}"
        [self._control] = await asyncio.to_thread(find_nodes, run)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it in order, or else at once."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(_PATIENCE):
                code = await self._process.wait()
            if code:
                self.problems.append(f"the node ended with {code}")
        except TimeoutError:
            self.problems.append("the node did not shut down in time")
            self._process.kill()
            await self._process.wait()
        await self._reading

    async def _read_log(self) -> None:
        """Keep the lines that should not be there: tracebacks, and complaints of the rooms."""
        assert self._process.stderr is not None  # noqa: S101 - it was asked for
        in_traceback = False
        async for raw in self._process.stderr:
            line = raw.decode(errors="replace").rstrip()
            if "http://" in line:
                self._serving.set()
            starts = "Traceback" in line or "room: " in line or "never awaited" in line
            in_traceback = starts or (in_traceback and line.startswith((" ", "\t")))
            if in_traceback:
                self.problems.append(line)
        self._serving.set()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    def reload(self, *, edit: bool) -> None:
        """Make it reload its configuration, with an edit of the rooms or without."""
        if edit:
            with (self._folder / "rooms.py").open("a") as script:
                script.write("#\n")
        self._process.send_signal(signal.SIGHUP)

    async def info(self) -> NodeInfo | None:
        """Return a description of the node, or None if it is gone."""
        try:
            return await asyncio.to_thread(ControlClient(self._control.path).node)
        except NodeGone:
            return None

    async def kill(self, name: str) -> None:
        """Terminate a room that runs on without clients."""
        with contextlib.suppress(NodeGone, ValueError):
            await asyncio.to_thread(ControlClient(self._control.path).kill, name)

    async def sample(self) -> Sample | None:
        """Return a measurement of the node, or None if it is gone."""
        info = await self.info()
        if info is None:
            return None
        try:
            process = psutil.Process(self._process.pid)
            rss, descriptors = process.memory_info().rss, process.num_fds()
        except psutil.Error:
            return None
        workers_rss = 0
        for worker in info.processes:
            try:
                workers_rss += psutil.Process(worker.os_pid).memory_info().rss
            except (psutil.Error, TypeError):
                continue
        return Sample(rss, workers_rss, descriptors, len(info.processes), len(info.connections))

    def descendants(self) -> list[psutil.Process]:
        """Return its template, its workers and theirs."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return []
