"""The handlers of wsrelay; its echo is `handlers/echo.py`."""

from __future__ import annotations

from benchmark.served.work import serve
from wsrelay import process


def room() -> None:
    """Send what anybody says to everybody."""
    members: list[str] = []
    for message in process.inbox():
        match message.topic:
            case "ws.join":
                members.append(message.payload["client_pid"])
            case "ws.leave":
                members.remove(message.payload["client_pid"])
            case "ws.message":
                data = message.payload["data"]
                process.send(members, "ws.send", {"type": "text", "data": data})


def service() -> None:
    """Serve one client."""
    for message in process.inbox():
        if message.topic == "ws.message":
            answer = {"type": "text", "data": serve(message.payload["data"])}
            process.send(message.payload["client_pid"], "ws.send", answer)
