"""A configuration in a folder of its own, and the `wsrelay serve` that serves it."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from running import Running, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

ECHO = """
from wsrelay import process

GREETING = "one"

def handler():
    for message in process.inbox():
        if message.topic == "ws.message":
            answer = {"type": "text", "data": GREETING + " " + message.payload["data"]}
            process.send(message.sender, "ws.send", answer)

def forever():
    for message in process.inbox():
        pass

def deaf():
    while True:
        process.inbox().receive(timeout=None)
"""

HTTP = """
from starlette.responses import PlainTextResponse
from wsrelay import RelayResponse, process

async def connect(request):
    return RelayResponse(process.spawn("app:echo"), cancel_on_leave=True)

async def shared(request):
    return RelayResponse(process.get_or_spawn("shared", "app:echo"))

def missing(request):
    return PlainTextResponse("no such room", 404)

def mapping(request):
    return {"id": request.path_params["id"], "query": dict(request.query_params)}

def text(request):
    return "plain"

async def nothing(request):
    return None

def wrong(request):
    return 42

async def failing(request):
    raise ValueError("a secret detail")

def host(request):
    return process.spawn("app:echo").host + " " + process.spawn("app:echo", "app:light").host
"""


class Site:
    """A folder with a configuration that tests change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "wsrelay.yaml"
        (folder / "echo.py").write_text(ECHO)
        (folder / "web.py").write_text(HTTP)
        self.entries: dict[str, dict[str, Any]] = {}
        self.cluster: dict[str, Any] = {}
        self.add("light", "process.host", stop_timeout="2s")
        self.add("heavy", "process.host", stop_timeout="2s")
        self.add("echo", "process.python", source="file://echo.py", host="heavy")
        self.add("gateway", "http.service", addr="127.0.0.1:0", timeouts={"drain": "200ms"})
        self.add(
            "router",
            "http.router",
            meta={"server": "gateway"},
            prefix="/api",
            post_middleware=["websocket_relay"],
        )

    def add(self, name: str, kind: str, **keys: Any) -> None:
        self.entries[name] = {"name": name, "kind": kind, **keys}
        self.write()

    def endpoint(self, name: str, path: str | None = None, **keys: Any) -> None:
        self.add(f"{name}_function", "function.python", source="file://web.py", method=name)
        self.add(
            f"{name}.endpoint",
            "http.endpoint",
            meta={"router": "router"},
            path=path or f"/{name}",
            func=f"{name}_function",
            **keys,
        )

    def write(self) -> None:
        entries = list(self.entries.values())
        document: dict[str, Any] = {"version": "1.0", "namespace": "app", "entries": entries}
        if self.cluster:
            document["cluster"] = self.cluster
        self.file.write_text(yaml.safe_dump(document, sort_keys=False))

    def serving(self, *options: str, **settings: Any) -> Running:
        return Running(self.file, *options, **settings)


def get(url: str, method: str = "GET", **options: Any) -> httpx.Response:
    return httpx.request(method, url, trust_env=False, **options)


def refused(url: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as raised:
        connect(url, proxy=None, **options)
    return raised.value.response.status_code


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


def reloaded(running: Running, said: str) -> None:
    def count() -> int:
        return sum(said in line for line in running.stderr.lines)

    before = count()
    running.signal(signal.SIGHUP)
    until(lambda: count() > before, f"{said!r} is in the log")
