"""Halls whose visitors hear each other, and talkers, on the nodes of a cluster that suffers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from wsrelay import process

ENTRIES = {name: f"{__file__}:{name}" for name in ("hall", "talker")}


def hall(journal: str) -> None:
    """Write down what it hears, say it to all inside, and show visitors the way to other halls.

    A line of the journal is what has happened, its PID, who it was, and what that one has said.
    What visitors say is `[what, number, argument]`.
    """
    me = process.pid()
    inside: list[str] = []
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, who: str, *about: Any) -> None:
        os.write(file, json.dumps([what, me, who, *about]).encode() + b"\n")

    def tell(whom: str | Sequence[str], *told: Any) -> None:
        process.send(whom, "ws.send", {"type": "text", "data": json.dumps(told)})

    for message in process.inbox():
        who = message.sender
        match message.topic:
            case "ws.join":
                inside.append(who)
                note("join", who)
                tell(who, "joined", me, who)
            case "ws.leave":
                inside.remove(who)
                note("leave", who)
            case "ws.message":
                what, number, argument = json.loads(message.payload["data"])
                note("heard", who, number)
                match what:
                    case "say":
                        tell(inside, "said", who, number)
                    case "move":
                        other = process.registry.lookup(argument)
                        process.send(who, "ws.control", {"target_pid": other})
            case "ws.error":
                note("refused", message.payload["client_pid"], message.payload["error"])
            case "talk":
                note("heard", who, message.payload)


def talker(*halls: str) -> None:
    """Tell each hall the numbers from 1 on, a few each millisecond; answer calls with the last."""
    number = 0
    for _ in process.ticks(0.01):
        number += 1
        for hall in halls:
            process.send(hall, "talk", number)
        try:
            item = process.inbox().receive(timeout=0)
        except TimeoutError:
            continue
        item.reply(number)
        return
