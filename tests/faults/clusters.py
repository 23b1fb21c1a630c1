"""Clusters of nodes that are OS processes of their own, over a real NATS, to be hurt by tests.

    async with nodes_over(nats.url, tmp_path, "a", "b", "c") as cluster:
        pid = await cluster["a"].do("get_or_spawn_async", "room/1", "room")
        async with cluster["b"].client(target="room", name="room/1") as websocket: ...
        cluster["a"].kill()

Nodes that a test has not ended are killed at the end, with all that they have started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import cluster_handlers
import psutil
from running import MARK, family_of
from running import until as until_gone
from support import TIMEOUT, client, until
from websockets.asyncio.client import ClientConnection

__all__ = ["LEASE", "Failed", "NodeCluster", "NodeProgram", "nodes_over"]

LEASE: Final = 3.0
"""Seconds, the least that there may be."""

_PROGRAM: Final = str(Path(__file__).with_name("clustered_node.py"))

_ENTRIES: Final = {
    handler.__name__: f"{cluster_handlers.__file__}:{handler.__name__}"
    for handler in (
        cluster_handlers.room,
        cluster_handlers.watcher,
        cluster_handlers.deaf,
        cluster_handlers.linked,
        cluster_handlers.writer,
        cluster_handlers.fails_in_the_beginning,
    )
}

State = dict[str, Any]


class Failed(Exception):  # noqa: N818 - the node's call has
    """What a node's call has raised: its class, its text, and its kind if it has one."""

    def __init__(self, name: str, text: str, kind: str | None) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.kind = kind


class NodeProgram:
    """One node in an OS process of its own (`clustered_node.py`)."""

    def __init__(self, name: str, folder: Path, options: Mapping[str, Any]) -> None:
        self.name = name
        self.port = 0
        self._mark = uuid.uuid4().hex
        self._ready = folder / f"{name}-{self._mark}.ready"
        self._log = folder / f"{name}.log"
        given = {"parent": os.getpid(), "ready": str(self._ready), **options}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, _PROGRAM, json.dumps(given)],
                env={**os.environ, MARK: self._mark, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def serves(self) -> None:
        """Wait until it is a member of its cluster and takes clients."""
        await until(lambda: self._ready.exists() or self._process.poll() is not None, self.name)
        assert self._ready.exists(), f"{self.name} did not start:\n{self.log}"
        self.port = int(self._ready.read_text())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    # Asking it

    async def do(self, call: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of its node; what that returns is JSON. Raises `Failed`."""
        value, name, text, kind = await self._request("POST", "/do", [call, args, kwargs])
        if name is not None:
            raise Failed(name, text, kind)
        return value

    async def state(self) -> State:
        """What it knows; `clustered_node.py` says what that is."""
        state: State = await self._request("GET", "/state")
        return state

    async def names(self) -> list[str]:
        """The names that have a key in the cluster's store."""
        names: list[str] = await self._request("GET", "/names")
        return names

    async def until(self, condition: Callable[[State], Any], what: str) -> State:
        """Wait until its state is so, and return it."""
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while not condition(state := await self.state()):
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"still not so after {TIMEOUT} s: {what}: {state}")
            await asyncio.sleep(0.02)
        return state

    async def _request(self, method: str, path: str, body: Any = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: it\r\nConnection: close\r\n"
        head += f"Content-Length: {len(content)}\r\n\r\n"
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(head.encode() + content)
                answer = await reader.read()
            finally:
                writer.close()
        status, _, rest = answer.partition(b"\r\n")
        assert b" 200 " in status, f"{self.name}: {answer!r:.2000}\n{self.log}"
        return json.loads(rest.partition(b"\r\n\r\n")[2])

    # Its clients

    def url(self, **response: Any) -> str:
        """Where a client is relayed by `RelayResponse(**response)`."""
        return f"ws://127.0.0.1:{self.port}/relay?{quote(json.dumps(response))}"

    @contextlib.asynccontextmanager
    async def client(self, **response: Any) -> AsyncIterator[ClientConnection]:
        async with client(self.url(**response), open_timeout=TIMEOUT) as websocket:
            yield websocket

    # Its OS processes

    def family(self) -> list[psutil.Process]:
        """All living processes that it has started, itself among them, wherever they are now."""
        return family_of(self._mark)

    def kill(self) -> None:
        """End the node's own OS process as a crash does; its guardian must do the rest."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop the node's own OS process: all of its threads stand still when this returns."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        """End it in order: it leaves its cluster, and no other node waits for its lease to pass."""
        self._process.terminate()
        await until(lambda: self.ended, f"{self.name} has ended")

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def reap(self) -> list[str]:
        """Kill it and all that it has started; returns what did not end with it."""
        self.kill()
        with contextlib.suppress(AssertionError):
            until_gone(lambda: not self.family(), f"all of {self.name} is gone", 5)
        left = self.family()
        names = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        return names


class NodeCluster:
    """The running nodes of one cluster, by name."""

    def __init__(
        self,
        url: str,
        folder: Path,
        lease: float,
        entries: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> None:
        self._name = f"test-{uuid.uuid4().hex[:12]}"
        self._url = url
        self._lease = lease
        self._folder = folder
        self._entries = {**_ENTRIES, **entries}
        self._options = options
        self._nodes: dict[str, NodeProgram] = {}

    def __getitem__(self, name: str) -> NodeProgram:
        return self._nodes[name]

    def __iter__(self) -> Iterator[NodeProgram]:
        return iter(self._nodes.values())

    async def start(self, *names: str, url: str | None = None) -> list[NodeProgram]:
        """Start nodes, at the same time, and wait until they run and all nodes know each other.

        A name may be that of a node that has ended. `url` is that of another way to NATS.
        """
        began = [self._begin(name, url or self._url) for name in names]
        for node in began:
            await node.serves()
        await asyncio.gather(*(node.do("loaded") for node in began))
        await self.until_complete()
        return began

    def _begin(self, name: str, url: str) -> NodeProgram:
        assert name not in self._nodes or self._nodes[name].ended
        cluster = {"servers": [url], "name": self._name, "node": name, "lease": self._lease}
        options = {
            "cluster": cluster,
            "host": {"stop_timeout": 2.0, "targets": [_ENTRIES["room"]], **self._options},
            "entries": self._entries,
        }
        node = self._nodes[name] = NodeProgram(name, self._folder, options)
        return node

    async def until_complete(self) -> None:
        """Wait until all nodes that have not ended are members and have links to each other."""
        names = {name for name, node in self._nodes.items() if not node.ended}
        for name in names:
            await self._nodes[name].until(
                lambda state, others=names - {name}: (  # type: ignore[misc]
                    set(state["linked"]) == others and state["status"]["state"] == "holding"
                ),
                f"{name} knows all others",
            )

    async def clear(self) -> None:
        """End all processes and clients of all nodes."""
        living = [node for node in self._nodes.values() if not node.ended]
        for node in living:
            await node.do("terminate_all")
        for node in living:
            await node.until(
                lambda state: (
                    not state["workers"] and not state["connections"] and not state["keys"]
                ),
                f"nothing runs on {node.name}",
            )

    def reap(self) -> list[str]:
        """End all nodes; returns what did not end with them."""
        for node in self._nodes.values():
            node.kill()
        return [name for node in self._nodes.values() for name in node.reap()]

    @property
    def logs(self) -> str:
        return "\n".join(f"--- {node.name}\n{node.log}" for node in self._nodes.values())


@contextlib.asynccontextmanager
async def nodes_over(
    url: str,
    folder: Path,
    *names: str,
    lease: float = LEASE,
    entries: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[NodeCluster]:
    """Nodes of those names over the NATS at that address.

    `entries` are targets by id, beside those of `cluster_handlers`; `options` are the host's.
    """
    cluster = NodeCluster(url, folder, lease, entries or {}, options)
    try:
        await cluster.start(*names)
        yield cluster
    except BaseException:
        cluster.reap()
        print(cluster.logs)  # noqa: T201 - pytest shows it with the failure
        raise
    left = cluster.reap()
    assert not left, f"processes left behind: {left}"
