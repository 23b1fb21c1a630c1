"""Handlers whose names are theirs alone, and what those see who come after them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from relating import both, deaf, error_of, mortal, next_event, next_payload, now, rest

from wsrelay import process


@both
async def keep_count(face: Any, path: str) -> list[int]:
    """Load a number, count messages, and save the sum once it may; nobody else may be at it."""
    os.close(os.open(f"{path}.lock", os.O_CREAT | os.O_EXCL))
    loaded = int(Path(path).read_text()) if Path(path).exists() else 0
    count = loaded + len(await rest(face.inbox()))
    await_file(f"{path}.save")
    Path(path).write_text(str(count))
    Path(f"{path}.lock").unlink()
    return [loaded, count]


def await_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


@both
async def hear(face: Any) -> list[Any]:
    """All that one is told, by topic and payload."""
    return [[message.topic, message.payload] for message in await rest(face.inbox())]


@both
async def replace(face: Any) -> list[Any]:
    """Cancel a room and ask for it at once: by whom it is there, and in what order."""
    first = await now(face.get_or_spawn("room", deaf, "hasty"))
    face.monitor(first)
    face.cancel("room")
    seen = [
        await error_of(face.registry.lookup, "room"),
        await error_of(face.registry.register, "room"),
        await error_of(face.registry.unregister, "room"),
    ]
    second = await now(face.get_or_spawn("room", mortal))
    await now(face.send("room", "ping", "by name"))
    await now(face.send(second, "ping", "by PID"))
    seen += [
        second != first,
        await now(face.get_or_spawn("room", mortal)) == second,
        await now(face.registry.lookup("room")) == second,
        await error_of(face.registry.register, "room"),
    ]
    first_pong = await now(face.inbox().receive(timeout=20))
    seen += [first_pong.sender == second, first_pong.payload, await next_payload(face)]
    # A process starts after the end of the one before it was told, so that is here by now.
    ended = await now(face.events().receive(timeout=0))
    return [*seen, ended.sender == first, ended.result.error.kind]


@both
async def end_waiting(face: Any) -> list[Any]:
    """Whoever waits can be ended in any way, and the next one waits for the same process."""
    first = await now(face.get_or_spawn("room", deaf))
    face.monitor(first)
    face.cancel(first)
    seen: list[Any] = []
    for way in ("cancel", "terminate", "link", "flood"):
        pid = await now(face.get_or_spawn("room", mortal, "small"))
        face.monitor(pid)
        match way:
            case "cancel" | "terminate":
                getattr(face, way)(pid)
            case "link":
                face.spawn(link_and_die, None, pid)
            case "flood":
                for _ in range(300):
                    await now(face.send(pid, "ping", bytes(1000)))
        event = await next_event(face)
        seen.append([event["sender"] == pid, event["error"]])
        seen.append(await error_of(face.registry.lookup, "room"))
    full = await now(face.get_or_spawn("room", mortal, "full"))
    face.monitor(full)
    face.terminate(first)
    for pid in (first, full):
        event = await next_event(face)
        seen.append([event["sender"] == pid, event["error"]])
    return seen


def link_and_die(other: str) -> None:
    process.link(other)
    raise ZeroDivisionError("on purpose")


@both
async def be_replaced_by_itself(face: Any, name: str) -> str:
    """Ask for oneself while one is cancelled."""
    await rest(face.inbox())
    return str(await now(face.get_or_spawn(name, keep_name.sync, None, name, face.pid())))


@both
async def keep_name(face: Any, name: str, former: str) -> bool:
    """Whether one has the name and the former process is gone."""
    face.monitor(former)
    ended = await next_event(face)
    bearer = await now(face.registry.lookup(name))
    return bool(bearer == face.pid() and ended["error"] == "noproc")


@both
async def give_up(face: Any, name: str, path: str) -> str:
    """Let the successor start before one's own end."""
    await rest(face.inbox())
    await now(face.registry.unregister(name))
    await_file(path)
    return await error_of(face.registry.unregister, "nobody's")


def touch(path: str) -> None:
    Path(path).touch()
    for _ in process.inbox():
        pass
