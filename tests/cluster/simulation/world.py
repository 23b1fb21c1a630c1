"""One run: nodes on machines of their own, what happens to them, and what must hold."""

from __future__ import annotations

import contextlib
import signal
from typing import Any, Final

from leftovers import kept

from wsrelay import HostOptions, Node
from wsrelay.cluster import claims, link
from wsrelay.cluster.claims import NameClaim
from wsrelay.cluster.peer import Peer
from wsrelay.errors import WsrelayError
from wsrelay.relay.connection import RelayedConnection
from wsrelay.values import current
from wsrelay.values.targets import TargetEntry
from wsrelay.wire import WINDOW, ForkFrame

from .books import Books
from .clients import OUTBOX, Client
from .fabric import Fabric
from .part import LEASE, Part
from .run import Place, Run
from .system import End, Template
from .workers import ENTRY, TARGET, Worker

__all__ = ["NODES", "SECONDS", "Machine", "World"]

NODES: Final = 3
SECONDS: Final = 15.0
"""How many nodes live for how many virtual seconds, before everything comes to rest and ends."""

_STOP: Final = 1.0
_START: Final = 2.0
"""Seconds of `stop_timeout` and of `start_timeout`."""

_MAILBOX: Final = 512 * 1024
_LARGEST: Final = 64 * 1024
"""Bytes of a mailbox, and more than any message here has."""

_LARGEST_TO_CLIENT: Final = 4 * 1024

_EACH: Final = 3
"""How much more than its bytes in a pipe a small message may count in an outbox."""

_ROOM: Final = 64 * 1024
"""Bytes of its clients' messages that wait for a worker before they are no longer read."""

_CALM: Final = _STOP + _START
"""Seconds after which everything that was under way must have come to rest."""

_REJOINED: Final = 3 * LEASE
"""Seconds more after which nodes that have been killed or cut off must be members again."""

_LOOK: Final = 0.5
"""Seconds between two looks at the queues."""

_KNOWN: Final = 24
"""Processes that are talked about."""

_EXCUSED: Final = {"copies agree", "one at a time"}
"""What is not promised of names when the store has lost writes: that can go unnoticed."""

_NOTICED: Final = LEASE / 2
"""Seconds until the loss of writes has been noticed; fences may not grow before."""

_LABELS: Final = [f"label-{number}" for number in range(5)]
_GROUPS: Final = [f"group-{number}" for number in range(3)]
_ROOMS: Final = ["local/room-0", *(f"room-{number}" for number in range(1, 5))]


class Machine(Place):
    """A machine with a node: its event loop, its templates and their workers."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.world = world
        self.part = Part(self) if world.is_cluster else None
        """Its part in the cluster."""
        self.templates: list[Template] = []
        self.workers: dict[str, Worker] = {}
        """Those that have begun to run, by PID."""
        self.remains = 0
        """What dead workers had written and the node had not delivered, as outboxes count it."""
        self.life = f"{name} {len(world.former)}"
        self.stalls: list[tuple[float, float]] = []
        self.is_closing = False
        self.node: Node
        self.call(self.do, self._start)

    async def _start(self) -> None:
        common: dict[str, Any] = {
            "raw_output": True,
            "stop_timeout": _STOP,
            "start_timeout": _START,
            "mailbox": _MAILBOX,
        }
        hosts = [
            HostOptions(name="processes", max_processes=10, **common),
            HostOptions(name="others", max_processes=4, **common),
        ]
        entries = {ENTRY: TargetEntry(TARGET)}
        cluster = None if self.part is None else self.part.cluster
        self.node = Node(
            name=self.name, hosts=hosts, entries=entries, cluster=cluster, control=False
        )
        self.node.start()
        await self.populate()

    def kill(self) -> None:
        """End everything here at once, as a power cut does."""
        self.world.note(f"{self.name} is killed")
        self.loop.kill()
        if self.part is not None:
            self.world.fabric.forget(self.part.bus, self.part.store)
        for template in list(self.templates):
            template.die()
        for worker in [one for one in self.system.processes.values() if one.is_on(self)]:
            worker.signalled(signal.SIGKILL)

    def stall(self, seconds: float) -> None:
        """Let the node hang, and nothing else."""
        now = self.scheduler.now
        self.world.note(f"{self.name} stalls for {seconds:.3f} s")
        self.loop.stall(now + seconds)
        self.stalls.append((now, now + seconds))

    def running_since(self, since: float) -> float:
        """Return for how long its node has not hung since then."""
        now = self.scheduler.now
        stalls = [(begin, min(end, now)) for begin, end in self.stalls if end > since]
        return now - since - sum(end - max(begin, since) for begin, end in stalls)

    @property
    def deadline(self) -> float:
        """Until when fenced processes run here, as far as any guardian knows."""
        return max((one.deadline for one in self.templates), default=0.0)

    @property
    def is_up(self) -> bool:
        """Whether its node runs."""
        return not self.loop.is_dead and hasattr(self, "node")

    def sees(self, pid: str) -> bool:
        """Whether a process runs here, or on a node that this one knows, in its present life.

        Who has not heard of a node cannot have heard of its processes, but from others.
        """
        home = self.world.homes.get(pid)
        return home is None or home is self or (self.part is not None and self.part.sees(home))

    # What a node starts

    def start_template(self) -> Template:
        template = Template(self)
        self.templates.append(template)
        return template

    def fork(self, template: Template, frame: ForkFrame, ends: list[End]) -> Worker:
        worker = Worker(self, template, frame, ends)
        self.system.processes[worker.os_pid] = worker
        return worker

    def died(self, worker: Worker) -> None:
        """Note what a dead worker has left in its pipe: it is delivered whoever would pause it."""
        process = self.node.engine.processes.get(worker.pid)  # type: ignore[call-overload]
        if process is not None and process.launched and self.is_up:
            pipe = process.incarnation.pipe
            arrived = sum(size for _, size in pipe._arrived)
            self.remains += _EACH * (worker.unread + arrived + pipe._reader.partial)
        self.system.processes.pop(worker.os_pid, None)
        self.workers.pop(worker.pid, None)

    async def populate(self) -> None:
        """Start a process, as an HTTP handler may."""
        with contextlib.suppress(WsrelayError):
            if self.scheduler.random.random() < 0.5:
                self.node.spawn(TARGET)
            else:
                await self.node.get_or_spawn_async(self.world.a_name(), self.world.a_target())

    def cancel_all(self) -> None:
        """Cancel every worker."""
        for pid in self.node.workers:
            self.node.cancel(pid, "the end")

    def lives(self, pid: str) -> bool:
        """Whether a process takes messages, and does so."""
        row = self.node.kernel.processes.get(pid)  # type: ignore[call-overload]
        return row is not None and row.takes_mail and (row.connection or pid in self.workers)


class World(Run):
    """A run of whole nodes, with workers and clients."""

    def __init__(self, seed: int, *, nodes: int = NODES, seconds: float = SECONDS) -> None:
        super().__init__(seed)
        self.seconds = seconds
        self.books = Books(self.broke)
        self.is_quiet = False
        """Whether nobody does anything of his own accord any more."""
        self.homes: dict[str, Machine] = {}
        """Where each process has been started."""
        self.known: list[str] = []
        """PIDs that others may have heard of."""
        self.clients: dict[str, Client] = {}
        self.moved: set[str] = set()
        """Clients that somebody has tried to transfer."""
        self.unwilling: dict[tuple[str, int], str] = {}
        """Calls that are never answered, by caller and number, each with who was called."""
        self._heard: set[tuple[str, int]] = set()
        """The messages of clients that a worker has read."""
        self._newest: dict[str, int] = {}
        chance = self.scheduler.random
        share = nodes**-0.7  # more nodes do more in all, but not in proportion
        self.activity = share * chance.choice((1.0, 2.0, 4.0))
        """What each worker does of its own accord in a second."""
        self.talk = share * chance.choice((1.0, 3.0, 10.0))
        """What each client says in a second."""
        self.volume = chance.choice((1, 1, 1, 5))
        """How many messages clients get at once, in comparison."""
        self._crowd = share * chance.choice((0.5, 1.0, 2.0))
        self.is_cluster = nodes > 1
        self._under_way = (nodes - 1) * link.WINDOW
        """What may be on its way to a client when its senders on other nodes are told to wait."""
        self.fabric = Fabric(self.scheduler)
        self.names = [f"node-{number}" for number in range(1, nodes + 1)]
        self.peers: dict[Peer, Part] = {}
        """The incarnations that have joined the cluster."""
        self._down_since: dict[Peer, float] = {}
        """When a node has first been seen down by another."""
        self._places: dict[str, Machine] = {}
        self.former: list[Machine] = []

    def broke(self, promise: str, what: str) -> None:
        """Note a promise that does not hold, unless a store that has lost writes excuses it."""
        excuses = {*_EXCUSED, "fences grow"} if self._has_just_lost() else _EXCUSED
        if self.fabric.lost_at <= self.scheduler.now and promise in excuses:
            self.note(f"EXCUSED {promise}: {what}")
        else:
            super().broke(promise, what)

    def _has_just_lost(self) -> bool:
        return self.scheduler.now < self.fabric.lost_at + _NOTICED

    # What others use

    def a_name(self) -> str:
        """Return the name of a room."""
        return self.scheduler.random.choice(_ROOMS)

    def a_target(self) -> str:
        """Return what starts a worker: an entry, or what no other node starts."""
        return ENTRY if self.scheduler.random.random() < 0.8 else TARGET

    def a_label(self) -> str:
        """Return a name that processes register."""
        return self.scheduler.random.choice(_LABELS)

    def a_group(self) -> str:
        """Return the name of a group."""
        return self.scheduler.random.choice(_GROUPS)

    def started(self, worker: Worker) -> None:
        """Let others know of a worker."""
        self.homes[worker.pid] = machine = self.machine_of(worker)
        machine.workers[worker.pid] = worker
        self.known.append(worker.pid)
        del self.known[:-_KNOWN]

    @staticmethod
    def machine_of(worker: Worker) -> Machine:
        """Return the machine that a worker runs on."""
        return worker._machine

    def client_heard(self, client: str, number: int, worker: str) -> None:
        """Note that a worker has read a client's message."""
        last, self._newest[client] = self._newest.get(client, 0), number
        if (client, number) in self._heard:
            what = f"{worker} gets {number} of {client}, read before"
            self.broke("client's order", what)
        elif number != last + 1 and client not in self.moved:
            self.broke("client's order", f"{worker} gets {number} of {client} after {last}")
        self._heard.add((client, number))

    def is_decided_again(self, peer: Peer) -> bool:
        """Whether the store has lost that a node is dead; called when one sees it down.

        Its node had its lease again then, until the one who remembers it has written it anew.
        """
        first = self._down_since.setdefault(peer, self.scheduler.now)
        return first < self.fabric.lost_at <= self.scheduler.now

    def rush(self, name: str) -> None:
        """Let clients come to a room all at once."""
        for machine in self.machines:
            for _ in range(self.scheduler.random.choice((0, 0, 1, 3))):
                self.scheduler.later(machine.draw(0.0, 0.5), self._come, machine.name, name)

    def lives(self, pid: str) -> bool:
        """Whether a process takes messages, and does so."""
        machine = self._places.get(pid[1:].partition("@")[0])
        return machine is not None and machine.is_up and machine.lives(pid)

    @property
    def machines(self) -> list[Machine]:
        """Those whose nodes run."""
        return [machine for machine in self._places.values() if machine.is_up]

    # The run

    def stages(self) -> None:
        """Let them live, come to rest, and end."""
        for name in self.names:
            self.scheduler.later(self.scheduler.random.random(), self._boot, name)
        for stage in (self._live, self._rest, self._end):
            stage()
            if self.broken:
                return

    def dispose(self) -> None:
        """Leave nothing of the nodes in this interpreter."""
        for machine in [*self.former, *self._places.values()]:
            self._dispose(machine)

    def _boot(self, name: str) -> None:
        if (former := self._places.get(name)) is not None:
            self.former.append(former)
        self._places[name] = Machine(self, name)

    def _kill(self, name: str) -> None:
        if (machine := self._places.get(name)) is not None and machine.is_up:
            machine.kill()
            self.scheduler.later(machine.draw(0.1, 4.0), self._boot, name)

    def _let_pass(self, seconds: float) -> None:
        """Let time pass, looking at the queues, up to the first promise that does not hold."""
        end = self.scheduler.now + seconds
        while self.scheduler.now < end and not self.broken:
            self.scheduler.run(min(end, self.scheduler.now + _LOOK))
            for machine in self.machines:
                self._check_bounds(machine)

    def _live(self) -> None:
        """Let them live, with what may happen to them."""
        chance = self.scheduler.random
        for name in self.names:
            for what, least, count in (
                (self._come, 1, int(self.seconds * self._crowd)),
                (self._populate, 1, int(self.seconds)),
                (self._stall, 1, chance.randrange(4)),
                (self._hurt, 1, chance.randrange(3)),
            ):
                for _ in range(count):
                    self.scheduler.later(chance.uniform(least, self.seconds), what, name)
        if self.is_cluster:
            self._plan_trouble()
        self._let_pass(self.seconds)

    def _plan_trouble(self) -> None:
        """Let nodes die and come back, and their links break."""
        chance, later = self.scheduler.random, self.scheduler.later
        faults = self.fabric.faults()
        for _ in range(chance.choice((0, 0, 1, 1, 2))):
            later(chance.uniform(2, self.seconds), self._kill, chance.choice(self.names))
        for _ in range(chance.randrange(6)):
            fault, node = chance.choice(faults), chance.choice(self.names)
            later(chance.uniform(2, self.seconds), fault, node, self._a_while())
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            later(chance.uniform(2, self.seconds), self._stall_long, chance.choice(self.names))
        if chance.random() < 0.3:
            lost, away = chance.choice((0, 0, 0, 1, 5)), self._a_while()
            stops = chance.uniform(2, self.seconds)
            later(stops, self.fabric.stop_server, self.names, away, lost)
            if lost:  # nodes that join afterwards have not seen what was lost
                for name in chance.sample(self.names, chance.randint(1, len(self.names))):
                    dies = stops + away + chance.uniform(0, 2 * LEASE)
                    later(min(dies, self.seconds), self._kill, name)
        later(2, setattr, self.fabric, "loss", chance.choice((0.0, 0.0, 0.01, 0.1)))

    def _a_while(self) -> float:
        """Draw how long something lasts: shorter than the steps of a lease, or longer than it."""
        return self.scheduler.random.choice((0.1, 0.5, 1.0, 2.0, 3.5, 5.0))

    def _come(self, name: str, room: str | None = None) -> None:
        if (machine := self._places.get(name)) is not None and machine.is_up:
            machine.call(machine.do, Client(machine).connect, room)

    def _populate(self, name: str) -> None:
        if (machine := self._places.get(name)) is not None and machine.is_up:
            machine.call(machine.do, machine.populate)

    def _stall(self, name: str) -> None:
        if (machine := self._places.get(name)) is not None and machine.is_up:
            machine.stall(machine.draw(0.05, 2.0))

    def _stall_long(self, name: str) -> None:
        if (machine := self._places.get(name)) is not None and machine.is_up:
            machine.stall(self._a_while())

    def _hurt(self, name: str) -> None:
        """Let a template stall or die."""
        chance, machine = self.scheduler.random, self._places.get(name)
        if machine is None or not machine.is_up or not machine.templates:
            return
        template = chance.choice(machine.templates)
        if chance.random() < 0.3:
            self.note(f"a template of {machine.name} dies")
            template.die()
        else:
            seconds = machine.draw(0.05, 2.0)
            self.note(f"a template of {machine.name} stalls for {seconds:.3f} s")
            template.stall(self.scheduler.now + seconds)

    def _rest(self) -> None:
        """Let everything come to rest, and check that all has arrived."""
        self.is_quiet = True
        self.fabric.loss = 0.0
        self._let_pass(_CALM + (_REJOINED if self.is_cluster else _CALM))
        if self.broken:
            return
        if self.is_cluster:
            self._check_members()
            self._check_copies()
        self.books.check_all_arrived(self.lives)
        self.books.check_exits(self.lives)
        for machine in self.machines:
            for worker in machine.workers.values():
                self._check_answers(machine, worker)
                self._check_clients(machine, worker)

    def _check_members(self) -> None:
        """Check that all nodes are members again, and that each knows all others."""
        there = {machine.part.peer for machine in self.machines if machine.part is not None}
        for machine in self.machines:
            part = machine.part
            assert part is not None
            if part.peer is None:
                self.broke("all come back", f"{machine.name} is no member")
            elif part.up != there - {part.peer}:
                self.broke("all come back", f"{part.peer} sees {part.up}, and there are {there}")

    def _check_copies(self) -> None:
        """Check that what nodes know of each other's names and groups is what there is."""
        nodes = {machine.name: machine.node for machine in self.machines}
        for group in _GROUPS:
            members = {name: set(node.kernel.groups.members(group)) for name, node in nodes.items()}
            first = members[self.names[0]]
            if any(there != first for there in members.values()):
                self.broke("copies agree", f"{group}: {members}")
            for pid in first:
                if not self.lives(pid):
                    self.broke("copies agree", f"{group} has {pid}, which is gone")
        keys = {NameClaim.of(entry).name: entry for entry in self.fabric.server.list(claims.PREFIX)}
        for name in sorted({*_ROOMS, *_LABELS, *keys}):
            if claims.is_local(name):
                continue
            here = {one: node.kernel.names.get(name) for one, node in nodes.items()}
            told = {one: here[one] or nodes[one].engine.elsewhere.find(name) for one in nodes}
            owners = [one for one, pid in here.items() if pid is not None]
            if len(owners) > 1 or len(set(told.values())) > 1:
                self.broke("copies agree", f"{name}: {told}")
            if bool(owners) != (name in keys):
                self.broke("copies agree", f"{name} of {owners} has the key {keys.get(name)}")

    def _check_answers(self, machine: Machine, worker: Worker) -> None:
        for ref, asked in worker.unanswered.items():
            callee = self.unwilling.get((worker.pid, ref), "")
            waits = asked == "exec" or self.lives(callee)
            if machine.lives(worker.pid) and not waits:
                self.broke("answered", f"{worker.pid} gets no answer to {asked} {ref}")

    def _check_clients(self, machine: Machine, worker: Worker) -> None:
        there = {
            str(pid)
            for one in self.machines
            for pid, connection in one.node.clients.connections.items()
            if connection.target == worker.pid
        }
        if machine.lives(worker.pid) and worker.clients.keys() != there:
            odd = worker.clients.keys() ^ there
            self.broke("joins and leaves", f"{worker.pid} and its node differ over {odd}")

    def _end(self) -> None:
        """End everything, and check that nothing is left."""
        for client in self.clients.values():
            client.leave(1000)
        for machine in self.machines:
            machine.call(machine.cancel_all)
        self._let_pass(_CALM)
        machines = self.machines
        for machine in machines:
            self._check_leftovers(machine)
            machine.is_closing = True
            machine.call(machine.do, machine.node.aclose)
        self._let_pass(_CALM)
        for machine in machines:
            if machine.node.running:
                self.broke("ends", f"{machine.name} does not close")
            if machine.workers:
                self.broke("ends", f"{[*machine.workers]} still run")
        if self.system.ends and not self.broken and not self.former:
            self.broke("no leftovers", f"descriptors: {self.system.ends}")

    @staticmethod
    def _dispose(machine: Machine) -> None:
        """Leave nothing of a node in this interpreter, however its run has ended."""
        if hasattr(machine, "node"):
            node = machine.node
            node._life = None
            if node in current.nodes:
                current.nodes.remove(node)
                node._at_exit.cancel()
        if not machine.loop.is_dead:
            machine.loop.kill()
        machine.loop.bury()

    # What must hold at every moment, and in the end

    def _check_bounds(self, machine: Machine) -> None:
        engine = machine.node.engine
        for pid, process in engine.processes.items():
            pipe = process.pipe
            clients = pipe.backlog - pipe.mailbox - pipe.visits
            held = _ROOM + _LARGEST * (1 + len(process.clients))
            queues = {
                "mailbox": (pipe.mailbox, _MAILBOX + _LARGEST),
                "visits": (pipe.visits, _MAILBOX + _LARGEST),
                "clients": (clients, held),
                "window": (pipe._in_flight, WINDOW + _LARGEST),
            }
            for queue, (size, most) in queues.items():
                if size > most:
                    self.broke("bounds", f"{queue} of {pid}: {size} bytes, at most {most}")
        for pid, connection in machine.node.clients.connections.items():
            assert isinstance(connection, RelayedConnection)
            size = connection._session.outbox.size
            if size > 2 * OUTBOX + _LARGEST_TO_CLIENT + machine.remains + self._under_way:
                self.broke("bounds", f"outbox of {pid}: {size} bytes")

    def _check_leftovers(self, machine: Machine) -> None:
        left = kept(machine.node) | {"workers": [*machine.workers]}
        for what, there in left.items():
            if there:
                self.broke("no leftovers", f"{machine.name} keeps {what}: {there}")
