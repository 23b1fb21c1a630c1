"""Handlers of the chaos test: rooms that talk and can be told to die, and who watches them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wsrelay import ChannelClosed, Event, Message, process

WATCHER = "watcher"
GUESTS = "guests"
HELPERS = "helpers"
ROOMS = "rooms"


def traps(number: int) -> bool:
    """Rooms with even numbers trap links, the others die with what they are linked to."""
    return number % 2 == 0


def note(*line: Any) -> None:
    process.send(WATCHER, "note", line)


def watch(path: str) -> None:
    """Monitor everyone that it is told of, once, and write down what it hears."""
    known: set[str] = set()
    inbox, events = process.inbox(), process.events()
    with Path(path).open("a", buffering=1) as file:
        while True:
            _, item = process.select(events, inbox)
            line: Any
            match item:
                case Message(topic="watch") if item.payload not in known:
                    known.add(item.payload)
                    process.monitor(item.payload)
                    line = ["monitor", item.payload]
                case Message(topic="note"):
                    line = item.payload
                case Event(kind="EXIT"):
                    line = ["exit", item.sender, kind_of(item)]
                case Event(kind="CANCEL"):
                    return
                case _:
                    continue
            file.write(json.dumps(line) + "\n")


def kind_of(event: Event) -> str | None:
    assert event.result is not None
    return None if event.result.error is None else str(event.result.error.kind)


def helper(room: str) -> None:
    """Be there until the room that it is linked to has ended."""
    process.monitor(room)
    process.groups.join(HELPERS)
    process.select(process.events(), process.inbox())


def compute(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def room(number: int) -> str:
    """Echo, broadcast, move clients on, and do what it is told."""
    here = Room(number)
    inbox, events = process.inbox(), process.events()
    while True:
        try:
            channel, item = process.select(events, inbox)
        except ChannelClosed:
            return "closed"
        if channel == inbox:
            if here.hear(item) == "return":
                return "left"
        elif item.kind == "CANCEL":
            break
        else:
            here.learn(item)
    for message in inbox:
        if here.hear(message) == "return":
            return "left"
    return "closed"


class Room:
    """One room: its clients are in two groups, and a helper is linked to it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = process.pid()
        self.group = f"{GUESTS} {number}"
        self.children: list[subprocess.Popen[bytes]] = []
        process.set_options(trap_links=traps(number))
        for peer in process.groups.members(ROOMS):
            note("watches", self.pid, peer)
            process.monitor(peer)
        process.groups.join(ROOMS)
        self.help()

    def help(self) -> None:
        process.spawn_linked(helper, None, self.pid)

    def learn(self, event: Event) -> None:
        note(event.kind, self.pid, event.sender, kind_of(event), self.number)
        if event.kind == "LINK_DOWN" and event.sender.host != "gateway":
            self.help()

    def hear(self, message: Message) -> str | None:
        client = message.sender
        match message.topic:
            case "ws.join":
                note("join", self.pid, client)
                process.send(WATCHER, "watch", client)
                process.groups.join(self.group, client)
                process.groups.join(GUESTS, client)
                if traps(self.number):
                    process.link(client)
                process.send(client, "joined", [self.pid, client])
            case "ws.leave":
                note("leave", self.pid, client)
                process.groups.leave(self.group, client)
                process.unlink(client)
            case "ws.message":
                self.serve(client, *json.loads(message.payload["data"]))
            case "ws.error":
                process.send(client, "refused", message.payload["error"])
            case "do":
                return self.do(*message.payload)
        return None

    def serve(self, client: str, wish: str, argument: Any) -> None:
        match wish:
            case "echo":
                process.send(client, "echo", [self.pid, argument])
            case "all":
                process.groups.broadcast(self.group, "said", [client, argument])
            case "move":
                process.send(client, "ws.control", {"target_pid": argument})

    def do(self, deed: str, *arguments: Any) -> str | None:
        match deed:
            case "return":
                return deed
            case "raise":
                raise ZeroDivisionError("on purpose")
            case "exit":
                sys.exit(3)
            case "abort":
                os._exit(*arguments)
            case "garbage":
                pipe().write_all(b"\xff" * 64)
                time.sleep(600)
            case "half a frame":
                pipe().write_all((1000).to_bytes(4, "big") + bytes(500))
                os.kill(os.getpid(), signal.SIGKILL)
            case "child":
                command = [sys.executable, "-c", "import time; time.sleep(600)"]
                self.children.append(subprocess.Popen(command))
            case "stall":
                time.sleep(*arguments)
            case "exec":
                process.exec(compute, None, *arguments)
            case "terminate":
                process.terminate(*arguments)
        return None


def pipe() -> Any:
    """The worker's own end of its pipe, for writing what no worker should."""

    return process._worker().pipe.ends
