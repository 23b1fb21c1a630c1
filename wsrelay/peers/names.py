"""Names of the cluster: which node decides a name, and what the others are told of it.

The store says only which node decides a name: the owner of its key (`keys`). All else about the
name is decided by that node's kernel: who has it, who holds it, who is next. So a process that is
cancelled and its successor cost the store nothing.

Three kinds of waits must not wait for each other, or two nodes would wait for each other's answers:
a claim waits for the store and for the end of nodes, an answer to another node waits for claims of
this one, and only what was asked here waits for answers of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, Final

from msgspec import structs

from wsrelay.cluster import claims
from wsrelay.cluster.directory import Directory
from wsrelay.cluster.frames import (
    MAX_NAMES,
    AskNameFrame,
    Named,
    NamesFrame,
    RegisterNameFrame,
    UnregisterNameFrame,
)
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Store
from wsrelay.errors import (
    HostFailed,
    HostFull,
    InvalidName,
    NameNotFound,
    NameTaken,
    NoQuorum,
    TooMany,
    UnknownHost,
    WireError,
    WsrelayError,
)
from wsrelay.kernel import ProcessState, Signal
from wsrelay.node.process import NamedOrder, SpawnOrder
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.pid import PID, nameable
from wsrelay.values.sizes import show

from .circle import Bell, Circle
from .exchange import Exchange, PeerGone, not_a_member
from .keeping import KeptNames
from .keys import NameKeys, Wait
from .lives import check_entry
from .neighbour import Neighbour
from .search import NameSearch

__all__ = ["ClusterNames"]

logger = logging.getLogger(__name__)

_MOST_CODE: Final = 256 * 1024 * 1024
"""Bytes of arguments that may wait for answers, of all that one process asks."""

_PATIENCE: Final = 10.0
"""Seconds that a request about a process may take that no host of this node runs."""


class ClusterNames:
    """The names of one node in its cluster.

    It observes the kernel's names: what is given and freed there is told to the other nodes before
    anything else that follows from it.
    """

    def __init__(self, exchange: Exchange, circle: Circle, store: Store) -> None:
        self.directory = Directory()
        self._bell = Bell()
        self.keys = NameKeys(store, circle, self._bell, self._taken)
        self.local: set[str] = set()
        """Names that are this node's alone, besides those that begin with `local/`."""
        self._exchange = exchange
        self._engine = exchange.engine
        self._kernel = exchange.kernel
        self._circle = circle
        self._code: Counter[PID | None] = Counter()
        """Bytes of arguments that wait for an answer, for each process that asks, this node (None),
        or another one."""
        self._engine.fencing.is_cluster_name = self.decides
        self._kernel.names.observer = self._changed
        self._kernel.names.numbering = self._number
        self.kept = KeptNames(self, exchange.engine)
        exchange.named = self.directory.get
        exchange.on_up.append(self._link_begins)
        exchange.on_down.append(self._link_ends)
        exchange.on(NamesFrame, self._told)
        exchange.answer(AskNameFrame, self._asked)
        exchange.answer(RegisterNameFrame, self._register_for)
        exchange.answer(UnregisterNameFrame, self._unregister_for)

    # What the node asks

    def decides(self, name: str) -> bool:
        """Whether it is a name of the cluster."""
        if claims.is_local(name):
            return False
        return name not in self.local or name in self.keys.held

    async def get_or_spawn(self, order: NamedOrder) -> PID:
        """Return the process with the name, on whichever node, or start one on one of them."""
        nameable(order.name)
        options = self._engine.templates.options.get(order.pid.host)
        seconds = options.start_timeout if options else _PATIENCE
        with self._waiting(order.parent, len(order.order.code)):
            async with self._within(order.name, seconds) as wait:
                return await NameSearch(self, order, wait).process()

    @contextlib.contextmanager
    def _waiting(self, asker: PID | None, size: int) -> Iterator[None]:
        """Account for arguments that wait; raises `TooMany`."""
        if self._code[asker] + size > _MOST_CODE:
            raise TooMany("arguments (of processes that have not started)", show(_MOST_CODE))
        self._code[asker] += size
        try:
            yield
        finally:
            self._code[asker] -= size
            if not self._code[asker]:
                del self._code[asker]

    async def register(self, name: str, pid: PID, asker: PID | None = None) -> None:
        """Give a name to a process of any node."""
        nameable(name)
        process = self._engine.processes.get(pid)
        seconds = _PATIENCE if process is None else process.options.start_timeout
        async with self._within(name, seconds) as wait:
            if pid.node == self._engine.name:
                await self._register(name, pid, asker, wait)
            else:
                await self._register_there(name, pid, wait)

    async def unregister(self, name: str, pid: PID) -> None:
        """Free a name that a process of another node has."""
        neighbour = self._exchange.of(pid)
        if neighbour is None:
            raise _nobody(name)
        async with self._within(name, _PATIENCE) as wait:
            try:
                frame = UnregisterNameFrame(0, name, str(pid))
                await self.ask(neighbour.peer, wait, frame)
            except PeerGone:
                raise _nobody(name) from None

    # Registering

    async def _register(self, name: str, pid: PID, asker: PID | None, wait: Wait) -> None:
        """Give a name to a process of this node, which is fenced before the name is claimed."""
        fenced = False
        stale: Peer | None = None
        try:
            while self._kernel.names.get(name) is None and not self.keys.has(name):
                self._check_alive(name, pid)
                peer = self.directory.owner(name)
                if peer is None or peer == stale:
                    if not (fenced := fenced or await self._engine.fencing.fence(pid)):
                        raise _not_alive(name, pid)
                    owned = await self.keys.claim(name, wait)
                    if owned is None:
                        continue
                    peer = owned.owner
                if not await self.reach(peer, wait):
                    stale = peer
                    continue
                with contextlib.suppress(PeerGone):
                    taken = await self.ask(peer, wait, AskNameFrame(0, name, "who"))
                    if taken is not None:
                        raise NameTaken(f"the name {name!r} belongs to {taken}")
                stale = peer
            self._kernel.register(name, pid, asker)
        finally:
            self._unfence(pid)
            self.look(name)

    async def _register_there(self, name: str, pid: PID, wait: Wait) -> None:
        if (neighbour := self._exchange.of(pid)) is not None:
            with contextlib.suppress(PeerGone):
                await self.ask(neighbour.peer, wait, RegisterNameFrame(0, name, str(pid)))
                return
        raise _not_alive(name, pid)

    def _check_alive(self, name: str, pid: PID) -> None:
        process = self._kernel.processes.get(pid)
        if process is None or process.state is ProcessState.CANCELLING:
            raise _not_alive(name, pid)

    def _unfence(self, pid: PID) -> None:
        """Let a process run whatever becomes of the lease if it has no name of the cluster."""
        if pid not in self._engine.processes:
            return
        names = self._kernel.names
        own = {*names.of(pid), names.exclusive(pid) or "local/"}
        if not any(map(self.decides, own)):
            self._engine.fencing.unfence(pid)

    # What the kernel says

    def _number(self, name: str) -> int | None:
        """Return the fence of a new owner of a name."""
        if (held := self.keys.held.get(name)) is None:
            return None
        held.count += 1
        return held.fence

    def _changed(self, name: str) -> None:
        """Tell the others that a name was given or freed, and see to its key."""
        if not self.decides(name):
            return
        pid, held = self._kernel.names.get(name), self.keys.held.get(name)
        if held is None:
            if pid is not None:
                logger.error("%s has the name %r, which the cluster has not given it", pid, name)
            return
        if pid != held.pid:
            former, held.pid = held.pid, pid
            self._tell(Named(name, pid or "", held.fence))
            if former is not None:
                self._unfence(former)
        if pid is None:
            # When all that follows from the end that has freed it has been carried out.
            asyncio.get_running_loop().call_soon(self.look, name)

    def look(self, name: str) -> None:
        """Release the key of a name that nobody has or holds here any more."""
        names = self._kernel.names
        is_free = names.get(name) is None and names.holder(name) is None
        if is_free and name in self.keys.held and name not in self.kept:
            self.keys.release(name)

    def _tell(self, *named: Named) -> None:
        for neighbour in self._exchange.neighbours.values():
            neighbour.way.send(NamesFrame([*named], self._circle.floor.value))

    # What the cluster says

    def joined(self) -> None:
        """Begin as a new incarnation: the keys of former ones are deleted."""
        self.keys.tidy()

    def node_is_down(self, peer: Peer) -> None:
        """Go on with what waited for the end of an incarnation, and have its keys deleted."""
        self._bell.ring()
        me, others = self._circle.me, self._exchange.neighbours.values()
        if me is not None and all(me < other.peer for other in others if other.peer != peer):
            self.keys.tidy()

    def moved(self) -> None:
        """Look again whether claims are allowed; called when the lease has been renewed."""
        self._bell.ring()

    def writes_lost(self) -> None:
        """Write and delete keys of this node again: the store has lost that it was done."""
        self.keys.claim_again()
        self._tell()

    def store_was_away(self) -> None:
        """Look whether the store has lost what was written last."""
        self.keys.check()

    def _link_begins(self, neighbour: Neighbour) -> None:
        """Tell a node all names."""
        names = [
            Named(name, held.pid, held.fence)
            for name, held in self.keys.held.items()
            if held.pid is not None
        ]
        for start in range(0, len(names) or 1, MAX_NAMES):
            frame = NamesFrame(names[start : start + MAX_NAMES], self._circle.floor.value)
            neighbour.way.send(frame)
        self._bell.ring()

    def _link_ends(self, neighbour: Neighbour) -> None:
        self.directory.drop(neighbour.peer)
        self._bell.ring()

    def _told(self, neighbour: Neighbour, frame: NamesFrame) -> None:
        self._circle.floor.learn(frame.floor)
        self.directory.learn(neighbour.peer, frame.names)

    async def _taken(self, name: str, owner: Peer) -> bool:
        """Whether a process of another node has a name that the store has lost and given anew.

        The one of this node is ended then: the store decides.
        """
        wait = Wait()
        if not await self.reach(owner, wait):
            return False
        pid: Any = ""
        try:
            pid = await self.ask(owner, wait, AskNameFrame(0, name, "who"))
        except PeerGone:
            return False
        except NameTaken:
            pass
        if pid is None or name not in self.keys.held:
            return False
        names = self._kernel.names
        why = (
            f"killed: the cluster's store lost that its name {name!r:.200} is taken, and has given "
            f"it to node {owner.node}"
        )
        ends = [one for one in (names.get(name), names.holder(name)) if one is not None]
        self.kept.lose(name)
        self.keys.lose(name)
        self._tell(Named(name, ""))
        for one in ends:
            because = ExitError(ExitKind.TERMINATED, why)
            self._engine.signal(one, Signal.TERMINATE, because=because)
        return True

    # What other nodes ask

    def _asked(self, neighbour: Neighbour, frame: AskNameFrame) -> Awaitable[PID | Peer | None]:
        self._check(neighbour, frame.name)
        sender = self._exchange.theirs(neighbour, frame.sender) if frame.sender else None
        if frame.kind == "free":
            return self.kept.until_free(frame.name)
        return self._answer_bounded(neighbour, frame, sender)

    def _register_for(self, neighbour: Neighbour, frame: RegisterNameFrame) -> Awaitable[None]:
        self._check(neighbour, frame.name)
        return self.register(frame.name, self._exchange.own(frame.pid))

    def _unregister_for(self, neighbour: Neighbour, frame: UnregisterNameFrame) -> None:
        self._check(neighbour, frame.name)
        if self._kernel.names.get(frame.name) != self._exchange.own(frame.pid):
            raise _nobody(frame.name)
        self._engine.execute(self._kernel.unregister(frame.name))

    def _check(self, neighbour: Neighbour, name: str) -> None:
        """Raise `WireError` for a name that no node asks about."""
        if claims.is_local(nameable(name)):
            raise WireError(f"node {neighbour.node} asks for {name!r:.200}")

    async def _answer_bounded(
        self, neighbour: Neighbour, frame: AskNameFrame, sender: PID | None
    ) -> PID | Peer | None:
        """Answer unless too many arguments of that node wait already; raises `TooMany`."""
        with self._waiting(neighbour.pid, len(frame.code)):
            return await self._answer(frame, sender)

    async def _answer(self, frame: AskNameFrame, sender: PID | None) -> PID | Peer | None:
        """Answer as soon as it is clear whether this node has the name."""
        name, keys = frame.name, self.keys
        while self.decides(name):
            if (pid := self._kernel.names.get(name)) is not None:
                if frame.kind != "who" and (process := self._engine.processes.get(pid)):
                    process.found = True
                return pid
            if (claiming := keys.claiming.get(name)) is not None:
                await asyncio.wait([claiming])
            elif name in keys.held:
                return await self._answer_held(frame, sender)
            elif (releasing := keys.releasing.get(name)) is not None:
                await releasing.freed.wait()
            elif frame.kind == "place":
                self._check_start(frame)
                if (full := self.refusal(frame.host)) is not None:
                    raise full
                if (owned := await keys.claim(name, Wait())) is not None:
                    return owned.owner
            else:
                await keys.clear(name)
                return None
        return None

    async def _answer_held(self, frame: AskNameFrame, sender: PID | None) -> PID | None:
        """Start a process under a name of this node, or wait until that is free for others."""
        name, held = frame.name, self.keys.held[frame.name]
        holder = self._kernel.names.holder(name)
        if frame.kind == "who" and holder is not None:
            raise NameTaken(f"the name {name!r} belongs to {holder}, until it has ended")
        if frame.target is not None and self.keys.has(name) and not self._engine.draining:
            try:
                self._check_start(frame)
            except BaseException:
                self.look(name)
                raise
            return self.launch(self._order(frame, sender))
        if holder is None and name in self.kept:
            raise NameTaken(f"the name {name!r} is kept by node {self._engine.name} for a service")
        self.look(name)
        await held.freed.wait()
        return None

    def _check_start(self, frame: AskNameFrame) -> None:
        """Raise what refuses to start what another node asks for, other than a full host."""
        check_entry(self._engine, frame.target)
        self._kernel.check_host(frame.host, waits=True)

    def _order(self, frame: AskNameFrame, sender: PID | None) -> NamedOrder:
        """Return what another node asks to start."""
        return NamedOrder(
            frame.name,
            self._exchange.node.new_pid(frame.host),
            SpawnOrder(frame.target, bytes(frame.code), plain=True),
            sender,
            end_when_empty=frame.end_when_empty,
        )

    # What a search needs

    def refusal(self, host: str, node: str | None = None) -> WsrelayError | None:
        """Return why no process can start here now; raises what holds for all nodes.

        `node` is the one on which it must start, None for any.
        """
        if self.is_elsewhere(node):
            return self._refusal_there(host, str(node))
        if self._engine.draining:
            return HostFailed(self._engine.why_closed)
        try:
            self._kernel.check_host(host)
        except HostFull as error:
            return error
        return None

    def _refusal_there(self, host: str, node: str) -> WsrelayError:
        """Return why no process can start on another node, if that cannot be asked."""
        loads = self._circle.loads().items()
        hello = next((one for peer, one in loads if peer.node == node and self.is_up(peer)), None)
        if hello is None:
            return not_a_member(node)
        if (load := hello.hosts.get(host)) is None:
            return UnknownHost(f"{host}@{node}", [])
        if hello.draining:
            return HostFailed(f"node {node} shuts down")
        return HostFull(host, load.most)

    def is_elsewhere(self, node: str | None) -> bool:
        """Whether that is another node."""
        return node not in {None, self._engine.name}

    def is_entry(self, target: str | None) -> bool:
        """Whether it is the id of an entry, which the other nodes have too."""
        return target in self._engine.entries

    def is_here(self, name: str) -> bool:
        """Whether this node decides who has the name."""
        return self._kernel.names.get(name) is not None or self.keys.has(name)

    def launch(self, order: NamedOrder) -> PID:
        """Start a process under a name of this node, or return the one that has it."""
        if order.pid.node != self._engine.name:  # whoever has the name starts its successor
            order = structs.replace(order, pid=self._exchange.node.new_pid(order.pid.host))
        try:
            return self._engine.launch_named(order)
        except BaseException:
            self.look(order.name)
            raise

    def is_me(self, member: Peer) -> bool:
        """Whether it is this node, in its present incarnation."""
        return member == self._circle.me

    def by_room(self, pid: PID) -> list[Peer]:
        """Return the other nodes with a host for a process, the one with most room first.

        It is that of its PID alone if that is another one.
        """
        host, node = pid.host, pid.node
        room = {
            peer: load.most - load.running
            for peer, hello in self._circle.loads().items()
            if self.is_up(peer) and not hello.draining and (load := hello.hosts.get(host))
            if node in {self._engine.name, peer.node}
        }
        return sorted(room, key=lambda peer: room[peer], reverse=True)

    def is_up(self, peer: Peer) -> bool:
        """Whether there is a link to that incarnation."""
        neighbour = self._exchange.neighbours.get(peer.node)
        return neighbour is not None and neighbour.peer == peer

    async def reach(self, peer: Peer, wait: Wait) -> bool:
        """Wait until a node can be asked; returns False if it is down instead."""
        while not self._circle.is_down(peer):
            if self.is_up(peer):
                return True
            wait.why = f"node {peer.node}, which has it, cannot be reached"
            await self._bell.heard()
        return False

    async def ask(
        self, peer: Peer, wait: Wait, frame: AskNameFrame | RegisterNameFrame | UnregisterNameFrame
    ) -> Any:
        """Ask a node; raises `PeerGone`, and what it answers is raised."""
        if not self.is_up(peer):
            raise PeerGone(f"node {peer.node} is gone")
        wait.why = f"node {peer.node}, which has it, does not answer"
        return await self._exchange.ask(self._exchange.neighbours[peer.node], frame)

    @contextlib.asynccontextmanager
    async def _within(self, name: str, seconds: float) -> AsyncIterator[Wait]:
        wait = Wait()
        try:
            async with asyncio.timeout(seconds):
                yield wait
        except TimeoutError:
            raise NoQuorum(
                f"who has the name {name!r:.200} was not decided within {seconds:g} s: {wait.why}"
            ) from None

    # The end

    async def aclose(self, seconds: float) -> None:
        """Delete the keys of the names that have been freed, as far as there is time for that."""
        await asyncio.sleep(0)  # what was freed last is looked at now
        await self.keys.released(seconds)
        self.keys.forget()

    def forget(self) -> None:
        """Forget all keys, before all processes are ended: this incarnation is dead."""
        self.kept.forget()
        self.keys.forget()


def _not_alive(name: str, pid: PID) -> InvalidName:
    return InvalidName(f"{pid} is not alive, so it cannot be registered as {name!r}")


def _nobody(name: str) -> NameNotFound:
    return NameNotFound(f"no process is registered as {name!r:.200}")
