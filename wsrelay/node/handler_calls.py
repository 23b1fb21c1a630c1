"""What HTTP handlers, services and operators call on a node, from any thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from sys import modules
from typing import Any, Final, TypeVar

from wsrelay import tracing, wire
from wsrelay.errors import InvalidName, NameTaken, NotAProcess, PayloadError
from wsrelay.kernel import Kernel, Signal
from wsrelay.values import current
from wsrelay.values.durations import seconds_of
from wsrelay.values.message import Result, reason_of, sendable
from wsrelay.values.pid import PID, PIDSource, address, placed
from wsrelay.values.presence import Member
from wsrelay.values.targets import TargetEntry
from wsrelay.values.timer import Timer
from wsrelay.wire import check_size, payload
from wsrelay.wire import meta as metadata
from wsrelay.wire.code import pack_elsewhere, pack_plain, pack_target

from .calls import Calls, NodeCall, awaited_in, waited_for
from .endpoint import Mail
from .engine import Engine
from .process import NamedOrder, SpawnOrder
from .requests import Requests
from .router import MessageRouter
from .templates import Templates
from .timers import Later

__all__ = ["HandlerCalls", "settled"]

_HEADER: Final = ", or let the X-WS-Relay header's `target` and `name` start the process"

T = TypeVar("T")


class HandlerCalls:
    """The part of `Node` that acts on behalf of the node, as processes act by `wsrelay.process`.

    What waits raises where an event loop runs; beside it is a method for coroutines.
    """

    name: str
    engine: Engine
    router: MessageRouter
    _calls: Calls
    _requests: Requests
    _templates: Templates
    _ids: PIDSource
    _pid: PID
    _loop: asyncio.AbstractEventLoop | None
    _thread: int

    @property
    def kernel(self) -> Kernel:
        """The process table."""
        return self.engine.kernel

    @property
    def entries(self) -> dict[str, TargetEntry]:
        """What can be spawned by its id."""
        return self.engine.entries

    def pid(self) -> PID:
        """Return the node's own PID: the sender of what HTTP handlers send."""
        return self._pid

    def send(self, to: str | Iterable[str], topic: str, payload_: Any = None) -> None:
        """Send a message; raises `ReservedTopic`, `PayloadError`, `NodeBusy`."""
        content = _content(topic, payload_)
        receivers = [address(to)] if isinstance(to, str) else [address(one) for one in to]
        self._here(self._route, Mail(self._pid, _topic(topic), content), receivers)

    def _route(self, mail: Mail, receivers: Sequence[str]) -> None:
        self.engine.elsewhere.check_room(receivers, len(mail.content))
        self.router.route(mail, receivers)

    def send_after(
        self, seconds: float, to: str | Iterable[str], topic: str, payload_: Any = None
    ) -> Timer:
        """Send a message later; raises as `wsrelay.process.send_after` does, but for `TooMany`."""
        due = time.monotonic_ns() + int(seconds_of(seconds, "seconds") * 1_000_000_000)
        content = _content(topic, payload_)
        receivers = [address(to)] if isinstance(to, str) else [address(one) for one in to]
        message = wire.SendFrame(receivers, _topic(topic), content)
        timer = Timer.of(self._ids.next("node"))
        self._here(self._requests.timers.add, str(timer), due, Later(self._pid, message, 0))
        return timer

    def cancel_timer(self, timer: Timer) -> None:
        """Do not send the message of a timer, whoever has set it."""
        self._here(self._requests.timers.cancel, str(timer))

    def call(self, to: str, topic: str, payload_: Any = None, timeout: float | None = 5.0) -> Any:
        """Send a message and return the answer; raises as `wsrelay.process.call` does.

        It waits in the calling thread, so it raises `NotAProcess` where an event loop runs.
        """
        with tracing.calling(to, topic):
            return self._prepared(to, topic, payload_, timeout).wait()

    async def call_async(
        self,
        to: str,
        topic: str,
        payload_: Any = None,
        timeout: float | None = 5.0,  # noqa: ASYNC109 - as in `call`
    ) -> Any:
        """Do what `call` does in a coroutine, of any event loop."""
        with tracing.calling(to, topic):
            return await self._prepared(to, topic, payload_, timeout).wait_async()

    def _prepared(self, to: str, topic: str, payload_: Any, timeout: float | None) -> NodeCall:
        content = _content(topic, payload_)
        loop = self._here(asyncio.get_running_loop)
        return NodeCall(self._calls, loop, self._pid, address(to), _topic(topic), content, timeout)

    def spawn(self, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
        """Start a process and return its PID at once; raises as `wsrelay.process.spawn` does.

        `host` may be `host@node`, or `host@*` for the node where that host has most room.
        """
        if host is not None and "@" in host and (place := self._elsewhere(host)) is not None:
            return self._spawn_elsewhere(place, target, args, kwargs)
        text, code, label = pack_target(target, args, kwargs, self.entries)
        # `tracing.carried` without the call, where there is no span.
        if (otel := modules.get(tracing.OTEL)) and otel.get_current_span() is not otel.INVALID_SPAN:
            code = tracing.carried(code)
        order = SpawnOrder(text, code, label=label)
        pid = self._here(self.engine.launch, self._next_pid(target, host), order)
        if (note := current.spawned_by_request.get()) is not None:
            note(pid)
        return pid

    def get_or_spawn(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Return the process with that name or start one under it, atomically.

        If the former process of that name has been cancelled, the new one waits until that has
        ended: `started` waits with it.
        """
        order = self._named_order(name, target, host, args, kwargs)
        there: PID = self._settled("get_or_spawn", name, self.engine.get_or_spawn, order)
        return self._noted(order, there)

    async def get_or_spawn_async(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Do what `get_or_spawn` does in a coroutine, of any event loop."""
        order = self._named_order(name, target, host, args, kwargs)
        there: PID = await self._settled_async(name, self.engine.get_or_spawn, order)
        return self._noted(order, there)

    def _named_order(
        self,
        name: str,
        target: Any,
        host: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> NamedOrder:
        pid, order = self._named_pid(target, host), self._spawn_order(target, args, kwargs)
        return NamedOrder(name, pid, order, stays=self._is_own(host))

    def _is_own(self, host: str | None) -> bool:
        """Whether that is a host of this node and no other."""
        return host is not None and placed(host)[1] == self.name

    def _spawn_order(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SpawnOrder:
        """Return what to start, with arguments as data if another node may have to start it."""
        text, code, label = pack_target(target, args, kwargs, self.entries)
        if self.engine.elsewhere.shares_names and text in self.entries:
            with contextlib.suppress(PayloadError):  # then only this node can start it
                return SpawnOrder(text, tracing.carried(pack_plain(args, kwargs)), plain=True)
        return SpawnOrder(text, tracing.carried(code), label=label)

    def _named_pid(self, target: Any, host: str | None) -> PID:
        """Make the PID of a process that is started under a name, perhaps on another node."""
        if host is not None and "@" in host and (place := self._elsewhere(host)) is not None:
            return place
        return self._next_pid(target, host)

    @staticmethod
    def _noted(order: NamedOrder, there: PID) -> PID:
        """Return the process with a name; the current request is told if it was started for it."""
        if there == order.pid and (note := current.spawned_by_request.get()) is not None:
            note(there)
        return there

    def spawn_as(
        self, name: str, target: Any, host: str | None = None, args: tuple[Any, ...] = ()
    ) -> PID:
        """Start a process under a name; raises also `NameTaken`, if another process has it.

        It waits as that of `get_or_spawn` does.
        """
        order = self._named_order(name, target, host, args, {})
        there: PID = self._settled("get_or_spawn", name, self.engine.get_or_spawn, order)
        if there != order.pid:
            raise NameTaken(f"the name {name!r} belongs to {there}")
        return there

    def spawn_service(
        self, name: str, target: Any, host: str | None = None, args: tuple[Any, ...] = ()
    ) -> PID:
        """Start the process of a service, of which each node of a cluster has one of its own.

        There its name is that of the service behind `local/`, and the latter is a second one that
        stays on this node too. Raises as `spawn_as` does.
        """
        elsewhere, names = self.engine.elsewhere, self.kernel.names
        if not elsewhere.shares_names or name.startswith("local/"):
            return self.spawn_as(name, target, host, args)
        elsewhere.keep_local(name)
        if (there := names.get(name)) is not None:
            raise NameTaken(f"the name {name!r} belongs to {there}")
        pid = self.spawn_as(f"local/{name}", target, host, args)
        self.kernel.register(name, pid)
        return pid

    async def spawn_cluster_service(
        self, name: str, target: Any, host: str | None = None, args: tuple[Any, ...] = ()
    ) -> PID:
        """Start the process of a service of the whole cluster, once no other node has its name.

        This node keeps the name from then on (`Elsewhere.keep`). Raises as `spawn_as` does.
        """
        await self.engine.elsewhere.keep(name)
        order = self._named_order(name, target, host, args, {})
        there = self.engine.launch_named(order)
        if there != order.pid:
            raise NameTaken(f"the name {name!r} belongs to {there}")
        return there

    def _elsewhere(self, host: str) -> PID | None:
        """Return the PID of a process that is started in a host of another node, else None."""
        name, node = placed(host)
        if node == "*":
            node = self.engine.choose(name)
        return None if node is None or node == self.name else self._ids.placed(name, node)

    def _spawn_elsewhere(
        self, pid: PID, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> PID:
        text, code = pack_elsewhere(target, args, kwargs, self.entries, pid)
        code = tracing.carried(code)
        frame = wire.SpawnFrame(str(pid), pid.host, text, code, plain=True)
        self._here(self.engine.elsewhere.spawn, self._pid, pid, frame)
        return pid

    def _next_pid(self, target: Any, host: str | None) -> PID:
        """Make a worker's PID, in the given host, else its entry's host, else the first host."""
        if host is not None and "@" in host:
            host, _ = placed(host)
        home = self.engine.home(target) if isinstance(target, str) else None
        return self._ids.next(host or home or self._templates.names[0])

    def new_pid(self, host: str) -> PID:
        """Make the PID of a process of that host."""
        return self._ids.next(host)

    def when_ended(self, pid: PID, callback: Callable[[Result], None]) -> None:
        """Call back once when the worker has ended; when draining, the caller has to end it."""
        self.engine.when_ended[pid] = callback

    def cancel(self, to: str, reason: str = "", *, restarts: bool = False, by: str = "") -> None:
        """Ask a process to end.

        `restarts`: its clients are told to reconnect (1012), as when an operator cancels it. `by`
        is who is said to have done it, if that is not the node.
        """
        reason = payload.writable(reason_of(reason), "reason")
        ask = functools.partial(self.router.ask, by=by)
        self._here(ask, self._pid, address(to), Signal.CANCEL, reason, restarts)

    def terminate(self, to: str, *, by: str = "") -> None:
        """End a process at once; `by` as for `cancel`."""
        ask = functools.partial(self.router.ask, by=by)
        self._here(ask, self._pid, address(to), Signal.TERMINATE)

    def register(self, name: str, pid: str | None) -> None:
        """Give a living process a name; raises `NameTaken`, `ValueError`."""
        self._settled("registry.register", name, self.engine.register, name, self._process(pid))

    async def register_async(self, name: str, pid: str | None) -> None:
        """Do what `register` does in a coroutine, of any event loop."""
        await self._settled_async(name, self.engine.register, name, self._process(pid))

    def lookup(self, name: str) -> PID:
        """Return the process with that name; raises `NameNotFound`."""
        return self._here(self.engine.lookup, name)

    def fence(self, name: str | None) -> int:
        """Return the number of a name's owner; raises `NameNotFound`; for None `InvalidName`."""
        if name is None:
            raise InvalidName("a node has no name of its own: say which name you mean")

        def number() -> int:
            there = self.engine.elsewhere.fence(name)
            return self.kernel.names.fence(name) if there is None else there

        return self._here(number)

    def unregister(self, name: str) -> None:
        """Free a name; raises `NameNotFound`."""
        self._settled("registry.unregister", name, self.engine.unregister, name)

    async def unregister_async(self, name: str) -> None:
        """Do what `unregister` does in a coroutine, of any event loop."""
        await self._settled_async(name, self.engine.unregister, name)

    def join_group(self, group: str, pid: str | None, meta: Any = None) -> None:
        """Make a process join a group; raises `InvalidName`, `PayloadError`."""
        joining, data = self._process(pid), metadata.encode(meta)

        def join() -> None:
            if self.engine.is_away(joining):
                self.engine.elsewhere.join_group(self._pid, group, joining, data)
            else:
                self.engine.execute(self.kernel.join_group(group, joining, meta=data))

        self._here(join)

    def leave_group(self, group: str, pid: str | None) -> None:
        """Make a process leave a group."""
        leaving = self._process(pid)

        def leave() -> None:
            if self.engine.is_away(leaving):
                self.engine.elsewhere.leave_group(self._pid, group, leaving)
            else:
                self.engine.execute(self.kernel.leave_group(group, leaving))

        self._here(leave)

    def members(self, group: str) -> list[PID]:
        """Return a group's members."""
        return self._here(self.kernel.groups.members, group)

    def roster(self, group: str) -> list[Member]:
        """Return a group's members with their metadata."""
        there = self._here(self.kernel.groups.roster, group)
        return [Member(pid, metadata.decode(data)) for pid, data in there]

    def broadcast(self, group: str, topic: str, payload_: Any) -> None:
        """Send a message to all members of a group; raises as `send` does."""
        mail = Mail(self._pid, _topic(topic), _content(topic, payload_))

        def route() -> None:
            members, elsewhere = self.kernel.groups.members(group), self.engine.elsewhere
            elsewhere.check_room(members, len(mail.content))
            self.router.route(mail, elsewhere.broadcast(mail, group, members))

        self._here(route)

    def _process(self, pid: str | None) -> PID:
        """Return the PID in full; raises `InvalidPID`, and `NotAProcess` for None."""
        if pid is None:
            raise NotAProcess("a node is not a process: say which process you mean")
        return PID(pid).on(self.name)

    def _here(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in the event loop's thread; from another thread, wait for the result."""
        loop = self._loop
        if loop is None or loop.is_closed():
            raise NotAProcess(f"node {self.name} is not running; use `async with node:` around it")
        if threading.get_ident() == self._thread:
            return function(*args)
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def call() -> None:
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 - raised in the calling thread
                future.set_exception(error)

        loop.call_soon_threadsafe(call)
        return future.result()

    def _settled(self, call: str, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function about a name in the event loop's thread, and wait for what it returns.

        If other nodes must be asked, it raises `NotAProcess` where an event loop runs.
        """
        if not self.engine.elsewhere.decides(name):
            return self._here(function, *args)
        more = _HEADER if call == "get_or_spawn" else ""
        return waited_for(call, self._running_loop(), settled(function, *args), more)

    async def _settled_async(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Do what `_settled` does in a coroutine, of any event loop."""
        if not self.engine.elsewhere.decides(name):
            return self._here(function, *args)
        return await awaited_in(self._running_loop(), settled(function, *args))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        return self._here(asyncio.get_running_loop)


async def settled(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function returns, at once or when that can be awaited."""
    answer = function(*args)
    return await answer if isinstance(answer, Awaitable) else answer


def _content(topic: Any, payload_: Any) -> bytes:
    """Return a payload that can be sent under a topic; raises `ReservedTopic`, `PayloadError`."""
    content = payload.encode(payload_)
    if tracing.OTEL in modules and not sendable(topic).startswith("ws."):  # else it is for a client
        content = tracing.carried(content)
    check_size(len(content))
    return content


def _topic(topic: Any) -> str:
    """Return a topic that can be sent; raises `ReservedTopic`, `PayloadError`."""
    return payload.writable(sendable(topic), "topic")
