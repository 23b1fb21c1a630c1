"""The node: the only place that executes the kernel's effects and routes messages.

All of it runs in one event loop's thread; what may be called from other threads says so.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from multiprocessing.util import Finalize
from types import SimpleNamespace
from typing import Any, Final, Protocol, Self, TypeVar

from msgspec import Raw

from wsrelay import wire
from wsrelay.confinement import HostOptions
from wsrelay.errors import HostFailed, NameTaken, NotAProcess, TooMany
from wsrelay.kernel import (
    Break,
    Effect,
    Exited,
    Kernel,
    Kill,
    Launch,
    Notify,
    Signal,
    Started,
    State,
    Stop,
)
from wsrelay.session import command
from wsrelay.template import worker_title
from wsrelay.values import current
from wsrelay.values.bounds import InvalidOptions, check
from wsrelay.values.buffered import MAX_BUFFERED, Buffered
from wsrelay.values.message import ExitError, ExitKind, Result, reason_of, sendable
from wsrelay.values.pid import PID, PIDSource, address, base36, is_node_name
from wsrelay.values.printable import escaped, printable, shortened
from wsrelay.values.sizes import show
from wsrelay.values.targets import Entry
from wsrelay.wire import payload
from wsrelay.wire.code import pack_target
from wsrelay.wire.logrecord import fields

from .clients import Clients, Connection
from .fallback import log_visibly
from .host import WORKER_LOG, Unfinished, Worker
from .mistakes import Mistakes
from .requests import Requests
from .siblings import warn_of_siblings
from .templates import Templates

__all__ = ["HostOptions", "Node"]

logger = logging.getLogger(__name__)

_MARGIN: Final = 5.0
"""Seconds beyond the stop timeout in which the operating system must have ended a worker."""

_NAMED: Final = 10
"""Processes that a line of the log names."""

_LARGE_CODE: Final = 64 * 1024
_MOST_CODE: Final = 256 * 1024 * 1024
"""Bytes of one process's arguments that are counted, and of all that wait for one who spawns."""

_PORTION: Final = 64
"""Receivers of a message that have their turn together: half a millisecond, if all are clients."""

_LONGEST_TRACEBACK: Final = 64 * 1024
"""Characters of one in the log; a recursion without end has 80,000."""

_TEMPLATE_START: Final = 10.0
"""Seconds that a template may take to begin loading, on a machine with much else to do."""

T = TypeVar("T")


class Companion(Protocol):
    """What starts and stops with a node, such as a supervisor."""

    def start(self) -> None:
        """Start, right after the node."""

    async def stop(self) -> None:
        """Stop; everything that is not a companion's has ended by then."""


class Node:
    """A node: its process hosts, its workers and its connections.

    `name` is the node part of its PIDs, of A-Z a-z 0-9 _ . - (else it raises `InvalidOptions`), the
    first of `hosts` is where spawns without a host go, `entries` are ids that can be spawned like
    targets, `max_buffered` is in bytes what clients may have begun and not finished. Building it
    starts nothing; use `async with node:`, `lifespan`, or `start` and `aclose`, in one event loop.
    """

    def __init__(
        self,
        *,
        name: str = "local",
        hosts: Sequence[HostOptions] = (),
        entries: Mapping[str, Entry] | None = None,
        max_buffered: int = Buffered().most,
    ) -> None:
        if not is_node_name(name):
            raise InvalidOptions(
                [("name", f"is {name!r:.80} and must be made of A-Z a-z 0-9 _ . -")], "node"
            )
        self.buffered = Buffered(max_buffered)
        """The book of what clients have begun, for all that serve them."""
        check(SimpleNamespace(max_buffered=max_buffered), {"max_buffered": MAX_BUFFERED}, "node")
        self.name = name
        self.entries = dict(entries or {})
        self._templates = Templates(hosts or (HostOptions(),))
        self.dead_letters = 0
        """Messages to a PID or name that nobody has."""
        self.draining = False
        random = PIDSource.draw()
        self._random = random
        self._ids = PIDSource(name, f"{random}.0")
        self._pid = self._ids.next("node")
        self._own = f"{self._pid.host}|{self._pid.id}}}"
        """How its PID ends, also where the node's part is left out."""
        self._refs = itertools.count(1)
        self._requests = Requests(self)
        self.mistakes = Mistakes()
        self.clients = Clients(self)
        self._companions: list[Companion] = []
        self._reset()

    def _reset(self) -> None:
        self.kernel = Kernel(self._templates.limits)
        self.unfinished = Unfinished()
        """The book of what workers have begun. Not the clients' one: they would lock those out."""
        self._workers: dict[PID, Worker] = {}
        self._timers: dict[PID, asyncio.TimerHandle] = {}
        self._starting: dict[PID, asyncio.Future[str | None]] = {}
        self._when_ended: dict[PID, Callable[[Result], None]] = {}
        self._changed = asyncio.Event()
        self._closed: asyncio.Event | None = None
        """Set at the end of the `aclose` that is under way."""
        self._life: object | None = None
        """Another one from each start to the end that belongs to it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self.draining = False

    # Life

    def start(self) -> None:
        """Start in the running event loop; templates start when they are first needed.

        A node whose former event loop is closed starts anew. Raises `RuntimeError` while that one
        still runs.
        """
        loop = asyncio.get_running_loop()
        self._check_loop(loop)
        if self._loop is not None:
            return
        self._loop = loop
        self._thread = threading.get_ident()
        log_visibly()
        self._templates.start()
        current.nodes.append(self)
        warn_of_siblings()
        # Without this, an application that never closes the node would wait for ever at its exit:
        # multiprocessing joins the templates, and they live as long as their control sockets. (Its
        # own finalizers come before that, in its child processes too; atexit is too late there.)
        self._at_exit = Finalize(None, self._templates.abandon, exitpriority=100)
        self._life = object()
        self._guard = self._until_the_loop_ends(self._life)
        with contextlib.suppress(StopIteration):
            self._guard.__anext__().send(None)
        try:
            for companion in self._companions:
                companion.start()
        except BaseException:
            self._templates.close()
            self._forget()
            raise

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget what a closed event loop has left; raises `RuntimeError` if another one runs."""
        if self._loop is None or self._loop is loop:
            return
        if not self._loop.is_closed():
            raise RuntimeError(
                f"node {self.name} belongs to another event loop, which still runs: all that uses "
                "a node does so in one event loop. In tests, `with TestClient(app) as client:` "
                "gives all requests and WebSockets the same one"
            )
        logger.warning("node %s: its event loop was closed before it was", self.name)
        self._templates.reap()
        self._forget()

    async def _until_the_loop_ends(self, life: object) -> AsyncGenerator[None, None]:
        """Be ended by the event loop at its own end (`loop.shutdown_asyncgens`), and end the node.

        So an application that is never told to shut down (Starlette's `TestClient` without `with`)
        leaves no processes and descriptors behind.
        """
        try:
            yield
        finally:
            if self._life is life and self._closed is None:
                if self._workers:
                    logger.warning(
                        "node %s: its event loop ends and nobody has closed it: its processes are "
                        "killed",
                        self.name,
                    )
                await self._close_once(0.0, at_once=True)

    def accompany(self, companion: Companion) -> None:
        """Let a companion start and stop with the node; raises `RuntimeError` once it runs."""
        if self._loop is not None:
            raise RuntimeError(f"node {self.name} runs already")
        self._companions.append(companion)

    async def loaded(self) -> None:
        """Wait until every host has preloaded what it should; raises `HostFailed`."""
        self.start()
        await self._templates.loaded()

    async def reconfigure(
        self,
        hosts: Sequence[HostOptions],
        entries: Mapping[str, Entry],
        renew: Collection[str] = (),
    ) -> None:
        """Take other hosts and entries for all that is spawned from now on.

        Hosts that changed, and those to `renew` because their code did, get a new template. What
        runs goes on until it ends. Raises `HostFailed`; then nothing has changed.
        """
        await self._templates.exchange(hosts, renew)
        self.kernel.set_hosts(self._templates.limits)
        self.entries = dict(entries)
        for worker in self._workers.values():
            worker.pipe.post(self._known())

    def drain(self, spread: float = 0.0) -> None:
        """Begin to shut down: connections close with 1012, workers are cancelled, none start.

        The connections close spread over so many seconds, and a worker that has some is cancelled
        when the last of them has had its turn: till then it takes what they send.
        """
        self.draining = True
        self.clients.shut_down(spread)
        for pid, worker in list(self._workers.items()):
            if not worker.clients:
                self.dismiss(pid)

    def dismiss(self, pid: PID) -> None:
        """Cancel a worker because the node shuts down, unless a companion sees to its end."""
        if pid not in self._when_ended:
            self.signal(pid, Signal.CANCEL, reason="node shuts down")

    def hurry(self) -> None:
        """End all workers at once, and close what connections are left."""
        self.clients.shut_down()
        for pid in list(self._workers):
            self.signal(pid, Signal.TERMINATE)

    async def aclose(self, spread: float = 0.0) -> None:
        """Drain, wait until every worker has ended (at most its host's `stop_timeout`), stop.

        Called again meanwhile, it waits for the same end. When it is cancelled, all that still runs
        is killed.
        """
        if self._loop is None:
            return
        self._check_loop(asyncio.get_running_loop())
        if self._closed is not None:
            await self._closed.wait()
        elif self._loop is not None:
            guard = self._guard
            await self._close_once(spread)
            await guard.aclose()

    async def _close_once(self, spread: float, *, at_once: bool = False) -> None:
        closed = self._closed = asyncio.Event()
        try:
            await self._close(spread, at_once=at_once)
        finally:
            self._forget()
            closed.set()

    async def _close(self, spread: float, *, at_once: bool) -> None:
        patience = max(host.stop_timeout for host in self.hosts.values()) + _MARGIN
        self.drain(spread)
        if at_once:
            self.hurry()
        try:
            if not await self._all_ended(spread + patience):
                stuck = self._workers.keys() - self._when_ended.keys()
                named = ", ".join(sorted(stuck)[:_NAMED])
                logger.error(
                    "node %s: %d workers do not end and are killed: %s",
                    self.name,
                    len(stuck),
                    named,
                )
                self.clients.shut_down()
                for pid in stuck:
                    self.signal(pid, Signal.TERMINATE)
            for companion in reversed(self._companions):
                await self._stop_companion(companion, patience)
        except BaseException:  # it is cancelled: nobody waits any more
            self.hurry()
            raise
        finally:
            await self._templates.aclose()

    async def _all_ended(self, seconds: float) -> bool:
        """Wait for the end of all turns and of all workers but the companions'."""
        try:
            async with asyncio.timeout(seconds):
                while self.clients.leaving or self._workers.keys() - self._when_ended.keys():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def _stop_companion(self, companion: Companion, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await companion.stop()
        except TimeoutError:
            logger.error("node %s: %r does not stop", self.name, companion)  # noqa: TRY400
        except Exception:
            logger.exception("node %s: %r cannot be stopped", self.name, companion)

    def _forget(self) -> None:
        """Be as if it had never been started: its templates are gone, and its workers with them."""
        self.draining = True
        gone = ExitError(ExitKind.KILLED, "SIGKILL: its node was closed")
        self.unfinished.close()
        for worker in list(self._workers.values()):
            with contextlib.suppress(RuntimeError):  # what waits for it has a closed event loop
                worker.abandoned(gone)
        self._at_exit.cancel()
        current.nodes.remove(self)
        self._reset()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Be the lifespan of an application: `FastAPI(lifespan=node.lifespan)`."""
        async with self:
            yield

    # What handlers call on the node; from any thread

    def pid(self) -> PID:
        """Return the node's own PID: the sender of what HTTP handlers send."""
        return self._pid

    def send(self, to: str | Iterable[str], topic: str, payload_: Any = None) -> None:
        """Send a message; raises `ReservedTopic`, `PayloadError`."""
        content = _content(payload_)
        receivers = [address(to)] if isinstance(to, str) else [address(one) for one in to]
        self._here(self.route, self._pid, receivers, _topic(topic), content)

    def spawn(self, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
        """Start a process and return its PID at once; raises as `wsrelay.process.spawn`."""
        text, code = pack_target(target, args, kwargs, self.entries)
        pid = self._here(self.launch, self._next_pid(target, host), text, code)
        if (note := current.spawned_by_request.get()) is not None:
            note(pid)
        return pid

    def get_or_spawn(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Return the process of that name or start one under it, atomically."""
        text, code = pack_target(target, args, kwargs, self.entries)
        pid = self._next_pid(target, host)
        there = self._here(self.launch, pid, text, code, name)
        if there == pid and (note := current.spawned_by_request.get()) is not None:
            note(pid)
        return there

    def spawn_as(
        self, name: str, target: Any, host: str | None = None, args: tuple[Any, ...] = ()
    ) -> PID:
        """Start a process under a name; raises `NameTaken` too, if another one has it."""
        text, code = pack_target(target, args, {}, self.entries)
        pid = self._next_pid(target, host)
        there = self._here(self.launch, pid, text, code, name)
        if there != pid:
            raise NameTaken(f"the name {name!r} belongs to {there}")
        return pid

    def _next_pid(self, target: Any, host: str | None) -> PID:
        """Make the PID of a worker: in the given host, its entry's, or the first one."""
        home = self.home(target) if isinstance(target, str) else None
        return self._ids.next(host or home or self._templates.names[0])

    def home(self, target: str | None) -> str | None:
        """Return the host of the entry that the target is the id of, None if it is none."""
        if target is None or (entry := self.entries.get(target)) is None:
            return None
        return entry.host or self._templates.names[0]

    def when_ended(self, pid: PID, callback: Callable[[Result], None]) -> None:
        """Call back once when the worker has ended; draining leaves it to the caller to end it."""
        self._when_ended[pid] = callback

    def cancel(self, to: str, reason: str = "", *, restarts: bool = False) -> None:
        """Ask a process to end.

        `restarts`: its clients are told to come again (1012), as it is when an operator cancels.
        """
        reason = payload.writable(reason_of(reason), "reason")
        self._here(self.ask, self._pid, address(to), Signal.CANCEL, reason, restarts)

    def terminate(self, to: str) -> None:
        """End a process at once."""
        self._here(self.ask, self._pid, address(to), Signal.TERMINATE)

    def register(self, name: str, pid: str | None) -> None:
        """Give a living process a name; raises `NameTaken`, `ValueError`."""
        self._here(self.kernel.register, name, self._process(pid))

    def lookup(self, name: str) -> PID:
        """Return the process of that name; raises `NameNotFound`."""
        return self._here(self.kernel.names.lookup, name)

    def unregister(self, name: str) -> None:
        """Free a name; raises `NameNotFound`."""
        self._here(self.kernel.names.unregister, name)

    def join_group(self, group: str, pid: str | None) -> None:
        """Let a process join a group."""
        self._here(self.kernel.join_group, group, self._process(pid))

    def leave_group(self, group: str, pid: str | None) -> None:
        """Let a process leave a group."""
        self._here(self.kernel.groups.leave, group, self._process(pid))

    def members(self, group: str) -> list[PID]:
        """Return a group's members."""
        return self._here(self.kernel.groups.members, group)

    def broadcast(self, group: str, topic: str, payload_: Any) -> None:
        """Send a message to all members of a group."""
        content = _content(payload_)
        _topic(topic)

        def route() -> None:
            self.route(self._pid, self.kernel.groups.members(group), topic, content)

        self._here(route)

    def worker_ids(self, worker: Worker) -> PIDSource:
        """Return the source of the PIDs that a worker makes."""
        return PIDSource(self.name, f"{self._random}.{base36(worker.ref)}")

    def _process(self, pid: str | None) -> PID:
        """Return the PID in full; raises `InvalidPID`, and `NotAProcess` for None."""
        if pid is None:
            raise NotAProcess("a node is no process: say which process you mean")
        return PID(pid).on(self.name)

    def _here(self, function: Callable[..., T], *args: Any) -> T:
        """Call in the event loop's thread, and wait for it when this is another thread."""
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

    # What the relay and the front end call

    async def started(self, pid: PID) -> str | None:
        """Wait until the worker runs its handler; returns why it cannot be a target, or None.

        Its host's `start_timeout` bounds the wait.
        """
        process = self.kernel.processes.get(pid)
        if process is not None and process.state is State.STARTING:
            assert self._loop is not None  # noqa: S101 - it has processes
            future = self._starting.get(pid)
            if future is None:
                future = self._starting[pid] = self._loop.create_future()
            return await asyncio.shield(future)
        return self.why_no_target(pid)

    def why_no_target(self, pid: PID) -> str | None:
        """Return why a relay cannot be bound to that process, or None if it can."""
        return self.kernel.why_no_target(pid)

    def is_connection(self, pid: PID) -> bool:
        """Whether the PID is that of a living connection."""
        return pid in self.clients.connections

    def connection(self, pid: PID) -> Connection | None:
        """Return the living connection of that PID."""
        return self.clients.connections.get(pid)

    def worker(self, pid: PID) -> Worker | None:
        """Return the living worker of that PID."""
        return self._workers.get(pid)

    def is_unused(self, pid: PID) -> bool:
        """Whether it is a worker without clients, and only who spawned it knows its PID."""
        worker = self._workers.get(pid)
        return worker is not None and not worker.clients and not worker.found

    def new_pid(self, host: str) -> PID:
        """Make a PID that was never used before."""
        return self._ids.next(host)

    @property
    def pid_prefix(self) -> str:
        """What the ids of this node's PIDs begin with, from `|` on; no other node's do."""
        return f"|{self._random}."

    @property
    def running(self) -> bool:
        """Whether the node has been started and not closed."""
        return self._loop is not None and not self._loop.is_closed()

    @property
    def workers(self) -> dict[PID, int | None]:
        """The living workers with their operating system's process ids (None: not forked yet)."""
        return {pid: worker.os_pid for pid, worker in self._workers.items()}

    @property
    def hosts(self) -> dict[str, HostOptions]:
        """The options of every process host, those that were taken away among them."""
        return self._templates.options

    @property
    def templates(self) -> dict[str, int | None]:
        """The hosts' templates with their operating system's process ids (None: not started)."""
        return self._templates.os_pids

    def about(self, worker: Worker) -> dict[str, Any]:
        """Return what is known of a worker, as fields of a log record."""
        return fields(
            pid=worker.pid,
            names=self.kernel.names.of(worker.pid) or worker.names,
            target=worker.target,
            os_pid=worker.os_pid,
            host=worker.pid.host,
        )

    def _debug(self, worker: Worker, what: str) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s %s", worker.pid, what, extra=self.about(worker))

    @property
    def connections(self) -> frozenset[PID]:
        """The living connections."""
        return frozenset(self.clients.connections)

    # Effects

    def execute(  # noqa: C901 - a flat table
        self,
        effects: list[Effect],
        code: tuple[str | None, bytes, bool] = (None, b"", False),
        parent: PID | None = None,
    ) -> None:
        """Carry out the kernel's effects; `code` and `parent` are those of a `Launch`.

        The code is target, code and `plain` of a `wire.Start`.
        """
        for effect in effects:
            match effect:
                case Launch():
                    self._launch(effect.pid, *code, parent)
                case Started():
                    self._stop_timer(effect.pid)
                    started = self._workers[effect.pid]
                    started.waiting_code = 0
                    self._debug(started, f"runs, OS pid {started.os_pid}")
                    self._tell_started(effect.pid, None)
                case Stop():
                    self._stop(effect)
                case Kill():
                    if (connection := self.connection(effect.pid)) is not None:
                        connection.terminate()
                    elif (worker := self._workers.get(effect.pid)) is not None:
                        worker.kill()
                case Exited() if effect.pid in self._workers:
                    self._bury(effect.pid, effect.result)
                case Notify() if (worker := self._workers.get(effect.pid)) is not None:
                    event = effect.event
                    ended = None if event.result is None else wire.Ended.of(event.result)
                    worker.pipe.post(wire.Signal(event.kind, str(event.sender), "", ended))
                case Break():
                    if (connection := self.connection(effect.pid)) is not None:
                        connection.link_down()
                    elif (worker := self._workers.get(effect.pid)) is not None:
                        worker.kill()

    def _launch(
        self, pid: PID, target: str | None, code: bytes, plain: bool, parent: PID | None
    ) -> None:
        options = self.hosts[pid.host]
        rights = options.rights
        worker = Worker(
            pid,
            next(self._refs),
            options,
            received=self._requests.handle if rights is None else self._requests.handle_walled,
            exited=self._exited,
            about=self.about,
            unfinished=self.unfinished,
        )
        worker.rights = rights
        worker.target, worker.parent = escaped(target or "a callable"), parent
        worker.waiting_code = len(code)
        worker.names = [*self.kernel.names.of(pid)]
        self._workers[pid] = worker
        self._debug(worker, f"starts: {worker.target}")
        ids = self.worker_ids(worker).prefix
        level = logging.getLogger(WORKER_LOG).getEffectiveLevel()
        if target is not None and (entry := self.entries.get(target)) is not None:
            target = entry.target
        title = worker_title(pid, self.kernel.names.of(pid), worker.target)
        known = self._known()
        start = wire.Start(str(pid), ids, known, target, code, level, title, plain, rights)
        worker.pipe.post(start)
        template = self._templates[pid.host]
        template.launch(worker)
        timeout = options.start_timeout
        if template.loading:
            # That has as long by itself, and tells better why it takes longer.
            timeout += _TEMPLATE_START + timeout
        self._start_timer(pid, timeout, Signal.START_TIMEOUT)

    def _known(self) -> wire.Known:
        entries = {name: entry.host for name, entry in self.entries.items()}
        return wire.Known(self._templates.names, entries)

    def _stop(self, effect: Stop) -> None:
        if (connection := self.connection(effect.pid)) is not None:
            connection.cancel(effect.reason)
            return
        self._tell_started(effect.pid, self.why_no_target(effect.pid))
        worker = self._workers[effect.pid]
        if self.draining:
            self.clients.inbox_closed(worker)
        worker.pipe.queue(wire.CloseInbox())
        worker.pipe.post(wire.Signal("CANCEL", str(effect.sender), effect.reason))
        half = self.hosts[effect.pid.host].stop_timeout / 2
        self._call_later(half, effect.pid, self._interrupt, worker, half)

    def _interrupt(self, worker: Worker, rest: float) -> None:
        """Interrupt a handler that goes on after its CANCEL, and let it end for the same time."""
        if rest:  # else it was to be killed at once
            logger.debug("%s goes on after its CANCEL and is interrupted", worker.pid)
            worker.interrupt()
        self._start_timer(worker.pid, rest, Signal.STOP_TIMEOUT)

    def _bury(self, pid: PID, result: Result) -> None:
        worker = self._workers.pop(pid)
        self._stop_timer(pid)
        self._log_exit(pid, result.error, self.about(worker))
        self.mistakes.forget(pid)
        self._tell_started(pid, _why_not_started(pid, result))
        self.clients.target_ended(worker, result)
        self._requests.worker_ended(worker, result)
        if (callback := self._when_ended.pop(pid, None)) is not None:
            callback(_opened(result))
        self.changed()

    def _log_exit(self, pid: PID, error: ExitError | None, about: dict[str, Any]) -> None:
        """Tell how it ended, of one that crashed with its traceback unless they are too many.

        Whoever connects may cause one: 20 clients made it 1,600 lines a second.
        """
        text = ""
        if error is not None and error.traceback:
            now = asyncio.get_running_loop().time()
            untold = self.mistakes.again(f"crashes in {pid.host}", now)
            if untold is None:
                text = "(too many crash: the traceback is left out)"
            else:
                before = f"({untold} before it have no traceback here)\n" if untold else ""
                text = before + error.traceback.rstrip()
        _log_exit(pid, error, about, text)

    def changed(self) -> None:
        """Let `aclose` look again at what is left."""
        self._changed.set()

    def _tell_started(self, pid: PID, problem: str | None) -> None:
        if (future := self._starting.pop(pid, None)) is not None and not future.done():
            future.set_result(problem)

    def _start_timer(self, pid: PID, seconds: float, signal: Signal) -> None:
        self._call_later(seconds, pid, self.signal, pid, signal)

    def _call_later(
        self, seconds: float, pid: PID, function: Callable[..., None], *args: Any
    ) -> None:
        """Call that in so many seconds, in place of what the process has a timer for now."""
        assert self._loop is not None  # noqa: S101 - start() set it
        self._stop_timer(pid)
        self._timers[pid] = self._loop.call_later(seconds, function, *args)

    def _stop_timer(self, pid: PID) -> None:
        if (timer := self._timers.pop(pid, None)) is not None:
            timer.cancel()

    def signal(self, pid: PID, signal: Signal, reason: str = "") -> None:
        """Give a signal to a process."""
        self.execute(self.kernel.signal(pid, signal, reason=reason))

    def _exited(self, worker: Worker, result: Result) -> None:
        worker.names = [*self.kernel.names.of(worker.pid)] or worker.names  # that frees them
        self.execute(self.kernel.exited(worker.pid, result))

    # Routing

    def route(
        self,
        sender: PID,
        receivers: Iterable[str],
        topic: str,
        content: bytes,
        given: command.Command | None = None,
    ) -> command.Command | None:
        """Deliver a message to each receiver; one that is not alive makes it a dead letter.

        `given` is what the message is to connections, where that is known; it is returned then.
        """
        connections = self.clients.connections
        for to in receivers:
            if (connection := connections.get(to)) is not None:  # type: ignore[call-overload]
                if given is None:
                    given = command.parse(topic, content)
                connection.command(given, sender)
                continue
            process = self.kernel.find(to, self.name)
            if process is None:
                self._dead_letter(sender, to, topic)
            elif process.connection:  # by its name, or without the node's part
                if given is None:
                    given = command.parse(topic, content)
                connections[process.pid].command(given, sender)
            elif (worker := self.addressee(process.pid)) is not None:
                limit = self.hosts[process.pid.host].mailbox
                if worker.pipe.mailbox > limit:
                    self.dead_letters += 1  # it is being ended for that
                    continue
                worker.pipe.queue(wire.Deliver(topic, str(sender), content), mail=True)
                if worker.pipe.mailbox > limit:
                    self._overflow(worker, limit)
        return given

    def route_in_portions(
        self, sender: PID, receivers: Sequence[str], topic: str, content: bytes
    ) -> Iterator[None]:
        """Deliver a message to many; between two portions of them others may have their turn."""
        given: command.Command | None = None
        for start in range(0, len(receivers), _PORTION):
            portion = receivers[start : start + _PORTION]
            given = self.route(sender, portion, topic, content, given)
            yield

    def _dead_letter(self, sender: PID, to: str, topic: str) -> None:
        """Count it, and tell a process that answers the node itself what to do instead."""
        self.dead_letters += 1
        worker = self._workers.get(sender) if to.endswith(self._own) else None
        if worker is not None and self.mistakes.first(sender, "to the node"):
            logger.warning(
                "%s sent %s to the node, where nobody takes it: what an HTTP handler sends has the "
                "node as its sender, which has no inbox. Put the PID of a process that is to take "
                "the answer into the payload (told once)",
                sender,
                printable(topic),
                extra=self.about(worker),
            )

    def _overflow(self, worker: Worker, limit: int) -> None:
        error = ExitError(
            ExitKind.MAILBOX_OVERFLOW, f"killed: its mailbox held more than {limit} bytes"
        )
        signal = Signal.TERMINATE
        self.execute(self.kernel.signal(worker.pid, signal, because=error))

    def alive(self, target: PID) -> Worker | None:
        """Return the worker if its inbox still takes messages."""
        process = self.kernel.processes.get(target)
        if process is None or process.state is State.CANCELLING:
            return None
        return self._workers.get(target)

    def addressee(self, target: PID) -> Worker | None:
        """Return the worker that takes a message; None: the message is a dead letter."""
        if (worker := self.alive(target)) is None:
            self.dead_letters += 1
        return worker

    def ask(
        self,
        sender: PID,
        to: str,
        signal: Signal,
        reason: str = "",
        restarts: bool = False,
    ) -> None:
        """Give a signal in the name of a process to a PID or name; `restarts` as in `cancel`."""
        if (process := self.kernel.find(to, self.name)) is None:
            self.dead_letters += 1
            return
        if restarts and (worker := self._workers.get(process.pid)) is not None:
            worker.restarts = True
        self.execute(self.kernel.signal(process.pid, signal, reason=reason, sender=sender))

    def launch(  # noqa: PLR0917 - internal, called by position from other threads
        self,
        pid: PID,
        target: str | None,
        code: bytes,
        name: str | None = None,
        parent: PID | None = None,
        monitored: bool = False,
        linked: bool = False,
        *,
        plain: bool = False,
    ) -> PID:
        """Start a worker, or return the one that has the name already.

        Raises `UnknownHost`, `HostFull`, `HostFailed` while the node shuts down or the system has
        no descriptors left, and `TooMany` for more arguments than wait for one who spawns.
        """
        if name is not None and (there := self.kernel.names.get(name)) is not None:
            if (worker := self._workers.get(there)) is not None:
                worker.found = True
            return there
        if self.draining:
            raise HostFailed(f"node {self.name} shuts down")
        if parent is not None and len(code) > _LARGE_CODE:
            self._check_code(parent, len(code))
        effects = self.kernel.spawn(pid, name, parent=parent, monitored=monitored, linked=linked)
        try:
            self.execute(effects, (target, code, plain), parent)
        except HostFailed:
            self.kernel.exited(pid, Result())  # whoever asked for it is told by this error
            raise
        return pid

    def _check_code(self, parent: PID, size: int) -> None:
        """Raise `TooMany` if too many arguments of its processes wait for their starts."""
        mine = (worker for worker in self._workers.values() if worker.parent == parent)
        if sum(worker.waiting_code for worker in mine) + size > _MOST_CODE:
            raise TooMany("arguments (of processes that have not started)", show(_MOST_CODE))


def _content(payload_: Any) -> bytes:
    """Return a payload that can be sent; raises `PayloadError`."""
    content = payload.encode(payload_)
    wire.check_size(len(content))
    return content


def _opened(result: Result) -> Result:
    """Return the result with its value for whoever waits for it in this process."""
    if type(result.value) is not Raw:
        return result
    try:
        return Result(payload.decode_bounded(bytes(result.value)), result.error)
    except (ValueError, RecursionError):
        return Result(None, result.error)


def _topic(topic: Any) -> str:
    """Return a topic that can be sent; raises `ReservedTopic`, `PayloadError`."""
    return payload.writable(sendable(topic), "topic")


def _why_not_started(pid: PID, result: Result) -> str:
    why = shortened(result.error.message) if result.error else "it returned at once"
    return f"target_pid {pid} is not alive: {why}"


def _log_exit(pid: PID, error: ExitError | None, about: dict[str, Any], traceback: str) -> None:
    who = " ".join([pid, *map(printable, about.get("wsrelay_names", ()))])
    if error is None:
        logger.debug("%s exited", who, extra=about)
        return
    about = {**about, **fields(exit=error.kind.value)}
    if traceback:
        text = f"{shortened(error.message)}\n{traceback}"
        logger.error("%s crashed: %s", who, shortened(text, _LONGEST_TRACEBACK), extra=about)
    else:
        target, os_pid = about.get("wsrelay_target"), about.get("wsrelay_os_pid", "none yet")
        where = f"{target}, OS pid {os_pid}"
        # That was somebody's wish, as when a client leaves in the middle of its process's work, or
        # an `exec` takes too long, which is told to its caller.
        wished = error.kind in (ExitKind.CANCELLED, ExitKind.TERMINATED)
        level = logging.WARNING if wished else logging.ERROR
        logger.log(level, "%s ended: %s (%s)", who, shortened(str(error)), where, extra=about)
