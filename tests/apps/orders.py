"""An application whose targets do what the client says, for servers in other OS processes."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from wsrelay import RelayResponse, WebSocketRelay, process

ROOMS = Path(__file__).parent.with_name("rooms.py")


async def connect(request: Request) -> Response:
    return RelayResponse(process.spawn(f"{ROOMS}:record", None, request.query_params["journal"]))


async def http_alone(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await routes(scope, receive, send)


routes = Starlette(routes=[Route("/ws", connect)])
app = WebSocketRelay(routes)
without_lifespan = WebSocketRelay(http_alone)
