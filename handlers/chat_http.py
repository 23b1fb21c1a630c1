"""Endpoints that send a client to its chat room: one process per room, found by its name."""

from starlette.requests import Request
from starlette.responses import Response

from wsrelay import RelayResponse, process


async def connect(request: Request) -> Response:
    """Answer `/rooms/{room}` of `wsrelay.yaml`."""
    return room(request, "app:room")


async def connect_beside(request: Request) -> Response:
    """Do the same for `mandelbrot.yaml`, beside its pictures."""
    return room(request, "mandelbrot:room")


def room(request: Request, entry: str) -> Response:
    """Return the response that binds the client to its room, which is started if needed."""
    if request.headers.get("upgrade", "").lower() != "websocket":
        return Response("Connect with a WebSocket\n", 426)  # a plain request spawns nothing
    name = request.path_params["room"]
    metadata = {"room": name, "query": dict(request.query_params)}
    return RelayResponse(process.get_or_spawn(f"room:{name}", entry), metadata=metadata)
