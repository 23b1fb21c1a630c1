"""Two links with a bus between them that loses, doubles and reorders; and links with one rule less.

All sizes are small, so that a few frames meet every bound.
"""

from __future__ import annotations

import inspect
import itertools
import math
import random
import types
from collections import deque
from typing import Any, Final

from wsrelay.cluster import link as real
from wsrelay.cluster.link import Link

PUBLISH: Final = 64
ITEM: Final = 8
WINDOW: Final = 8 * (PUBLISH + ITEM)
LARGEST: Final = 400

SOURCE = inspect.getsource(real)


def machine(old: str = "", new: str = "") -> Any:
    """The module of links with small sizes, and with one of its lines replaced."""
    source = SOURCE
    for constant, size in (("PUBLISH", PUBLISH), ("WINDOW", WINDOW), ("LARGEST", LARGEST)):
        source = replaced(source, f"\n{constant}: Final =", f"\n{constant}: Final = {size}  #")
    source = replaced(source, "from wsrelay.values.sizes import ITEM", f"ITEM = {ITEM}")
    if old:
        source = replaced(source, old, new)
    module = types.ModuleType("small_link")
    exec(compile(source, "small_link", "exec"), module.__dict__)  # noqa: S102 - it is our own
    return module


def replaced(source: str, old: str, new: str) -> str:
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in the module"
    return source.replace(old, new)


SMALL: Final = machine()


def kind_of(publish: bytes) -> str:
    return ("ACK", "NAK", "PROBE", "GREETING", "FRAMES", "PIECE")[publish[0]]


class End:
    """One node's end."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.connected = False
        self.sent: list[bytes] = []
        self.got: list[bytes] = []
        self.way: deque[bytes] = deque()
        """What it has published and has not arrived."""
        self.published: list[bytes] = []
        self.naks: dict[bytes, float] = {}
        """When it last asked for each gap, since it was connected."""


class TwoLinks:
    """Both ends, and the time. Each method is something that may happen; each checks the rules."""

    def __init__(self, module: Any = SMALL) -> None:
        self.module = module
        self.ends = (End(module.Link()), End(module.Link()))
        self.now = 0.0
        self.count = itertools.count()

    def connect(self, who: int) -> None:
        end = self.ends[who]
        end.connected = True
        end.link.connected()
        end.naks.clear()
        self.flush(who)

    def cut(self, who: int, lost: int) -> None:
        """Its connection breaks: the last of what it has published is lost, as what comes to it."""
        end = self.ends[who]
        end.connected = False
        end.link.disconnected()
        for _ in range(min(lost, len(end.way))):
            end.way.pop()

    def send(self, who: int, size: int) -> None:
        end = self.ends[who]
        frame = (next(self.count) % 251).to_bytes(1, "big") * size
        end.sent.append(frame)
        end.link.send(frame)
        self.check(end)

    def flush(self, who: int) -> None:
        end = self.ends[who]
        publishes = end.link.flush(self.now)
        assert end.connected or not publishes, "it publishes while it is not connected"
        for publish in publishes:
            assert len(publish) <= PUBLISH, "a publish is too large"
            if kind_of(publish) == "NAK":
                last = end.naks.get(publish, -math.inf)
                assert self.now >= last + 0.2, "it asks for one gap again and again"
                end.naks[publish] = self.now
        end.way += publishes
        end.published += publishes
        due = end.link.due()
        assert due is None or due > self.now, "a flush leaves nothing to do at once"
        self.check(end)

    def arrive(self, who: int, at: int = 0, *, again: bool = False) -> None:
        """What `who` has published arrives at the other end, in order unless `at` is given."""
        way, other = self.ends[who].way, self.ends[1 - who]
        if at < len(way):
            publish = way[at]
            if not again:
                del way[at]
            if other.connected:
                other.got += map(bytes, other.link.received(publish, self.now))
            self.check(other)

    def lose(self, who: int, at: int = 0) -> None:
        if at < len(self.ends[who].way):
            del self.ends[who].way[at]

    def wait(self, seconds: float) -> None:
        """Time passes; ends that have something due publish it then."""
        until = self.now + seconds
        while True:
            dues = [(self.due(who), who) for who in (0, 1)]
            due, who = min(dues)
            if due > until:
                break
            self.now = max(self.now, due)
            self.flush(who)
        self.now = until

    def due(self, who: int) -> float:
        due = self.ends[who].link.due()
        return math.inf if due is None else due

    def check(self, end: End) -> None:
        other = self.ends[0] if end is self.ends[1] else self.ends[1]
        link: Any = end.link
        assert end.got == other.sent[: len(end.got)], "what arrives is no prefix of what was sent"
        assert link._in_flight == sum(len(publish) + ITEM for publish in link._under_way)
        assert link._in_flight <= WINDOW, "more is under way than the window has room for"
        waiting = sum(len(frame) + ITEM for frame in link._waiting)
        assert link.backlog == waiting - link._cut, "the backlog is counted wrongly"
        assert len(link._partial) <= LARGEST, "more is kept of a frame than it may have"

    def settle(self, seconds: float = 2.0) -> None:
        """From now on nothing goes wrong; in so many seconds all has arrived, and it is quiet."""
        for who in (0, 1):
            if not self.ends[who].connected:
                self.connect(who)
        end = self.now + seconds
        while self.now < end and not self.is_quiet():
            self.wait(0.0)
            for who in (0, 1):
                while self.ends[who].way:
                    self.arrive(who)
            # An acknowledgement frees room for what waits, at once.
            due = min(self.due(0), self.due(1))
            if self.now < due < math.inf:
                self.wait(min(due, end) - self.now)
        for one, other in (self.ends, self.ends[::-1]):
            assert other.got == one.sent, "something that was sent has not arrived"
            assert one.link.idle, "what has arrived is not acknowledged"
        assert self.is_quiet(), "it does not become quiet"

    def taken_from(self, who: int) -> list[str]:
        """Return the kinds of what one end has published since this was asked last."""
        end = self.ends[who]
        kinds, end.published = [kind_of(publish) for publish in end.published], []
        return kinds

    def is_quiet(self) -> bool:
        return not any(end.way or self.due(who) < math.inf for who, end in enumerate(self.ends))


def connected(module: Any) -> TwoLinks:
    """Two links that have told each other where they stand, a while ago."""
    two = TwoLinks(module)
    two.settle()
    two.wait(0.2)
    two.taken_from(0)
    two.taken_from(1)
    return two


def all_fates(module: Any, publishes: int) -> None:
    """Each of the first publishes of both ends arrives, is lost, comes twice, or comes late.

    What is under way after them arrives, or is lost.
    """
    for *fates, rest in itertools.product(*[range(4)] * publishes, range(2)):
        two = TwoLinks(module)
        two.connect(0)
        two.connect(1)
        for size in (5, 300, 5):
            two.send(0, size)
        two.send(1, 20)
        two.wait(0.0)
        for fate in fates:
            who = 0 if two.ends[0].way else 1
            if fate == 0:
                two.arrive(who)
            elif fate == 1:
                two.lose(who)
            elif fate == 2:
                two.arrive(who, again=True)
            else:
                two.arrive(who, 1)
            two.wait(0.0)
        for end in two.ends[: 2 * rest]:
            end.way.clear()
        two.settle()


def any_history(module: Any, seed: int, steps: int = 80) -> None:
    """What a random history does: sends of all sizes, cuts of both ends, and all of the above."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    two = TwoLinks(module)
    for _ in range(steps):
        who = chance.randrange(2)
        end = two.ends[who]
        happens = chance.randrange(10)
        if happens <= 2:
            two.send(who, chance.choice((0, 1, 7, 30, 43, 44, 100, LARGEST)))
        elif happens == 3:
            two.flush(who)
        elif happens <= 6:
            two.arrive(who, chance.choice((0, 0, 0, 0, 0, 1)), again=chance.random() < 0.1)
        elif happens == 7:
            two.lose(who, chance.randrange(3))
        elif happens == 8:
            two.wait(chance.choice((0.0, 0.005, 0.1, 0.25)))
        elif end.connected and chance.random() < 0.5:
            two.cut(who, chance.randrange(4))
        elif not end.connected:
            two.connect(who)
    two.settle()
