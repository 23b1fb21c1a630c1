"""Rules of the product, each broken on purpose, to show that a run notices it.

A mutation takes the place of one function. `promise` is what it must break.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from msgspec import Struct

from wsrelay.cluster.lease import Lease
from wsrelay.cluster.link import Link
from wsrelay.cluster.members import Members, NodeDown
from wsrelay.cluster.peer import Peer
from wsrelay.kernel import Kernel
from wsrelay.kernel.names import Names
from wsrelay.kernel.relations import Ended, Relations
from wsrelay.node.calls import Calls
from wsrelay.node.connections import Connections
from wsrelay.node.host import Lanes, NodePipe
from wsrelay.node.process import WorkerProcess
from wsrelay.node.timers import Timers
from wsrelay.peers.clustered import ClusteredNode
from wsrelay.peers.greeter import Greeter
from wsrelay.peers.keys import Wait
from wsrelay.peers.member import ClusterMember
from wsrelay.peers.names import ClusterNames
from wsrelay.session.claim import Claim
from wsrelay.session.outbox import Outbox
from wsrelay.values.sizes import ITEM

__all__ = ["MUTATIONS", "Mutation", "mutated"]


class Mutation(Struct, frozen=True):
    """`make` gets the original function and returns what takes its place."""

    promise: str
    place: Any
    name: str
    make: Callable[[Any], Any]
    nodes: int = 1
    """How many it takes to notice it."""


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """Break a rule while something runs."""
    original = vars(mutation.place)[mutation.name]
    setattr(mutation.place, mutation.name, mutation.make(original))
    try:
        yield
    finally:
        setattr(mutation.place, mutation.name, original)


def _nothing(result: Any = None) -> Callable[[Any], Any]:
    """Do nothing instead."""
    return lambda _: lambda *_args, **_options: result


def _mail_is_lost(original: Any) -> Any:
    count = 0

    def deliver(self: WorkerProcess, mail: Any) -> bool:
        nonlocal count
        count += 1
        return True if count % 11 == 0 else original(self, mail)

    return deliver


def _mail_comes_twice(original: Any) -> Any:
    def deliver(self: WorkerProcess, mail: Any) -> bool:
        original(self, mail)
        return original(self, mail)  # type: ignore[no-any-return]

    return deliver


def _last_first(original: Any) -> Any:
    def taken(self: Lanes, total: int) -> None:
        self._waiting.reverse()
        original(self, total)

    return taken


def _newest_first(_: Any) -> Any:
    def get(self: Outbox) -> Any:
        message = self.pop()
        self.size -= message.size + ITEM
        return message

    return get


def _leave_is_not_told(_: Any) -> Any:
    def leave(
        self: Connections, client: Any, target: WorkerProcess, code: int, reason: str
    ) -> None:
        del code, reason
        self.unbind(client, target)

    return leave


def _stays_bound(_: Any) -> Any:
    def released(self: Relations, pid: Any) -> Ended:
        return Ended([*self._watchers.get(pid, ())], [*self._links.pop(pid, ())], [])

    return released


def _impatient(_: Any) -> Any:
    def is_silent(_: Members, node: Any) -> bool:
        since, issued = node.watched
        return bool(issued >= since + 0.4)

    return is_silent


def _told_again(original: Any) -> Any:
    def end(self: Members, node: Any, peer: Peer, why: str, effects: list[Any]) -> None:
        original(self, node, peer, why, effects)
        effects += [effect for effect in effects if isinstance(effect, NodeDown)]

    return end


def _says_nothing(_: Any) -> Any:
    async def greet(self: Greeter, me: Peer) -> None:
        del self, me
        await asyncio.Event().wait()

    return greet


@asynccontextmanager
async def _without_a_deadline(*_: Any) -> AsyncIterator[Wait]:
    yield Wait()


def _raises(_: Any) -> Any:
    def step(self: Timers) -> bool:
        raise ZeroDivisionError(f"{len(self)} timers")

    return step


MUTATIONS: Final = {
    "mail overtakes mail": Mutation("in order", Lanes, "taken", _last_first),
    "mail comes twice": Mutation("in order", WorkerProcess, "deliver", _mail_comes_twice),
    "mail is lost": Mutation("each once", WorkerProcess, "deliver", _mail_is_lost),
    "the last mail is lost": Mutation("all of it", WorkerProcess, "deliver", _nothing(result=True)),
    "monitors are forgotten": Mutation("one exit", Kernel, "monitor", _nothing([])),
    "calls of the dead wait": Mutation("answered", Calls, "ended", _nothing()),
    "a cancelled process has no name": Mutation(
        "one by one", Names, "cancelled", lambda _: Names.release
    ),
    "a successor does not wait": Mutation("one at a time", Names, "holder", _nothing()),
    "rooms are not told of a leave": Mutation(
        "joins and leaves", Connections, "leave", _leave_is_not_told
    ),
    "a client that waits is not kept": Mutation("client's order", Claim, "keep", _nothing()),
    "the outbox is a stack": Mutation("room's order", Outbox, "get", _newest_first),
    "outboxes have no limit": Mutation(
        "bounds",
        Outbox,
        "put",
        lambda original: lambda self, message: original(self, message) or True,
    ),
    "relations outlive their processes": Mutation(
        "no leftovers", Relations, "release", _stays_bound
    ),
    "timers raise": Mutation("no defect", Timers, "step", _raises),
    "nobody is killed": Mutation("ends", WorkerProcess, "interrupt", _nothing()),
    "holds are ignored": Mutation("bounds", NodePipe, "hold", _nothing()),
    "nobody asks for what is lost": Mutation("all of it", Link, "_missing", _nothing(), 3),
    "nodes that are down stay": Mutation(
        "silent after down", ClusteredNode, "on_down", _nothing(), 3
    ),
    "processes of nodes that are down stay": Mutation(
        "one exit", Relations, "of_node", _nothing([]), 3
    ),
    "nobody is frozen before the lease is over": Mutation(
        "frozen first",
        Lease,
        "runs_until",
        lambda _: property(lambda self: self.since + 1.3 * self.duration),
        3,
    ),
    "nobody waits for a lease": Mutation("the living stay", Members, "_is_silent", _impatient, 3),
    "ends of nodes are told again": Mutation("down once", Members, "_end", _told_again, 3),
    "names are not told": Mutation("copies agree", ClusterNames, "_tell", _nothing(), 3),
    "the living may be robbed": Mutation(
        "one at a time", ClusterMember, "is_down", _nothing(result=True), 3
    ),
    "owners are not counted": Mutation(
        "fences grow", ClusterNames, "_number", lambda _: lambda *_: 7, 3
    ),
    "claims wait for ever": Mutation(
        "in time", ClusterNames, "_within", lambda _: _without_a_deadline, 3
    ),
    "no node says hello": Mutation("all come back", Greeter, "greet", _says_nothing, 3),
}
"""By what goes wrong."""
