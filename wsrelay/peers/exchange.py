"""The exchange of frames with other nodes: which nodes there are, requests and their answers.

How each frame is carried out stands in the modules that add their methods with `on` and `answer`:
`processes` for messages, calls and lives.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from wsrelay import errors
from wsrelay.cluster.frames import PeerFinishedFrame, PeerForgetFrame, PeerFrame, PeerReplyFrame
from wsrelay.cluster.peer import Peer
from wsrelay.errors import (
    HostFailed,
    InvalidPID,
    InvalidTarget,
    TooMany,
    WireError,
    WsrelayError,
)
from wsrelay.node import Node
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.wire import payload

from .neighbour import Asked, Neighbour, Way

__all__ = ["Exchange", "PeerGone", "gone", "not_a_member", "not_an_entry", "opened"]

logger = logging.getLogger(__name__)

MOST_REQUESTS: Final = 100_000
"""Requests of one node that may wait for their answers here: 10,000 of each of ten processes."""


Packing = Callable[[Neighbour, Any, Any], PeerFrame]
"""Makes the frame of the answer to a node's request."""


class PeerGone(WsrelayError):  # noqa: N818 - what has happened
    """The node that was asked is not in the cluster any more."""


def not_a_member(node: str) -> HostFailed:
    """Return why nothing can be started on a node that is not in the cluster now."""
    return HostFailed(f"node {node!r:.80} is not in the cluster")


def not_an_entry(target: str | None, node: str) -> InvalidTarget:
    """Return why a target cannot be started on another node; None: a callable that has no name."""
    what = "a callable" if target is None else f"target {target!r:.200}"
    return InvalidTarget(
        f"{what} cannot be started on node {node!r:.80}: other nodes start only entries of the "
        "configuration, with arguments that are data"
    )


def gone(node: str) -> ExitError:
    """Return how everything of a node ends that is not in the cluster any more."""
    return ExitError(ExitKind.NODE_DOWN, f"node {node} is gone")


class Exchange:
    """Carries out the frames of other nodes, which come and go by `up` and `down`.

    `on_up` and `on_down` are called with each of them, the latter before its processes are
    reported as gone.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.engine = node.engine
        self.kernel = node.engine.kernel
        self.router = node.router
        self.neighbours: dict[str, Neighbour] = {}
        """The other nodes that are in the cluster, by name."""
        self.named: Callable[[str], PID | None] = lambda _: None
        """Returns the process of another node that has a name, as far as is known here."""
        self.on_up: list[Callable[[Neighbour], None]] = []
        self.on_down: list[Callable[[Neighbour], None]] = []
        self._methods: dict[type[Any], Callable[[Neighbour, Any], Iterator[None] | None]] = {}
        self._answers: dict[type[Any], tuple[Callable[[Neighbour, Any], Any], Packing]] = {}
        self.on(PeerReplyFrame, self._replied)
        self.on(PeerFinishedFrame, self._replied)
        self.on(PeerForgetFrame, self._forgotten)

    # Frames

    def on(
        self, kind: type[Any], method: Callable[[Neighbour, Any], Iterator[None] | None]
    ) -> None:
        """Have a method carry out frames of that kind; work in portions is returned as an iterator.

        It raises `WireError` for what no node of ours writes.
        """
        self._methods[kind] = method

    def answer(
        self,
        kind: type[Any],
        method: Callable[[Neighbour, Any], Any],
        pack: Packing | None = None,
    ) -> None:
        """Have a method answer requests of that kind, which have a `number`.

        It returns the answer, which is data, or an awaitable of it, or raises `WsrelayError` or
        `ValueError`, which the asking node gets. What is no data is made a frame of by `pack`.
        """
        self._answers[kind] = method, pack or _packed
        self._methods[kind] = self._serve

    def receive(self, peer: Peer, frame: PeerFrame) -> Iterator[None] | None:
        """Carry out a frame, unless its writer is not in the cluster any more.

        Returns an iterator if that is work in portions, to be done before the next frame. Raises
        `WireError` for what no node of ours writes: its link must be ended, and `down` be called.
        """
        neighbour = self.neighbours.get(peer.node)
        if neighbour is None or neighbour.peer != peer:
            return None
        if (method := self._methods.get(type(frame))) is None:
            raise WireError(f"nothing here carries out a {type(frame).__name__}")
        return method(neighbour, frame)

    # Requests

    def ask(
        self,
        neighbour: Neighbour,
        frame: Any,
        convert: Callable[[PeerFrame | ExitError], Any] | None = None,
    ) -> asyncio.Future[Any]:
        """Send a request, to which its number is added, and return a future of the answer.

        When it is cancelled, the answer is not wanted any more. `convert` makes the result of the
        frame that answers, or of the error that the other node has gone with; without it a value is
        returned, and errors are raised, `PeerGone` among them. Raises `PayloadError` for more than
        may pass between nodes.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        frame.number = number = next(neighbour.numbers)
        neighbour.way.send(frame)  # unless it is too large
        neighbour.asked[number] = Asked(future, convert or opened)
        future.add_done_callback(functools.partial(self._unasked, neighbour, number))
        return future

    def _unasked(self, neighbour: Neighbour, number: int, future: asyncio.Future[Any]) -> None:
        if neighbour.asked.pop(number, None) is not None and future.cancelled():
            neighbour.way.send(PeerForgetFrame(number))

    def _replied(self, neighbour: Neighbour, frame: PeerReplyFrame | PeerFinishedFrame) -> None:
        if (asked := neighbour.asked.pop(frame.number, None)) is not None:
            _settle(asked, frame)

    def _serve(self, neighbour: Neighbour, frame: Any) -> None:
        """Answer a request, now or when the answer is ready."""
        number = frame.number
        if number in neighbour.serving:
            raise WireError(f"a second request {number}")
        try:
            if len(neighbour.serving) >= MOST_REQUESTS:
                raise TooMany("request", MOST_REQUESTS)
            method, pack = self._answers[type(frame)]
            value = method(neighbour, frame)
        except WireError:
            raise
        except (WsrelayError, ValueError) as error:
            neighbour.way.send(_refusal(number, error))
            return
        if isinstance(value, Awaitable):
            future = neighbour.serving[number] = asyncio.ensure_future(value)
            future.add_done_callback(functools.partial(self._served, neighbour, frame, pack))
        else:
            neighbour.way.send(pack(neighbour, frame, value))

    def _served(
        self, neighbour: Neighbour, frame: Any, pack: Packing, future: asyncio.Future[Any]
    ) -> None:
        number = frame.number
        if future.cancelled() or neighbour.serving.pop(number, None) is None:
            return
        if (error := future.exception()) is None:
            neighbour.way.send(pack(neighbour, frame, future.result()))
            return
        if not isinstance(error, WsrelayError | ValueError):
            logger.error("a request of node %s failed", neighbour.node, exc_info=error)
        neighbour.way.send(_refusal(number, error))

    def _forgotten(self, neighbour: Neighbour, frame: PeerForgetFrame) -> None:
        if (future := neighbour.serving.pop(frame.number, None)) is not None:
            future.cancel()

    # What frames name

    def own(self, text: str) -> PID:
        """Return a PID of this node; raises `WireError` for any other text."""
        return _pid_of(self.node.name, text)

    def theirs(self, neighbour: Neighbour, text: str) -> PID:
        """Return a PID of that node; raises `WireError` for any other text."""
        return _pid_of(neighbour.node, text)

    # Nodes

    def of(self, pid: str) -> Neighbour | None:
        """Return the other node that a PID, in full, names."""
        return self.neighbours.get(pid[1:].partition("@")[0])

    def find(self, to: str) -> PID | None:
        """Do what `Elsewhere.find` does."""
        if to.startswith("{"):
            node, at, _ = to[1:].partition("@")
            return PID.trusted(to) if at and node in self.neighbours else None
        return self.named(to)

    def up(self, peer: Peer, way: Way) -> None:
        """Begin to exchange frames with a node that has joined, or joined again."""
        if (former := self.neighbours.get(peer.node)) is not None:
            self.down(former.peer)
        neighbour = Neighbour(peer, way)
        self.neighbours[peer.node] = neighbour
        for observer in self.on_up:
            observer(neighbour)

    def down(self, peer: Peer) -> None:
        """Report all processes of a node as gone, once and for all; its later frames are dropped.

        A second call has no effect.
        """
        neighbour = self.neighbours.get(peer.node)
        if neighbour is None or neighbour.peer != peer:
            return
        del self.neighbours[peer.node]
        for observer in self.on_down:
            observer(neighbour)
        error = gone(peer.node)
        for future in list(neighbour.serving.values()):
            future.cancel()
        asked, neighbour.asked = neighbour.asked, {}
        for one in asked.values():
            _settle(one, error)
        effects = [
            effect
            for pid in self.kernel.relations.of_node(peer.node)
            if pid not in self.kernel.processes
            for effect in self.kernel.gone(pid, Result(error=error))
        ]
        self.engine.execute(effects)


def opened(answer: PeerFrame | ExitError) -> Any:
    """Return the value of an answer; raises the error that it is, `PeerGone` among them."""
    if isinstance(answer, ExitError):
        raise PeerGone(answer.message)
    if not isinstance(answer, PeerReplyFrame):
        raise WsrelayError(f"{type(answer).__name__} is no answer to this request")
    if answer.error is None:
        return payload.decode(answer.value)
    kind = getattr(errors, answer.error, None)
    if not (isinstance(kind, type) and issubclass(kind, WsrelayError)):
        kind = WsrelayError
    error = kind.__new__(kind)
    Exception.__init__(error, answer.message)
    raise error


def _pid_of(node: str, text: str) -> PID:
    try:
        pid = PID(text)
    except InvalidPID as error:
        raise WireError(str(error)) from None
    if pid.node != node:
        raise WireError(f"{text[:100]!r} is no PID of node {node}")
    return pid


def _settle(asked: Asked, answer: PeerFrame | ExitError) -> None:
    if asked.future.done():
        return
    try:
        result = asked.convert(answer)
    except (WsrelayError, ValueError, RecursionError) as error:
        asked.future.set_exception(error)
    else:
        asked.future.set_result(result)


def _packed(_: Neighbour, frame: Any, value: Any) -> PeerFrame:
    return PeerReplyFrame(frame.number, payload.pack(value))


def _refusal(number: int, error: BaseException) -> PeerReplyFrame:
    kind = type(error) if isinstance(error, WsrelayError) else WsrelayError
    return PeerReplyFrame(number, b"\xc0", kind.__name__, str(error)[: 64 * 1024])
