"""The seam to other nodes: what a node asks of the cluster it is part of.

A node asks only for what it does not find itself, so a message between its own processes and
clients never comes here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from wsrelay import wire
from wsrelay.errors import UnknownHost, WsrelayError
from wsrelay.kernel import Effect, Signal
from wsrelay.values.pid import PID

from .arrival import Arrival
from .endpoint import Mail
from .info import LinkTraffic, MemberInfo
from .process import NamedOrder, SpawnOrder
from .target import RelayTarget

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Clustering", "Elsewhere"]


class Clustering(Protocol):
    """The option `cluster` of a node."""

    @property
    def node_name(self) -> str:
        """The name of a node that is given none of its own."""

    def attach(self, node: Node) -> Elsewhere:
        """Return what the node asks from now on.

        It is called when the node is made, and again after each of its ends, when nothing of it
        runs. Joining is for `Elsewhere.start`. Raises `InvalidOptions`.
        """


class Elsewhere:
    """The processes of other nodes; as it stands here, that of a node in no cluster: none.

    Everything is called in the node's event loop, and nothing waits. PIDs are in full: they say
    their node. What takes the PID of a process is asked only after `find` has returned that, or
    about a process that was started by `spawn`.
    """

    # Life

    def start(self) -> None:
        """Begin to join; called when the node starts, before its companions do."""

    async def joined(self) -> None:
        """Wait until the node is a member of its cluster; raises `CannotJoin`."""

    async def stop(self) -> None:
        """Leave; called when all that ran here has ended, and told when everybody knows that."""

    async def aclose(self) -> None:
        """Let go of everything, soon; called last, whatever has become of `start` and `stop`."""

    @property
    def unready(self) -> str:
        """Why no client should be sent to this node now, in a few words; empty if they may come."""
        return ""

    def reconfigured(self) -> None:
        """Handle other hosts or entries of this node."""

    def draining(self) -> None:
        """Tell the others at once that this node drains, so that they place nothing here."""

    # Finding

    def find(self, to: str) -> PID | None:
        """Return the PID of a process of another node that is in the cluster, by PID or name.

        None if `to` names no such node, or nobody there. Whether the process is alive is not known
        here.
        """
        del to
        return None

    # Messages

    def check_room(self, receivers: Iterable[str], size: int) -> None:
        """Raise if the node itself may not send to one of them that many bytes for now.

        That is `NodeBusy`, or `PayloadError` for more than its mailbox may hold. A worker is not
        asked: it is not read while the way that it writes to is full.
        """

    def send(self, mail: Mail, receivers: Sequence[str]) -> int:
        """Send a message to those whom this node does not have; return how many nobody has."""
        del mail
        return len(receivers)

    def call(
        self, caller: PID, ref: int, to: PID, topic: str, content: bytes
    ) -> asyncio.Future[wire.FinishedFrame]:
        """Do what `Calls.call` does."""
        raise NotImplementedError

    def drained(self, pid: PID) -> asyncio.Future[None]:
        """Return a future that is done once most of what a client was sent is on its way."""
        raise NotImplementedError

    def hold(self, sender: PID, client: PID) -> bool:
        """Do what `Connections.hold` does, for a sender that is not here."""
        del sender, client
        return False

    def release(self, sender: PID, client: PID) -> None:
        """Undo `hold`."""

    # Targets of clients

    @property
    def serves(self) -> bool:
        """Whether a client of this node is bound to a process of another."""
        return False

    async def arrive(self, pid: PID, *, waits: bool, start: SpawnOrder | None = None) -> Arrival:
        """Do what `Node.arrive` does; `start` is what the process's node is to start first.

        That is an entry, with arguments that are data, for the one client. Raises what refuses it,
        here or there.
        """
        del waits, start
        raise UnknownHost(f"{pid.host}@{pid.node}", [])

    def target(self, pid: PID) -> RelayTarget:
        """Return the target that a client has arrived at, while that counts as its client."""
        raise NotImplementedError

    # What operators ask

    def members(self) -> list[MemberInfo] | None:
        """Return the nodes of the cluster, this one first; None for a node in no cluster."""
        return None

    def traffic(self) -> LinkTraffic:
        """Return what the links to other nodes have carried."""
        return LinkTraffic()

    async def locate(self, node: str, to: str) -> PID | None:
        """Do what `snapshot.locate` does on another node.

        Raises `WsrelayError` if that is not there.
        """
        del to
        raise self._nobody(node)

    async def ask_control(
        self, node: str, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        """Return the status and the body with which another node's control socket answers.

        `path` has the query, too. Raises as `locate`, and `ValueError` for what is too large.
        """
        del method, path, body
        raise self._nobody(node)

    @staticmethod
    def _nobody(node: str) -> WsrelayError:
        return WsrelayError(f"this node is in no cluster, so there is no node {node!r:.80}")

    # Names

    def fence(self, name: str) -> int | None:
        """Return the number of a name's owner if that is a process of another node."""
        del name
        return None

    def names_of(self, pid: PID) -> list[str]:
        """Return the names of a process of another node, as far as they are known here.

        It takes a while where there are many: it is meant for the log.
        """
        del pid
        return []

    # Groups: the members on other nodes are in the kernel's groups as well

    def broadcast(self, mail: Mail, group: str, members: Sequence[PID]) -> Sequence[PID]:
        """Send a message for a group to the other nodes where it has members, once to each.

        Returns the members that are here.
        """
        del mail, group
        return members

    def join_group(self, asker: PID, group: str, pid: PID, meta: bytes) -> None:
        """Do what `Kernel.join_group` does; raises `InvalidName`."""
        raise NotImplementedError

    def leave_group(self, asker: PID, group: str, pid: PID) -> None:
        """Do what `Kernel.leave_group` does."""
        raise NotImplementedError

    def pace(self, pid: PID) -> None:
        """Do not read a worker that has changed what all others are told until there is room."""

    # Lives

    def spawn(self, parent: PID, pid: PID, frame: wire.SpawnFrame) -> None:
        """Start a process on the node that its PID names.

        Raises what refuses it here; what refuses it there is how the process ends. Its relations
        to its parent are in the kernel already. `frame.target` is the id of an entry.
        """
        del parent, frame
        raise UnknownHost(f"{pid.host}@{pid.node}", [])

    def exec(
        self, parent: PID, ref: int, pid: PID, frame: wire.SpawnFrame
    ) -> asyncio.Future[wire.FinishedFrame]:
        """Do what `spawn` does, and return a future of how the process ends.

        When the future is cancelled, because nobody waits any more, the process is terminated.
        """
        del parent, ref, frame
        raise UnknownHost(f"{pid.host}@{pid.node}", [])

    def started(self, pid: PID) -> asyncio.Future[str | None]:
        """Return a future of what `Engine.started` returns."""
        raise NotImplementedError

    def signal(
        self, sender: PID, to: PID, signal: Signal, reason: str = "", *, restarts: bool = False
    ) -> None:
        """Cancel or terminate a process, as `MessageRouter.ask` does."""
        raise NotImplementedError

    def carry_out(self, effect: Effect) -> None:
        """Carry out an effect about a process that is not here, or has just ended here."""

    # Names

    shares_names = False
    """Whether there are names that the nodes of a cluster decide together."""

    def keep_local(self, name: str) -> None:
        """Have this node decide a name alone from now on: each node has one of its own."""

    def decides(self, name: str) -> bool:
        """Whether the nodes of a cluster decide together who has the name.

        If so, what is below is asked, else the kernel.
        """
        del name
        return False

    async def keep(self, name: str) -> None:
        """Wait until this node decides the name; it does so from then on until it lets it go.

        That is so also while no process has the name. Raises `HostFailed` if the node shuts down.
        """
        raise NotImplementedError

    def let_go(self, name: str) -> None:
        """Let another node decide the name as soon as no process of this one has it."""

    async def get_or_spawn(self, order: NamedOrder) -> PID:
        """Do what `Engine.get_or_spawn` does, with any node's process; raises also `NoQuorum`."""
        raise NotImplementedError

    async def register(self, name: str, pid: PID, asker: PID | None) -> None:
        """Do what `Kernel.register` does, with a process of any node; raises also `NoQuorum`."""
        raise NotImplementedError

    async def unregister(self, name: str, pid: PID) -> None:
        """Free a name that a process of another node has; raises also `NoQuorum`."""
        raise NotImplementedError
