"""The current caller: the worker that this OS process is, or a node that runs in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from wsrelay.errors import NotAProcess

from .pid import PID
from .presence import Member

if TYPE_CHECKING:
    from .timer import Timer

__all__ = [
    "Caller",
    "Pipe",
    "Worker",
    "caller",
    "enter_child",
    "enter_worker",
    "leave_worker",
    "node_of_request",
    "nodes",
    "process",
    "spawned_by_request",
    "worker",
]


class Caller(Protocol):
    """What both a worker and a node can do for the code that they run."""

    def pid(self) -> PID:
        """Return the caller's own PID."""

    def send(self, to: str | Iterable[str], topic: str, payload: Any) -> None:
        """Send a message."""

    def send_after(
        self, seconds: float, to: str | Iterable[str], topic: str, payload: Any
    ) -> Timer:
        """Have the node send a message later."""

    def cancel_timer(self, timer: Timer) -> None:
        """Do not send the message of a timer."""

    def spawn(self, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any) -> PID:
        """Start a process."""

    def get_or_spawn(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Find a process by name or start it under that name."""

    async def get_or_spawn_async(
        self, name: str, target: Any, host: str | None = None, /, *args: Any, **kwargs: Any
    ) -> PID:
        """Do what `get_or_spawn` does without holding up the event loop."""

    def fence(self, name: str | None) -> int:
        """Return the number of a name's owner."""

    def call(self, to: str, topic: str, payload: Any, timeout: float | None) -> Any:
        """Send a message and return the answer."""

    async def call_async(self, to: str, topic: str, payload: Any, timeout: float | None) -> Any:  # noqa: ASYNC109 - as in `call`
        """Do what `call` does without holding up the event loop."""

    def cancel(self, to: str, reason: str) -> None:
        """Ask a process to end."""

    def terminate(self, to: str) -> None:
        """End a process at once."""

    def register(self, name: str, pid: str | None) -> None:
        """Give a process a name."""

    async def register_async(self, name: str, pid: str | None) -> None:
        """Do what `register` does without holding up the event loop."""

    def lookup(self, name: str) -> PID:
        """Return the process of that name."""

    def unregister(self, name: str) -> None:
        """Free a name."""

    async def unregister_async(self, name: str) -> None:
        """Do what `unregister` does without holding up the event loop."""

    def join_group(self, group: str, pid: str | None, meta: Any) -> None:
        """Let a process join a group."""

    def leave_group(self, group: str, pid: str | None) -> None:
        """Let a process leave a group."""

    def members(self, group: str) -> list[PID]:
        """Return a group's members."""

    def roster(self, group: str) -> list[Member]:
        """Return a group's members with their metadata."""

    def broadcast(self, group: str, topic: str, payload: Any) -> None:
        """Send a message to all members of a group."""


class Pipe(Protocol):
    """What a worker writes to."""

    tally: Any
    """Its line of the host's `TallySheet`."""

    def send_short(self, to: Any, topic: Any, content: Any) -> bool:
        """Send a small `ws.send` by the shortest way; False if nothing was done."""


class Worker(Caller, Protocol):
    """The caller in a worker; the rest of what it can do is for those who know its class."""

    @property
    def pipe(self) -> Pipe:
        """The pipe to the node."""

    async def send_async(self, to: str | Iterable[str], topic: str, payload: Any) -> None:
        """Send a message without holding up the event loop."""

    async def send_after_async(
        self, seconds: float, to: str | Iterable[str], topic: str, payload: Any
    ) -> Timer:
        """Have the node send a message later, without holding up the event loop."""

    def drain(self, to: str, timeout: float | None) -> None:
        """Wait until most of what was sent to a connection is on its way."""

    async def drain_async(
        self,
        to: str,
        timeout: float | None,  # noqa: ASYNC109 - as in `drain`
    ) -> None:
        """Do what `drain` does without holding up the event loop."""

    def shut(self) -> None:
        """Read and write nothing any more: this is a child that the handler has forked."""

    def answer(self, call: int, value: Any, refused: str | None = None) -> None:
        """Answer the call with that number by a value, or by the text of a refusal."""

    async def answer_async(self, call: int, value: Any, refused: str | None = None) -> None:
        """Do what `answer` does without holding up the event loop."""


here: Worker | None = None
"""The worker that this OS process is."""

_parent: str | None = None
"""The process that this OS process is a child of, if a handler started it."""

nodes: list[Caller] = []
"""The nodes that run in this OS process."""

node_of_request: ContextVar[Caller] = ContextVar("wsrelay_node")
"""The node of the application that handles the current request; set by the middleware."""

spawned_by_request: ContextVar[Callable[[PID], None] | None] = ContextVar(
    "wsrelay_spawned", default=None
)
"""Called with the PID of whatever the current request spawns on its node, if set."""


def enter_worker(worker: Worker) -> None:
    """Make this OS process a worker, for good."""
    global here  # noqa: PLW0603 - a process is one worker, once
    here = worker


def leave_worker() -> Worker | None:
    """Become a child of the worker, which is returned (None if this was not a worker)."""
    global here
    former, here = here, None
    if former is not None:
        enter_child(former.pid())
    return former


def enter_child(parent: str) -> None:
    """Make this OS process a child of a process, so that errors of its calls say so."""
    global _parent  # noqa: PLW0603 - as above
    _parent = parent


def process() -> str | None:
    """Return the PID of the process that this OS process is, or is a child of."""
    return _parent if here is None else str(here.pid())


def worker() -> Worker:
    """Return this OS process's worker; raises `NotAProcess`."""
    if here is None:
        if _parent is not None:
            raise _a_child()
        raise NotAProcess(
            "only a process can do this: a handler that wsrelay runs in a worker. "
            "In an HTTP handler use process.spawn, send, cancel and the like"
        )
    return here


def caller() -> Caller:
    """Return the current caller; raises `NotAProcess`."""
    if here is not None:
        return here
    if (node := node_of_request.get(None)) is not None:
        return node
    if len(nodes) == 1:
        return nodes[0]
    if nodes:
        names = ", ".join(sorted(str(node.pid()) for node in nodes))
        raise NotAProcess(
            f"{len(nodes)} nodes run in this OS process ({names}); outside of a request "
            "call the methods of the node that you mean"
        )
    if _parent is not None:
        raise _a_child()
    raise NotAProcess(
        "there is no process and no node here: run this in a handler, in an application wrapped "
        "by WebSocketRelay, or inside `async with Node():`"
    )


def _a_child() -> NotAProcess:
    return NotAProcess(
        f"this is a child of process {_parent}, and only that process itself can do this: pass it "
        "what is to be sent through a multiprocessing.Queue or as the result of a pool's function"
    )
