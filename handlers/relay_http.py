"""An endpoint that sets the relay's header by hand."""

import json
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

ECHO = str(Path(__file__).with_name("echo.py"))


async def connect(request: Request) -> Response:
    """Have a process started for this client alone, once its upgrade has been found good."""
    relay = {
        "target": ECHO,
        "message_topic": "ws.message",
        "heartbeat_interval": "30s",
        "metadata": {"client": request.client.host if request.client else None},
    }
    return Response(headers={"X-WS-Relay": json.dumps(relay)})
