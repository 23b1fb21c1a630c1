"""Handlers that use `wsrelay.process` and `wsrelay.aio.process` and return what they saw."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from wsrelay import ChannelClosed, process
from wsrelay.aio import process as aio_process

GO = "go"


def error_of(function: Any, *args: Any, **kwargs: Any) -> str:
    try:
        function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return f"{type(error).__name__}: {error}"
    return "no error"


async def aio_error_of(awaitable: Any) -> str:
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return f"{type(error).__name__}: {error}"
    return "no error"


def receive_with_deadlines() -> list[Any]:
    inbox = process.inbox()
    seen = [inbox.receive(timeout=20).payload]
    seen += [error_of(inbox.receive, timeout=0), error_of(inbox.receive, timeout=0.01)]
    os.kill(os.getpid(), signal.SIGTERM)
    event = process.events().receive()
    seen += [event.kind, event.reason, event.sender == process.pid()]
    seen += [message.payload for message in inbox]
    seen.append(error_of(inbox.receive))
    seen.append(error_of(inbox.receive, timeout=0))
    return seen


async def aio_receive_with_deadlines() -> list[Any]:
    inbox = aio_process.inbox()
    seen = [(await inbox.receive(timeout=20)).payload]
    seen.append(await aio_error_of(inbox.receive(timeout=0)))
    seen.append(await aio_error_of(inbox.receive(timeout=0.01)))
    os.kill(os.getpid(), signal.SIGTERM)
    event = await aio_process.events().receive()
    seen += [event.kind, event.reason, event.sender == aio_process.pid()]
    seen += [message.payload async for message in inbox]
    seen.append(await aio_error_of(inbox.receive()))
    seen.append(await aio_error_of(inbox.receive(timeout=0)))
    return seen


def poll_what_lies_in_the_pipe() -> Any:
    """A deadline of zero still takes what has arrived."""
    while True:
        try:
            return process.inbox().receive(timeout=0).payload
        except TimeoutError:
            time.sleep(0)


async def aio_poll_what_lies_in_the_pipe() -> Any:
    while True:
        try:
            return (await aio_process.inbox().receive(timeout=0)).payload
        except TimeoutError:
            await asyncio.sleep(0)


def misuse() -> list[str]:
    me = process.pid()
    looped: list[Any] = []
    looped.append(looped)
    return [
        error_of(process.send, me, "@exit"),
        error_of(process.send, me, 3),
        error_of(process.send, me, "x", {"a": [1, {2, 3j}]}),
        error_of(process.send, me, "x", 2**64),
        error_of(process.send, me, "x", looped),
        error_of(process.spawn, "nonsense"),
        error_of(process.spawn, "m:f", "no such host"),
        error_of(process.spawn, misuse, None, threading.Lock()),
        error_of(process.send, "{nobody|1}", "x"),
        error_of(process.send, "no such name", "x"),
        error_of(process.send, [], "x"),
    ]


async def aio_misuse() -> list[str]:
    me = aio_process.pid()
    return [
        await aio_error_of(aio_process.send(me, "@exit")),
        await aio_error_of(aio_process.send(me, "x", {"a": [1, {2, 3j}]})),
        await aio_error_of(aio_process.get_or_spawn("name", "nonsense")),
        await aio_error_of(aio_process.get_or_spawn("name", "m:f", "no such host")),
        await aio_error_of(aio_process.get_or_spawn("{name", "m:f")),
        await aio_error_of(aio_process.send([], "x")),
    ]


def child(parent: str, number: int) -> None:
    process.send(parent, "child", [number, process.pid(), os.getpid()])


def family(count: int) -> list[Any]:
    """Spawn children; gives what they sent and the PIDs that spawn returned."""
    pids = [process.spawn(child, None, process.pid(), number) for number in range(count)]
    inbox = process.inbox()
    said = [inbox.receive(timeout=20) for _ in pids]
    return [sorted(message.payload for message in said), pids, [m.sender for m in said]]


async def aio_family(count: int) -> list[Any]:
    pids = [aio_process.spawn(child, None, aio_process.pid(), number) for number in range(count)]
    inbox = aio_process.inbox()
    said = [await inbox.receive(timeout=20) for _ in pids]
    return [sorted(message.payload for message in said), pids, [m.sender for m in said]]


def meet(report_to: str) -> None:
    """Find or start the meeting point and tell who it is."""
    process.send(report_to, "met", process.get_or_spawn("meeting point", stay))


async def aio_meet(report_to: str) -> None:
    pid = await aio_process.get_or_spawn("meeting point", stay)
    await aio_process.send(report_to, "met", pid)


def stay() -> None:
    for _ in process.inbox():
        pass


def count_to(receiver: str, count: int) -> None:
    for number in range(count):
        process.send(receiver, "number", [process.pid(), number])


async def aio_count_to(receiver: str, count: int) -> None:
    await asyncio.gather(
        *(aio_process.send(receiver, "number", [aio_process.pid(), n]) for n in range(count))
    )


def collect(count: int) -> list[Any]:
    inbox = process.inbox()
    return [inbox.receive(timeout=20).payload for _ in range(count)]


def collect_slowly(count: int) -> int:
    """Take nothing before a go, so that everything has to wait somewhere."""
    total = 0
    inbox = process.inbox()
    for _ in range(count):
        total += len(inbox.receive(timeout=20).payload)
    return total


def collect_in_threads(count: int) -> int:
    taken: list[Any] = []
    inbox = process.inbox()

    def take() -> None:
        try:
            while True:
                taken.append(inbox.receive().payload)
        except ChannelClosed:
            return

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len({*taken}) if len(taken) == count else -len(taken)


def send_to_many(receivers: list[str], payload: Any) -> None:
    process.send(receivers, "many", payload)


def end_others(cancelled: str, terminated: str) -> None:
    process.cancel(cancelled, "no more")
    process.terminate(terminated)


def tell_cancel() -> list[Any]:
    event = process.events().receive(timeout=20)
    return [event.kind, event.reason, event.sender]


def interrupted_while_sending(receiver: str, count: int) -> int:
    """SIGTERM again and again in the middle of writes must tear no frame."""
    for number in range(count):
        if number % 50 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        process.send(receiver, "number", "x" * 5000)
    return count


def leave_thread() -> str:
    threading.Thread(target=time.sleep, args=(600,)).start()
    return "did not wait"


def leave_thread_that_receives(timeout: float | None) -> str:
    """Return while a thread waits for messages and, so, reads what comes."""
    receiving = threading.Event()

    def receive() -> None:
        inbox = process.inbox()
        receiving.set()
        inbox.receive(timeout=timeout)

    threading.Thread(target=receive, daemon=True).start()
    receiving.wait(20)
    error_of(process.registry.lookup, "nobody")
    return "did not wait"


def receive_in_loop_beside_thread(count: int) -> list[Any]:
    """Receive in an event loop while a thread waits that has begun to read before."""
    events = process.events()
    threading.Thread(target=error_of, args=(events.receive,), daemon=True).start()

    async def receive() -> list[Any]:
        inbox = aio_process.inbox()
        return [(await inbox.receive()).payload for _ in range(count)]

    first = process.inbox().receive().payload
    return [first, *asyncio.run(receive())]


def use_multiprocessing(numbers: list[int]) -> list[Any]:
    """Use what forks and pickles: the template of a worker was forked by other means."""
    import multiprocessing  # noqa: PLC0415 - as a handler would

    queue: Any = multiprocessing.Queue()
    child = multiprocessing.Process(target=queue.put, args=("from a child",))
    child.start()
    child.join()
    with multiprocessing.Pool(2) as pool:
        return [queue.get(), child.exitcode, pool.map(abs, numbers)]


def log_in_threads(count: int) -> None:
    import logging  # noqa: PLC0415 - as a handler would

    threads = [
        threading.Thread(target=logging.getLogger("t").warning, args=("line %d", number))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def reseed() -> list[int]:
    import random  # noqa: PLC0415 - as a handler would

    numbers = [random.getrandbits(60)]
    import sys  # noqa: PLC0415

    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numbers.append(int(numpy_random.randint(1 << 60)))
    return numbers


async def two_loops() -> str:
    await aio_error_of(aio_process.inbox().receive(timeout=0.001))

    def second() -> str:
        return asyncio.run(aio_error_of(aio_process.inbox().receive(timeout=0.001)))

    return await asyncio.to_thread(second)


async def mixed_faces() -> list[Any]:
    """Both faces in one thread: the synchronous one must not wait for the loop that it blocks."""
    first = await aio_process.inbox().receive(timeout=20)
    second = process.inbox().receive(timeout=20)
    third = await aio_process.inbox().receive(timeout=20)
    return [first.payload, second.payload, third.payload]


class TooLongError(Exception):
    """What `interrupted_sends` interrupts itself with."""


def interrupted_sends(count: int) -> None:
    """Send large messages, many of which are broken off by an alarm, then a text.

    The alarm goes on to ring when the handler has returned.
    """

    over = False

    def ring(_: int, frame: FrameType | None) -> None:
        while over and frame is not None:
            if frame.f_code is interrupted_sends.__code__:
                return  # it has not returned yet
            frame = frame.f_back
        raise TooLongError

    message = next(iter(process.inbox()))
    signal.signal(signal.SIGALRM, ring)
    data = {"type": "binary", "data": b"d" * 1_000_000}
    for i in range(count):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0003 + 0.0001 * (i % 30))
            process.send(message.sender, "ws.send", data)
            while True:
                pass
        except TooLongError:
            pass
    process.send(message.sender, "ws.send", {"type": "text", "data": "done"})
    over = True
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


async def plain_calls_behind_a_full_pipe(path: str) -> str:
    """Call all that is not awaited while the client does not read; the file tells when it is done.

    It begins when there is another file, `path` and `.held`: the node holds this process by then.
    Returns at once, with much that is not written yet.
    """
    held = Path(f"{path}.held")
    pipe = process._worker().pipe
    client = (await aio_process.inbox().receive()).sender
    text = {"type": "text", "data": "x" * 100_000}
    stuck = asyncio.create_task(aio_process.send(client, "ws.send", text))
    while not (pipe.line and held.exists()):
        if stuck.done():
            stuck = asyncio.create_task(aio_process.send(client, "ws.send", text))
        await asyncio.sleep(0.001)
    aio_process.groups.join("a group")
    aio_process.monitor(client)
    aio_process.link(client)
    aio_process.unlink(client)
    aio_process.set_options(trap_links=True)
    aio_process.cancel("nobody")
    aio_process.terminate("nobody")
    aio_process.spawn(caller_that_ends)
    logging.getLogger("mine").warning("behind a full pipe")
    process.groups.broadcast("another group", "topic")
    for number in range(20):
        process.send(client, "ws.send", {"type": "text", "data": f"{number} " + "x" * 50_000})
    assert not stuck.done()
    Path(path).touch()
    return "done"


def caller_that_ends() -> None:
    """Return at once."""
