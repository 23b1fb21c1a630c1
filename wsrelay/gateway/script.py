"""The application that `wsrelay run` serves: one handler script behind a WebSocket."""

from __future__ import annotations

import enum
import html
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from msgspec import Struct
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from wsrelay.errors import InvalidName
from wsrelay.node import Node
from wsrelay.relay.asgi import App, offered
from wsrelay.relay.middleware import WebSocketRelay
from wsrelay.relay.response import RelayResponse
from wsrelay.session.hosts import Hosts
from wsrelay.values.pid import nameable

from .allowed_hosts import AllowedHosts
from .health import health_routes
from .page_files import page_files
from .room_name import room_name

__all__ = ["Scope", "ScriptOptions", "script_app"]


class Scope(enum.StrEnum):
    """What a process of the script serves."""

    CONNECTION = "connection"
    ROOM = "room"
    SHARED = "shared"


class ScriptOptions(Struct, frozen=True, kw_only=True):
    """How a script is served: the options of `docs/command-line.md`.

    `allowed_hosts` is as in `Hosts`; if it is empty, only loopback names pass. A client gets the
    first of `subprotocols` that it offers. `heartbeat` is a duration such as `30s`, `room_linger`
    is in seconds.
    """

    target: str | Callable[..., Any]
    scope: Scope = Scope.CONNECTION
    path: str = "/ws"
    origins: str = ""
    allowed_hosts: str = "*"
    subprotocols: tuple[str, ...] = ()
    heartbeat: str | None = None
    room_linger: float = 5.0
    static: Path | None = None
    entry: str | None = None
    """The id under which all nodes of a cluster know the target; names begin with it."""


def script_app(node: Node, options: ScriptOptions) -> App:
    """Return the ASGI application; raises `ValueError` for an invalid origin or host pattern."""
    path = options.path.rstrip("/")
    connect = _endpoint(node, options, path)
    routes: list[BaseRoute] = [
        *health_routes(lambda: node.unready),
        Route(path or "/", connect),
        Route(f"{path}/{{room:path}}", connect),
        *page_files([] if options.static is None else [options.static]),
    ]
    if options.static is not None:
        routes.append(Mount("/", StaticFiles(directory=options.static, html=True)))
    elif path:
        page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        page = page.replace('content="/ws"', f'content="{html.escape(path)}"')
        routes.append(Route("/", lambda _: HTMLResponse(page)))
    one_each = options.scope is Scope.CONNECTION
    relay = WebSocketRelay(
        Starlette(routes=routes),
        node=node,
        allowed_origins=options.origins,
        outbox_overflow="pause" if one_each else "close",
        native=False,
    )
    hosts = Hosts(options.allowed_hosts)
    return relay if hosts.any else AllowedHosts(relay, hosts, "--allowed-hosts")


def _endpoint(
    node: Node, options: ScriptOptions, path: str
) -> Callable[[Request], Awaitable[Response]]:
    spoken, target = options.subprotocols, options.target
    prefix = "" if options.entry is None else f"{options.entry}/"
    if options.entry is not None:
        target = options.entry
    elif not isinstance(target, str):  # as tests have it
        node.functions["handler"], target = target, "handler"

    def process_of(room: str) -> dict[str, Any]:
        """Return what the header says of the process; raises `InvalidName`."""
        match options.scope:
            case Scope.CONNECTION:
                return {"target": target}
            case Scope.ROOM:
                name, linger = nameable(f"{prefix}room:{room}"), options.room_linger
                return {"target": target, "name": name, "end_when_empty": linger}
            case Scope.SHARED:
                return {"target": target, "name": f"{prefix}shared"}

    async def connect(request: Request) -> Response:
        no_room = Response("There is no room of such a name\n", 404)
        if (room := room_name(request.scope, path)) is None:
            return no_room
        try:
            process = process_of(room)
        except InvalidName:
            return no_room
        return RelayResponse(
            **process,
            heartbeat_interval=options.heartbeat,
            metadata=_metadata(request, room),
            subprotocol=next((one for one in offered(request.scope) if one in spoken), None),
        )

    return connect


def _metadata(request: Request, room: str) -> dict[str, Any]:
    """Return everything that the handler learns about a client."""
    metadata: dict[str, Any] = {
        "path": request.url.path,
        "room": room,
        "query": dict(request.query_params),
        "headers": _joined(request.headers),
        "client": [request.client.host, request.client.port] if request.client else None,
    }
    if lists := _repeated(request.query_params):
        metadata["query_lists"] = lists
    if names := offered(request.scope):
        metadata["subprotocols"] = names
    return metadata


def _repeated(params: QueryParams) -> dict[str, list[str]]:
    """Return all values of the keys that have several.

    They are not in `query`: a client could turn its values into lists, and handlers that expect
    text would fail.
    """
    return {key: values for key in params if len(values := params.getlist(key)) > 1}


def _joined(headers: Headers) -> dict[str, str]:
    """Join the lines of each header into one (RFC 9110 section 5.3, RFC 6265 section 5.4)."""
    return {
        name: ("; " if name == "cookie" else ", ").join(headers.getlist(name)) for name in headers
    }
