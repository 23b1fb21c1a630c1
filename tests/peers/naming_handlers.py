"""What processes do with names that several nodes share; each returns what it saw."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

from relating import both, error_of, now

from wsrelay import process


@both
async def share(face: Any, mine: str, theirs: str) -> list[Any]:
    """Use a name of this node's and one of another's, and this process's own."""
    first = await now(face.get_or_spawn(mine, "room"))
    second = await now(face.get_or_spawn(theirs, "room"))
    await now(face.registry.register("label"))
    seen = [
        first.node,
        second.node,
        await now(face.registry.lookup(theirs)) == second,
        await now(face.registry.lookup("label")) == face.pid(),
        await error_of(face.registry.register, mine),
        await error_of(face.registry.register, theirs),
    ]
    await now(face.registry.unregister(theirs))
    await now(face.registry.unregister("label"))
    return [*seen, await error_of(face.registry.unregister, "label")]


@both
async def ask_for(face: Any, name: str) -> str:
    """The error of asking for a name."""
    return await error_of(face.get_or_spawn, name, "room")


@both
async def ask_for_small(face: Any, name: str, host: str) -> str:
    """The error of asking for a small process in a host that is full."""
    return await error_of(face.get_or_spawn, name, "small", host)


@both
async def wait_for(face: Any, name: str) -> None:
    """Ask for a name, and wait for the answer."""
    await now(face.get_or_spawn(name, "room"))


def keep(*values: Any) -> None:
    """Answer each call with what it was started with."""
    for message in process.inbox():
        if message.wants_reply:
            message.reply(values)


@both
async def start_kept(face: Any, name: str, *values: Any) -> str:
    """Start one that keeps values; returns its PID."""
    return str(await now(face.get_or_spawn(name, "keep", None, *values)))


@both
async def start_with_code(face: Any, name: str) -> str:
    """The error of starting one with what is no data, where there is no place for it."""
    return await error_of(face.get_or_spawn, name, "keep", None, keep)


@both
async def trespass(face: Any, theirs: str) -> list[Any]:
    """Try what a process of a walled-in host may not do to names of other nodes."""
    found = await now(face.get_or_spawn(theirs, "room"))
    return [
        str(found),
        await error_of(face.get_or_spawn, "another", "room"),
        await error_of(face.registry.unregister, theirs),
        await error_of(face.registry.register, "another"),
    ]


def alone(path: str) -> None:
    """Note each start with its node, and any other that runs at the same time; end as told."""
    with Path(path).open("a", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("two at once", file=file, flush=True)
        print(process.pid().node, file=file, flush=True)
        for message in process.inbox():
            if message.topic == "raise":
                raise RuntimeError("on purpose")
            if message.topic == "return":
                return


def send_what_no_client_can_use(client: str) -> None:
    """Send a client an order that is none, and wait."""
    process.send(client, "ws.control", "nonsense")
    for _ in process.inbox():
        pass
