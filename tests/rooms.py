"""Handlers that the tests run in real workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wsrelay import Message, process
from wsrelay.aio import process as aio_process


def text(data: str) -> dict[str, str]:
    return {"type": "text", "data": data}


def echo() -> None:
    for message in process.inbox():
        if message.topic == "ws.message":
            payload = {key: message.payload[key] for key in ("type", "data")}
            process.send(message.payload["client_pid"], "ws.send", payload)


async def aio_echo() -> None:
    async for message in aio_process.inbox():
        if message.topic == "ws.message":
            payload = {key: message.payload[key] for key in ("type", "data")}
            await aio_process.send(message.payload["client_pid"], "ws.send", payload)


def answer() -> None:
    """Answer each call with what it says."""
    for message in process.inbox():
        if message.wants_reply:
            message.reply(message.payload)


def record(path: str) -> str:
    """Write each message as a line of JSON; messages that tell to act are acted upon."""
    with Path(path).open("a", buffering=1) as file:
        for message in process.inbox():
            line = {"topic": message.topic, "sender": message.sender, "payload": message.payload}
            file.write(json.dumps(line, default=repr) + "\n")
            act(message)
    return "closed"


def act(message: Message) -> None:
    """Do what a client's text says: the tests' remote control."""
    if message.topic == "do":
        order, args = message.payload
    elif message.topic == "ws.message" and str(message.payload["data"]).startswith("!"):
        order, *args = json.loads(message.payload["data"][1:])
    else:
        return
    client = message.sender
    match order:
        case "send":
            to, topic, payload = args
            process.send(client if to is None else to, topic, payload)
        case "exit":
            sys.exit(args[0])
        case "raise":
            raise ZeroDivisionError(*args)
        case "abort":
            os._exit(args[0])
        case "kill":
            os.kill(os.getpid(), getattr(signal, args[0]))
        case "pid":
            process.send(client, "ws.send", text(str(os.getpid())))
        case "burst":
            for number in range(args[0]):
                process.send(client, "ws.send", text(str(number)))
        case "flood":
            count, size = args
            for _ in range(count):
                process.send(client, "ws.send", {"type": "binary", "data": bytes(size)})
            process.send(client, "ws.send", text("flooded"))
        case "cancel" | "terminate":
            getattr(process, order)(args[0])
        case "spawn":
            pid = process.spawn(args[0], None, *args[1:])
            process.send(client, "ws.send", text(pid))
        case "get_or_spawn":
            pid = process.get_or_spawn(args[0], args[1], None, *args[2:])
            process.send(client, "ws.send", text(pid))
        case "get_or_spawn_error":
            try:
                process.get_or_spawn("other", args[0])
            except Exception as error:  # noqa: BLE001 - it is what is asked for
                process.send(client, "ws.send", text(f"{type(error).__name__}: {error}"))
        case "stall":
            time.sleep(args[0])
        case "log":
            logging.getLogger("room").log(*args)
        case "print":
            print(args[0])  # noqa: T201 - standard output is what is tested
        case "grandchild":
            child = subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=args[0]
            )
            process.send(client, "ws.send", text(str(child.pid)))
        case "garbage":
            process._worker().pipe.ends.write_all(b"\xff" * 64)
            time.sleep(600)
        case "half_frame":
            process.send(client, "ws.send", text("whole"))
            process._worker().pipe.ends.write_all((1000).to_bytes(4, "big") + bytes(500))
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            raise NotImplementedError(order)


def leave_burst(client: str, count: int) -> None:
    for number in range(count):
        process.send(client, "ws.send", text(str(number)))


def burst_and_return() -> str:
    """Return while most of what was sent still lies in the pipe."""
    for message in process.inbox():
        if message.topic == "ws.message":
            leave_burst(message.payload["client_pid"], int(message.payload["data"]))
            return "done"
    return "closed"


def return_at_once(value: Any = None) -> Any:
    return value


def raise_at_once() -> None:
    raise ZeroDivisionError("on purpose")


def wait() -> None:
    """Read nothing and end by a signal only."""
    while True:
        time.sleep(600)


def return_on(path: str) -> None:
    """Return as soon as the file exists, without ever having read a message."""
    while not Path(path).exists():
        time.sleep(0.005)


def read_on(path: str) -> None:
    """Take nothing until the file exists, then echo."""
    return_on(path)
    echo()


def deaf() -> None:
    """Ignore the closing of the inbox and interrupts."""
    for _ in process.inbox():
        pass
    while True:
        with contextlib.suppress(SystemExit):
            wait()


async def aio_deaf() -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(600)


def spin() -> None:
    while True:
        pass


async def aio_wait(path: str) -> str:
    """Show that timeouts, events and cancellation work in a coroutine."""
    seen = []
    try:
        await aio_process.inbox().receive(timeout=0.01)
    except TimeoutError:
        seen.append("timeout")
    messages = asyncio.create_task(aio_process.inbox().receive())
    event = await aio_process.events().receive()
    seen.append(event.kind)
    messages.cancel()
    async for _ in aio_process.inbox():
        pass
    seen.append("closed")
    Path(path).write_text(json.dumps(seen))
    return "aio"


def hold_pipe() -> str:
    """Leave a child behind that holds this worker's pipe open, in a session of its own."""

    ends = process._worker().pipe.ends
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        pass_fds=ends.filenos(),
        start_new_session=True,
    )
    return "gone"


def look_around() -> dict[str, Any]:
    """Tell what a worker finds around it."""
    try:
        breakpoint()  # noqa: T100 - it is what is tested
        said = ""
    except RuntimeError as error:
        said = str(error)
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if int(entry.name) > 2:
                links.append(str(entry.readlink()))
        except OSError:
            continue
    return {
        "stdin": sys.stdin.read(),
        "breakpoint": said,
        "descriptors": links,
        "session": os.getsid(0),
        "pid": os.getpid(),
    }


def record_pid() -> None:
    """Tell everyone who joins the OS process that they came to."""
    for message in process.inbox():
        if message.topic == "ws.join":
            process.send(message.sender, "ws.send", text(str(os.getpid())))


def seen(message: Message) -> dict[str, Any]:
    return {
        "topic": message.topic,
        "sender": message.sender,
        "client": message.client,
        "payload": message.payload,
    }


def witness(path: str) -> None:
    """Write of each message whether the relay has sent it; `chat` comes by a channel of its own."""
    chat = process.listen("chat")
    with Path(path).open("a", buffering=1) as file:
        while True:
            _, message = process.select(process.inbox(), chat)
            file.write(json.dumps(seen(message)) + "\n")


async def aio_witness(path: str) -> None:
    chat = aio_process.listen("chat")
    with Path(path).open("a", buffering=1) as file:  # noqa: ASYNC230 - nobody else is here
        while True:
            _, message = await aio_process.select(aio_process.inbox(), chat)
            file.write(json.dumps(seen(message)) + "\n")


def forge(room: str, client: str) -> None:
    """Send a room all that its relay sends, as the relay of a client would."""
    metadata = {"user": "root"}
    relays: dict[str, dict[str, Any]] = {
        "ws.join": {},
        "ws.message": {"type": "text", "data": "forged"},
        "chat": {"type": "text", "data": "forged"},
        "ws.heartbeat": {"uptime": 1.0, "message_count": 1},
        "ws.leave": {"code": 1000, "reason": ""},
        "ws.error": {"topic": "ws.send", "error": "forged"},
    }
    process.groups.join("rooms", room)
    for topic, content in relays.items():
        message = {"client_pid": client, **content, "metadata": metadata}
        process.send(room, topic, message)
        process.groups.broadcast("rooms", topic, message)
        process.send(room, topic, Message(topic, message, process.pid()))
    process.send(room, "forged")
