"""Processes of other nodes: messages to them, calls, and clients there that are full."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from wsrelay import wire
from wsrelay.cluster.frames import (
    GroupMessageFrame,
    HoldFrame,
    HostsFrame,
    PeerCallFrame,
    PeerDrainFrame,
    PeerFinishedFrame,
    PeerFrame,
    PeerSendFrame,
)
from wsrelay.errors import NodeBusy, PayloadError, WireError
from wsrelay.node.arrival import Arrival
from wsrelay.node.endpoint import Mail
from wsrelay.node.info import LinkTraffic, MemberInfo
from wsrelay.node.process import NamedOrder, SpawnOrder, WorkerProcess
from wsrelay.values.message import ERROR, ExitError, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import printable
from wsrelay.wire import payload

from .exchange import Exchange, opened
from .groups import PeerGroups
from .guests import Guests
from .lives import Lives, told
from .names import ClusterNames
from .neighbour import Neighbour
from .operators import PeerOperators
from .targets import RemoteTarget, RemoteTargets

__all__ = ["Processes"]

logger = logging.getLogger(__name__)

_MOST_HOLDS: Final = 100_000
"""Clients of one node because of which processes here are not read: ten full frames of them."""

_NOTHING: Final = b"\xc0"


class ClusterHook(Protocol):
    """What joins the cluster and leaves it."""

    @property
    def unready(self) -> str:
        """Why no client should be sent to this node now; empty if they may come."""

    def draining(self) -> None:
        """Do what `Elsewhere.draining` does."""

    def members(self) -> list[MemberInfo]:
        """Do what `Elsewhere.members` does."""

    def traffic(self) -> LinkTraffic:
        """Do what `Elsewhere.traffic` does."""

    def start(self) -> None:
        """Begin to join."""

    async def joined(self) -> None:
        """Wait until the node is a member; raises `CannotJoin`."""

    async def stop(self) -> None:
        """Leave."""

    async def aclose(self) -> None:
        """Close all connections, whatever has become of leaving."""


class Processes(Lives):
    """What a node asks about the processes of others; `member` joins the cluster and leaves it."""

    def __init__(self, exchange: Exchange, member: ClusterHook | None = None) -> None:
        super().__init__(exchange)
        self._member = member
        self.names: ClusterNames | None = None
        """The names of the cluster; without them each node has its own."""
        self._node = exchange.node
        self.targets = RemoteTargets(exchange)
        self.guests = Guests(exchange)
        self._prefix = f"{{{exchange.node.name}@"
        self._groups = PeerGroups(exchange)
        self._operators = PeerOperators(exchange)
        if member is not None:
            self._operators.members = member.members
        exchange.on(PeerSendFrame, self._sent)
        exchange.on(HoldFrame, self._held)
        exchange.on(HostsFrame, self._hosts)
        exchange.answer(PeerCallFrame, self._called, self._finished)
        exchange.answer(PeerDrainFrame, self._drain)
        exchange.on_up.append(self._tell_hosts)
        exchange.on_down.append(self._let_go)
        self.engine.on_exit.append(self._on_exit)

    def start(self) -> None:
        """Begin to join."""
        if self._member is not None:
            self._member.start()

    async def joined(self) -> None:
        """Do what `Elsewhere.joined` does."""
        if self._member is not None:
            await self._member.joined()

    async def stop(self) -> None:
        """Leave."""
        if self._member is not None:
            await self._member.stop()

    async def aclose(self) -> None:
        """Do what `Elsewhere.aclose` does."""
        if self._member is not None:
            await self._member.aclose()

    @property
    def unready(self) -> str:
        """Do what `Elsewhere.unready` does."""
        return "" if self._member is None else self._member.unready

    def find(self, to: str) -> PID | None:
        """Do what `Elsewhere.find` does."""
        return self.exchange.find(to)

    # Names

    @property
    def shares_names(self) -> bool:  # type: ignore[override]
        """Do what `Elsewhere.shares_names` does."""
        return self.names is not None

    def keep_local(self, name: str) -> None:
        """Do what `Elsewhere.keep_local` does."""
        self._names().local.add(name)

    def decides(self, name: str) -> bool:
        """Do what `Elsewhere.decides` does."""
        return self.names is not None and self.names.decides(name)

    def names_of(self, pid: PID) -> list[str]:
        """Do what `Elsewhere.names_of` does."""
        return [] if self.names is None else self.names.directory.of(pid)

    async def keep(self, name: str) -> None:
        """Do what `Elsewhere.keep` does."""
        await self._names().kept.keep(name)

    def let_go(self, name: str) -> None:
        """Do what `Elsewhere.let_go` does."""
        self._names().kept.let_go(name)

    async def get_or_spawn(self, order: NamedOrder) -> PID:
        """Do what `Elsewhere.get_or_spawn` does."""
        return await self._names().get_or_spawn(order)

    async def register(self, name: str, pid: PID, asker: PID | None) -> None:
        """Do what `Elsewhere.register` does."""
        await self._names().register(name, pid, asker)

    async def unregister(self, name: str, pid: PID) -> None:
        """Do what `Elsewhere.unregister` does."""
        await self._names().unregister(name, pid)

    def _names(self) -> ClusterNames:
        assert self.names is not None  # noqa: S101 - see `Elsewhere.decides`
        return self.names

    # Targets of clients

    @property
    def serves(self) -> bool:
        """Do what `Elsewhere.serves` does."""
        return self.targets.serve

    async def arrive(self, pid: PID, *, waits: bool, start: SpawnOrder | None = None) -> Arrival:
        """Do what `Elsewhere.arrive` does."""
        return await self.targets.arrive(pid, waits=waits, start=start)

    def target(self, pid: PID) -> RemoteTarget:
        """Do what `Elsewhere.target` does."""
        return self.targets.target(pid)

    # Messages

    def check_room(self, receivers: Iterable[str], size: int) -> None:
        """Do what `Elsewhere.check_room` does."""
        for to in receivers:
            if self.kernel.find(to, self.engine.name) is None and (pid := self.find(to)):
                self._check_room(pid, size)

    def _check_room(self, to: PID, size: int) -> None:
        neighbour = self._of(to)
        if (problem := _too_large(neighbour, to, size)) is not None:
            raise PayloadError(problem)
        if neighbour.way.busy:
            raise NodeBusy(
                f"{neighbour.way.backlog} bytes wait for node {neighbour.node} already: try again "
                "later, or from a process, which waits until there is room"
            )

    def send(self, mail: Mail, receivers: Sequence[str]) -> int:
        """Do what `Elsewhere.send` does."""
        by_node: dict[Neighbour, list[PID]] = {}
        nobody = 0
        for to in receivers:
            if (pid := self.exchange.find(to)) is None:
                nobody += 1
            else:
                by_node.setdefault(self._of(pid), []).append(pid)
        process, sender = self.engine.processes.get(mail.sender), self._sender(mail)
        content: Any = mail.content
        for neighbour, pids in by_node.items():
            if neighbour.is_small_for(len(content)):
                pids = self._that_can_hold(neighbour, pids, mail)  # noqa: PLW2901
            for portion in wire.portions([*map(str, pids)]):
                neighbour.way.send(PeerSendFrame(portion, sender, mail.topic, content))
            neighbour.pace(process)
        return nobody

    def _that_can_hold(self, neighbour: Neighbour, pids: list[PID], mail: Mail) -> list[PID]:
        """Return those whose mailboxes can hold a message; its sender is told of the others."""
        holding = []
        for pid in pids:
            if (problem := _too_large(neighbour, pid, len(mail.content))) is None:
                holding.append(pid)
            else:
                self._refuse(mail, problem)
        return holding

    def _sender(self, mail: Mail) -> str:
        sender = str(mail.sender)
        if not sender.startswith(self._prefix):  # a client of another node, which is here as well
            sender = str(self.router.pid)
        return sender

    # Groups

    def broadcast(self, mail: Mail, group: str, members: Sequence[PID]) -> Sequence[PID]:
        """Do what `Elsewhere.broadcast` does."""
        here, there = self._groups.split(group, members)
        process, size = self.engine.processes.get(mail.sender), len(mail.content)
        content: Any = mail.content
        for node, pids in there.items():
            neighbour = self.exchange.neighbours[node]
            if neighbour.is_small_for(size) and any(
                _too_large(neighbour, pid, size) for pid in pids
            ):
                self.send(mail, pids)  # only to those whose mailboxes can hold it
            else:
                frame = GroupMessageFrame(group, self._sender(mail), mail.topic, content)
                neighbour.way.send(frame)
                neighbour.pace(process)
        return here

    def join_group(self, asker: PID, group: str, pid: PID, meta: bytes) -> None:
        """Do what `Elsewhere.join_group` does."""
        self._groups.join(asker, group, pid, meta)

    def leave_group(self, asker: PID, group: str, pid: PID) -> None:
        """Do what `Elsewhere.leave_group` does."""
        self._groups.leave(asker, group, pid)

    def pace(self, pid: PID) -> None:
        """Do what `Elsewhere.pace` does."""
        for neighbour in self.exchange.neighbours.values():
            neighbour.pace(self.engine.processes.get(pid))

    def _refuse(self, mail: Mail, problem: str) -> None:
        """Tell a process, and once the log, that a message of it was not sent."""
        content = {"client_pid": None, "topic": mail.topic, "error": problem}
        self.router.route(Mail(self.router.pid, ERROR, payload.pack(content)), [mail.sender])
        process = self.engine.processes.get(mail.sender)
        if process and self.engine.mistakes.first(mail.sender, f"{mail.topic}: {problem}"):
            logger.warning(
                "%s sent %s: %s (told once)",
                mail.sender,
                printable(mail.topic),
                problem,
                extra=self.engine.about(process),
            )

    def _sent(self, neighbour: Neighbour, frame: PeerSendFrame) -> Iterator[None] | None:
        mail = Mail(self.exchange.theirs(neighbour, frame.sender), frame.topic, frame.payload)
        to = frame.to
        for pid in to:
            if not pid.startswith(self._prefix):
                raise WireError(f"{pid[:100]!r} is no PID of this node")
        if len(to) > 1:
            return self.router.route_in_portions(mail, to)
        self.router.route(mail, to)
        return None

    # Calls

    def call(
        self, caller: PID, ref: int, to: PID, topic: str, content: bytes
    ) -> asyncio.Future[wire.FinishedFrame]:
        """Do what `Elsewhere.call` does; raises `PayloadError`, and for the node `NodeBusy`."""
        neighbour, process = self._of(to), self.engine.processes.get(caller)
        if process is None:
            self._check_room(to, len(content))
        elif (problem := _too_large(neighbour, to, len(content))) is not None:
            raise PayloadError(problem)

        def convert(answer: PeerFrame | ExitError) -> wire.FinishedFrame:
            if isinstance(answer, ExitError):
                return wire.FinishedFrame(ref, wire.PackedResult(_NOTHING, answer))
            if isinstance(answer, PeerFinishedFrame):
                error = None if answer.error is None else answer.error.told()
                result = wire.PackedResult(answer.value, error)
                return wire.FinishedFrame(ref, result, answer.refused)
            opened(answer)  # raises what it tells
            return wire.FinishedFrame(ref, wire.PackedResult(_NOTHING))

        frame = PeerCallFrame(0, str(to), str(caller), topic, content)
        future = self.exchange.ask(neighbour, frame, convert)
        neighbour.pace(process)
        return future

    def _called(
        self, neighbour: Neighbour, frame: PeerCallFrame
    ) -> asyncio.Future[wire.FinishedFrame]:
        to, sender = self.exchange.own(frame.to), self.exchange.theirs(neighbour, frame.sender)
        content, frame.payload = frame.payload, b""  # the request is kept until it is answered
        return self._node.calls.call(sender, frame.number, to, frame.topic, content)

    def _finished(
        self, neighbour: Neighbour, frame: PeerCallFrame, told_: wire.FinishedFrame
    ) -> PeerFrame:
        """Pass an answer on; who answers is not read while the way is full."""
        neighbour.pace(self.engine.processes.get(PID.trusted(frame.to)))
        result = told_.result
        return PeerFinishedFrame(frame.number, result.value, told(result.error), told_.refused)

    # What operators ask

    def draining(self) -> None:
        """Do what `Elsewhere.draining` does."""
        if self._member is not None:
            self._member.draining()

    def members(self) -> list[MemberInfo] | None:
        """Do what `Elsewhere.members` does."""
        return self._operators.members()

    def traffic(self) -> LinkTraffic:
        """Do what `Elsewhere.traffic` does."""
        return LinkTraffic() if self._member is None else self._member.traffic()

    async def locate(self, node: str, to: str) -> PID | None:
        """Do what `Elsewhere.locate` does."""
        return await self._operators.locate(node, to)

    async def ask_control(
        self, node: str, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        """Do what `Elsewhere.ask_control` does."""
        return await self._operators.ask_control(node, method, path, body)

    # Clients

    def drained(self, pid: PID) -> asyncio.Future[None]:
        """Do what `Elsewhere.drained` does."""
        return self.exchange.ask(self._of(pid), PeerDrainFrame(0, str(pid)), lambda _: None)

    def _drain(self, neighbour: Neighbour, frame: PeerDrainFrame) -> asyncio.Future[None] | None:
        client = self.exchange.own(frame.pid)
        return self._node.clients.drained(client, (neighbour.pid, frame.number))

    def hold(self, sender: PID, client: PID) -> bool:
        """Do what `Elsewhere.hold` does."""
        if (neighbour := self.exchange.of(sender)) is None:
            return False
        neighbour.way.send(HoldFrame(str(sender), str(client), held=True))
        return True

    def release(self, sender: PID, client: PID) -> None:
        """Do what `Elsewhere.release` does."""
        if (neighbour := self.exchange.of(sender)) is not None:
            neighbour.way.send(HoldFrame(str(sender), str(client), held=False))

    def _held(self, neighbour: Neighbour, frame: HoldFrame) -> None:
        pid = self.exchange.own(frame.pid)
        client = self.exchange.theirs(neighbour, frame.client)
        if (process := self.engine.processes.get(pid)) is None or not process.launched:
            return
        if not frame.held:
            neighbour.let_go(process, client)
        elif sum(map(len, neighbour.holds.values())) < _MOST_HOLDS:
            neighbour.holds.setdefault(pid, set()).add(client)
            process.incarnation.pipe.hold(client)
        else:
            raise WireError(f"more than {_MOST_HOLDS} of its clients are full")

    def _let_go(self, neighbour: Neighbour) -> None:
        """Read all processes again that a node that is gone has held up."""
        for pid, clients in list(neighbour.holds.items()):
            for client in list(clients):
                neighbour.let_go(self.engine.processes[pid], client)
        for pid in list(neighbour.held):
            neighbour.release(pid)
        self.engine.mistakes.forget(neighbour.pid)

    def _on_exit(self, process: WorkerProcess, _: Result) -> None:
        for neighbour in self.exchange.neighbours.values():
            neighbour.forget(process.pid)

    # Hosts

    def reconfigured(self) -> None:
        """Tell the others which hosts there are now."""
        for neighbour in self.exchange.neighbours.values():
            self._tell_hosts(neighbour)

    def _tell_hosts(self, neighbour: Neighbour) -> None:
        hosts = [(name, options.mailbox) for name, options in self._node.hosts.items()]
        neighbour.way.send(HostsFrame(hosts))

    def _hosts(self, neighbour: Neighbour, frame: HostsFrame) -> None:
        neighbour.mailboxes = dict(frame.mailboxes)


def _too_large(neighbour: Neighbour, to: PID, size: int) -> str | None:
    """Return why a message is too large for a process elsewhere, or None if it is not."""
    most = neighbour.mailboxes.get(to.host)
    if most is None or size <= most:
        return None
    return (
        f"{size} bytes are more than the mailbox of {to} holds, {most}: send less at once, or "
        f"raise limits.mailbox of {to.host}"
    )
