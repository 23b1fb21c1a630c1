"""Presence: a process for each client, which know of each other by a group alone.

    wsrelay run handlers/presence.py

Connect to /ws?name=Ada; what you say is your status. Each client is told who is there, and from
then on who comes, goes and changes. One that vanishes is taken out of the group by the node.
"""

from __future__ import annotations

from typing import Any

from wsrelay import PID, Event, Message, Presence, process

GROUP = "online"


def handler() -> None:
    """Serve one client."""
    me: dict[str, Any] = {}
    channels: list[process.Channel[Any]] = [process.events(), process.inbox()]
    while True:
        match process.select(*channels)[1]:
            case Message(topic="ws.join", payload=payload, client=PID() as client):
                query = (payload["metadata"] or {}).get("query", {})
                me["name"] = query.get("name") or f"guest {client.id}"
                process.groups.join(GROUP, client, meta=me)
                channels.append(process.groups.watch(GROUP))
            case Message(topic="ws.message", payload=payload, client=PID() as client):
                me["status"] = payload["data"][:200]
                process.groups.join(GROUP, client, meta=me)
            case Presence(kind, _, meta):
                process.send(client, "presence", {"kind": kind, **meta})
            case Event(kind="CANCEL") | Message(topic="ws.leave"):
                return
