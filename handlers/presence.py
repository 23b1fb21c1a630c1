"""Presence: monitors the connections of a room and broadcasts arrivals and departures to a group.

    wsrelay run handlers/presence.py --scope room

Connect to /ws/<room>?name=Ada. The group consists of the connections themselves: a client that
vanishes is removed from it by the node, and the EXIT event of its connection says how it ended.
"""

from __future__ import annotations

from typing import Any

from wsrelay import PID, Event, Message, process

GROUP = "present"


def handler() -> None:
    """Serve one room."""
    names: dict[str, str] = {}
    inbox, events = process.inbox(), process.events()
    group = f"{GROUP}:{process.pid()}"

    def tell(**news: Any) -> None:
        process.groups.broadcast(group, "presence", {**news, "here": sorted(names.values())})

    while True:
        match process.select(events, inbox)[1]:
            case Message(topic="ws.join", payload=payload, client=PID() as client):
                query = (payload["metadata"] or {}).get("query", {})
                names[client] = query.get("name") or f"guest {client.id}"
                process.monitor(client)
                process.groups.join(group, client)
                tell(came=names[client])
            case Event(kind="EXIT", sender=client, result=result) if client in names:
                code = result.value["code"] if result and result.value else None
                went = names.pop(client)
                tell(went=went, code=code)
            case Event(kind="CANCEL"):
                return
