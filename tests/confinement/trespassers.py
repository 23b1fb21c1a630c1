"""A handler of a walled-in host that reaches for processes of others, as its tests tell it to.

`call` is what code of good faith does, `frame` what hostile code writes to its pipe, past all that
looks at it in the worker.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from wsrelay import WsrelayError, process, wire

_refs = itertools.count(1_000_000)


def double(number: int) -> int:
    return number * 2


def idle() -> None:
    for _ in process.inbox():
        pass


def deaf() -> None:
    time.sleep(600)


def take(name: str) -> str:
    process.registry.register(name)
    return process.pid()


def give(*args: Any, **kwargs: Any) -> list[Any]:
    return [args, kwargs]


def note(path: str) -> int:
    """Write down in which process it runs."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return os.getpid()


class Evil:
    """Does as `note` where it is unpickled, and needs nothing imported for it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (noting(self.path),)


def noting(path: str) -> str:
    return f"import os; open({path!r}, 'a').write(f'{{os.getpid()}}\\n')"


def puppet(path: str) -> None:
    """Do what each `do` says, and write down what came of it, and all other messages."""
    with Path(path).open("ab", buffering=0) as file:
        for message in process.inbox():
            topic, payload = message.topic, message.payload
            if topic == "do":
                order, *args = payload
                topic, payload = "did", outcome(ORDERS[order], *args)
                process.groups.members("none")  # answered once all before it has been done
            line = {"topic": topic, "sender": message.sender, "payload": payload}
            file.write(msgspec.json.encode(line, enc_hook=str) + b"\n")


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except WsrelayError as error:
        return f"{type(error).__name__}: {error}"


def call(name: str, *args: Any) -> Any:
    function: Any = process
    for part in name.split("."):
        function = getattr(function, part)
    return function(*args)


def frame(kind: str, *args: Any) -> None:
    process._worker().pipe.write(getattr(wire, f"{kind}Frame")(*args))


def raw(data: bytes) -> None:
    process._worker().pipe.ends.write_all(data)


def ask(kind: str, *args: Any) -> Any:
    return process._worker().ask(getattr(wire, f"{kind}Frame")(next(_refs), *args), 20)


def start(how: str, target: str | None, host: str, path: str) -> Any:
    """Start a process as code of good faith does: with what it can call."""
    what = functools.partial(note, path) if target is None else target
    given: tuple[Any, ...] = () if target is None else (path,)
    if path == "code":
        given = (double,)
    if how == "get_or_spawn":
        return process.get_or_spawn("jail/x", what, host, *given)
    return getattr(process, how)(what, host, *given)


def forge(how: str, target: str | None, host: str, path: str) -> Any:
    """Write a frame that starts a process by a pickle, whatever the target is."""
    worker = process._worker()
    given: Any = (exec, (noting(path),), {}) if target is None else ((Evil(path),), {})
    code = pickle.dumps((None, pickle.dumps(given)))
    pid = worker._ids.next(host)
    spawn = wire.SpawnFrame(pid, host, target, code, monitored=how == "spawn")
    if how == "exec":
        return ask("Exec", spawn)
    if how == "get_or_spawn":
        return ask("GetOrSpawn", "jail/x", spawn)
    worker.pipe.write(spawn)
    result = process.events().receive(20).result
    assert result is not None
    return str(result.error)


async def reach(host: str) -> list[str]:
    from wsrelay.aio import process as aio_process  # noqa: PLC0415 - other users cannot read it

    tries = []
    for attempt in (
        lambda: aio_process.exec(double, host, 1),
        lambda: aio_process.get_or_spawn("jail/x", double, host, 1),
        lambda: aio_process.registry.register("x"),
    ):
        try:
            await attempt()
        except WsrelayError as error:
            tries.append(f"{type(error).__name__}: {error}")
    return tries


def exec_too_long(target: str, host: str) -> str:
    try:
        process.exec(target, host, timeout=0.2)
    except TimeoutError as error:
        return type(error).__name__
    return "returned"


def trap_links() -> None:
    process.set_options(trap_links=True)


def event() -> list[Any]:
    got = process.events().receive(20)
    error = got.result.error if got.result is not None else None
    return [got.kind, got.sender, error.kind if error is not None else None]


ORDERS: dict[str, Callable[..., Any]] = {
    "call": call,
    "frame": frame,
    "raw": raw,
    "ask": ask,
    "start": start,
    "forge": forge,
    "event": event,
    "exec_too_long": exec_too_long,
    "trap_links": trap_links,
}
