"""Endpoints that send a client to its chat room: one process for each room, found by its name."""

from starlette.requests import Request
from starlette.responses import Response

from wsrelay import RelayResponse


async def connect(request: Request) -> Response:
    """Answer `/ws/{room}` of `wsrelay.yaml`."""
    return room(request, "app:room")


async def connect_beside(request: Request) -> Response:
    """Do the same for `mandelbrot.yaml`, beside its pictures."""
    return room(request, "mandelbrot:room")


def room(request: Request, entry: str) -> Response:
    """Return the response that binds the client to its room, which is started if needed."""
    name = request.path_params["room"]
    metadata = {"room": name, "query": dict(request.query_params)}
    return RelayResponse(target=entry, name=f"room:{name}", end_when_empty="1m", metadata=metadata)
