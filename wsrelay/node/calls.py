"""Calls: messages that want an answer, and who waits for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from msgspec import Struct

from wsrelay import wire
from wsrelay.errors import InvalidCall, NotAProcess
from wsrelay.values.message import ExitError, ExitKind, Result, late
from wsrelay.values.pid import PID
from wsrelay.wire import payload

from .endpoint import Mail
from .engine import Engine
from .process import WorkerProcess

__all__ = ["Calls", "NodeCall", "awaited_in", "waited_for"]

T = TypeVar("T")

_NOTHING = b"\xc0"
_NO_REPLY = "it returned without an answer"


class WaitingCall(Struct, eq=False):
    """A call that waits: the caller's number for it, whom its answer goes to, and since when."""

    ref: int
    future: asyncio.Future[wire.FinishedFrame]
    caller: PID
    topic: str
    since: float


class Calls:
    """The calls that wait for their answers.

    Each is a future in the list of the process that was called, so that no other can answer it. It
    leaves the list when it is answered, when it is cancelled because nobody waits any more, and
    when that process ends. Who calls bounds how many there are: each process by its `pending`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._numbers = itertools.count(1)
        self.waiting: dict[PID, dict[int, WaitingCall]] = {}
        """For each process that was called the calls by their numbers."""

    def __len__(self) -> int:
        return sum(map(len, self.waiting.values()))

    def call(
        self, caller: PID, ref: int, to: str, topic: str, content: bytes
    ) -> asyncio.Future[wire.FinishedFrame]:
        """Deliver a message that wants an answer; return a future of the frame that tells it.

        Raises `InvalidCall` if there can be no answer.
        """
        future: asyncio.Future[wire.FinishedFrame] = asyncio.get_running_loop().create_future()
        pid = self._callee(caller, to)
        if isinstance(pid, ExitError):
            future.set_result(_ended(ref, pid))
            return future
        if pid not in self._engine.processes:
            return self._engine.elsewhere.call(caller, ref, pid, topic, content)
        number = next(self._numbers)
        waiting = WaitingCall(ref, future, caller, topic, time.monotonic())
        self.waiting.setdefault(pid, {})[number] = waiting
        future.add_done_callback(functools.partial(self._forget, pid, number))
        frame = wire.CalledFrame(topic, str(caller), content, number)
        # If it is not taken the process is about to end, which answers.
        self._engine.endpoints[pid].deliver(Mail(caller, topic, content, _packed=wire.pack(frame)))
        return future

    def _callee(self, caller: PID, to: str) -> PID | ExitError:
        """Return the process that is called, here or elsewhere, or why there is none.

        Raises `InvalidCall`.
        """
        process = self._engine.kernel.find(to, self._engine.name)
        if process is None:
            if to in self._engine.endpoints:
                raise InvalidCall(f"{to} is a node, which answers no calls")
            if (there := self._engine.elsewhere.find(to)) is not None:
                return there
            return ExitError(ExitKind.NOPROC, f"there is no process {to}")
        if process.pid == caller:
            raise InvalidCall(f"{to} is the caller itself, which would wait for its own answer")
        if self._engine.kernel.names.awaited(process.pid) == caller:
            raise InvalidCall(f"{to} is the caller's own successor, which waits for its end")
        if process.connection:
            raise InvalidCall(f"{to} is a connection, which answers no calls")
        if not process.takes_mail:
            return ExitError(ExitKind.NOPROC, f"{to} has been cancelled and takes no calls")
        return process.pid

    def answer(self, process: WorkerProcess, frame: wire.AnswerFrame) -> None:
        """Pass on the answer of a process, if it was called and somebody still waits."""
        waiting = self.waiting.get(process.pid, {})
        if (call := waiting.pop(frame.call, None)) is not None:
            ref, future = call.ref, call.future
            if not future.done():
                value = _NOTHING if frame.refused is not None else frame.value
                result = wire.PackedResult(value)
                future.set_result(wire.FinishedFrame(ref, result, frame.refused))

    def ended(self, process: WorkerProcess, result: Result) -> None:
        """Tell all who still wait for an answer of the process how it has ended."""
        error = result.error or ExitError(ExitKind.NO_REPLY, _NO_REPLY)
        for call in self.waiting.pop(process.pid, {}).values():
            if not call.future.done():
                call.future.set_result(_ended(call.ref, error))

    def _forget(self, pid: PID, number: int, _: Any) -> None:
        if (waiting := self.waiting.get(pid)) is not None:
            waiting.pop(number, None)
            if not waiting:
                del self.waiting[pid]


class NodeCall:
    """A call that the node makes, for an HTTP handler or the shell."""

    def __init__(  # noqa: PLR0917 - internal
        self,
        calls: Calls,
        loop: asyncio.AbstractEventLoop,
        caller: PID,
        to: str,
        topic: str,
        content: bytes,
        timeout: float | None,
    ) -> None:
        self._calls = calls
        self._loop = loop
        self._caller = caller
        self._to = to
        self._topic = topic
        self._content = content
        self._timeout = timeout

    def wait(self) -> Any:
        """Make the call in the node's event loop and wait in this thread; return the answer."""
        return self._opened(waited_for("call", self._loop, self._ask()))

    async def wait_async(self) -> Any:
        """Make the call in the node's event loop and wait in this one; return the answer."""
        return self._opened(await awaited_in(self._loop, self._ask()))

    async def _ask(self) -> wire.FinishedFrame:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._calls.call(self._caller, 0, self._to, self._topic, self._content)
        except TimeoutError:
            raise late(self._to, self._topic, self._timeout) from None

    def _opened(self, frame: wire.FinishedFrame) -> Any:
        frame.check()
        try:
            return payload.decode_bounded(frame.result.value)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self._to} answered {self._topic!r} with what cannot be read: {error}"
            ) from None


def waited_for(
    call: str, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], more: str = ""
) -> T:
    """Run a coroutine in the node's event loop and wait for it in this thread.

    Raises `NotAProcess` where an event loop runs: it would stand still.
    """
    if _is_in_loop():
        work.close()
        raise NotAProcess(
            f"process.{call} would hold up the event loop: "
            f"in a coroutine use `await wsrelay.aio.process.{call}(...)`{more}"
        )
    asked = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return asked.result()
    except concurrent.futures.CancelledError:
        raise NotAProcess("the node has ended") from None
    except BaseException:
        asked.cancel()
        raise


async def awaited_in(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the node's event loop and wait for it in this one."""
    if loop is asyncio.get_running_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


def _is_in_loop() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _ended(ref: int, error: ExitError) -> wire.FinishedFrame:
    return wire.FinishedFrame(ref, wire.PackedResult(_NOTHING, error))
