"""Handlers that act on their clients; each returns what it saw."""

from __future__ import annotations

from typing import Any

from relating import WAIT, both, error_of, now


async def _next(face: Any, topic: str = "ws.message") -> Any:
    """The next message of that topic."""
    while (message := await now(face.inbox().receive(timeout=WAIT))).topic != topic:
        pass
    return message


@both
async def act(face: Any) -> list[Any]:
    """Do with the client what its messages say, until it has left."""
    seen: list[Any] = []
    clients = []
    while True:
        message = await now(face.inbox().receive(timeout=WAIT))
        client = message.client
        if message.topic == "ws.leave":
            return [*seen, message.payload["code"]]
        if message.topic == "ws.join":
            clients.append(client)
            await now(client.send(f"welcome {client.metadata['user']}"))
            await now(client.send(b"welcome"))
            await now(client.send_json({"kind": type(client).__module__}))
        elif message.topic == "ws.message":
            order, argument = message.json()
            match order:
                case "all":
                    await now(face.send_json(clients, argument))
                case "error":
                    seen.append(await error_of(client.send, argument))
                    seen.append(await error_of(client.send_json, {"a": [object()]}))
                    seen.append(await error_of(face.send_json, client, [1j]))
                case "drain":
                    await now(client.drain(timeout=WAIT))
                case "move":
                    client.transfer(argument, metadata={"user": "moved"})
                case "close":
                    await now(client.send("last words"))
                    client.close(4001, argument)


@both
async def misuse(face: Any) -> None:
    """Send a client what it cannot use, twice each."""
    client = (await _next(face)).client
    for number in (1, 2):
        await now(face.send(client, "ws.send", {"type": "text", "data": number}))
        await now(face.send(client, "ws.send", "hello"))
        client.close(1005 + number - 1)
        await now(face.send(client, "ws.control", {"metadta": {"number": number}}))
        client.transfer(face.pid(), heartbeat_interval=f"{number}0 s")
    await now(client.send("done"))
    await _next(face, "ws.leave")


@both
async def renamed(face: Any) -> list[Any]:
    """What a client's metadata was, message by message, while they change."""
    first = (await _next(face)).client
    await now(face.send(first, "ws.control", {"metadata": {"user": "bob"}}))
    await now(first.send("renamed"))
    second = (await _next(face)).client
    return [first.metadata, second.metadata, first == second]
