"""What a process measures when its client asks: calls and starts, and when another one ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from wsrelay import PID, Client, Event, process

__all__ = ["PAUSE", "asked", "asks"]

_ASKED = "asked"
_TARGET = f"{Path(__file__)}:{_ASKED}"
_PAYLOAD = "x" * 64

PAUSE = 0.02
"""Seconds without anything to do before each start."""


def asked() -> None:
    """Answer each call."""
    for message in process.inbox():
        message.reply(message.payload)


def asks() -> None:
    """Answer `call SECONDS`, `spawn SECONDS` and `start SECONDS` with times, as JSON.

    `watch` is answered at once, and `exit` when the process that is asked has ended after that.
    """
    watcher: Client | None = None
    for event in process.incoming():
        if isinstance(event, Event):
            if watcher is not None:
                watcher.send(event.kind)
        elif event.client and event.topic == "ws.message":
            what, _, seconds = event.text.partition(" ")
            if what == "exit":
                continue  # it is answered by the event
            if what == "watch":
                watcher = event.client
                process.monitor(process.registry.lookup(_ASKED))
                event.client.send("watched")
            else:
                event.client.send(json.dumps(_times(_MEASURES[what], float(seconds))))


def _times(measure: Callable[[], float], seconds: float) -> list[float]:
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times.append(measure())
    return times


def _call() -> float:
    begin = time.perf_counter()
    process.call(_ASKED, "ask", _PAYLOAD)
    return time.perf_counter() - begin


def _spawn() -> float:
    begin = time.perf_counter()
    pid = _new()
    took = time.perf_counter() - begin
    _end(pid)
    return took


def _start() -> float:
    begin = time.perf_counter()
    process.call(pid := _new(), "ask", "")
    took = time.perf_counter() - begin
    _end(pid)
    return took


def _new() -> PID:
    return process.get_or_spawn(f"new:{time.perf_counter_ns()}", _TARGET)


def _end(pid: PID) -> None:
    """End a process, and pause, so that the next is not measured beside what follows its end."""
    process.monitor(pid)
    process.cancel(pid)
    process.events().receive()
    time.sleep(PAUSE)


_MEASURES = {"call": _call, "spawn": _spawn, "start": _start}
