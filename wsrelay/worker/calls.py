"""What a worker can do: the worker's side of the functions in `wsrelay.process`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from sys import modules
from typing import Any, Literal

from wsrelay import errors, tracing, wire
from wsrelay.values import durations
from wsrelay.values.message import late, reason_of, sendable
from wsrelay.values.pid import PID, PIDSource, address, nameable, placed
from wsrelay.values.presence import Member
from wsrelay.values.timer import Timer, cost
from wsrelay.wire import meta as metadata
from wsrelay.wire import payload
from wsrelay.wire.code import pack_elsewhere, pack_plain, pack_target

from . import title
from .mailbox import Mailbox
from .pipe import WorkerPipe
from .queues import Queue
from .timers import PendingTimers

__all__ = ["WorkerContext"]

logger = logging.getLogger(__name__)


class WorkerContext:
    """The worker's side of everything that handlers call.

    Methods build a frame and write it; those named `*_frame` only build it, for both faces.
    """

    def __init__(self, pipe: WorkerPipe, start: wire.StartFrame) -> None:
        self.pipe = pipe
        self.mailbox = Mailbox(pipe)
        self._pid = PID.trusted(start.pid)
        self.mailbox.known = start.known
        self._ids = PIDSource(str(self._pid.node), start.ids)
        self._rights = start.rights
        self._refs = itertools.count(1)
        self._timers = PendingTimers()
        self.options = {"trap_links": False, "end_when_empty": start.end_when_empty}
        self.in_room = False
        """Whether a `Room` takes all that arrives."""

    def pid(self) -> PID:
        """Return the worker's own PID."""
        return self._pid

    def shut(self) -> None:
        """Read and write nothing any more: this is a child that the handler has forked."""
        self.pipe.shut()
        self.mailbox.shut()

    # Frames, which the synchronous and the asynchronous face write

    def send_frames(
        self, to: str | Iterable[str], topic: str, content: Any
    ) -> list[wire.SendFrame]:
        """Build the frames of a message; there are several if it has more than 10,000 receivers.

        Raises `ReservedTopic`, `PayloadError`, `InvalidPID`, `InvalidName`.
        """
        topic, data = sendable(topic), payload.encode(content)
        if tracing.OTEL in modules and not topic.startswith("ws."):  # else it is for a client
            data = tracing.carried(data)
        if isinstance(to, str):
            return [wire.SendFrame(address(to), topic, data)]
        receivers = [address(one) for one in to]
        return [wire.SendFrame(portion, topic, data) for portion in wire.portions(receivers)]

    def _send_after_frame(
        self, seconds: float, to: str | Iterable[str], topic: str, content: Any
    ) -> wire.SendAfterFrame:
        """Build the frame of a message that is sent later, and count it.

        Raises `TypeError`, `ValueError`, `TooMany`, and what `send_frames` raises.
        """
        wait = durations.seconds_of(seconds, "seconds")
        frame, *more = self.send_frames(to, topic, content)
        if more:
            raise errors.TooMany("timer's receivers", wire.MAX_RECEIVERS)
        size = len(frame.payload)
        wire.check_size(size)
        timer = str(Timer.of(self._ids.next(self._pid.host)))
        due = time.monotonic_ns() + int(wait * 1_000_000_000)
        self._timers.add(timer, due, cost(frame.to, topic, size))
        return wire.SendAfterFrame(timer, due, frame.to, frame.topic, frame.payload)

    def broadcast_frame(self, group: str, topic: str, content: Any) -> wire.BroadcastFrame:
        """Build the frame of a message to a group."""
        topic, data = sendable(topic), payload.encode(content)
        if tracing.OTEL in modules and not topic.startswith("ws."):
            data = tracing.carried(data)
        return wire.BroadcastFrame(group, topic, data)

    def spawn_frame(  # noqa: PLR0917 - the order of the public functions
        self,
        target: Any,
        host: str | None,
        args: Any,
        kwargs: Any,
        monitored: bool = False,
        linked: bool = False,
    ) -> wire.SpawnFrame:
        """Build the frame that starts a process, whose PID is made here.

        Raises `NotAllowed`, `UnknownHost` and what `pack_target` raises.
        """
        frame = self._spawn_frame(target, host, args, kwargs, monitored, linked)
        frame.code = tracing.carried(frame.code)
        return frame

    def _spawn_frame(  # noqa: PLR0917 - as above
        self,
        target: Any,
        host: str | None,
        args: Any,
        kwargs: Any,
        monitored: bool = False,
        linked: bool = False,
    ) -> wire.SpawnFrame:
        known, text = self.mailbox.known, target if isinstance(target, str) else None
        if host is not None and "@" in host:
            name, node = placed(host)
            if node == "*":
                node = known.roomy.get(name)
            if node is not None and node != self._pid.node:
                there = self._ids.placed(name, node)
                text, code = pack_elsewhere(target, args, kwargs, known.entries, there)
                if self._rights is not None:
                    home = known.home(text)
                    self._rights.check_spawn(name, text, home, plain=True, linked=linked)
                return wire.SpawnFrame(str(there), name, text, code, monitored, linked, plain=True)
            host = name
        own = known.entries.get(target) if isinstance(target, str) else None
        name = host or own or self._pid.host
        if name not in known.hosts:
            raise errors.UnknownHost(name, known.hosts)
        pid = str(self._ids.next(name))
        if self._rights is not None and name != self._pid.host:
            home = known.home(text)
            self._rights.check_spawn(name, text, home, plain=True, linked=linked)
            code = pack_plain(args, kwargs)
            return wire.SpawnFrame(pid, name, text, code, monitored, linked, plain=True)
        text, code, label = pack_target(target, args, kwargs, known.entries)
        return wire.SpawnFrame(pid, name, text, code, monitored, linked, label=label)

    def get_or_spawn_frame(
        self, name: str, target: Any, host: str | None, args: Any, kwargs: Any
    ) -> wire.GetOrSpawnFrame:
        """Build the frame that finds or starts a process under a name."""
        spawn = self._spawn_frame(target, host, args, kwargs)
        known = self.mailbox.known
        if known.shared and not spawn.plain and spawn.target in known.entries:
            with contextlib.suppress(errors.PayloadError):  # then only this node can start it
                spawn.code, spawn.plain = pack_plain(args, kwargs), True
        spawn.code = tracing.carried(spawn.code)
        stays = host is not None and placed(host)[1] == self._pid.node
        return wire.GetOrSpawnFrame(self.ref(), nameable(name), spawn, stays)

    def exec_frame(self, target: Any, host: str | None, args: Any, kwargs: Any) -> wire.ExecFrame:
        """Build the frame that starts a process and asks for its result."""
        return wire.ExecFrame(self.ref(), self.spawn_frame(target, host, args, kwargs))

    def register_frame(self, name: str, pid: str | None) -> wire.RegisterFrame:
        """Build the frame that gives a process a name."""
        return wire.RegisterFrame(self.ref(), nameable(name), self._own_or(pid))

    def fence_frame(self, name: str | None) -> wire.FenceFrame:
        """Build the frame that asks for the number of a name's owner."""
        return wire.FenceFrame(self.ref(), None if name is None else nameable(name))

    def _drain_frame(self, to: str) -> wire.DrainFrame:
        """Build the frame that asks when a connection's outbox has room."""
        return wire.DrainFrame(self.ref(), str(PID(to)))

    def call_frame(self, to: str, topic: str, content: Any) -> wire.CallFrame:
        """Build the frame of a message that wants an answer; raises as `send_frames` does."""
        data = tracing.carried(payload.encode(content))
        return wire.CallFrame(self.ref(), address(to), sendable(topic), data)

    def ref(self) -> int:
        """Return the number of a new request."""
        return next(self._refs)

    # Calls that need no answer

    def send(self, to: str | Iterable[str], topic: str, content: Any = None) -> None:
        """Send a message; on return, the operating system has it."""
        for frame in self.send_frames(to, topic, content):
            self.pipe.write(frame)

    async def send_async(self, to: str | Iterable[str], topic: str, content: Any = None) -> None:
        """Do what `send` does without holding up the event loop."""
        *others, last = self.send_frames(to, topic, content)
        for frame in others:  # without awaiting, or another task's message could come in between
            self.pipe.post(frame)
        await self.pipe.write_async(last)

    def send_after(
        self, seconds: float, to: str | Iterable[str], topic: str, content: Any = None
    ) -> Timer:
        """Have the node send a message later."""
        frame = self._send_after_frame(seconds, to, topic, content)
        try:
            self.pipe.write(frame)
        except errors.PayloadError:
            self._timers.remove(frame.timer)
            raise
        return Timer(frame.timer)

    async def send_after_async(
        self, seconds: float, to: str | Iterable[str], topic: str, content: Any = None
    ) -> Timer:
        """Do what `send_after` does without holding up the event loop."""
        frame = self._send_after_frame(seconds, to, topic, content)
        try:
            await self.pipe.write_async(frame)
        except errors.PayloadError:
            self._timers.remove(frame.timer)
            raise
        return Timer(frame.timer)

    def cancel_timer(self, timer: Timer) -> None:
        """Do not send the message of a timer, if it has not been sent."""
        self.pipe.write(wire.CancelTimerFrame(str(timer)))
        self._timers.remove(timer)

    def spawn(self, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
        """Start a process and return its PID at once."""
        return self.start(self.spawn_frame(target, host, args, kwargs))

    def start(self, frame: wire.SpawnFrame) -> PID:
        """Start the process of the frame and return its PID at once."""
        self.pipe.write(frame)
        return PID.trusted(frame.pid)

    def cancel(self, to: str, reason: str = "") -> None:
        """Ask a process to end."""
        self.pipe.write(wire.CancelFrame(address(to), reason_of(reason)))

    def terminate(self, to: str) -> None:
        """End a process at once."""
        self.pipe.write(wire.TerminateFrame(address(to)))

    def relate(self, kind: Literal["monitor", "unmonitor", "link", "unlink"], to: str) -> None:
        """Begin or end a relation; raises `InvalidPID`."""
        self.pipe.write(wire.RelateFrame(kind, str(PID(to))))

    def set_options(self, **given: Any) -> None:
        """Change the options that are given; raises `TypeError`, `ValueError`."""
        options = {**self.options, **given}
        if not isinstance(options["trap_links"], bool):
            raise TypeError(f"trap_links is {given['trap_links']!r:.80} and must be True or False")
        if (ends := options["end_when_empty"]) is not None:
            options["end_when_empty"] = durations.either(ends, "end_when_empty")
        self.pipe.write(wire.OptionsFrame(**options))
        self.options = options

    def join_group(self, group: str, pid: str | None, meta: Any = None) -> None:
        """Let a process join a group."""
        own, data = self._own_or(pid), metadata.encode(meta)
        self.pipe.write(wire.JoinGroupFrame(nameable(group), own, data))

    def leave_group(self, group: str, pid: str | None) -> None:
        """Let a process leave a group."""
        self.pipe.write(wire.LeaveGroupFrame(nameable(group), self._own_or(pid)))

    def _own_or(self, pid: str | None) -> str:
        return str(self._pid if pid is None else PID(pid))

    def broadcast(self, group: str, topic: str, content: Any) -> None:
        """Send a message to all members of a group."""
        self.pipe.write(self.broadcast_frame(group, topic, content))

    def answer(self, call: int, value: Any, refused: str | None = None) -> None:
        """Answer the call with that number by a value, or by the text of a refusal."""
        self.pipe.write(_answer_frame(call, value, refused))

    async def answer_async(self, call: int, value: Any, refused: str | None = None) -> None:
        """Do what `answer` does without holding up the event loop."""
        await self.pipe.write_async(_answer_frame(call, value, refused))

    # Calls that wait for an answer

    def call(self, to: str, topic: str, content: Any, timeout: float | None) -> Any:
        """Send a message and return the answer."""
        with tracing.calling(to, topic):
            frame = self.call_frame(to, topic, content)
            try:
                return self.ask(frame, timeout)
            except TimeoutError:
                raise late(to, topic, timeout) from None

    async def call_async(
        self,
        to: str,
        topic: str,
        content: Any,
        timeout: float | None,  # noqa: ASYNC109 - as in `call`
    ) -> Any:
        """Do what `call` does without holding up the event loop."""
        with tracing.calling(to, topic):
            frame = self.call_frame(to, topic, content)
            try:
                return await self.ask_async(frame, timeout)
            except TimeoutError:
                raise late(to, topic, timeout) from None

    def get_or_spawn(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Find a process by name or start it under that name."""
        return PID.trusted(self.ask(self.get_or_spawn_frame(name, target, host, args, kwargs)))

    async def get_or_spawn_async(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Do what `get_or_spawn` does without holding up the event loop."""
        frame = self.get_or_spawn_frame(name, target, host, args, kwargs)
        return PID.trusted(await self.ask_async(frame))

    def register(self, name: str, pid: str | None) -> None:
        """Give a process a name."""
        frame = self.register_frame(name, pid)
        self.ask(frame)
        if frame.pid == self._pid:
            title.add(self._pid, name)

    async def register_async(self, name: str, pid: str | None) -> None:
        """Do what `register` does without holding up the event loop."""
        frame = self.register_frame(name, pid)
        await self.ask_async(frame)
        if frame.pid == self._pid:
            title.add(self._pid, name)

    def lookup(self, name: str) -> PID:
        """Return the process with that name."""
        return PID.trusted(self.ask(wire.LookupFrame(self.ref(), name)))

    def unregister(self, name: str) -> None:
        """Free a name."""
        self.ask(wire.UnregisterFrame(self.ref(), name))
        title.remove(self._pid, name)

    async def unregister_async(self, name: str) -> None:
        """Do what `unregister` does without holding up the event loop."""
        await self.ask_async(wire.UnregisterFrame(self.ref(), name))
        title.remove(self._pid, name)

    def fence(self, name: str | None) -> int:
        """Return the worker's number as the owner of a name."""
        number: int = self.ask(self.fence_frame(name))
        return number

    def members(self, group: str) -> list[PID]:
        """Return a group's members."""
        return [PID.trusted(pid) for pid in self.ask(wire.MembersFrame(self.ref(), group))]

    def roster(self, group: str) -> list[Member]:
        """Return a group's members with their metadata."""
        return self.roster_of(self.ask(wire.RosterFrame(self.ref(), group)))

    @staticmethod
    def roster_of(told: list[tuple[str, bytes]]) -> list[Member]:
        """Return the members in the answer to a `RosterFrame`."""
        return [Member(PID.trusted(pid), metadata.decode(data)) for pid, data in told]

    def drain(self, to: str, timeout: float | None) -> None:
        """Wait until most of what was sent to a connection is on its way."""
        self.ask(self._drain_frame(to), timeout)

    async def drain_async(
        self,
        to: str,
        timeout: float | None,  # noqa: ASYNC109 - as in `drain`
    ) -> None:
        """Do what `drain` does without holding up the event loop."""
        await self.ask_async(self._drain_frame(to), timeout)

    def ask(self, frame: wire.Request | wire.ExecFrame, timeout: float | None = None) -> Any:
        """Write a request and return its answer; raises the error in it, or `TimeoutError`."""
        with self._asking(frame.ref) as queue:
            self.pipe.write(frame)
            reply = self.mailbox.take(queue, timeout=timeout)[1]
        return answer(reply)

    async def ask_async(
        self,
        frame: wire.Request | wire.ExecFrame,
        timeout: float | None = None,  # noqa: ASYNC109 - as in `ask`
    ) -> Any:
        """Do what `ask` does without holding up the event loop."""
        with self._asking(frame.ref) as queue:
            await self.pipe.write_async(frame)
            reply = (await self.mailbox.take_async(queue, timeout=timeout))[1]
        return answer(reply)

    @contextlib.contextmanager
    def _asking(self, ref: int) -> Iterator[Queue[Any]]:
        """Give the queue for the answer; the node is told when nothing waits for it any more."""
        try:
            yield self.mailbox.expect(ref)
        except BaseException:
            with contextlib.suppress(OSError):  # the node is gone, which the exception says
                self.pipe.post(wire.ForgetFrame(ref))
            raise
        finally:
            self.mailbox.forget(ref)


def _answer_frame(call: int, value: Any, refused: str | None) -> wire.AnswerFrame:
    text = None if refused is None else reason_of(refused)
    return wire.AnswerFrame(call, payload.encode(value), text)


def answer(reply: wire.ReplyFrame | wire.FinishedFrame) -> Any:
    """Return a reply's value, or raise the error that it carries."""
    if isinstance(reply, wire.FinishedFrame):
        reply.check()
        return reply.result.opened().value
    if reply.error is None:
        return reply.value
    kind = getattr(errors, reply.error, errors.WsrelayError)
    error = kind.__new__(kind)
    Exception.__init__(error, reply.message)
    raise error
