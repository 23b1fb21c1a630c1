"""A handler that does to itself what its client says."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from wsrelay import process, wire
from wsrelay.values import current
from wsrelay.values.pid import PID


def victim() -> None:
    """Do to itself what its client says."""
    for message in process.inbox():
        if message.topic == "ws.message":
            suffer(message.payload["data"], message.sender)


def suffer(order: str, sender: PID) -> None:
    pipe = current.caller().pipe  # type: ignore[attr-defined]
    match order:
        case "spin":
            while True:
                pass
        case "half a frame":
            data = wire.pack(wire.RegisterFrame(1, "name", "{local@processes|1}"))
            pipe.ends.write_all(data[: len(data) // 2])
            os._exit(3)
        case "half a frame, killed":
            pipe.ends.write_all(wire.pack(wire.ReadyFrame())[:2])
            os.kill(os.getpid(), signal.SIGKILL)
        case "garbage":
            pipe.ends.write_all(b"\xff" + os.urandom(100_000))  # no length that a frame may have
            time.sleep(60)
        case "forged":
            frames = (
                wire.AckFrame(1 << 40),
                wire.RelateFrame("monitor", "{"),
                wire.JoinGroupFrame("group", "name"),
                wire.RegisterFrame(1, "name", "{oops"),
                wire.DrainFrame(1, "{local"),
                wire.SpawnFrame("{local@processes|1}", "processes", "spam:eggs", b""),
                wire.SpawnFrame(process.pid(), "processes", "spam:eggs", b""),
                wire.DoneFrame(b"\xc0", None, 0, []),
            )
            number = int(process.inbox().receive().payload["data"])
            for _ in range(2):
                pipe.ends.write_all(wire.pack(frames[number]))
            time.sleep(60)
        case "huge length":
            pipe.ends.write_all(b"\xff" * 64)
            time.sleep(60)
        case "close the pipe":
            pipe.ends.close()
            time.sleep(60)
        case "exhaust":
            with contextlib.suppress(OSError):
                while True:
                    os.dup(1)
            answer = {"type": "text", "data": "none left"}
            process.send(sender, "ws.send", answer)
        case "spawn":
            process.spawn_monitored(victim)
            result = process.events().receive(10).result
            kind = result.error.kind if result and result.error else "none"
            process.send(sender, "ws.send", {"type": "text", "data": str(kind)})
        case "flood":
            while True:
                process.send("healthy", "flood", bytes(10_000))
        case _:
            process.send(sender, "ws.send", {"type": "text", "data": order})
