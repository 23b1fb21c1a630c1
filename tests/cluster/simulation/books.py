"""What is promised, and the books by which a run checks it.

Workers and clients enter what they do and what they get. What must hold at every moment is checked
at the entry; what must hold in the end is checked by `world` when everything has come to rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .workers import Worker

__all__ = ["PROMISES", "Books"]

PROMISES: Final = {
    "in order": "a receiver gets what one sender has sent in the order in which it was sent",
    "each once": "a receiver gets each message once, and none before those sent ahead of it",
    "all of it": "a receiver that lives gets all that a sender that lives has sent to it",
    "one exit": "a monitor brings one EXIT, of a process that has ended, and no other",
    "answered": "each request of a process that lives has one answer",
    "one by one": "of two processes of a name on a node the second starts when the first is dead",
    "one at a time": "no two processes of one name run at the same time, on whatever nodes",
    "joins and leaves": "a room has exactly the clients that have joined it and have not left",
    "client's order": "a room gets what a client sends from its join on, in order, each once",
    "room's order": "a client gets what a room sends to it, in order, each once",
    "silent after down": "a node that was told to be down is not heard any more",
    "fences grow": "the number of a name's owner is greater than that of all before it",
    "in time": "a process of a name is found or refused within the start timeout",
    "frozen first": "a node is taken for dead only when its fenced processes are stopped",
    "down once": "a node hears of the end of another's incarnation once",
    "the living stay": "a node that is connected and stalls for a moment only is not declared dead",
    "all come back": "after all trouble each node is a member and knows all others",
    "copies agree": "what nodes know of each other's names and groups is what there is",
    "bounds": "no queue of a node is longer than it may be",
    "no leftovers": "a node keeps nothing for those who are gone",
    "no defect": "no exception is left to the event loop or to the log",
    "ends": "a process that is cancelled ends within its host's timeouts",
}
"""By the name under which a broken one is reported; `mutations` breaks each of them."""


class Books:
    """The entries of one run; `broke` is told of each promise that does not hold."""

    def __init__(self, broke: Callable[[str, str], None]) -> None:
        self.broke = broke
        self._sent: dict[tuple[str, str], int] = {}
        self._got: dict[tuple[str, str], int] = {}
        self._numbers: dict[str, int] = {}
        self._newest: dict[tuple[str, str], int] = {}
        self.monitors: dict[tuple[str, str], int] = {}
        """For each watcher and target the EXITs so far."""
        self._fences: dict[str, tuple[int, str]] = {}
        self._named: dict[str, list[Worker]] = {}
        """By exclusive name, the workers that live."""

    # Messages between processes

    def number(self, sender: str) -> int:
        """Return the next number of all that a process sends."""
        self._numbers[sender] = number = self._numbers.get(sender, 0) + 1
        return number

    def sends(self, sender: str, to: str) -> int:
        """Return the next number of what a process sends to that one."""
        self._sent[sender, to] = count = self._sent.get((sender, to), 0) + 1
        return count

    def gets(self, receiver: str, sender: str, number: int, count: int | None) -> None:
        """Enter a message; it has a `count` if it was sent to this receiver by its PID."""
        pair = receiver, sender
        if number <= self._newest.get(pair, 0):
            what = f"{receiver} gets {number} of {sender} after {self._newest[pair]}"
            self.broke("in order", what)
        self._newest[pair] = number
        if count is not None:
            got = self._got.get((sender, receiver), 0)
            if count != got + 1:
                self.broke("each once", f"{receiver} gets {count} of {sender} after {got}")
            self._got[sender, receiver] = count

    def check_all_arrived(self, lives: Callable[[str], bool]) -> None:
        """Check that between those that live nothing is under way any more."""
        for (sender, receiver), sent in self._sent.items():
            got = self._got.get((sender, receiver), 0)
            if got < sent and lives(sender) and lives(receiver):
                what = f"{receiver} has got {got} of {sent} messages of {sender}"
                self.broke("all of it", what)

    # Monitors

    def monitors_one(self, watcher: str, target: str) -> bool:
        """Enter a monitor; returns False if there was one already."""
        pair = watcher, target
        if pair in self.monitors:
            return False
        self.monitors[pair] = 0
        return True

    def exits(self, watcher: str, target: str) -> None:
        """Enter an EXIT."""
        if (count := self.monitors.get((watcher, target))) is None:
            self.broke("one exit", f"{watcher} gets an EXIT of {target}, which it never monitored")
            return
        self.monitors[watcher, target] = count + 1
        if count:
            self.broke("one exit", f"{watcher} gets EXIT number {count + 1} of {target}")

    def check_exits(self, lives: Callable[[str], bool]) -> None:
        """Check that each watcher that lives has got its EXITs, and only of the dead."""
        for (watcher, target), count in self.monitors.items():
            if not lives(watcher):
                continue
            if count and lives(target):
                self.broke("one exit", f"{watcher} got an EXIT of {target}, which lives")
            elif not count and not lives(target):
                self.broke("one exit", f"{watcher} got no EXIT of {target}, which is gone")

    # Names

    def begins(self, worker: Worker) -> None:
        """Enter that a process begins to run under an exclusive name."""
        there = self._named.setdefault(worker.known_as, [])
        for other in there:
            if other.is_near(worker):
                what = f"{worker.pid} begins as {worker.name} while {other.pid} lives"
                self.broke("one by one", what)
        there.append(worker)
        self.goes_on(worker)

    def goes_on(self, worker: Worker) -> None:
        """Check that no other process of its name runs, now that it does."""
        for other in self._named.get(worker.known_as, ()):
            if other is not worker and not other.is_frozen:
                what = f"{worker.pid} runs as {worker.name}, and so does {other.pid}"
                self.broke("one at a time", what)

    def fence(self, name: str, pid: str, number: int) -> None:
        """Enter the number that a process is told as the owner of a name."""
        last, owner = self._fences.get(name, (-1, ""))
        if (number <= last) if pid != owner else (number != last):
            what = f"{pid} is number {number} as {name}, after {owner} with {last}"
            self.broke("fences grow", what)
        self._fences[name] = number, pid

    def ends(self, worker: Worker) -> None:
        """Enter that a worker is dead."""
        if worker in (there := self._named.get(worker.known_as, [])):
            there.remove(worker)
