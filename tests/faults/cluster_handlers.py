"""Handlers that run on the nodes of a cluster while it suffers; each is an entry by its name."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from wsrelay import ChannelClosed, Event, process


def text(data: Any) -> dict[str, str]:
    return {"type": "text", "data": json.dumps(data)}


def room(journal: str = os.devnull, group: str = "rooms") -> None:
    """Echo, write who comes and leaves, be in a group, and answer calls with its PID and fence."""
    process.groups.join(group)
    with Path(journal).open("a", buffering=1) as file:
        for message in process.inbox():
            match message.topic:
                case "ws.message":
                    process.send(message.sender, "ws.send", text(message.payload["data"]))
                case "ws.join" | "ws.leave" as topic:
                    told = {key: message.payload.get(key) for key in ("code", "reason")}
                    client = message.payload["client_pid"]
                    file.write(json.dumps([topic, client, *told.values()]) + "\n")
                    if topic == "ws.join":
                        process.send(client, "ws.send", text([process.pid(), process.fence()]))
                case "crash":
                    raise ZeroDivisionError("on purpose")
            if message.wants_reply and message.topic != "never answered":
                message.reply([process.pid(), process.fence()])


def watcher(*victims: str) -> None:
    """Be linked to and monitor the victims, watch the group `rooms`; answer calls with all seen."""
    process.set_options(trap_links=True)
    watch = process.groups.watch("rooms")
    seen: dict[str, list[Any]] = {"events": [], "presence": []}
    for pid in victims:
        process.monitor(pid)
        process.link(pid)
    while True:
        channel, item = process.select(process.incoming(), watch)
        if channel is watch:
            seen["presence"].append([item.kind, item.pid])
        elif isinstance(item, Event):
            if item.kind in {"CANCEL", "DRAIN"}:
                return
            error = item.result.error if item.result else None
            seen["events"].append([item.kind, item.sender, error.kind if error else None])
        elif item.wants_reply:
            item.reply(seen)


def linked(to: str) -> None:
    """Be linked to another process, and so end with it."""
    process.link(to)
    for message in process.inbox():
        message.reply("linked")


def deaf() -> None:
    """Never end by itself, not even if its node is gone."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(600)


def writer(path: str) -> None:
    """Write lines into a file for ever, each with what tells the writer from its successor.

    A line is the fence, the PID, a number, and the machine's monotonic time in nanoseconds from
    just before it is written.
    """
    fence, me = process.fence(), process.pid()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    process.groups.join("writers")
    for number, _ in enumerate(process.ticks(0.001)):
        os.write(file, b"%d %s %d %d\n" % (fence, me.encode(), number, time.monotonic_ns()))
        while True:
            try:
                message = process.inbox().receive(timeout=0)
            except TimeoutError:
                break
            except ChannelClosed:
                return
            if message.topic == "ws.join":
                process.send(message.sender, "ws.send", text([me, fence]))
            elif message.topic == "ws.message":
                process.send(message.sender, "ws.send", text(message.payload["data"]))
            elif message.wants_reply:
                message.reply([me, fence])


def fails_in_the_beginning(path: str, failures: int) -> None:
    """Crash at its start, so many times, and then be a room; each start writes its fence."""
    with Path(path).open("a") as file:
        file.write(f"{process.fence()}\n")
    if len(Path(path).read_text().splitlines()) <= failures:
        raise ZeroDivisionError("on purpose")
    room()
