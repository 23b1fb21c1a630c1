"""Clients that connect under the same name meet in one room."""

from wsrelay import RelayResponse, process


async def connect(request):
    kind, room = request.path_params["kind"], request.path_params["room"]
    return RelayResponse(process.get_or_spawn(f"{kind} {room}", f"soak:{kind}"))
