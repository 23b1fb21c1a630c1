"""Handlers that the relay starts by its header's target."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

from wsrelay import aio, process


def tell(client: str, what: Any) -> None:
    process.send(client, "ws.send", {"type": "text", "data": str(what)})


def introduce(*args: Any) -> None:
    """Tell each client which process this is and with what it was started, then echo."""
    for message in process.inbox():
        if message.topic == "ws.join":
            tell(message.sender, f"{os.getpid()} {list(args)}")
        elif message.client and message.topic == "ws.message":
            message.client.send(message.data)


def lives_for_its_clients() -> None:
    process.set_options(end_when_empty=0)
    introduce()


def in_vain(folder: str, times: int) -> None:
    """Read nothing and return when told so, that many times one after the other; then introduce."""
    number = _number(folder)
    if number < times:
        _wait_for(folder, number)
    else:
        introduce()


async def aio_in_vain(folder: str, times: int) -> None:
    number = _number(folder)
    if number < times:
        _wait_for(folder, number)
        return
    async for message in aio.process.inbox():
        if message.client and message.topic == "ws.join":
            await message.client.send(f"{os.getpid()} []")
        elif message.client and message.topic == "ws.message":
            await message.client.send(message.data)


def cancelled_in_vain(folder: str) -> None:
    """The first reads nothing until it is cancelled and told to return."""
    if (number := _number(folder)) == 0:
        process.events().receive()
        Path(folder, "cancelled").touch()
        _wait_for(folder, number)
    else:
        introduce()


def crashes_in_vain(folder: str) -> None:
    _wait_for(folder, _number(folder))
    raise ZeroDivisionError("on purpose")


def reads_when_told(folder: str, _: int) -> None:
    _wait_for(folder, _number(folder))
    introduce()


def reads_messages_alone() -> None:
    """Never read a join."""
    for message in process.listen("ws.message"):
        tell(message.sender, message.payload["data"])


def closes_itself() -> None:
    """Echo, and return as soon as the last client has left, whoever is on the way."""
    clients = set()
    for message in process.inbox():
        match message.topic:
            case "ws.join":
                clients.add(message.sender)
            case "ws.message" if message.payload["data"] == "close":
                return
            case "ws.message":
                tell(message.sender, message.payload["data"])
            case "ws.leave":
                clients.discard(message.sender)
                if not clients:
                    return


def _number(folder: str) -> int:
    """How many have been started there before."""
    for number in itertools.count():
        try:
            Path(folder, f"start-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError


def _wait_for(folder: str, number: int) -> None:
    while not Path(folder, f"end-{number}").exists():
        time.sleep(0.002)
