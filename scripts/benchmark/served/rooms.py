"""The handler of wsrelay; its echo is `handlers/echo.py`."""

from __future__ import annotations

from benchmark.served.work import serve
from wsrelay import process


def room() -> None:
    """Answer what a client says to all clients of this process."""
    members: list[str] = []
    for message in process.inbox():
        match message.topic:
            case "ws.join":
                members.append(message.payload["client_pid"])
            case "ws.leave":
                members.remove(message.payload["client_pid"])
            case "ws.message":
                answer = {"type": "text", "data": serve(message.payload["data"])}
                process.send(members, "ws.send", answer)
