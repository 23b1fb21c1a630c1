"""Handlers that do what any script does with signals, forks and multiprocessing.

They return what they saw.

What stands at the top here is loaded by the template, as the top of a script of `wsrelay run`.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import logging
import multiprocessing
import multiprocessing.shared_memory
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from wsrelay import process, wire
from wsrelay.aio import process as aio_process

HANGUPS: list[int] = []

signal.signal(signal.SIGHUP, lambda number, _: HANGUPS.append(number))


# Signals


def look_at_signals() -> dict[str, str]:
    """What a program sees that is started here, and what this process has."""
    names = ["SIGINT", "SIGTERM", "SIGCHLD", "SIGQUIT", "SIGUSR1", "SIGALRM"]
    ignored = "import signal; print([n.name for n in signal.valid_signals() if hasattr(n, 'name')"
    ignored += " and signal.getsignal(n) is signal.SIG_IGN])"
    here = {name: str(signal.getsignal(getattr(signal, name))) for name in names}
    done = subprocess.run(
        [sys.executable, "-c", ignored], capture_output=True, text=True, check=True
    )
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return {**here, "ignored in a program": done.stdout.strip(), "masked": str(masked)}


def interrupt_main() -> str:
    try:
        threading.Timer(0, _thread.interrupt_main).start()
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt:
        return "interrupted"


async def aio_interrupt_main() -> str:
    try:
        threading.Timer(0, _thread.interrupt_main).start()
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        return "cancelled"
    return "slept"


def hang_up() -> list[int]:
    os.kill(os.getpid(), signal.SIGHUP)
    return HANGUPS


def own_sigterm() -> str:
    """A handler of one's own takes the place of the CANCEL."""
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        return process.events().receive(timeout=0.1).kind
    except TimeoutError:
        return signal.Signals(seen[0]).name


def shell() -> None:
    """A shell on a terminal of its own, for one client."""
    for message in process.inbox():
        if message.topic == "ws.join":
            client = message.sender
            child, terminal = pty.fork()
            if child == 0:
                os.execvpe("sh", ["sh", "-i"], {**os.environ, "PS1": "$ "})  # noqa: S606 - it is one

            def pump(client: str = client, terminal: int = terminal) -> None:
                with contextlib.suppress(OSError):
                    while True:
                        data = os.read(terminal, 4096)
                        process.send(client, "ws.send", {"type": "binary", "data": data})

            threading.Thread(target=pump, daemon=True).start()
        elif message.topic == "ws.message":
            os.write(terminal, message.payload["data"].encode())


# The end of one that goes on


def go_on(file: str, work: str) -> None:
    """Do something for ever, without a look at the inbox; the file tells that `finally` ran."""
    works: dict[str, Callable[[], Any]] = {
        "sleep": lambda: time.sleep(600),
        "compute": lambda: sum(range(1000)),
        "wait for a lock": lambda: threading.Event().wait(),
        "wait for an event": lambda: process.events().receive(),
        "send": lambda: process.send("nobody", "tick", "x" * 1000),
        "asyncio": lambda: asyncio.run(asyncio.sleep(600)),
    }
    try:
        process.registry.register("goes on")
        while True:
            works[work]()
    finally:
        Path(file).write_text("finally")


def miss_an_interrupt(file: str) -> None:
    """Go on after the first, as if it had arrived just before the system call of the sleep."""
    interrupted = signal.getsignal(wire.INTERRUPT)
    signal.signal(wire.INTERRUPT, lambda number, _: signal.signal(number, interrupted))
    go_on(file, "sleep")


async def aio_go_on(file: str, work: str) -> None:
    try:
        await aio_process.registry.register("goes on")
        while True:
            match work:
                case "sleep":
                    await asyncio.sleep(600)
                case "wait for an event":
                    await aio_process.events().receive()
                case "send":
                    await aio_process.send("nobody", "tick", "x" * 1000)
                case "wait for a task":
                    await asyncio.gather(asyncio.sleep(600), asyncio.sleep(600))
    finally:
        await asyncio.sleep(0)
        Path(file).write_text("finally")


def stream(file: str = "") -> None:
    """Only send, as long as there is somebody."""
    client = process.inbox().receive().sender
    file = file or process.inbox().receive().payload["data"]
    try:
        while True:
            process.send(client, "ws.send", {"type": "text", "data": "tick"})
            time.sleep(0.01)
    finally:
        Path(file).write_text("finally")


def clean_up_slowly(file: str) -> str:
    """Return something after a `finally` that takes a while."""
    try:
        process.registry.register("goes on")
        time.sleep(600)
    except SystemExit:
        time.sleep(0.2)
        Path(file).write_text("finally")
    return "cleaned up"


def return_at_its_interrupt(ready: str) -> str:
    """Be in the middle of the worker's own end, again and again, when the interrupt comes."""
    for _ in process.inbox():
        pass
    Path(ready).touch()
    return "x" * 10_000_000


# Forks


def _in_child(function: Callable[[], Any]) -> tuple[str, int]:
    """What a forked child writes, and its exit code as `subprocess` gives it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        function()
        raise AssertionError("it was to leave")
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as output:
        text = output.read()
    _, status = os.waitpid(child, 0)
    return text, os.waitstatus_to_exitcode(status)


def leave_by(way: str) -> Any:
    """Fork a child that leaves this way, and tell what became of it and of this process."""
    file = Path(process.inbox().receive().payload)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), 2)
        match way:
            case "return":
                return "the child's"
            case "sys.exit":
                sys.exit(7)
            case "raise":
                raise ZeroDivisionError("in the child")
            case "signal":
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(600)
    _, status = os.waitpid(child, 0)
    rest = [process.inbox().receive(timeout=20).payload for _ in range(100)]
    return [os.waitstatus_to_exitcode(status), file.read_text(), rest == list(range(100))]


async def aio_leave_by(way: str) -> Any:
    file = Path((await aio_process.inbox().receive()).payload)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), 2)
        match way:
            case "return":
                return "the child's"
            case "sys.exit":
                sys.exit(7)
            case "raise":
                raise ZeroDivisionError("in the child")
            case "signal":
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pause()
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    inbox = aio_process.inbox()
    rest = [(await inbox.receive(timeout=20)).payload for _ in range(100)]
    return [os.waitstatus_to_exitcode(status), file.read_text(), rest == list(range(100))]


def call_in_child() -> list[str]:
    """What each call says in a child; also a loop over the inbox that was begun before."""
    inbox, events, me = process.inbox(), process.events(), process.pid()
    ticks, incoming = process.ticks(0.001), process.incoming()
    timer = process.send_after(600, me, "x")
    next(iter(inbox))
    calls: list[Callable[[], Any]] = [
        process.pid,
        process.inbox,
        lambda: process.send(me, "x"),
        lambda: process.spawn("m:f"),
        lambda: process.exec("m:f"),
        lambda: process.registry.lookup("x"),
        lambda: inbox.receive(timeout=0),
        events.receive,
        lambda: next(iter(inbox)),
        lambda: process.select(inbox, events),
        process.incoming,
        lambda: process.ticks(1),
        process.stopping,
        lambda: process.send_after(1, me, "x"),
        timer.cancel,
        lambda: asyncio.run(aio_process.send_after(1, me, "x")),
        incoming.receive,
        lambda: next(iter(incoming)),
        ticks.receive,
        lambda: asyncio.run(aio_process.send(me, "x")),
        lambda: asyncio.run(aio_process.Channel(inbox._mailbox, inbox._queue).receive()),
    ]

    def call_all() -> NoReturn:
        for call in calls:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - it is what is asked for
                sys.stdout.write(f"{type(error).__name__}: {error}\n")
            else:
                sys.stdout.write("no error\n")
        sys.exit(0)

    text, code = _in_child(call_all)
    return [*text.splitlines(), str(code), str(len(calls)), str(me)]


def log_in_child(text: str) -> list[Any]:
    def log() -> NoReturn:
        logging.getLogger("child").warning("%s", text)
        sys.exit(0)

    logging.getLogger("parent").warning("%s", text)
    return list(_in_child(log))


def preexec() -> list[str]:
    """A program that is started with a function of one's own before it."""
    script = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    command = [sys.executable, "-c", script]
    said = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.write(1, b"before\n"),
    )
    before = os.setpgrp
    with subprocess.Popen(["sleep", "600"], preexec_fn=before) as child:  # noqa: PLW1509
        child.terminate()
        return [*said.stdout.split(), str(child.wait(20))]


# multiprocessing


def double(number: int) -> int:
    return 2 * number


def pid_of_child(_: int) -> str:
    try:
        return str(process.pid())
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return str(error)


def main_process() -> list[Any]:
    me = multiprocessing.current_process()
    default = multiprocessing.get_start_method(allow_none=True)
    child = multiprocessing.Process(target=double)
    return [default, me.name, multiprocessing.parent_process(), child.name]


def use(method: str) -> list[Any]:
    """What can be used is used, with a start method."""
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=queue.put, args=("from a child",))
    child.start()
    seen = [queue.get(timeout=60), child.join(60), child.exitcode]
    with context.Pool(2) as pool:
        seen += [pool.map(double, range(3)), pool.map(pid_of_child, [0])]
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        seen.append(list(executor.map(double, range(3))))
    with context.Manager() as manager:
        shared = manager.dict(a=1)
        child = context.Process(target=shared.update, args=({"b": 2},))
        child.start()
        child.join(60)
        seen.append(dict(shared))
    victim = context.Process(target=time.sleep, args=(600,))
    victim.start()
    victim.terminate()
    victim.join(60)
    return [*seen, victim.exitcode]


def folder_of_sockets() -> str:
    folder: str = multiprocessing.util.get_temp_dir()
    Path(folder, "socket").touch()
    return folder


def leave_behind(how: str) -> Any:
    """End with shared memory and named semaphores, and children that have them, too."""
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 16)
    context: Any = multiprocessing.get_context("spawn")
    lock = context.Lock()
    if how != "wait alone":
        multiprocessing.Process(target=time.sleep, args=(600,)).start()
    names = [memory.name, lock._semlock.name.replace("/", "sem.")]
    process.send(process.inbox().receive().payload, "left", names)
    match how:
        case "return":
            return names
        case "raise":
            raise ZeroDivisionError("on purpose")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait" | "wait alone":
            time.sleep(600)
    return None


def collect(function: str, how: str) -> list[str]:
    """Start a process that leaves things behind and return their names."""
    pid = process.spawn(function, None, how)
    process.send(pid, "report to", process.pid())
    names: list[str] = process.inbox().receive(timeout=60).payload
    return names
