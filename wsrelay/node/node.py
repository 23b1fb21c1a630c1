"""The node: what its users call, and its life from start to end.

Everything here runs in the thread of one event loop, unless it says that other threads may call it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from importlib.metadata import version
from multiprocessing.util import Finalize
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Protocol, Self, TypeVar, cast

from wsrelay import tracing
from wsrelay.confinement import HostOptions
from wsrelay.kernel import Signal
from wsrelay.session.header import TargetSpec
from wsrelay.values import current
from wsrelay.values.bounds import InvalidOptions, check
from wsrelay.values.buffered import MAX_BUFFERED, Buffered
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.numbers import Numbers
from wsrelay.values.pid import PID, PIDSource, is_node_name
from wsrelay.values.targets import TargetEntry
from wsrelay.wire.code import pack_elsewhere, pack_target

from .arrival import Arrival, NoTarget
from .calls import Calls
from .connections import Connection, Connections
from .elsewhere import Clustering
from .ending import end_process
from .engine import Engine
from .fallback import log_visibly
from .handler_calls import HandlerCalls, settled
from .lag import LagSampler
from .process import NamedOrder, SpawnOrder
from .requests import Requests
from .router import MessageRouter
from .siblings import warn_of_siblings
from .starts import Starts
from .templates import Templates
from .timers import Timers

__all__ = ["Node"]

logger = logging.getLogger(__name__)

_MARGIN: Final = 5.0
"""Seconds beyond the stop timeout within which the operating system must have ended a worker."""

_NAMED: Final = 10
"""The most processes that one log line names."""

T = TypeVar("T")


class LifespanHook(Protocol):
    """What starts and stops with a node, such as a supervisor."""

    def start(self) -> None:
        """Start, right after the node."""

    async def stop(self) -> None:
        """Stop; every worker that does not belong to a companion has ended by then."""


class ControlHook(LifespanHook, Protocol):
    """By what operators reach a node; see `control`."""

    @property
    def path(self) -> Path | None:
        """Where its socket is; None while there is none."""

    async def answer(self, method: str, path: str, body: bytes, asker: str) -> tuple[int, bytes]:
        """Return the status and the body of the answer to a request; `path` has its query, too."""

    def abandon(self) -> None:
        """Stop at once, also when the event loop has been closed."""


class Node(HandlerCalls):
    """A node: its process hosts, its workers and its connections.

    `name` is the node part of its PIDs, made of A-Z a-z 0-9 _ . - (anything else raises
    `InvalidOptions`). Spawns that name no host go to the first of `hosts`. `entries` are ids that
    can be spawned like targets. `max_buffered` bounds, in bytes, what clients may have begun to
    send and not finished. `cluster` makes it one of the nodes of a cluster. With `control`, it has
    a control socket, by which `wsrelay ps` and the like find it. Creating a node starts nothing;
    use `async with node:`, `lifespan`, or `start` and `aclose`, all in one event loop.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        hosts: Sequence[HostOptions] = (),
        entries: Mapping[str, TargetEntry] | None = None,
        max_buffered: int = Buffered().most,
        cluster: Clustering | None = None,
        control: bool = True,
    ) -> None:
        if name is None:
            name = "local" if cluster is None else cluster.node_name
        if not is_node_name(name):
            raise InvalidOptions(
                [("name", f"is {name!r:.80} and must be made of A-Z a-z 0-9 _ . -")], "node"
            )
        self.buffered = Buffered(max_buffered)
        """Accounts for the bytes that clients have begun to send, shared by all that serve them."""
        check(SimpleNamespace(max_buffered=max_buffered), {"max_buffered": MAX_BUFFERED}, "node")
        self.name = name
        self.numbers = Numbers()
        """What it has counted since it was made."""
        self.lag = LagSampler(self.numbers.lag_seconds)
        """Samples how late the event loop is, while somebody looks."""
        self._templates = Templates(hosts or (HostOptions(),), self.numbers)
        self._random = PIDSource.draw()
        self._ids = PIDSource(name, f"{self._random}.0")
        self._pid = self._ids.next("node")
        self._companions: list[LifespanHook] = []
        self.functions: dict[str, Callable[..., Any]] = {}
        """Functions of this OS process, by the text by which `X-WS-Relay` may name them."""
        self._cluster = cluster
        self._controlled = control
        self.control: ControlHook | None = None
        """Its control socket, while it runs; None if it has none."""
        self.application = ""
        """What it serves, for operators; if it is empty, they see the OS process's command line."""
        self.addresses: Callable[[], list[str]] = list
        """The URLs that it serves at, for operators; if none, where the process listens."""
        self.on_retire: Callable[[], object] = lambda: end_process(self)
        """Ends what the node is part of, as SIGTERM does; by default, by SIGTERM."""
        self._reset(entries or {})

    def _reset(self, entries: Mapping[str, TargetEntry]) -> None:
        """Start afresh: only the templates' options and the PID survive from a former life."""
        self.engine = Engine(self.name, self._templates, entries, self._random)
        self.router = MessageRouter(self.engine, self._pid)
        self.clients = Connections(self.engine, self.router, self._ids)
        self._calls = Calls(self.engine)
        self._requests = Requests(self.engine, self.router, self.clients, self._calls)
        self.engine.changed = self._look
        self._changed = asyncio.Event()
        self._closed: asyncio.Event | None = None
        """Set when the `aclose` that is under way has finished."""
        self._retiring = False
        self._life: object | None = None
        """A new object at each start, so that an end can be matched to its start."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        if self._cluster is not None:
            self.engine.elsewhere = self._cluster.attach(self)

    # Life

    def start(self) -> None:
        """Start in the running event loop; templates start when they are first needed.

        A node whose former event loop has been closed starts again in this one. Raises
        `RuntimeError` if the former loop still runs.
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
        # Without this, an application that never closes the node would hang at exit:
        # multiprocessing joins the templates, and they live as long as their control sockets. (Its
        # finalizers run before that join, in its child processes too; atexit would be too late.)
        self._at_exit = Finalize(None, self._templates.abandon, exitpriority=100)
        self._life = object()
        self._guard = self._until_the_loop_ends(self._life)
        with contextlib.suppress(StopIteration):
            self._guard.__anext__().send(None)
        try:
            self.engine.elsewhere.start()
            for companion in self._companions:
                companion.start()
            if self._controlled:
                # By its name: it stands above the node, which needs it only where one runs.
                control = importlib.import_module("wsrelay.control").ControlSocket(self)
                self.control = cast("ControlHook", control)
                self.control.start()
        except BaseException:
            self._ending = loop.create_task(self.engine.elsewhere.aclose())
            self._templates.close()
            self._forget()
            raise

    def _check_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Forget what a closed event loop left behind; raises `RuntimeError` if it still runs."""
        if self._loop is None or self._loop is loop:
            return
        if not self._loop.is_closed():
            raise RuntimeError(
                f"node {self.name} belongs to another event loop, which is still running: a node "
                "must be used in one event loop only. In tests, `with TestClient(app) as client:` "
                "gives all requests and WebSockets the same one"
            )
        logger.warning("node %s: its event loop was closed before the node was", self.name)
        self._templates.reap()
        self._forget()

    async def _until_the_loop_ends(self, life: object) -> AsyncGenerator[None, None]:
        """End the node when the event loop ends, which closes this (`loop.shutdown_asyncgens`).

        So an application that is never told to shut down (Starlette's `TestClient` without `with`)
        leaves no processes or descriptors behind.
        """
        try:
            yield
        finally:
            if self._life is life and self._closed is None:
                if self.engine.processes:
                    logger.warning(
                        "node %s: its event loop ends and nobody has closed it: its processes are "
                        "killed",
                        self.name,
                    )
                await self._close_once(0.0, at_once=True)

    def accompany(self, companion: LifespanHook) -> None:
        """Have a companion start and stop with the node; raises `RuntimeError` once it runs."""
        if self._loop is not None:
            raise RuntimeError(f"node {self.name} is already running")
        self._companions.append(companion)

    async def loaded(self) -> None:
        """Wait until every host has preloaded what it should; raises `HostFailed`."""
        self.start()
        await self._templates.loaded()
        await self.engine.elsewhere.joined()

    async def reconfigure(
        self,
        hosts: Sequence[HostOptions],
        entries: Mapping[str, TargetEntry],
        renew: Collection[str] = (),
    ) -> None:
        """Use other hosts and entries for everything that is spawned from now on.

        Hosts that changed, and those in `renew` because their code changed, get a new template.
        Running processes carry on until they end. If it raises `HostFailed`, nothing has changed.
        """
        await self._templates.exchange(hosts, renew)
        self.engine.reconfigure(entries)
        self.engine.elsewhere.reconfigured()

    def drain(self, spread: float = 0.0) -> None:
        """Begin to shut down: connections close with 1012, workers are cancelled, none start.

        The connections close spread over `spread` seconds. A worker that has connections is
        cancelled when the last of them has had its turn; until then it gets what they send.
        """
        self._drain()
        self.clients.shut_down(spread)
        for pid, process in list(self.engine.processes.items()):
            if not process.clients:
                self.engine.dismiss(pid)

    def _drain(self) -> None:
        """Start nothing any more, and have other nodes place nothing here."""
        self.engine.close()
        self.engine.elsewhere.draining()

    def retire(self, asker: str) -> None:
        """Start nothing any more, and then end as at SIGTERM: an operator has told `asker` so.

        It ends a moment later, so that who has asked can be answered. A second call has no effect.
        """
        if self._retiring or self._closed is not None:
            return
        self._retiring = True
        logger.warning("node %s drains and ends: %s asks for it", self.name, asker)
        self._drain()
        asyncio.get_running_loop().call_soon(self.on_retire)

    def terminate_all(self) -> None:
        """End all workers at once, and close the connections that are left."""
        self.clients.shut_down()
        for pid in list(self.engine.processes):
            self.engine.signal(pid, Signal.TERMINATE)

    async def aclose(self, spread: float = 0.0) -> None:
        """Drain, wait until every worker has ended (at most its host's `stop_timeout`), stop.

        A second call in the meantime waits for the same end. If it is cancelled, everything that
        still runs is killed.
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
        patience = max(host.stop_timeout for host in self._all_options()) + _MARGIN
        self.drain(spread)
        if at_once:
            self.terminate_all()
        try:
            if not await self._all_ended(spread + patience):
                stuck = self._unattended()
                named = ", ".join(sorted(stuck)[:_NAMED])
                logger.error(
                    "node %s: %d workers do not end and are killed: %s",
                    self.name,
                    len(stuck),
                    named,
                )
                self.clients.shut_down()
                for pid in stuck:
                    self.engine.signal(pid, Signal.TERMINATE)
            for companion in reversed(self._companions):
                await self._stop_companion(companion, patience)
            await self._stop_companion(self.engine.elsewhere, patience)
        except BaseException:  # cancelled: nobody waits any longer
            self.terminate_all()
            raise
        finally:
            try:
                await self._templates.aclose()
            finally:
                try:
                    await self.engine.elsewhere.aclose()
                finally:
                    if self.control is not None:
                        await self._stop_companion(self.control, patience)

    async def _all_ended(self, seconds: float) -> bool:
        """Wait until all turns are over and all workers but the companions' have ended."""
        try:
            async with asyncio.timeout(seconds):
                while self.clients.leaving or self._unattended() or self.engine.elsewhere.serves:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def _unattended(self) -> set[PID]:
        """Return the workers that no companion takes care of ending."""
        return self.engine.processes.keys() - self.engine.when_ended.keys()

    def _all_options(self) -> list[HostOptions]:
        """Return the options of all hosts, including former ones that workers still run under."""
        running = [process.options for process in self.engine.processes.values()]
        return [*self.hosts.values(), *running]

    def _look(self) -> None:
        """Have `aclose` check again what is left."""
        self._changed.set()

    async def _stop_companion(self, companion: LifespanHook, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await companion.stop()
        except TimeoutError:
            logger.error("node %s: %r does not stop", self.name, companion)  # noqa: TRY400
        except Exception:
            logger.exception("node %s: %r cannot be stopped", self.name, companion)

    def _forget(self) -> None:
        """Return to the state before `start`: the templates are gone, and the workers with them."""
        engine = self.engine
        engine.close()
        gone = ExitError(ExitKind.KILLED, "SIGKILL: its node was closed")
        engine.unfinished.close()
        engine.fencing.forget_deadline()
        self._requests.timers.close()
        # Those that wait end first: none of them must start because the one before it has ended.
        for process in sorted(engine.processes.values(), key=lambda one: one.launched):
            with contextlib.suppress(RuntimeError):  # the loop of whoever waits for it is closed
                engine.abandon(process, gone)
        if self.control is not None:
            self.control.abandon()
            self.control = None
        self._at_exit.cancel()
        self.lag.stop()
        current.nodes.remove(self)
        self._reset(engine.entries)

    async def __aenter__(self) -> Self:
        self.start()
        try:
            await self.engine.elsewhere.joined()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Serve as the lifespan of an application: `FastAPI(lifespan=node.lifespan)`."""
        self.serves(app)
        async with self:
            yield

    def serves(self, app: object) -> None:
        """Note, for operators, which application it is part of, if that has a title of its own."""
        title = getattr(app, "title", None)
        if isinstance(title, str) and title not in {"", type(app).__name__}:
            self.application = self.application or title

    @property
    def control_path(self) -> Path | None:
        """Where its control socket is; None if it has none."""
        return None if self.control is None else self.control.path

    # What the relay and the front end call

    async def find_target(self, spec: TargetSpec) -> Arrival:
        """Start what a relay's header names, or find it by its name, and wait until it runs.

        The client that it is for counts as one of its clients until the `Arrival` is over. Raises
        `NoTarget` if no such process runs, and what `spawn` and `get_or_spawn` raise.
        """
        target = self.functions.get(spec.target, spec.target)
        pid, ends = self._named_pid(spec.target, spec.host), spec.end_when_empty
        if spec.name is None and pid.node != self.name:
            return await self._start_there(pid, target, spec.args)
        if spec.name is None:
            text, code, label = pack_target(target, spec.args, {}, self.entries)
            order = SpawnOrder(text, tracing.carried(code), label=label)
            self.engine.launch(pid, order, end_when_empty=ends)
        else:
            order = self._spawn_order(target, spec.args, {})
            stays = self._is_own(spec.host)
            named = NamedOrder(spec.name, pid, order, end_when_empty=ends, stays=stays)
            pid = await settled(self.engine.get_or_spawn, named)
        if self.is_connection(pid):
            raise NoTarget(f"the name {spec.name!r} belongs to {pid}, which is a connection")
        try:
            return await self.arrive(pid)
        except BaseException:
            if spec.name is None:  # nobody else can find it
                self.engine.signal(pid, Signal.CANCEL, "the upgrade did not come about")
            raise

    async def _start_there(self, pid: PID, target: Any, args: tuple[Any, ...]) -> Arrival:
        """Start a process on another node for one client, and wait until it runs."""
        text, code = pack_elsewhere(target, args, {}, self.entries, pid)
        start = SpawnOrder(text, tracing.carried(code), plain=True)
        try:
            return await self.engine.elsewhere.arrive(pid, waits=True, start=start)
        except (NoTarget, asyncio.CancelledError) as error:
            if not isinstance(error, NoTarget) or error.result is None:  # it may be alive
                self.cancel(pid, "the upgrade did not come about")
            raise

    async def arrive(self, pid: PID, *, waits: bool = True) -> Arrival:
        """Wait, as `started` does, until a client can be bound to the worker.

        It may be one of another node, which is asked. From now on the client counts as one of the
        worker's, until the `Arrival` is over. Unless it `waits`, the worker need not run yet.
        Raises `NoTarget`, `HostFull`.
        """
        if (process := self.engine.processes.get(pid)) is None:
            if self.engine.elsewhere.find(pid) is not None:
                return await self.engine.elsewhere.arrive(pid, waits=waits)
            is_mistake = self.is_connection(pid)
            why = str(self.why_no_target(pid))
            raise NoTarget(why, is_missing=is_mistake, is_over=not is_mistake)
        arrival = Arrival(process)
        try:
            problem = (await self.started(pid) if waits else None) or self.why_no_target(pid)
            if problem is not None:
                raise NoTarget.of(process, problem)  # noqa: TRY301 - what it leaves is the same
        except BaseException:
            arrival.over()
            raise
        return arrival

    async def started(self, pid: PID) -> str | None:
        """Wait until the worker runs its handler; returns why it cannot be a target, or None.

        The wait is bounded by its host's `start_timeout`, and for a process that waits for the one
        before it under its name also by that one's `stop_timeout`. Raises `HostFull` if its host
        had no place left for such a process when it was to start.
        """
        if pid not in self.engine.processes and self.engine.elsewhere.find(pid) is not None:
            return await self.engine.elsewhere.started(pid)
        return await self.engine.started(pid)

    def why_no_target(self, pid: PID) -> str | None:
        """Return why a relay cannot be bound to that process, or None if it can."""
        return self.kernel.why_no_target(pid)

    def is_connection(self, pid: PID) -> bool:
        """Whether the PID is that of a living connection."""
        return pid in self.clients.connections

    def connection(self, pid: PID) -> Connection | None:
        """Return the living connection with that PID, or None."""
        return self.clients.connections.get(pid)

    def is_unused(self, pid: PID) -> bool:
        """Whether it is a worker without clients whose PID only its spawner knows."""
        process = self.engine.processes.get(pid)
        return process is not None and not process.clients and not process.found

    @property
    def starts(self) -> Starts:
        """What starts processes for workers."""
        return self._requests.starts

    @property
    def calls(self) -> Calls:
        """The calls that wait for their answers."""
        return self._calls

    @property
    def timers(self) -> Timers:
        """The messages that are to be sent later."""
        return self._requests.timers

    @property
    def draining(self) -> bool:
        """Whether nothing starts here: it shuts down, or is out of its cluster and joins again."""
        return self.engine.draining

    @property
    def unready(self) -> str:
        """Why no client should be sent here now, in a few words; empty if they may come."""
        shuts_down = "it is shutting down" if self.draining else ""
        return self.engine.elsewhere.unready or shuts_down

    @property
    def dead_letters(self) -> int:
        """Messages to a PID or name that nobody has."""
        return self.router.dead_letters

    @functools.cached_property
    def version(self) -> str:
        """The version of wsrelay."""
        return version("wsrelay")

    @property
    def pid_prefix(self) -> str:
        """What the ids of this node's PIDs begin with, from the `|` on; no other node's do."""
        return f"|{self._random}."

    @property
    def running(self) -> bool:
        """Whether the node has been started and not closed."""
        return self._loop is not None and not self._loop.is_closed()

    @property
    def workers(self) -> dict[PID, int | None]:
        """The living workers, each with its OS process id (None: not forked yet)."""
        return {pid: process.os_pid for pid, process in self.engine.processes.items()}

    @property
    def connections(self) -> frozenset[PID]:
        """The living connections."""
        return frozenset(self.clients.connections)

    @property
    def hosts(self) -> dict[str, HostOptions]:
        """The options of every process host, including those that were removed."""
        return self._templates.options

    @property
    def templates(self) -> dict[str, int | None]:
        """The hosts, each with the OS process id of its template (None: not started)."""
        return self._templates.os_pids
