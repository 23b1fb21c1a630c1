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
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from wsrelay.errors import InvalidName
from wsrelay.node import Node
from wsrelay.pid import PID
from wsrelay.relay.middleware import WebSocketRelay
from wsrelay.relay.response import RelayResponse

from .rooms import Rooms

__all__ = ["Scope", "ScriptOptions", "script_app"]


class Scope(enum.StrEnum):
    """What a process of the script serves."""

    CONNECTION = "connection"
    ROOM = "room"
    SHARED = "shared"


class ScriptOptions(Struct, frozen=True, kw_only=True):
    """How a script is served (contract section 6); `room_linger` in seconds."""

    target: str | Callable[..., Any]
    scope: Scope = Scope.CONNECTION
    path: str = "/ws"
    origins: str = ""
    heartbeat: str | None = None
    room_linger: float = 5.0
    static: Path | None = None


def script_app(node: Node, options: ScriptOptions) -> WebSocketRelay:
    """Return the ASGI application; raises `ValueError` for a wrong origin pattern."""
    connect = _endpoint(node, options)
    path = options.path.rstrip("/")
    routes: list[BaseRoute] = [
        Route(path or "/", connect),
        Route(f"{path}/{{room:path}}", connect),
    ]
    if options.static is not None:
        routes.append(Mount("/", StaticFiles(directory=options.static, html=True)))
    elif path:
        page = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
        page = page.replace('content="/ws"', f'content="{html.escape(path)}"')
        routes.append(Route("/", lambda _: HTMLResponse(page)))
    one_each = options.scope is Scope.CONNECTION
    return WebSocketRelay(
        Starlette(routes=routes),
        node=node,
        allowed_origins=options.origins,
        outbox_overflow="pause" if one_each else "close",
    )


def _endpoint(node: Node, options: ScriptOptions) -> Callable[[Request], Awaitable[Response]]:
    rooms = Rooms(node, options.target, options.room_linger)

    def process_for(room: str) -> PID:
        match options.scope:
            case Scope.CONNECTION:
                return node.spawn(options.target)
            case Scope.ROOM:
                return rooms.enter(room)
            case Scope.SHARED:
                return node.get_or_spawn("shared", options.target)

    async def connect(request: Request) -> Response:
        if request.headers.get("upgrade", "").lower() != "websocket":
            # Not asked to relay: then nothing is to be spawned either.
            headers = {"upgrade": "websocket", "connection": "upgrade"}
            return Response("Upgrade Required: connect with a WebSocket\n", 426, headers)
        room = request.path_params.get("room", "")
        client = request.client
        try:
            pid = process_for(room)
        except InvalidName:
            return Response("There is no room of such a name\n", 404)
        return RelayResponse(
            pid,
            heartbeat_interval=options.heartbeat,
            metadata={
                "path": request.url.path,
                "room": room,
                "query": dict(request.query_params),
                "headers": dict(request.headers),
                "client": [client.host, client.port] if client else None,
            },
            cancel_on_leave=options.scope is Scope.CONNECTION,
        )

    return connect
