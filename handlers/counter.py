"""A supervised service whose name survives its own crashes.

    uvicorn --app-dir handlers counter:app --ws wsproto --http h11

Clients of ws://127.0.0.1:8000/ talk to the process that is registered as `counter`. `up` counts;
`crash` makes it crash: its clients are closed with 1011, the supervisor restarts it under the same
name, and clients that connect after that are served by the new process. What was in memory is gone.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from wsrelay import (
    NameNotFound,
    Node,
    RelayResponse,
    RestartPolicy,
    Service,
    Supervisor,
    WebSocketRelay,
    process,
)


def counter() -> None:
    """Count what clients ask for."""
    count = 0
    for message in process.inbox():
        if message.client and message.topic == "ws.message":
            match message.payload["data"]:
                case "up":
                    count += 1
                case "crash":
                    raise RuntimeError("a client asked for it")
            process.send(message.client, "ws.send", {"type": "text", "data": str(count)})


async def connect(_: Request) -> Response:
    """Connect the client to the service, whichever process that is now."""
    try:
        return RelayResponse(process.registry.lookup("counter"))
    except NameNotFound:
        return PlainTextResponse("starting again, come back in a moment\n", 503)


node = Node()
soon = RestartPolicy(initial_delay=0.05)
Supervisor(node, [Service(name="counter", target=f"{__file__}:counter", restart=soon)])
app = WebSocketRelay(Starlette(routes=[Route("/", connect)]), node=node)
