"""One echo as a `Room` and as a loop by hand: of any text, and of JSON that says what it is."""

from __future__ import annotations

import json

import msgspec

from wsrelay import Client, Room, on, process

__all__ = ["JsonRoom", "TextRoom", "json_by_hand", "text_by_hand"]


class TextRoom(Room):
    """Send each text back."""

    def on_text(self, client: Client, text: str) -> None:
        """Send it back."""
        client.send(text)


def text_by_hand() -> None:
    """Do what `TextRoom` does."""
    for message in process.inbox():
        if message.client and message.topic == "ws.message":
            data = message.payload["data"]
            process.send(message.client, "ws.send", {"type": "text", "data": data})


class Move(msgspec.Struct, tag="move"):
    """A player's move, and how it got there."""

    x: float
    y: float
    keys: list[str]
    path: list[tuple[float, float]]


class Say(msgspec.Struct, tag="say"):
    """What a player says."""

    text: str


class JsonRoom(Room):
    """Answer each move with where it leads."""

    @on(Move)
    def move(self, client: Client, message: Move) -> None:
        """Answer."""
        client.send(message.keys[0] if message.x < message.y else "")

    @on(Say)
    def say(self, client: Client, message: Say) -> None:
        """Send it back."""
        client.send(message.text)


def json_by_hand() -> None:
    """Do what `JsonRoom` does."""
    for message in process.inbox():
        match message.topic:
            case "ws.message" if message.client:
                try:
                    content = json.loads(message.payload["data"])
                except ValueError:
                    continue
                match content:
                    case {
                        "type": "move",
                        "x": float() | int(),
                        "y": float() | int(),
                        "keys": list(),
                        "path": list(),
                    }:
                        answer = content["keys"][0] if content["x"] < content["y"] else ""
                    case {"type": "say", "text": str(text)}:
                        answer = text
                    case _:
                        answer = "?"
                process.send(message.client, "ws.send", {"type": "text", "data": answer})
