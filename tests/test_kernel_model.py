"""Any history of processes, connections and transfers, against a model of dicts and sets."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from wsrelay import kernel as k
from wsrelay.errors import HostFull, NameNotFound, NameTaken
from wsrelay.session import command
from wsrelay.session import machine as session
from wsrelay.session.header import RelayHeader
from wsrelay.session.outbox import Overflow
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID, PIDSource

LIMITS: Final = {"small": 2, "large": 6}
FEW: Final = 3
"""Workers up to which nobody is ended, so that those who end leave somebody behind."""

NAMES: Final = ("red", "green")
GROUPS: Final = ("lions", "tigers")
MOST_CLIENTS: Final = 5
EXAMPLES: Final = 400
STEPS: Final = 60

Fact = tuple[object, ...]
"""Something that must happen: what, to whom, and what it carries."""


# The model


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
        self.groups: dict[str, list[PID]] = {group: [] for group in GROUPS}
        self.monitors: set[tuple[PID, PID]] = set()
        self.links: set[frozenset[PID]] = set()
        self.clients: dict[PID, Client] = {}
        self.mail: dict[PID, list[Fact]] = {}

    def workers(self, host: str) -> int:
        return sum(pid.host == host for pid in self.state)

    def reachable(self, pid: PID) -> bool:
        return self.state.get(pid) in ("starting", "running")

    # Processes

    def spawn(
        self, pid: PID, name: str | None, parent: PID | None, *, monitored: bool, linked: bool
    ) -> list[Fact]:
        self.state[pid] = "starting"
        self.mail[pid] = []
        if name is not None:
            self.names[name] = pid
        if parent is not None and monitored:
            self.monitors.add((parent, pid))
        if parent is not None and linked:
            self.links.add(frozenset((parent, pid)))
        return [("launch", pid)]

    def spawn_failed(self, pid: PID, parent: PID, *, monitored: bool, linked: bool) -> list[Fact]:
        kind = ExitKind.HOST_FULL
        facts: list[Fact] = [("EXIT", parent, pid, kind)] if monitored else []
        return facts + (self.link_down(parent, pid, kind) if linked else [])

    def signal(self, pid: PID, signal: k.Signal, because: ExitKind | None) -> list[Fact]:
        state = self.state.get(pid)
        match signal, state:
            case k.Signal.READY, "starting":
                self.state[pid] = "running"
                return [("started", pid)]
            case k.Signal.CANCEL, "starting" | "running":
                self.state[pid] = "cancelling"
                self.forget_names_and_groups(pid)
                return [("stop", pid)]
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
        self.forget_names_and_groups(pid)
        facts: list[Fact] = [("exited", pid, kind)]
        facts += [
            ("EXIT", watcher, pid, kind)
            for watcher, target in self.monitors
            if target == pid != watcher
        ]
        self.monitors = {pair for pair in self.monitors if pid not in pair}
        for link in [link for link in self.links if pid in link]:
            self.links.remove(link)
            (other,) = link - {pid}
            facts += self.link_down(other, pid, kind)
        return facts

    def link_down(self, pid: PID, dead: PID, kind: ExitKind | None) -> list[Fact]:
        if kind is None:
            return []
        if pid in self.traps:
            return [("LINK_DOWN", pid, dead, kind)]
        self.killed_for.setdefault(pid, ExitKind.LINK_DOWN)
        return [("break", pid)]

    def forget_names_and_groups(self, pid: PID) -> None:
        self.names = {name: owner for name, owner in self.names.items() if owner != pid}
        for members in self.groups.values():
            if pid in members:
                members.remove(pid)

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
        client = self.clients[pid]
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


# What really happened, in the model's words


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
    return type(effect).__name__.removesuffix("Effect").lower(), effect.pid


def session_fact(effect: session.Effect) -> Fact:  # noqa: PLR0911 - a flat table
    match effect:
        case session.LeaveTarget():
            return "leave", effect.target, effect.code
        case session.JoinTarget() | session.SendToTarget():
            return "join" if isinstance(effect, session.JoinTarget) else "tell", effect.target
        case session.RejectCommand():
            return ("refuse",)
        case session.CancelTarget():
            return "cancel", effect.target
        case session.CloseClient():
            return "close", effect.code
        case session.ConnectionEnded():
            return "ended", effect.result.value["code"]
    return (type(effect).__name__.lower(),)


def same(happened: Iterable[Fact], expected: Iterable[Fact]) -> bool:
    return sorted(map(str, happened)) == sorted(map(str, expected))


PICK = st.integers(0, 99)
PAIRS = st.lists(st.tuples(PICK, PICK), min_size=1, max_size=5)
NAME = st.sampled_from(NAMES)
GROUP = st.sampled_from(GROUPS)
HOST = st.sampled_from(sorted(LIMITS))
NORMAL = Result("value")
KILLED = Result(error=ExitError(ExitKind.KILLED, "SIGKILL"))
CRASHED = Result(error=ExitError(ExitKind.ERROR, "it raised"))
FULL = ExitError(ExitKind.HOST_FULL, "full")
OVERFLOW = ExitError(ExitKind.MAILBOX_OVERFLOW, "too much mail")


class History(RuleBasedStateMachine):
    """The kernel and sessions on it, driven as a node drives them, beside the model."""

    steps = 0
    """Of all runs together."""

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
        assert all(number == 0 for number, fact in enumerate(happened) if fact[0] == "exited")
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
                case k.ExitedEffect():
                    self.tell_clients(effect.pid, effect.result, join_read=join_read)

    def tell_clients(self, pid: PID, result: Result, *, join_read: bool) -> None:
        code = 1011 if result.error else 1000 if join_read else 1013
        for client in [client for client, target in self.bound.items() if target == pid]:
            effects = self.sessions[client].target_exited(pid, result, join_read=join_read)
            self.relay(client, effects, self.model.target_gone(client, code))

    def exit(self, pid: PID, result: Result, *, join_read: bool = True) -> None:
        for watcher, target in self.model.monitors:
            if pid == watcher != target:
                self.owed[watcher, target] -= 1
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

    def relay(self, pid: PID, effects: list[session.Effect], expected: list[Fact]) -> None:
        """Execute a session's effects, which must be those of the model."""
        happened = [session_fact(effect) for effect in effects]
        assert same(happened, expected), (happened, expected)
        for effect in effects:
            match effect:
                case session.JoinTarget() if self.accepts(effect.target):
                    self.bound[pid] = effect.target
                    self.inboxes[effect.target].append(("join", pid))
                case session.SendToTarget() if self.accepts(effect.target):
                    number = int(effect.payload["data"])
                    self.inboxes[effect.target].append(("message", pid, number))
                case session.LeaveTarget():
                    if self.accepts(effect.target):
                        self.inboxes[effect.target].append(("leave", pid, effect.code))
                    if self.bound.get(pid) == effect.target:
                        del self.bound[pid]
                case session.CancelTarget():
                    self.signal_to(effect.target, k.Signal.CANCEL)
                case session.ConnectionEnded():
                    del self.sessions[pid]
                    self.bound.pop(pid, None)
                    code = effect.result.value["code"]
                    assert (effect.result.error is None) is is_normal(code)
                    self.exit(pid, effect.result)

    def end(self, pid: PID, effects: list[session.Effect], code: int) -> None:
        self.relay(pid, effects, self.model.end(pid, code))

    def client_gone(self, pid: PID, code: int) -> None:
        effects = self.sessions[pid].client_gone(code)
        self.relay(pid, effects, self.model.gone(pid, code))

    # Processes begin and end

    @initialize()
    def a_few_run(self) -> None:
        for number in range(FEW + 1):
            self.spawn_one("large", None, None, monitored=False, linked=False)
            self.signal_to(self.pids[number], k.Signal.READY)
            self.trap(self.pids[number], number % 2 == 1)

    @rule(
        host=HOST,
        name=st.none() | NAME,
        parent=st.none() | PICK,
        monitored=st.booleans(),
        linked=st.booleans(),
    )
    def spawn(
        self, host: str, name: str | None, parent: int | None, monitored: bool, linked: bool
    ) -> None:
        workers = self.living_workers()
        father = workers[parent % len(workers)] if workers and parent is not None else None
        self.spawn_one(host, name, father, monitored=monitored, linked=linked)

    def spawn_one(
        self, host: str, name: str | None, father: PID | None, *, monitored: bool, linked: bool
    ) -> None:
        pid = self.source.next(host)
        if self.model.workers(host) >= LIMITS[host]:
            with pytest.raises(HostFull):
                self.kernel.spawn(pid, name, parent=father, monitored=monitored, linked=linked)
            self.pids.append(pid)
            if father is not None:
                if monitored:
                    self.owed[father, pid] += 1
                expected = self.model.spawn_failed(pid, father, monitored=monitored, linked=linked)
                effects = self.kernel.spawn_failed(
                    pid, FULL, father, monitored=monitored, linked=linked
                )
                self.do(effects, expected)
        elif name in self.model.names:
            with pytest.raises(NameTaken):
                self.kernel.spawn(pid, name, parent=father, monitored=monitored, linked=linked)
        else:
            self.pids.append(pid)
            self.inboxes[pid] = []
            if father is not None and monitored:
                self.owed[father, pid] += 1
            expected = self.model.spawn(pid, name, father, monitored=monitored, linked=linked)
            effects = self.kernel.spawn(
                pid, name, parent=father, monitored=monitored, linked=linked
            )
            self.do(effects, expected)

    @rule(host=HOST, name=NAME)
    def get_or_spawn(self, host: str, name: str) -> None:
        pid = self.source.next(host)
        if name in self.model.names:
            assert self.kernel.get_or_spawn(name, pid) == (self.model.names[name], [])
        elif self.model.workers(host) >= LIMITS[host]:
            with pytest.raises(HostFull):
                self.kernel.get_or_spawn(name, pid)
        else:
            self.pids.append(pid)
            self.inboxes[pid] = []
            there, effects = self.kernel.get_or_spawn(name, pid)
            assert there == pid
            self.do(effects, self.model.spawn(pid, name, None, monitored=False, linked=False))

    @precondition(lambda self: self.living_workers())
    @rule(pick=PICK)
    def gets_ready(self, pick: int) -> None:
        self.signal_to(self.worker(pick), k.Signal.READY)

    @precondition(lambda self: len(self.living_workers()) > FEW)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        self.signal_to(self.anyone(pick), k.Signal.CANCEL)

    @precondition(lambda self: len(self.living_workers()) > FEW)
    @rule(pick=PICK, because=st.sampled_from([None, OVERFLOW]))
    def terminate(self, pick: int, because: ExitError | None) -> None:
        self.signal_to(self.anyone(pick), k.Signal.TERMINATE, because)

    @precondition(lambda self: self.living_workers())
    @rule(pick=PICK, signal=st.sampled_from([k.Signal.START_TIMEOUT, k.Signal.STOP_TIMEOUT]))
    def a_time_is_over(self, pick: int, signal: k.Signal) -> None:
        self.signal_to(self.worker(pick), signal)

    @precondition(lambda self: len(self.living_workers()) > FEW)
    @rule(pick=PICK, result=st.sampled_from([NORMAL, CRASHED, KILLED]), join_read=st.booleans())
    def ends(self, pick: int, result: Result, join_read: bool) -> None:
        self.exit(self.worker(pick), result, join_read=join_read)

    @precondition(lambda self: self.doomed)
    @rule(pick=PICK)
    def dies_of_a_kill(self, pick: int) -> None:
        self.exit(self.doomed[pick % len(self.doomed)], KILLED)

    @precondition(lambda self: len(self.pids) > len(self.model.state))
    @rule(pick=PICK, result=st.sampled_from([NORMAL, KILLED]))
    def a_second_end_means_nothing(self, pick: int, result: Result) -> None:
        dead = [pid for pid in self.pids if pid not in self.model.state]
        assert self.kernel.exited(dead[pick % len(dead)], result) == []

    # Relations

    @precondition(lambda self: self.living_workers())
    @rule(pairs=PAIRS)
    def monitor(self, pairs: list[tuple[int, int]]) -> None:
        for one, other in pairs:
            me, it = self.worker(one), self.anyone(other)
            if me != it and (me, it) not in self.model.monitors:
                self.owed[me, it] += 1
            self.do(self.kernel.monitor(me, it), self.model.monitor(me, it))

    @precondition(lambda self: self.living_workers())
    @rule(one=PICK, other=PICK)
    def unmonitor(self, one: int, other: int) -> None:
        me, it = self.worker(one), self.anyone(other)
        if me != it and (me, it) in self.model.monitors:
            self.owed[me, it] -= 1
        self.kernel.relations.unmonitor(me, it)
        self.model.monitors.discard((me, it))

    @precondition(lambda self: self.living_workers())
    @rule(pairs=PAIRS)
    def link(self, pairs: list[tuple[int, int]]) -> None:
        for one, other in pairs:
            me, it = self.worker(one), self.anyone(other)
            self.do(self.kernel.link(me, it), self.model.link(me, it))

    @precondition(lambda self: self.living_workers())
    @rule(one=PICK, other=PICK)
    def unlink(self, one: int, other: int) -> None:
        me, it = self.worker(one), self.anyone(other)
        self.kernel.relations.unlink(me, it)
        self.model.links.discard(frozenset((me, it)))

    @precondition(lambda self: self.living_workers())
    @rule(pick=PICK, trap=st.booleans())
    def trap_links(self, pick: int, trap: bool) -> None:
        self.trap(self.worker(pick), trap)

    def trap(self, pid: PID, trap: bool) -> None:
        self.kernel.trap_links(pid, trap=trap)
        (self.model.traps.add if trap else self.model.traps.discard)(pid)

    # Names and groups

    @precondition(lambda self: self.everyone())
    @rule(pick=PICK, name=NAME)
    def register(self, pick: int, name: str) -> None:
        pid = self.anyone(pick)
        if not self.model.reachable(pid):
            with pytest.raises(ValueError, match="not alive"):
                self.kernel.register(name, pid)
        elif self.model.names.get(name, pid) != pid:
            with pytest.raises(NameTaken):
                self.kernel.register(name, pid)
        else:
            self.kernel.register(name, pid)
            self.model.names[name] = pid

    @rule(name=NAME)
    def unregister(self, name: str) -> None:
        if self.model.names.pop(name, None) is None:
            with pytest.raises(NameNotFound):
                self.kernel.names.unregister(name)
        else:
            self.kernel.names.unregister(name)

    @precondition(lambda self: self.everyone())
    @rule(pick=PICK, group=GROUP)
    def join_group(self, pick: int, group: str) -> None:
        pid = self.anyone(pick)
        self.kernel.join_group(group, pid)
        if self.model.reachable(pid) and pid not in self.model.groups[group]:
            self.model.groups[group].append(pid)

    @precondition(lambda self: self.everyone())
    @rule(pick=PICK, group=GROUP)
    def leave_group(self, pick: int, group: str) -> None:
        pid = self.anyone(pick)
        self.kernel.groups.leave(group, pid)
        if pid in self.model.groups[group]:
            self.model.groups[group].remove(pid)

    # Connections

    @precondition(lambda self: self.living_workers() and len(self.model.clients) < MOST_CLIENTS)
    @rule(pick=PICK, cancels=st.booleans(), waits=st.booleans())
    def connect(self, pick: int, cancels: bool, waits: bool) -> None:
        target = self.worker(pick)
        refused = self.kernel.why_no_target(target) is not None
        assert refused is not self.model.reachable(target)
        if refused:
            return
        pid = self.source.next("gateway")
        self.pids.append(pid)
        self.kernel.connect(pid)
        self.model.state[pid] = "running"
        self.model.clients[pid] = Client(target, cancels)
        relay = RelayHeader(target_pid=target, cancel_on_leave=cancels)
        self.sessions[pid] = session.Session(pid, relay, limit=100, overflow=Overflow.CLOSE)
        self.bound[pid] = target
        if not waits:
            self.upgrade_of(pid)

    def upgrade_of(self, pid: PID) -> None:
        self.relay(pid, self.sessions[pid].opened(0.0), self.model.upgraded(pid))

    @precondition(lambda self: any(map(self.is_new, self.sessions)))
    @rule(pick=PICK, comes_about=st.sampled_from([True, True, True, False]))
    def upgrade(self, pick: int, comes_about: bool) -> None:
        new = [pid for pid in self.sessions if self.is_new(pid)]
        pid = new[pick % len(new)]
        if comes_about:
            self.upgrade_of(pid)
        else:
            self.relay(pid, self.sessions[pid].refused(), self.model.refused(pid))

    @precondition(lambda self: self.sessions)
    @rule(pick=PICK, count=st.integers(1, 3))
    def client_says(self, pick: int, count: int) -> None:
        pid = self.client(pick)
        for _ in range(count):
            number = self.model.clients[pid].messages + 1
            self.relay(pid, self.sessions[pid].message(str(number)), self.model.say(pid))

    @precondition(lambda self: self.sessions and self.living_workers())
    @rule(pick=PICK, to=PICK)
    def transfer(self, pick: int, to: int) -> None:
        self.control(self.client(pick), self.worker(to))

    @precondition(lambda self: self.sessions and self.everyone())
    @rule(pick=PICK, to=PICK)
    def transfer_to_anyone(self, pick: int, to: int) -> None:
        self.control(self.client(pick), self.anyone(to))

    def control(self, pid: PID, target: PID) -> None:
        given = command.ControlCommand(target_pid=target)
        expected = self.model.transfer(pid, target)
        effects = self.sessions[pid].command(given, target, self.kernel.why_no_target)
        self.relay(pid, effects, expected)

    @precondition(lambda self: len(self.sessions) > 1)
    @rule(pick=PICK, code=st.sampled_from([1000, 4000, 1011]))
    def ws_close(self, pick: int, code: int) -> None:
        pid = self.client(pick)
        given = command.CloseCommand(code, "over")
        effects = self.sessions[pid].command(given, pid, self.kernel.why_no_target)
        self.end(pid, effects, code)

    @precondition(lambda self: len(self.sessions) > 1)
    @rule(pick=PICK, code=st.sampled_from([1000, 1001, 1005, 1006, 1009, 4001]))
    def client_goes(self, pick: int, code: int) -> None:
        pid = self.client(pick)
        if not self.is_new(pid):
            self.client_gone(pid, code)

    # What is so after every step

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        History.steps += 1
        self.the_living_are_those_of_the_model()
        self.names_show_nobody_who_is_dead_or_cancelled()
        self.groups_show_nobody_who_is_dead_or_cancelled()
        self.relations_are_between_the_living()
        self.every_monitor_hears_of_one_end_and_nobody_else_of_any()
        self.hosts_count_their_workers_and_are_never_too_full()
        self.every_stay_at_a_target_has_one_join_and_one_leave_around_its_messages()
        self.a_connection_is_bound_to_its_target_alone()

    def the_living_are_those_of_the_model(self) -> None:
        living = {pid: row.state.value for pid, row in self.kernel.processes.items()}
        assert living == self.model.state
        connections = {pid for pid, row in self.kernel.processes.items() if row.connection}
        assert connections == set(self.model.clients)

    def names_show_nobody_who_is_dead_or_cancelled(self) -> None:
        names = self.kernel.names
        shown = {name: pid for name in NAMES if (pid := names.get(name)) is not None}
        assert shown == self.model.names
        assert len(names) == len(shown)
        assert all(self.model.reachable(pid) for pid in shown.values())
        for pid in self.pids:
            assert names.of(pid) == {name for name, owner in shown.items() if owner == pid}

    def groups_show_nobody_who_is_dead_or_cancelled(self) -> None:
        groups = self.kernel.groups
        shown = {group: groups.members(group) for group in GROUPS}
        assert shown == self.model.groups
        assert len(groups) == sum(bool(members) for members in shown.values())
        assert all(self.model.reachable(pid) for members in shown.values() for pid in members)

    def relations_are_between_the_living(self) -> None:
        relations = self.kernel.relations
        watchers = {(w, t) for t, them in relations._watchers.items() for w in them}
        watched = {(w, t) for w, them in relations._watched.items() for t in them}
        links = {frozenset((a, b)) for a, them in relations._links.items() for b in them}
        assert watchers == watched == self.model.monitors
        assert links == self.model.links
        assert all(a in relations._links[b] for link in links for a in link for b in link - {a})
        assert {pid for pair in watchers | links for pid in pair} <= set(self.kernel.processes)
        edges = (relations._watchers, relations._watched, relations._links)
        assert all(them for kind in edges for them in kind.values())

    def every_monitor_hears_of_one_end_and_nobody_else_of_any(self) -> None:
        waiting = Counter(pair for pair in self.model.monitors if pair[0] != pair[1])
        assert self.heard + waiting == +self.owed

    def hosts_count_their_workers_and_are_never_too_full(self) -> None:
        for host, limit in LIMITS.items():
            assert self.kernel.count(host) == self.model.workers(host) <= limit

    def every_stay_at_a_target_has_one_join_and_one_leave_around_its_messages(self) -> None:
        assert self.inboxes == self.model.mail
        here = {pid: client.target for pid, client in self.model.clients.items()}
        everything: Counter[tuple[object, object]] = Counter()
        for target, inbox in self.inboxes.items():
            stays: dict[object, bool] = {}
            for what, client, *number in inbox:
                assert stays.get(client, False) is (what != "join"), inbox
                stays[client] = what != "leave"
                if what == "message":
                    everything[client, number[0]] += 1
            if self.model.reachable(target):
                # Nobody is left in a room but those who are in it.
                left = {client for client, inside in stays.items() if inside}
                assert left <= {pid for pid, where in here.items() if where == target}
        assert all(count == 1 for count in everything.values())

    def a_connection_is_bound_to_its_target_alone(self) -> None:
        assert set(self.bound) <= set(self.sessions)
        for pid, target in self.bound.items():
            assert self.sessions[pid].target == target == self.model.clients[pid].target

    def teardown(self) -> None:
        """Nothing is left of anything once everything has ended."""
        for pid in list(self.sessions):
            if pid not in self.sessions:
                continue
            if self.is_new(pid):
                self.relay(pid, self.sessions[pid].refused(), self.model.refused(pid))
            else:
                self.client_gone(pid, 1000)
        for pid in self.living_workers():
            self.exit(pid, NORMAL)
        kernel, relations = self.kernel, self.kernel.relations
        assert not kernel.processes
        assert [relations._watchers, relations._watched, relations._links] == [{}] * 3
        assert [kernel.names._pids, kernel.names._names] == [{}] * 2
        assert [kernel.groups._members, kernel.groups._groups] == [{}] * 2
        assert [kernel.count(host) for host in LIMITS] == [0] * len(LIMITS)
        assert self.heard == +self.owed
        assert not self.bound


def test_any_history_of_processes_and_transfers_is_that_of_the_model() -> None:
    History.steps = 0
    run_state_machine_as_test(
        History,
        settings=settings(
            deadline=None,
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            # Shrinking every way in which one defect shows takes minutes; one is enough.
            report_multiple_bugs=False,
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    assert History.steps > 1000
