"""A node's processes and connections as dicts and sets, beside the kernel and sessions."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Final

from hypothesis.stateful import RuleBasedStateMachine

from wsrelay import kernel as k
from wsrelay.session import machine as session
from wsrelay.session.effects import (
    CancelTarget,
    CloseClient,
    ConnectionEnded,
    Effect,
    JoinTarget,
    LeaveTarget,
    RejectCommand,
    SendToTarget,
)
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID, PIDSource

LIMITS: Final = {"small": 2, "large": 6}

GROUPS: Final = ("lions", "tigers")

Fact = tuple[object, ...]
"""Something that must happen: what, to whom, and what it carries."""


@dataclasses.dataclass
class Client:
    """A connection: `handshaking`, `open` or `closing`."""

    target: PID
    cancels: bool
    phase: str = "handshaking"
    code: int | None = None
    messages: int = 0


def is_normal(code: int) -> bool:
    """Whether a connection that was closed with this code has ended normally."""
    return code in (1000, 1001, 1005) or 3000 <= code <= 4999


class Model:
    """Who lives and what is known of them; each method returns the facts that must follow."""

    def __init__(self) -> None:
        self.state: dict[PID, str] = {}
        self.traps: set[PID] = set()
        self.killed_for: dict[PID, ExitKind] = {}
        self.names: dict[str, PID] = {}
        self.groups: dict[str, dict[PID, bytes]] = {group: {} for group in GROUPS}
        self.watches: dict[tuple[str, PID], int] = {}
        self.exclusive: dict[PID, str] = {}
        """The name that each was spawned under, as long as it is theirs alone."""
        self.holders: dict[str, PID] = {}
        """The cancelled whose exclusive name another gets only after their end."""
        self.unheard: list[tuple[PID, PID]] = []
        """Monitors that ended with their watcher."""
        self.monitors: set[tuple[PID, PID]] = set()
        self.links: set[frozenset[PID]] = set()
        self.clients: dict[PID, Client] = {}
        self.mail: dict[PID, list[Fact]] = {}

    def workers(self, host: str) -> int:
        return sum(pid.host == host and state != "waiting" for pid, state in self.state.items())

    def full(self, host: str, name: str | None = None) -> bool:
        """Whether a process of that name would have to be refused."""
        return name not in self.holders and self.workers(host) >= LIMITS[host]

    def reachable(self, pid: PID) -> bool:
        return self.state.get(pid) in ("waiting", "starting", "running")

    # Processes

    def spawn(
        self, pid: PID, name: str | None, parent: PID | None, *, monitored: bool, linked: bool
    ) -> list[Fact]:
        self.state[pid] = "waiting" if name in self.holders else "starting"
        self.mail[pid] = []
        if name is not None:
            self.names[name] = pid
            self.exclusive[pid] = name
        if parent is not None and monitored:
            self.monitors.add((parent, pid))
        if parent is not None and linked:
            self.links.add(frozenset((parent, pid)))
        return [("launch", pid)] if self.state[pid] == "starting" else []

    def spawn_failed(self, pid: PID, parent: PID, *, monitored: bool, linked: bool) -> list[Fact]:
        kind = ExitKind.HOST_FULL
        facts: list[Fact] = [("EXIT", parent, pid, kind)] if monitored else []
        return facts + (self.link_down(parent, pid, kind) if linked else [])

    def signal(  # noqa: PLR0911 - a flat table
        self, pid: PID, signal: k.Signal, because: ExitKind | None
    ) -> list[Fact]:
        state = self.state.get(pid)
        if state == "waiting" and signal in (k.Signal.CANCEL, k.Signal.TERMINATE):
            cancelled = signal is k.Signal.CANCEL
            return self.exit(pid, None if cancelled else because or ExitKind.TERMINATED)
        match signal, state:
            case k.Signal.READY, "starting":
                self.state[pid] = "running"
                return [("started", pid)]
            case k.Signal.CANCEL, "starting" | "running":
                self.state[pid] = "cancelling"
                if pid in self.exclusive:
                    self.holders[self.exclusive[pid]] = pid
                return [*self.forget_names_and_groups(pid), ("stop", pid)]
            case k.Signal.TERMINATE, str():
                return self.kill(pid, because or ExitKind.TERMINATED)
            case k.Signal.START_TIMEOUT, "starting":
                return self.kill(pid, because or ExitKind.START_FAILED)
            case k.Signal.STOP_TIMEOUT, "cancelling":
                return self.kill(pid, because or ExitKind.CANCELLED)
        return []

    def kill(self, pid: PID, kind: ExitKind) -> list[Fact]:
        self.killed_for.setdefault(pid, kind)
        return [("kill", pid)]

    def exit(self, pid: PID, kind: ExitKind | None) -> list[Fact]:
        if pid not in self.state:
            return []
        is_connection = pid.host not in LIMITS
        if kind is ExitKind.KILLED or (is_connection and kind is not None):
            kind = self.killed_for.get(pid, kind)
        del self.state[pid]
        self.traps.discard(pid)
        facts: list[Fact] = [("exited", pid, kind), *self.forget_names_and_groups(pid)]
        facts += [
            ("EXIT", watcher, pid, kind)
            for watcher, target in self.monitors
            if target == pid != watcher
        ]
        self.unheard += [pair for pair in self.monitors if pair[0] == pid != pair[1]]
        self.monitors = {pair for pair in self.monitors if pid not in pair}
        linked = [next(iter(link - {pid})) for link in self.links if pid in link]
        self.links = {link for link in self.links if pid not in link}
        for other in linked:
            facts += self.link_down(other, pid, kind)
        name = self.exclusive.pop(pid, None)
        if name is not None and self.holders.get(name) == pid:
            del self.holders[name]
            facts += self.start(self.names.get(name))
        return facts

    def start(self, pid: PID | None) -> list[Fact]:
        """Start a process that waits, unless another still holds its name."""
        if pid is None or self.state[pid] != "waiting":
            return []
        if self.exclusive.get(pid) in self.holders:
            return []
        if self.full(pid.host):
            return self.exit(pid, ExitKind.HOST_FULL)
        self.state[pid] = "starting"
        return [("launch", pid)]

    def link_down(self, pid: PID, dead: PID, kind: ExitKind | None) -> list[Fact]:
        if kind is None or pid not in self.state:
            return []
        if pid in self.traps:
            return [("LINK_DOWN", pid, dead, kind)]
        if self.state[pid] == "waiting":
            return self.exit(pid, ExitKind.LINK_DOWN)
        self.killed_for.setdefault(pid, ExitKind.LINK_DOWN)
        return [("break", pid)]

    def unregister(self, name: str, asker: PID | None) -> list[Fact] | None:
        """Free a name, or the hold on it of the one that asks; None if it is nobody's."""
        if asker is not None and self.holders.get(name) == asker:
            del self.holders[name], self.exclusive[asker]
            return self.start(self.names.get(name))
        if (pid := self.names.pop(name, None)) is None:
            return None
        if self.exclusive.get(pid) == name:
            del self.exclusive[pid]
        return self.start(pid)

    def forget_names_and_groups(self, pid: PID) -> list[Fact]:
        self.names = {name: owner for name, owner in self.names.items() if owner != pid}
        return self.forget_presence(pid)

    # Groups

    def join(self, group: str, pid: PID, meta: bytes) -> list[Fact]:
        members = self.groups[group]
        if not self.reachable(pid) or (pid in members and meta in (b"", members[pid])):
            return []
        kind = "changed" if pid in members else "joined"
        members[pid] = meta
        return self.present(kind, group, (pid, meta))

    def leave(self, group: str, pid: PID) -> list[Fact]:
        if pid not in self.groups[group]:
            return []
        return self.present("left", group, (pid, self.groups[group].pop(pid)))

    def watch(self, group: str, watcher: PID, number: int) -> list[Fact]:
        if not self.reachable(watcher):
            return []
        self.watches[group, watcher] = number
        there = tuple(self.groups[group].items())
        return [("joined", watcher, group, number, there)] if there else []

    def unwatch(self, group: str, watcher: PID, number: int) -> None:
        if self.watches.get((group, watcher)) == number:
            del self.watches[group, watcher]

    def present(self, kind: str, group: str, *members: tuple[PID, bytes]) -> list[Fact]:
        return [
            (kind, watcher, watched, number, members)
            for (watched, watcher), number in self.watches.items()
            if watched == group
        ]

    def forget_presence(self, pid: PID) -> list[Fact]:
        self.watches = {key: number for key, number in self.watches.items() if pid not in key}
        return [fact for group in GROUPS for fact in self.leave(group, pid)]

    def monitor(self, watcher: PID, target: PID) -> list[Fact]:
        if target not in self.state:
            return [("EXIT", watcher, target, ExitKind.NOPROC)]
        self.monitors.add((watcher, target))
        return []

    def link(self, one: PID, other: PID) -> list[Fact]:
        if other not in self.state:
            return self.link_down(one, other, ExitKind.NOPROC)
        if one != other:
            self.links.add(frozenset((one, other)))
        return []

    # Connections

    def deliver(self, to: PID, fact: Fact) -> None:
        """What a worker that is dead or has been cancelled is told is lost."""
        if self.reachable(to):
            self.mail[to].append(fact)

    def upgraded(self, pid: PID) -> list[Fact]:
        client = self.clients[pid]
        client.phase = "open"
        if client.code is not None:
            return self.end(pid, client.code, told=False)
        self.deliver(client.target, ("join", pid))
        return [("join", client.target)]

    def part(self, pid: PID, code: int, *, told: bool = True) -> list[Fact]:
        client = self.clients[pid]
        facts: list[Fact] = []
        if told:
            self.deliver(client.target, ("leave", pid, code))
            facts.append(("leave", client.target, code))
        if client.cancels:
            facts.append(("cancel", client.target))
        return facts

    def end(self, pid: PID, code: int, *, told: bool = True) -> list[Fact]:
        """The relay begins to close; nothing but the first end of an open connection counts."""
        client = self.clients[pid]
        if client.phase != "open":
            return []
        client.phase, client.code = "closing", code
        return [*self.part(pid, code, told=told), ("close", code)]

    def gone(self, pid: PID, code: int) -> list[Fact]:
        client = self.clients.pop(pid)
        facts: list[Fact] = []
        if client.phase == "open":
            self.clients[pid] = client
            facts = self.part(pid, code)
            del self.clients[pid]
            client.code = code
        return [*facts, ("ended", client.code)]

    def refused(self, pid: PID) -> list[Fact]:
        facts = self.part(pid, 1006, told=False)
        del self.clients[pid]
        return [*facts, ("ended", 1006)]

    def target_gone(self, pid: PID, code: int) -> list[Fact]:
        if (client := self.clients.get(pid)) is None:
            return []  # its own end has cancelled a target that waited, and so ended at once
        if client.phase == "handshaking":
            client.code = code
            return []
        return self.end(pid, code, told=False)

    def say(self, pid: PID) -> list[Fact]:
        client = self.clients[pid]
        if client.phase != "open":
            return []
        client.messages += 1
        self.deliver(client.target, ("message", pid, client.messages))
        return [("tell", client.target)]

    def transfer(self, pid: PID, to: PID) -> list[Fact]:
        client = self.clients[pid]
        if client.phase != "open" or client.target == to:
            return []
        if to in self.clients or not self.reachable(to):
            return [("refuse",)]
        facts = self.part(pid, 1000)
        client.target, client.cancels = to, False
        self.deliver(to, ("join", pid))
        return [*facts, ("join", to)]


def kind_of(result: Result | None) -> ExitKind | None:
    assert result is not None
    return None if result.error is None else result.error.kind


def kernel_fact(effect: k.Effect) -> Fact:
    match effect:
        case k.ExitedEffect():
            return "exited", effect.pid, kind_of(effect.result)
        case k.NotifyEffect():
            event = effect.event
            return event.kind, effect.pid, event.sender, kind_of(event.result)
        case k.PresenceEffect():
            members = tuple(effect.members)
            return effect.kind, effect.pid, effect.group, effect.watch, members
    return type(effect).__name__.removesuffix("Effect").lower(), effect.pid


def session_fact(effect: Effect) -> Fact:  # noqa: PLR0911 - a flat table
    match effect:
        case LeaveTarget():
            return "leave", effect.target, effect.code
        case JoinTarget() | SendToTarget():
            return "join" if isinstance(effect, JoinTarget) else "tell", effect.target
        case RejectCommand():
            return ("refuse",)
        case CancelTarget():
            return "cancel", effect.target
        case CloseClient():
            return "close", effect.code
        case ConnectionEnded():
            return "ended", effect.result.value["code"]
    return (type(effect).__name__.lower(),)


def same(happened: Iterable[Fact], expected: Iterable[Fact]) -> bool:
    return sorted(map(str, happened)) == sorted(map(str, expected))


class ModelledNode(RuleBasedStateMachine):
    """The kernel and sessions on it, driven as a node drives them, beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = k.Kernel(LIMITS)
        self.model = Model()
        self.source = PIDSource("local", "m.1")
        self.pids: list[PID] = []
        self.doomed: list[PID] = []
        self.sessions: dict[PID, session.Session] = {}
        self.bound: dict[PID, PID] = {}
        self.inboxes: dict[PID, list[Fact]] = {}
        self.owed: Counter[tuple[PID, PID]] = Counter()
        self.heard: Counter[tuple[PID, PID]] = Counter()
        self.numbers = itertools.count()
        self.views: dict[tuple[str, PID, int], dict[PID, bytes]] = {}
        """What each watch makes of what it is told."""

    # Who

    def everyone(self) -> list[PID]:
        """The living that somebody can know, and some of the dead."""
        living = [pid for pid in self.pids if pid in self.model.state and not self.is_new(pid)]
        return living + [pid for pid in self.pids if pid not in self.model.state][-2:]

    def is_new(self, pid: PID) -> bool:
        client = self.model.clients.get(pid)
        return client is not None and client.phase == "handshaking"

    def anyone(self, pick: int) -> PID:
        everyone = self.everyone()
        return everyone[pick % len(everyone)]

    def living_workers(self) -> list[PID]:
        return [pid for pid in self.pids if pid in self.model.state and pid.host in LIMITS]

    def worker(self, pick: int) -> PID:
        workers = self.living_workers()
        return workers[pick % len(workers)]

    def client(self, pick: int) -> PID:
        clients = list(self.model.clients)
        return clients[pick % len(clients)]

    # The node

    def do(self, effects: list[k.Effect], expected: list[Fact], *, join_read: bool = True) -> None:
        """Execute the kernel's effects, which must be those of the model."""
        happened = [kernel_fact(effect) for effect in effects]
        assert same(happened, expected), (happened, expected)
        self.in_order(happened)
        for pair in self.model.unheard:
            self.owed[pair] -= 1
        self.model.unheard.clear()
        for effect in effects:
            match effect:
                case k.StopEffect() if effect.pid in self.sessions:
                    self.end(effect.pid, self.sessions[effect.pid].cancel(effect.reason), 1000)
                case k.KillEffect() if effect.pid in self.sessions:
                    self.client_gone(effect.pid, 1006)
                case k.BreakEffect() if effect.pid in self.sessions:
                    self.end(effect.pid, self.sessions[effect.pid].link_down(), 1011)
                case k.KillEffect() | k.BreakEffect():
                    self.doomed.append(effect.pid)
                case k.NotifyEffect() if effect.event.kind == "EXIT":
                    self.heard[effect.pid, effect.event.sender] += 1
                case k.PresenceEffect():
                    self.look(effect)
                case k.ExitedEffect():
                    self.tell_clients(effect.pid, effect.result, join_read=join_read)

    def look(self, effect: k.PresenceEffect) -> None:
        """A watch shows who joins and who leaves once, and changes only of those who are there."""
        view = self.views[effect.group, effect.pid, effect.watch]
        for pid, meta in effect.members:
            assert (pid in view) is (effect.kind != "joined")
            if effect.kind == "left":
                assert view.pop(pid) == meta, "the last that it had"
            else:
                assert view.get(pid) != meta
                view[pid] = meta

    @staticmethod
    def in_order(happened: list[Fact]) -> None:
        """What tells of an end comes after it, and the start of a successor after all of that."""
        ended = [fact[1] for fact in happened if fact[0] == "exited"]
        for number, fact in enumerate(happened):
            if fact[0] in ("EXIT", "LINK_DOWN") and fact[2] in ended:
                assert any(before[:2] == ("exited", fact[2]) for before in happened[:number])
        assert all(fact[0] != "launch" for fact in happened[:-1])

    def tell_clients(self, pid: PID, result: Result, *, join_read: bool) -> None:
        code = 1011 if result.error else 1000 if join_read else 1013
        for client in [client for client, target in self.bound.items() if target == pid]:
            effects = self.sessions[client].target_exited(pid, result, join_read=join_read)
            self.relay(client, effects, self.model.target_gone(client, code))

    def exit(self, pid: PID, result: Result, *, join_read: bool = True) -> None:
        if pid in self.doomed:
            self.doomed.remove(pid)
        expected = self.model.exit(pid, kind_of(result))
        self.do(self.kernel.exited(pid, result), expected, join_read=join_read)

    def signal_to(self, pid: PID, signal: k.Signal, because: ExitError | None = None) -> None:
        expected = self.model.signal(pid, signal, because.kind if because else None)
        self.do(self.kernel.signal(pid, signal, because=because), expected)

    def accepts(self, pid: PID) -> bool:
        process = self.kernel.processes.get(pid)
        return process is not None and process.state is not k.ProcessState.CANCELLING

    def relay(self, pid: PID, effects: list[Effect], expected: list[Fact]) -> None:
        """Execute a session's effects, which must be those of the model."""
        happened = [session_fact(effect) for effect in effects]
        assert same(happened, expected), (happened, expected)
        for effect in effects:
            match effect:
                case JoinTarget() if self.accepts(effect.target):
                    self.bound[pid] = effect.target
                    self.inboxes[effect.target].append(("join", pid))
                case SendToTarget() if self.accepts(effect.target):
                    number = int(effect.payload["data"])
                    self.inboxes[effect.target].append(("message", pid, number))
                case LeaveTarget():
                    if self.accepts(effect.target):
                        self.inboxes[effect.target].append(("leave", pid, effect.code))
                    if self.bound.get(pid) == effect.target:
                        del self.bound[pid]
                case CancelTarget():
                    self.signal_to(effect.target, k.Signal.CANCEL)
                case ConnectionEnded():
                    del self.sessions[pid]
                    self.bound.pop(pid, None)
                    code = effect.result.value["code"]
                    assert (effect.result.error is None) is is_normal(code)
                    self.exit(pid, effect.result)

    def end(self, pid: PID, effects: list[Effect], code: int) -> None:
        self.relay(pid, effects, self.model.end(pid, code))

    def client_gone(self, pid: PID, code: int) -> None:
        effects = self.sessions[pid].client_gone(code)
        self.relay(pid, effects, self.model.gone(pid, code))
