"""Echo: what a client sends, text or binary, comes back to it; each connection has its own process.

wsrelay run handlers/echo.py
"""

from wsrelay import process


def handler() -> None:
    """Send each message back to where it came from."""
    for message in process.inbox():
        if message.client and message.topic == "ws.message":
            kind, data = message.payload["type"], message.payload["data"]
            process.send(message.client, "ws.send", {"type": kind, "data": data})
