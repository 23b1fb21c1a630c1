"""Echo: clients get their own messages back, text or binary; each connection has its own process.

wsrelay run handlers/echo.py
"""

from wsrelay import process


def handler() -> None:
    """Send each message back to its client."""
    for message in process.inbox():
        if message.client and message.topic == "ws.message":
            kind, data = message.payload["type"], message.payload["data"]
            process.send(message.client, "ws.send", {"type": kind, "data": data})
