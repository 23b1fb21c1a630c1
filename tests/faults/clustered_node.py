"""A node of a cluster as a program of its own: uvicorn with its defaults, and the relay.

`python clustered_node.py OPTIONS` takes JSON (see `Options`). Once it serves it writes a file that
tells its port. Clients come to `/relay?RESPONSE`, the arguments of `RelayResponse` as JSON;
`POST /do` calls the node, `GET /state` tells what it knows, and `GET /names` which names have keys
in the cluster's store. It ends with its parent.
"""

from __future__ import annotations

import inspect
import json
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import uvicorn
from leftovers import kept
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from wsrelay import Cluster, HostOptions, Node, RelayResponse, WebSocketRelay
from wsrelay.cluster import claims
from wsrelay.errors import ProcessError
from wsrelay.values.linux import die_with_parent
from wsrelay.values.targets import TargetEntry


class Options(Struct, forbid_unknown_fields=True):
    """`cluster` is given to `Cluster`, `host` to `HostOptions`; `entries` are targets by id."""

    parent: int
    ready: str
    """The file that is written when the node serves."""
    cluster: dict[str, Any]
    host: dict[str, Any]
    entries: dict[str, str]


class TellingServer(uvicorn.Server):
    """Writes its port into a file when it serves."""

    ready: Path

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        unfinished = self.ready.with_suffix(".part")
        unfinished.write_text(str(port))
        unfinished.rename(self.ready)


def application(node: Node) -> Starlette:
    def relay(request: Request) -> Response:
        return RelayResponse(**json.loads(unquote(request.url.query)))

    async def do(request: Request) -> Response:
        call, args, kwargs = await request.json()
        try:
            value = getattr(node, call)(*args, **kwargs)
            if inspect.isawaitable(value):
                value = await value
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            kind = error.kind if isinstance(error, ProcessError) else None
            answer = [None, type(error).__name__, str(error), kind]
        else:
            answer = [value, None, None, None]
        return _as_json(answer)

    def state(_: Request) -> Response:
        return _as_json(_state(node))

    async def names(_: Request) -> Response:
        clustered: Any = node.engine.elsewhere
        entries = await clustered._member._store.list(claims.PREFIX)
        return _as_json(sorted(claims.NameClaim.of(entry).name for entry in entries))

    routes = [
        Route("/relay", relay),
        Route("/do", do, methods=["POST"]),
        Route("/state", state),
        Route("/names", names),
    ]
    return Starlette(routes=routes, lifespan=node.lifespan)


def _as_json(value: Any) -> Response:
    content = msgspec.json.encode(value, enc_hook=str)  # PIDs are not quite text
    return Response(content, media_type="application/json")


def _state(node: Node) -> dict[str, Any]:
    clustered: Any = node.engine.elsewhere
    member = clustered._member.member
    return {
        "status": member.status(),
        "linked": sorted(clustered.exchange.neighbours),
        "draining": node.draining,
        "frozen": node.engine.fencing.frozen,
        "workers": node.workers,
        "clients": {pid: len(one.clients) for pid, one in node.engine.processes.items()},
        "connections": sorted(node.connections),
        "templates": node.templates,
        "keys": sorted(clustered.names.keys.held),
        "directory": sorted(clustered.names.directory),
        "kept": {what: repr(there) for what, there in kept(node).items() if there},
    }


def main() -> None:
    options = msgspec.json.decode(sys.argv[1], type=Options)
    die_with_parent(options.parent)
    node = Node(
        hosts=[HostOptions(**options.host)],
        entries={key: TargetEntry(target) for key, target in options.entries.items()},
        cluster=Cluster(**options.cluster),
    )
    app = WebSocketRelay(application(node), node=node)
    server = TellingServer(uvicorn.Config(app, port=0))
    server.ready = Path(options.ready)
    server.run()


if __name__ == "__main__":
    main()
