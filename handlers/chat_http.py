"""Endpoints that send a client to its chat room: one process per room, found by its name."""

from starlette.requests import Request

from wsrelay import RelayResponse, process


async def connect(request: Request) -> RelayResponse:
    """Answer `/rooms/{room}` of `wsrelay.yaml`."""
    return room(request, "app:room")


async def connect_beside(request: Request) -> RelayResponse:
    """Answer the same beside the pictures of `mandelbrot.yaml`."""
    return room(request, "mandelbrot:room")


def room(request: Request, entry: str) -> RelayResponse:
    """Return the answer that binds the client to its room, which is started if need be."""
    name = request.path_params["room"]
    metadata = {"room": name, "query": dict(request.query_params)}
    return RelayResponse(process.get_or_spawn(f"room:{name}", entry), metadata=metadata)
