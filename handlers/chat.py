"""A chat room with its last hundred messages, who is there, and who may throw others out.

    wsrelay run handlers/chat.py:Chat --scope room --path /ws/rooms --static handlers/pages/chat

Open http://127.0.0.1:8000/ in two tabs. Whoever has been in the room for longest moderates it.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import msgspec

from wsrelay import Client, Room, on

MAX_NAME = 40
KEPT = 100


class Query(msgspec.Struct):
    """What the URL says after its question mark."""

    name: str = ""


class Visit(msgspec.Struct):
    """The part of a client's metadata that matters here; `wsrelay run` gives more."""

    query: Query = msgspec.field(default_factory=Query)


class Say(msgspec.Struct, tag="say"):
    """Words for everybody."""

    text: str


class Rename(msgspec.Struct, tag="rename"):
    """Another name for the client."""

    name: str


class Kick(msgspec.Struct, tag="kick"):
    """A member to throw out, by name."""

    name: str


class Chat(Room[Visit]):
    """One room: all of its members learn what happens to each."""

    def on_start(self) -> None:
        self.names: dict[Client[Visit], str] = {}
        self.history: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.guests = itertools.count(1)

    def on_join(self, client: Client[Visit]) -> None:
        client.send_json({"type": "history", "messages": list(self.history)})
        self.names[client] = tidy(client.metadata.query.name) or f"guest-{next(self.guests)}"
        self.tell(f"{self.names[client]} joined")

    def on_leave(self, client: Client[Visit], code: int, reason: str) -> None:
        self.tell(f"{self.names.pop(client)} left")

    @on(Say)
    def say(self, client: Client[Visit], message: Say) -> None:
        said = {"type": "said", "name": self.names[client], "text": message.text}
        self.history.append(said)
        self.broadcast_json(said)

    @on(Rename)
    def rename(self, client: Client[Visit], message: Rename) -> None:
        if name := tidy(message.name):
            old, self.names[client] = self.names[client], name
            self.tell(f"{old} is now {name}")

    @on(Kick)
    def kick(self, client: Client[Visit], message: Kick) -> None:
        if client != next(iter(self.names)):
            client.send_json({"type": "error", "error": "only the moderator can do that"})
            return
        for member, name in self.names.items():
            if name == message.name:
                member.close(4001, f"thrown out by {self.names[client]}")

    def tell(self, news: str) -> None:
        """Tell everybody the news, and who is there, the moderator first."""
        self.broadcast_json({"type": "news", "text": news, "members": list(self.names.values())})


def tidy(name: str) -> str:
    """Return a name as a single line of at most `MAX_NAME` characters."""
    return " ".join(name.split())[:MAX_NAME]
