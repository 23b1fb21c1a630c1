"""The rooms of the soak. Each ends with its last client, and logs what goes wrong."""

import logging
import os
import time

from wsrelay import process

log = logging.getLogger("soak")

FAULT = os.environ.get("SOAK_FAULT")
"""Makes the echo misbehave, to test whether the soak notices."""

RIGHT = (
    "is not alive",  # the room to move to was killed a moment ago
    "may not cancel",  # caused by rooms of the walled-in host, as is the next
    "are allowed",
)


def clients():
    """Yield every message, and check that joins and leaves come in pairs."""
    inside = set()
    for message in process.inbox():
        match message.topic:
            case "ws.join":
                if message.sender in inside:
                    log.error("room: joined twice: %s", message.sender)
                inside.add(message.sender)
            case "ws.leave":
                if message.sender not in inside:
                    log.error("room: left without a join: %s", message.sender)
                inside.discard(message.sender)
                if not inside:
                    return
            case "ws.error" if not any(part in message.payload["error"] for part in RIGHT):
                log.error("room: %s", message.payload)
        yield message


def say(to, data):
    kind = "text" if isinstance(data, str) else "binary"
    process.send(to, "ws.send", {"type": kind, "data": data})


def echo():
    """Send back what arrives; `move NAME` moves the client to the echo room with that name."""
    for message in clients():
        if message.topic == "ws.message":
            data = message.payload["data"]
            if isinstance(data, str) and data.startswith("move "):
                room = process.get_or_spawn(data.removeprefix("move "), "soak:echo")
                process.send(message.sender, "ws.control", {"target_pid": room})
            if FAULT == "complain":
                log.error("room: something is wrong")
            if FAULT != "swallow" or "9" not in data:
                say(message.sender, data)
            if FAULT == "double" and "9" in data:
                say(message.sender, data)


def chat():
    """Send everybody what each client says."""
    group = f"chat {process.pid()}"
    for message in clients():
        if message.topic == "ws.join":
            process.groups.join(group, message.sender)
        elif message.topic == "ws.message":
            text = {"type": "text", "data": message.payload["data"]}
            process.groups.broadcast(group, "ws.send", text)


def busy():
    """Compute for as many seconds as the client says."""
    for message in clients():
        if message.topic == "ws.message":
            until = time.process_time() + float(message.payload["data"])
            while time.process_time() < until:
                pass
            say(message.sender, message.payload["data"])


def feed():
    """Send as many kilobytes as the client says, in numbered messages of ten."""
    for message in clients():
        if message.topic == "ws.message":
            for i in range(int(message.payload["data"]) // 10):
                say(message.sender, f"{i:08}".encode() + bytes(10_000 - 8))
            say(message.sender, "over")
