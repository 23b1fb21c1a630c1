"""The shell's side of the control socket."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from wsrelay.node import NodeInfo, ProcessInfo
from wsrelay.node.info import (
    ConnectionEndInfo,
    EndInfo,
    MemberInfo,
    ProcessDetail,
    TraceRecord,
)
from wsrelay.values.pid import PID

from .records import LogRecord
from .runtime import check

__all__ = ["ControlClient", "NodeGone", "find_nodes"]

_PATIENCE: Final = 10.0
"""Seconds that a node gets to answer."""


class NodeGone(Exception):  # noqa: N818 - reads as a sentence
    """The node no longer answers on its control socket."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("node", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect; `http.client` calls this."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ControlClient:
    """Talks to one node; all methods raise `NodeGone`, and `ValueError` if the node refuses.

    With `at`, what is asked is asked of that node of its cluster.

    A process or connection is identified by its PID, with or without braces, by the part of it
    after the `|`, or by a name. It may be one of another node of the cluster; `anywhere` asks all
    of them what only they know, such as a part of a PID.
    """

    def __init__(self, path: Path, at: str = "") -> None:
        self.path = path
        self.at = at

    def has(self, pid: str) -> bool:
        """Whether a process is one of this machine: of the node itself, and not of another one."""
        return not self.at and PID(pid).node == self.path.stem.rpartition("-")[0]

    def on(self, node: str) -> ControlClient:
        """Return a client that asks another node of its cluster."""
        return ControlClient(self.path, at=node)

    def node(self, timeout: float = _PATIENCE) -> NodeInfo:
        """Return what the node is and has; also raises `NodeGone` if that takes too long."""
        with self._asked("GET", "/node", timeout=timeout) as response:
            return msgspec.json.decode(response.read(), type=NodeInfo)

    def members(self) -> list[MemberInfo] | None:
        """Return the nodes of its cluster, itself first; None if it is in none."""
        with self._asked("GET", "/cluster") as response:
            return msgspec.json.decode(response.read(), type=list[MemberInfo] | None)

    def processes(self) -> list[ProcessInfo]:
        """Return the processes of the node, oldest first."""
        found: list[ProcessInfo] = []
        after = ""
        while True:
            query = f"after={quote(after, safe='')}"
            with self._asked("GET", f"/processes?{query}") as response:
                portion = msgspec.json.decode(response.read(), type=list[ProcessInfo])
            if not portion:
                return sorted(found, key=lambda one: -one.uptime)
            found += portion
            after = portion[-1].pid

    def numbers(self) -> dict[str, Any]:
        """Return all metrics of the node, as `wsrelay.metrics.numbers_of` does."""
        with self._asked("GET", "/numbers") as response:
            found: dict[str, Any] = msgspec.json.decode(response.read())
            return found

    def drain(self) -> str:
        """Have the node drain and end; returns which that is."""
        return str(self._act("/drain", {}))

    def send(self, to: str, topic: str, payload: Any, *, anywhere: bool = False) -> None:
        """Send a message to a process."""
        self._act("/send", {"to": to, "topic": topic, "payload": payload, "anywhere": anywhere})

    def call(
        self, to: str, topic: str, payload: Any, timeout: float, *, anywhere: bool = False
    ) -> Any:
        """Send a message to a process and return its answer, which it gives within `timeout` s."""
        order = {"to": to, "topic": topic, "payload": payload, "timeout": timeout}
        return self._act("/call", {**order, "anywhere": anywhere}, timeout + _PATIENCE)

    def cancel(self, to: str, reason: str = "", *, anywhere: bool = False) -> None:
        """Ask a process to end."""
        self._act("/cancel", {"to": to, "reason": reason, "anywhere": anywhere})

    def kill(self, to: str, *, anywhere: bool = False) -> None:
        """End a process at once."""
        self._act("/kill", {"to": to, "anywhere": anywhere})

    def close(self, to: str, code: int = 1000, reason: str = "", *, anywhere: bool = False) -> None:
        """Close a client's connection with a code that RFC 6455 lets an endpoint send."""
        order = {"to": to, "code": code, "reason": reason, "anywhere": anywhere}
        self._act("/close", order)

    def process(self, of: str, *, anywhere: bool = False) -> ProcessDetail:
        """Return everything that its node knows about a process."""
        with self._asked("GET", f"/process?{_look(of, anywhere=anywhere)}") as response:
            return msgspec.json.decode(response.read(), type=ProcessDetail)

    def ends(self, of: str | None = None, *, after: int = 0, limit: int = 100) -> list[EndInfo]:
        """Return the last ends of processes of the node, or those that follow one by its number."""
        with self._asked("GET", _ends("process", of, after, limit)) as response:
            return msgspec.json.decode(response.read(), type=list[EndInfo])

    def connection_ends(
        self, of: str | None = None, *, after: int = 0, limit: int = 100
    ) -> list[ConnectionEndInfo]:
        """Return the last ends of connections, of one of them or of those of one process."""
        with self._asked("GET", _ends("connection", of, after, limit)) as response:
            return msgspec.json.decode(response.read(), type=list[ConnectionEndInfo])

    def trace(
        self,
        of: str,
        *,
        contents: bool = False,
        count: int = 1_000,
        seconds: float = 60,
        anywhere: bool = False,
    ) -> Generator[TraceRecord, None, None]:
        """Yield the messages of a process or connection as they pass.

        It ends after so many messages or `seconds`, or when that process or its node ends, with a
        note.
        """
        bounds = urlencode({"payload": int(contents), "count": count, "seconds": seconds})
        look = _look(of, anywhere=anywhere)
        with self._asked("GET", f"/trace?{look}&{bounds}", wait=True) as response:
            while line := response.readline():
                yield (record := msgspec.json.decode(line, type=TraceRecord))
                if record.last:
                    return
        raise NodeGone(f"the node at {self.path} has gone")

    def stack(self, of: str, *, anywhere: bool = False) -> str:
        """Return the Python stacks of a process, whatever it does."""
        with self._asked("GET", f"/stack?{_look(of, anywhere=anywhere)}") as response:
            return response.read().decode(errors="replace")

    def logs(self, of: str | None, *, follow: bool) -> Iterator[LogRecord]:
        """Yield log records, of one process or of all; with `follow`, until the node is gone.

        A process that has ended is known by its records, and for a while by its name.
        """
        query = ([] if of is None else [f"of={quote(of, safe='')}"]) + ["follow=1"] * follow
        with self._asked("GET", f"/logs?{'&'.join(query)}", wait=follow) as response:
            while line := response.readline():
                yield msgspec.json.decode(line, type=LogRecord)

    def _act(self, path: str, order: dict[str, Any], timeout: float = _PATIENCE) -> Any:
        body = msgspec.json.encode(order)
        with self._asked("POST", path, body, timeout=timeout) as response:
            return msgspec.json.decode(response.read())

    @contextlib.contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        wait: bool = False,
        timeout: float = _PATIENCE,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self.path, timeout)
        if self.at:
            path += f"{'&' if '?' in path else '?'}at={quote(self.at, safe='')}"
        try:
            connection.request(method, path, body)
            if wait:
                connection.sock.settimeout(None)
            response = connection.getresponse()
            if response.status != http.HTTPStatus.OK:
                raise ValueError(msgspec.json.decode(response.read())["error"])
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise NodeGone(f"the node at {self.path} does not answer: {error}") from None
        finally:
            connection.close()


def _look(of: str, *, anywhere: bool) -> str:
    return urlencode({"of": of, **({"anywhere": 1} if anywhere else {})})


def _ends(kind: str, of: str | None, after: int, limit: int) -> str:
    query = {"kind": kind, "after": str(after), "limit": str(limit)}
    return f"/ends?{urlencode(query if of is None else {**query, 'of': of})}"


def find_nodes(directory: Path) -> list[ControlClient]:
    """Return the running nodes of a runtime directory; sockets of nodes that are gone are removed.

    Raises `ControlError` if another user could have put sockets there.
    """
    check(directory)
    found = []
    for path in sorted(directory.glob("*.sock")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                continue
            else:
                found.append(ControlClient(path))
    return found
