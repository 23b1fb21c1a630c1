"""Servers whose options changed in a reload: what is left of them, in one process."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import psutil
import pytest
from support import until

from wsrelay.config import Configuration
from wsrelay.gateway import assembly
from wsrelay.gateway.deployment import Deployment
from wsrelay.gateway.server import Server

pytestmark = pytest.mark.anyio

FILE = """
version: "1.0"
namespace: app
entries:
  - {{name: gateway, kind: http.service, addr: "{addr}", max_connections: {most},
      timeouts: {{header: 60s}}}}
  - {{name: files, kind: http.static, meta: {{server: gateway}}, directory: {folder}}}
"""


def configured(folder: Path, most: int, shown: str, addr: str = "127.0.0.1:0") -> Configuration:
    (folder / shown).mkdir(exist_ok=True)
    (folder / shown / "index.html").write_text(shown)
    (folder / "app.yaml").write_text(FILE.format(addr=addr, most=most, folder=folder / shown))
    return assembly.load([folder / "app.yaml"])


def alive(servers: list[weakref.ref[Server]]) -> list[int]:
    gc.collect()
    return [number for number, server in enumerate(servers) if server() is not None]


async def test_a_server_whose_options_changed_ends_with_its_last_connection(
    tmp_path: Path,
) -> None:
    deployment = Deployment(configured(tmp_path, 100, "first"))
    front = deployment._front
    accepting = asyncio.Event()
    running = asyncio.create_task(deployment.run(accepting.set))
    await asyncio.wait_for(accepting.wait(), 20)
    try:
        [(_, listener, _)] = deployment.addresses
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        servers = [weakref.ref(front.servers[0])]
        await until(lambda: front.servers[0].server_state.connections, "it has a connection")
        descriptors, tasks = psutil.Process().num_fds(), len(asyncio.all_tasks())
        for number in range(10):
            await deployment.reload(configured(tmp_path, 200 + number, "later"))
            servers.append(weakref.ref(front.servers[-1]))
        await until(lambda: len(front.servers) == 2, "those without a connection have ended")
        await until(lambda: alive(servers) == [0, 10], "nothing is left of them")
        assert psutil.Process().num_fds() <= descriptors + 1
        assert len(asyncio.all_tasks()) <= tasks + 1

        # The first goes on, and its application is that of today.
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 20)).endswith(b"later")
        writer.close()
        await until(lambda: len(front.servers) == 1, "it has ended, too")
        await until(lambda: alive(servers) == [10], "nothing is left of it")
    finally:
        deployment.stop()
        await running


async def test_a_server_that_is_gone_takes_those_before_it_along(tmp_path: Path) -> None:
    deployment = Deployment(configured(tmp_path, 100, "first"))
    front = deployment._front
    accepting = asyncio.Event()
    running = asyncio.create_task(deployment.run(accepting.set))
    await asyncio.wait_for(accepting.wait(), 20)
    try:
        [(_, listener, _)] = deployment.addresses
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        await until(lambda: front.servers[0].server_state.connections, "it has a connection")
        await deployment.reload(configured(tmp_path, 200, "first"))
        assert len(front.servers) == 2
        await deployment.reload(configured(tmp_path, 200, "first", "127.0.0.2:0"))
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        assert len(front.servers) == 1
    finally:
        deployment.stop()
        await running
