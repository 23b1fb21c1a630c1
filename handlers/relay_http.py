"""An endpoint that sets the relay's header by hand, with every field that it may have."""

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from wsrelay import process

ECHO = str(Path(__file__).with_name("echo.py"))


def connect(request: Request) -> Response:
    """Spawn a process for this client alone; a plain `def` runs in a thread."""
    if request.headers.get("upgrade", "").lower() != "websocket":
        return Response("Connect with a WebSocket\n", 426)  # a plain request spawns nothing
    relay = {
        "target_pid": process.spawn(ECHO),
        "message_topic": "ws.message",
        "heartbeat_interval": "30s",
        "metadata": {"client": request.client.host if request.client else None},
        "cancel_on_leave": True,
    }
    return Response(headers={"X-WS-Relay": json.dumps(relay)})
