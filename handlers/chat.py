"""A chat: all clients on one path share one process, and one send reaches the whole room.

A client sets its name with `?name=Ada` or `{"name": "Ada"}`, and says something with
`{"text": "hi"}` or plain text.

wsrelay run handlers/chat.py --scope room
"""

import itertools
import json

from wsrelay import process

MAX_NAME = 40


class Room:
    """The members of one room; all of them learn what happens to each."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._guests = itertools.count(1)

    def join(self, client: str, name: str) -> None:
        """Add a client, as a guest if it has no name."""
        name = tidy(name) or f"guest-{next(self._guests)}"
        self._names[client] = name
        self._broadcast("joined", name, f"{name} joined")

    def rename(self, client: str, name: str) -> None:
        """Give a member another name; an empty name changes nothing."""
        old, new = self._names[client], tidy(name)
        if new and new != old:
            self._names[client] = new
            self._broadcast("joined", new, f"{old} is now {new}")

    def say(self, client: str, text: str) -> None:
        """Send a member's text to the room, unless it is empty."""
        if text:
            self._broadcast("said", self._names[client], text)

    def leave(self, client: str) -> None:
        """Remove a member."""
        name = self._names.pop(client)
        self._broadcast("left", name, f"{name} left")

    def _broadcast(self, kind: str, name: str, text: str) -> None:
        news = {"type": kind, "name": name, "text": text, "members": [*self._names.values()]}
        process.send([*self._names], "ws.send", {"type": "text", "data": json.dumps(news)})


def tidy(name: str) -> str:
    """Return a name as a single line of at most `MAX_NAME` characters."""
    return " ".join(name.split())[:MAX_NAME]


def requested_name(metadata: object) -> str:
    """Return the name in the URL's query, or an empty one."""
    match metadata:
        case {"query": {"name": str(name)}}:
            return name
    return ""


def parse(data: str) -> tuple[str, str]:
    """Return the name and the text that a client sent, each empty if there is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return "", data
    match value:
        case {"name": str(name), "text": str(text)}:
            return name, text
        case {"name": str(name)}:
            return name, ""
        case {"text": str(text)}:
            return "", text
        case _:
            return "", data


def handler() -> None:
    """Run one room."""
    room = Room()
    for message in process.inbox():
        if (client := message.client) is None:
            continue  # sent by another process, not by a client
        match message.topic:
            case "ws.join":
                room.join(client, requested_name(message.payload["metadata"]))
            case "ws.message" if message.payload["type"] == "text":
                name, text = parse(message.payload["data"])
                room.rename(client, name)
                room.say(client, text)
            case "ws.leave":
                room.leave(client)
