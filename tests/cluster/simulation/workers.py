"""Simulated workers: they read and write the frames of real ones, and do what the seed says.

Each is one thread, as a real one: while it writes to a full pipe it does nothing else. It takes
from its inbox in order, acknowledges what it has taken, reacts to messages, calls, clients and
events, and now and then does something of its own accord.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from wsrelay import wire
from wsrelay.values.message import JOIN, LEAVE, ExitKind
from wsrelay.values.pid import PID, PIDSource
from wsrelay.values.timer import Timer
from wsrelay.wire import payload

from .system import End, Pidfd

if TYPE_CHECKING:
    from .system import Template
    from .world import Machine

__all__ = ["ENTRY", "TARGET", "Worker"]

TARGET: Final = "sim.py:room"
"""What every worker runs, by the word of who starts it."""

ENTRY: Final = "room"
"""The id of that as an entry, which other nodes may start."""

_ACKNOWLEDGE: Final = wire.WINDOW // 4
_NOTHING: Final = payload.pack([[], {}])
"""The arguments of an entry that another node starts."""

_FEW: Final = 8
"""Items that are taken in one step."""

_DATA: Final = (
    wire.DeliverFrame,
    wire.AttachFrame,
    wire.RelayFrame,
    wire.DetachFrame,
    wire.CloseInboxFrame,
    wire.PresenceFrame,
    wire.CalledFrame,
)

_ACTIONS: Final[dict[str, int]] = {
    "send": 30,
    "send_by_name": 4,
    "send_later": 4,
    "broadcast": 4,
    "call": 6,
    "monitor": 8,
    "link": 1,
    "spawn": 5,
    "get_or_spawn": 5,
    "exec": 2,
    "join_group": 3,
    "leave_group": 1,
    "register": 2,
    "unregister": 1,
    "lookup": 2,
    "members": 1,
    "cancel": 1,
    "replace": 3,
    "terminate": 1,
    "tell_client": 18,
    "move_client": 3,
    "close_client": 1,
    "doze": 3,
}

_BURSTS: Final = (1, 1, 1, 2, 5, 40)
"""How many messages may come at once."""

_SIZES: Final = (0, 0, 0, 0, 0, 1_000, 20_000)
"""Bytes that each of them has besides its numbers."""

_NAMES: Final = [_action for _action, _weight in _ACTIONS.items() for _ in range(_weight)]


class Worker:
    """One worker, from its fork to its death."""

    def __init__(
        self, machine: Machine, template: Template, frame: wire.ForkFrame, ends: list[End]
    ) -> None:
        self._machine = machine
        self._world = machine.world
        self._scheduler = machine.scheduler
        self._books = machine.world.books
        self._random = machine.scheduler.random
        self._template = template
        self._ref = frame.ref
        self.os_pid = machine.system.os_pid()
        self.pid = ""
        self.name: str | None = None
        """The exclusive name that it was started under."""
        self.is_dead = False
        self.is_running = False
        """Whether its handler is being run."""
        self.is_stubborn = self._random.random() < 0.04
        """Whether it does not end when it is cancelled."""
        self.pidfds: list[Pidfd] = []
        self._reading, self._writing = ends
        self._reading.notify = self._wake
        self._writing.notify = lambda: self._do(self._write_on)
        self._reader = wire.to_worker()
        self._ids: PIDSource
        self._known: wire.CatalogFrame
        self._inbox: deque[tuple[Any, int]] = deque()
        self._unwritten: deque[bytes | memoryview] = deque()
        self._received = self._taken = self._acknowledged = 0
        self._refs = 0
        self.unanswered: dict[int, str] = {}
        """Its requests that have no answer yet, each with what it asked for."""
        self.clients: dict[str, int | None] = {}
        """Those that have joined and not left, with the last number of their messages."""
        self._receipts: set[str] = set()
        self._told: dict[str, int] = {}
        self._groups: set[str] = set()
        self._children: list[str] = []
        self._is_cancelled = False
        self._reads_on = True
        self._ends_with: int | None = None
        """The exit code, once it only has to write what is left."""
        self._missed: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        """What it would have done while it was stopped."""
        self._busy_until = 0.0
        self._due: float | None = None
        self._wake()

    # What runs when

    @property
    def is_frozen(self) -> bool:
        """Whether its guardian has stopped it."""
        return self._template.stops(self.os_pid)

    def go_on(self) -> None:
        """Do what has come up while it was stopped, if it is not any more."""
        if self._missed and not self.is_dead and not self.is_frozen:
            missed, self._missed = self._missed, []
            self._books.goes_on(self)
            for call, args in missed:
                self._at(self._scheduler.now, call, *args)

    def _at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        self._scheduler.at(when, self._do, call, *args)

    def _later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        self._scheduler.later(seconds, self._do, call, *args)

    def _do(self, call: Callable[..., None], *args: Any) -> None:
        if self.is_dead:
            return
        if self.is_frozen:
            self._missed.append((call, args))
        else:
            call(*args)

    def _wake(self) -> None:
        """Read soon."""
        self._plan(self._scheduler.now + self._machine.draw(0.00002, 0.001))

    def _plan(self, when: float) -> None:
        when = max(when, self._busy_until)
        if self._due is None or when < self._due:
            self._due = when
            self._at(when, self._step, when)

    def _step(self, planned: float) -> None:
        if planned != self._due:
            return
        self._due = None
        if self._scheduler.now < self._busy_until:
            self._plan(self._busy_until)
            return
        if self._unwritten:
            return  # `_write_on` goes on
        self._read()
        if self.is_running and not self.is_dead:
            self._take()

    def _doze(self, seconds: float) -> None:
        """Do nothing for a while, as a handler that is busy."""
        self._busy_until = self._scheduler.now + seconds

    # The pipe

    def _read(self) -> None:
        try:
            data = self._reading.read(wire.MAX_FRAME)
        except BlockingIOError:
            return
        if not data:  # the node is gone; the guardian is about to end this one
            self._reading.notify = None
            return
        for frame, size in self._reader.feed(data):
            if isinstance(frame, _DATA):
                self._received += 1
                self._inbox.append((frame, size))
            else:
                self._react(frame)

    def write(self, frame: wire.Frame) -> None:
        """Write a frame, now or as soon as there is room; until then it does nothing else."""
        if self._ends_with is None:
            self._unwritten.append(wire.pack(frame))
            if len(self._unwritten) == 1:
                self._write_out()

    def _write_on(self) -> None:
        """Go on when there is room in the pipe."""
        if self._unwritten:
            self._write_out()
            if not self._unwritten and not self.is_dead:
                self._wake()

    def _write_out(self) -> None:
        try:
            while self._unwritten:
                data = self._unwritten[0]
                sent = self._writing.write(data)
                if sent < len(data):
                    self._unwritten[0] = memoryview(data)[sent:]
                else:
                    self._unwritten.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._unwritten.clear()
        if self._ends_with is not None:
            self._die(self._ends_with)

    # Its life

    def _react(self, frame: Any) -> None:
        """Handle what may overtake data."""
        match frame:
            case wire.StartFrame():
                self._start(frame)
            case wire.SignalFrame(kind="CANCEL"):
                self._cancelled()
            case wire.SignalFrame(kind="EXIT"):
                self._books.exits(self.pid, frame.sender)
            case wire.ReplyFrame() | wire.FinishedFrame():
                self._answered(frame)

    def _start(self, frame: wire.StartFrame) -> None:
        self.pid = frame.pid
        self._ids = PIDSource(PID.trusted(frame.pid).node or "", frame.ids)
        self._known = frame.known
        words = frame.title.split()
        self.name = words[1] if words[1] != self.pid else None
        self._later(self._machine.draw(0.001, 0.2), self._run)

    def _run(self) -> None:
        self.is_running = True
        self._world.started(self)
        if self.name is not None:
            self._books.begins(self)
        self.write(wire.ReadyFrame())
        if self.name is not None:
            self._ask(wire.FenceFrame, "fence", None)
        if self._random.random() < 0.8:
            self._later(self._random.expovariate(1 / 6), self._end_by_itself)
        self._act_later()
        self._wake()

    def _end_by_itself(self) -> None:
        if self.is_running and not self.is_dead and not self._world.is_quiet:
            how = self._random.random()
            if how < 0.3:
                self._return()
            elif how < 0.6:  # it has much to do before that, and reads nothing
                self._reads_on = False
                if self.name is not None:
                    self._world.rush(self.name)
                self._return_after(self._machine.draw(0.0, 0.5))
            elif how < 0.8:
                error = wire.WorkerError(ExitKind.ERROR, "ValueError: simulated", "Traceback ...")
                self._return(error)
            elif how < 0.9:
                self._die(3)
            else:
                self._die(-signal.SIGSEGV)

    def _cancelled(self) -> None:
        self._is_cancelled = True
        self._reads_on = self._random.random() < 0.5
        if not self.is_stubborn:
            self._return_after(self._machine.draw(0.0, 0.3))

    def _return_after(self, seconds: float) -> None:
        when = max(self._scheduler.now + seconds, self._busy_until)
        self._at(when, self._return)

    def _return(self, error: wire.WorkerError | None = None) -> None:
        """Return from the handler, or raise: the last frame, then the end."""
        if self.is_dead or not self.is_running or self._ends_with is not None:
            return
        self.is_running = False
        unread = [
            frame.client
            for frame, _ in self._inbox
            if type(frame) is wire.RelayFrame and frame.topic == JOIN
        ]
        self.write(wire.DoneFrame(payload.pack(None), error, self._received, unread))
        self._ends_with = 0 if error is None else 1
        if not self._unwritten:
            self._later(self._machine.draw(0.0001, 0.005), self._die, self._ends_with)

    def signalled(self, number: int) -> None:
        """Handle a signal of the node or of the system."""
        if number == signal.SIGKILL:
            self._die(-signal.SIGKILL)
        elif number == wire.INTERRUPT and self._is_cancelled and self._random.random() < 0.5:
            self._do(self._return)

    @property
    def known_as(self) -> str:
        """Its exclusive name, with its node's life if the name belongs to that."""
        name = self.name or ""
        return f"{self._machine.life} {name}" if name.startswith("local/") else name

    def is_on(self, machine: Machine) -> bool:
        """Whether it runs on that machine."""
        return self._machine is machine

    def is_near(self, other: Worker) -> bool:
        """Whether both are on one machine."""
        return self._machine is other._machine

    def pidfd(self) -> Pidfd:
        """Open a pidfd of it."""
        pidfd = Pidfd(self)
        self.pidfds.append(pidfd)
        return pidfd

    def _die(self, code: int) -> None:
        if self.is_dead:
            return
        self.is_dead = True
        self.is_running = False
        self._reading.notify = self._writing.notify = None
        self._reading.let_go()
        self._writing.let_go()
        self._books.ends(self)
        self._machine.died(self)
        for pidfd in list(self.pidfds):
            if pidfd.notify is not None:
                pidfd.notify()
        self._template.ended(self._ref, code)

    @property
    def unread(self) -> int:
        """Bytes that it has written and the node has not read."""
        return len(self._writing.pipe.data)

    # What it takes

    def _take(self) -> None:
        if not self._reads_on:
            return
        for _ in range(_FEW):
            if not self._inbox or self._unwritten or not self.is_running:
                break
            frame, size = self._inbox.popleft()
            self._taken += size
            self._takes(frame)
        if self._taken - self._acknowledged >= _ACKNOWLEDGE and self.is_running:
            self._acknowledged = self._taken
            self.write(wire.AckFrame(self._taken))
        if self._inbox and self.is_running:
            self._plan(self._scheduler.now + self._machine.draw(0.00001, 0.0005))

    def _takes(self, frame: Any) -> None:
        match frame:
            case wire.DeliverFrame():
                self._gets(frame)
            case wire.CalledFrame():
                self._called(frame)
            case wire.AttachFrame():
                if frame.receipt:
                    self._receipts.add(frame.client)
            case wire.RelayFrame():
                self._relayed(frame)

    def _gets(self, frame: wire.DeliverFrame) -> None:
        if frame.topic.startswith("ws."):
            return
        number, count = payload.decode(frame.payload)[:2]
        if frame.topic != "later":
            self._books.gets(self.pid, frame.sender, number, count)

    def _called(self, frame: wire.CalledFrame) -> None:
        asked = payload.decode(frame.payload)
        if (chance := self._random.random()) < 0.9 or self._world.is_quiet:
            refused = "simulated" if chance < 0.05 else None
            answer = wire.AnswerFrame(frame.call, payload.pack(asked), refused)
            self._later(self._machine.draw(0.0, 0.2), self._answer, answer)
        else:
            self._world.unwilling[frame.sender, asked] = self.pid

    def _answer(self, frame: wire.AnswerFrame) -> None:
        if self.is_running:
            self.write(frame)

    def _relayed(self, frame: wire.RelayFrame) -> None:
        client, broke = frame.client, self._books.broke
        if client in self._receipts:
            self._receipts.discard(client)
            self.write(wire.JoinReadFrame(client))
        if frame.topic == JOIN:
            if client in self.clients:
                broke("joins and leaves", f"{self.pid} gets a second join of {client}")
            self.clients[client] = None
            return
        if client not in self.clients:
            broke("joins and leaves", f"{self.pid} gets {frame.topic} of {client}, not joined")
        elif frame.topic == LEAVE:
            del self.clients[client]
        elif frame.topic == "ws.message":
            number, last = int(frame.payload["data"]), self.clients[client]
            if last is not None and number != last + 1:
                broke("client's order", f"{self.pid} gets {number} of {client} after {last}")
            self.clients[client] = number
            self._world.client_heard(client, number, self.pid)
            if self._random.random() < 0.5:
                self._tell(client)

    def _answered(self, frame: wire.ReplyFrame | wire.FinishedFrame) -> None:
        asked = self.unanswered.pop(frame.ref, None)
        if asked is None:
            self._books.broke("answered", f"{self.pid} gets a second answer to {frame.ref}")
        elif (
            isinstance(frame, wire.FinishedFrame)
            and asked == "call"
            and frame.refused is None
            and frame.result.error is None
            and payload.decode(frame.result.value) != frame.ref
        ):
            self._books.broke("answered", f"{self.pid} gets the answer to another call")
        elif asked == "fence" and isinstance(frame, wire.ReplyFrame) and frame.error is None:
            self._books.fence(self.known_as, self.pid, frame.value)

    # What it does by itself

    def _act_later(self) -> None:
        self._later(self._random.expovariate(self._world.activity), self._act)

    def _act(self) -> None:
        if self.is_dead or not self.is_running or self._world.is_quiet:
            return
        if not self._unwritten and self._scheduler.now >= self._busy_until:
            getattr(self, f"_do_{self._random.choice(_NAMES)}")()
        self._act_later()

    def _somebody(self) -> str | None:
        """Return the PID of a process that has been started, dead or alive, or None."""
        if self._children and self._random.random() < 0.2:
            return self._random.choice(self._children)
        known = self._world.known
        pid = self._random.choice(known) if known else None
        if pid is None or pid == self.pid or not self._machine.sees(pid):
            return None
        return pid

    def _ask(self, kind: Callable[..., wire.Frame], what: str, *args: Any) -> None:
        self._refs += 1
        self.unanswered[self._refs] = what
        self.write(kind(self._refs, *args))

    def _content(self, to: str | None = None, size: int = 0) -> bytes:
        number = self._books.number(self.pid)
        count = None if to is None else self._books.sends(self.pid, to)
        return payload.pack([number, count, "x" * size])

    def _new(self, *, elsewhere: bool = False, **more: Any) -> wire.SpawnFrame:
        host = self._random.choice(self._known.hosts)
        pid = self._ids.next(host)
        if not elsewhere or self._random.random() < 0.5:
            return wire.SpawnFrame(str(pid), host, TARGET, b"", **more)
        node, names = str(pid.node), self._world.names
        there = "{" + self._random.choice(names) + pid[1 + len(node) :]
        return wire.SpawnFrame(there, host, ENTRY, _NOTHING, plain=True, **more)

    def _named(self) -> wire.SpawnFrame:
        """Return what is to be started under a name, perhaps by another node."""
        host = self._random.choice(self._known.hosts)
        pid = str(self._ids.next(host))
        if self._world.a_target() == TARGET:
            return wire.SpawnFrame(pid, host, TARGET, b"")
        return wire.SpawnFrame(pid, host, ENTRY, _NOTHING, plain=True)

    def _do_send(self) -> None:
        if (to := self._somebody()) is not None:
            size = self._random.choice(_SIZES)
            for _ in range(self._random.choice(_BURSTS)):
                self.write(wire.SendFrame(to, "message", self._content(to, size)))

    def _do_send_by_name(self) -> None:
        name = self._world.a_name()
        self.write(wire.SendFrame(name, "by name", self._content()))

    def _do_send_later(self) -> None:
        if (to := self._somebody()) is None:
            return
        timer = Timer.of(self._ids.next(PID.trusted(self.pid).host))
        due = int((self._scheduler.now + self._machine.draw(0.0, 2.0)) * 1e9)
        self.write(wire.SendAfterFrame(str(timer), due, to, "later", payload.pack([0, None])))
        if self._random.random() < 0.3:
            self.write(wire.CancelTimerFrame(str(timer)))

    def _do_broadcast(self) -> None:
        self.write(wire.BroadcastFrame(self._world.a_group(), "all", self._content()))

    def _do_call(self) -> None:
        if (to := self._somebody()) is not None:
            self._ask(wire.CallFrame, "call", to, "question", payload.pack(self._refs + 1))

    def _do_monitor(self) -> None:
        if (to := self._somebody()) is not None and self._books.monitors_one(self.pid, to):
            self.write(wire.RelateFrame("monitor", to))

    def _do_link(self) -> None:
        if (to := self._somebody()) is not None:
            self.write(wire.RelateFrame("link", to))

    def _do_spawn(self) -> None:
        monitored = self._random.random() < 0.5
        linked = self._random.random() < 0.1
        frame = self._new(elsewhere=True, monitored=monitored, linked=linked)
        if monitored:
            self._books.monitors_one(self.pid, frame.pid)
        self._children.append(frame.pid)
        self.write(frame)

    def _do_get_or_spawn(self) -> None:
        self._ask(wire.GetOrSpawnFrame, "get_or_spawn", self._world.a_name(), self._named())

    def _do_exec(self) -> None:
        self._ask(wire.ExecFrame, "exec", self._new(elsewhere=True))

    def _do_join_group(self) -> None:
        group = self._world.a_group()
        self._groups.add(group)
        self.write(wire.JoinGroupFrame(group, self.pid))

    def _do_leave_group(self) -> None:
        if self._groups:
            group = self._random.choice(sorted(self._groups))
            self._groups.discard(group)
            self.write(wire.LeaveGroupFrame(group, self.pid))

    def _do_register(self) -> None:
        self._ask(wire.RegisterFrame, "register", self._world.a_label(), self.pid)

    def _do_unregister(self) -> None:
        self._ask(wire.UnregisterFrame, "unregister", self._world.a_label())

    def _do_lookup(self) -> None:
        self._ask(wire.LookupFrame, "lookup", self._world.a_name())

    def _do_members(self) -> None:
        self._ask(wire.MembersFrame, "members", self._world.a_group())

    def _do_cancel(self) -> None:
        if (to := self._somebody()) is not None:
            self.write(wire.CancelFrame(to, "simulated"))

    def _do_replace(self) -> None:
        name = self._world.a_name()
        self.write(wire.CancelFrame(name, "replaced"))
        self._world.rush(name)
        self._ask(wire.GetOrSpawnFrame, "get_or_spawn", name, self._named())

    def _do_terminate(self) -> None:
        if (to := self._somebody()) is not None:
            self.write(wire.TerminateFrame(to))

    def _tell(self, client: str) -> None:
        self._told[client] = count = self._told.get(client, 0) + 1
        size = 3000 if self._random.random() < 0.3 else 0
        content = {"type": "text", "data": f"{self.pid} {count} {'x' * size}"}
        self.write(wire.SendFrame(client, "ws.send", payload.pack(content)))

    def _do_tell_client(self) -> None:
        if self.clients:
            client = self._random.choice(list(self.clients))
            for _ in range(self._random.choice(_BURSTS) * self._world.volume):
                self._tell(client)

    def _do_move_client(self) -> None:
        if self.clients and (to := self._somebody()) is not None:
            client = self._random.choice(list(self.clients))
            self._world.moved.add(client)
            self.write(wire.SendFrame(client, "ws.control", payload.pack({"target_pid": to})))

    def _do_close_client(self) -> None:
        if self.clients:
            client = self._random.choice(list(self.clients))
            content = {"code": 4000, "reason": "simulated"}
            self.write(wire.SendFrame(client, "ws.close", payload.pack(content)))

    def _do_doze(self) -> None:
        self._doze(self._machine.draw(0.1, 1.5))
