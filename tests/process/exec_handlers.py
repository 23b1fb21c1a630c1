"""Handlers that wait for another process's value, or for a client to read."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from relating import (
    WAIT,
    Faces,
    announce,
    both,
    deaf,
    error_of,
    give,
    leave,
    more_events,
    next_event,
    next_payload,
    now,
    register_and_wait,
)

from wsrelay import ProcessError, process
from wsrelay.aio import process as aio_process

# exec


@both
async def exec_values(face: Any) -> list[Any]:
    values = [
        await now(face.exec(give, None, {"a": [1, b"2"]})),
        await now(face.exec(give, "processes", value=3, timeout=WAIT)),
        await now(face.exec("posixpath:join", None, "a", "b")),
        await now(face.exec(leave, None, 0)),
    ]
    return [*values, await more_events(face), face.get_options()]


@both
async def exec_error(face: Any, target: Any, host: str | None, args: list[Any]) -> dict[str, Any]:
    try:
        value = await now(face.exec(target, host, *args))
    except ProcessError as error:
        return {
            "kind": error.kind,
            "message": error.message,
            "traceback": error.traceback,
            "text": str(error),
        }
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return {"kind": type(error).__name__, "text": str(error)}
    return {"value": value}


@both
async def exec_too_long(face: Any, timeout: float) -> list[str]:  # noqa: ASYNC109 - handed on
    return [await error_of(face.exec, deaf, timeout=timeout)]


@both
async def exec_forever(face: Any, report_to: str) -> None:
    await now(face.exec(announce, None, report_to))


@both
async def exec_of_terminated(face: Any, name: str) -> str:
    """Run one that somebody else terminates."""
    helper = face.spawn(terminate_when_registered, None, name)
    error = await error_of(face.exec, register_and_wait, None, name, helper)
    return error.partition("\n")[0]


def terminate_when_registered(name: str) -> None:
    process.inbox().receive(timeout=WAIT)
    process.terminate(name)


async def exec_cancelled() -> list[Any]:
    task: asyncio.Task[None] = asyncio.create_task(
        aio_process.exec(announce, None, aio_process.pid())
    )
    child = await next_payload(aio_process)
    aio_process.monitor(child)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return ["cancelled", (await next_event(aio_process))["error"]]
    return []


MEGABYTES = 40


async def exec_cancelled_behind_a_full_pipe(client: str, path: str) -> str:
    """Cancel an `exec` whose order to start still waits for room in the pipe, then stay.

    The file at `path` tells that it is cancelled: a message could not get through.
    """
    pipe = process._worker().pipe
    data = {"type": "binary", "data": bytes(1_000_000)}
    sending = [
        asyncio.create_task(aio_process.send(client, "ws.send", data)) for _ in range(MEGABYTES)
    ]
    await next_payload(aio_process)  # the node reads nothing more of ours
    before = len(pipe.line)
    task: asyncio.Task[None] = asyncio.create_task(aio_process.exec(deaf))
    await asyncio.sleep(0)
    assert len(pipe.line) == before + 1 > 1
    task.cancel()
    Path(path).touch()
    await asyncio.gather(task, *sending, return_exceptions=True)
    await aio_process.exec(give)  # by now the node has read all that was written before
    await aio_process.registry.register("fence")
    return str(await next_payload(aio_process))


async def exec_many_in_tasks(count: int) -> list[Any]:
    return await asyncio.gather(*(aio_process.exec(give, None, n) for n in range(count)))


def exec_many_in_threads(count: int) -> list[Any]:
    values: list[Any] = [None] * count

    def run(number: int) -> None:
        values[number] = process.exec(give, None, number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return values


exec_many = Faces(exec_many_in_threads, exec_many_in_tasks)


# drain


@both
async def drain_to(face: Any, client: str, megabytes: int, timeout: float | None) -> str:  # noqa: ASYNC109 - handed on
    for _ in range(megabytes):
        await now(face.send(client, "ws.send", {"type": "binary", "data": bytes(1_000_000)}))
    return await error_of(face.drain, client, timeout)


@both
async def drain_others(face: Any) -> list[str]:
    return [
        await error_of(face.drain, to, WAIT)
        for to in (face.pid(), "{gateway|none}", "{other@gateway|1}", "a name", "{nonsense", 3)
    ]
