"""What is put in the place of clocks, chance and the operating system while a simulation runs.

All of it is in the modules of `wsrelay`, none of it in the standard library:

- `time`, `random` and `secrets` in every module that has imported them;
- the clocks of `time` where they are default arguments;
- in `node.host.pipe`, `node.host.incarnation`, `node.host.process_host` and `wire.pipe_pair`: the
  modules of the operating system that they use, by those of `system`;
- `node.templates.ProcessHost`, which starts a simulated template, and the `Family` of what that
  names;
- `NatsBus` and `NatsStore` in `peers.clustered`, by doubles that lead to the `Fabric`; and the
  methods that the membership calls there, `Exchange.receive` and `ClusterNames.get_or_spawn`, by
  ones that check;
- the handlers of the logger `wsrelay`, by one that writes the trace.
"""

from __future__ import annotations

import functools
import logging
import random
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import wsrelay.node.host.incarnation
import wsrelay.node.host.pipe
import wsrelay.node.host.process_host
import wsrelay.node.templates
import wsrelay.wire.pipe_pair
from wsrelay.peers import clustered
from wsrelay.peers.exchange import Exchange
from wsrelay.peers.names import ClusterNames
from wsrelay.template import guarded

from . import system as simulated
from .part import SimBus, SimStore, received, timed, told
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .run import Run

__all__ = ["patched"]

_CLOCKS: Final = ("monotonic", "monotonic_ns", "perf_counter", "time", "time_ns")

_logger: Final = logging.getLogger("wsrelay")


class _Time:
    """`time`, as far as nodes may use it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.monotonic = self.perf_counter = self.time = scheduler.clock

    def monotonic_ns(self) -> int:
        return int(self.monotonic() * 1e9)

    time_ns = monotonic_ns


class _Secrets:
    """`secrets`, as far as nodes may use it."""

    def __init__(self, chance: random.Random) -> None:
        self.randbits = chance.getrandbits
        self.choice = chance.choice
        self.randbelow = chance.randrange

    def token_hex(self, size: int = 16) -> str:
        return f"{self.randbits(8 * size):0{2 * size}x}"


class _Guarded:
    """`guarded`, for a host that asks a simulated guardian."""

    @staticmethod
    def told(lifeline: Any) -> guarded.Told | None:
        return lifeline.told()  # type: ignore[no-any-return]


class _Trace(logging.Handler):
    """Writes warnings and errors to the trace; an exception among them is a defect."""

    def __init__(self, run: Run) -> None:
        super().__init__(logging.WARNING)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self._run.note(f"{record.levelname} {text}")
        if record.exc_info:
            self._run.broke("no defect", f"{text}: {record.exc_info[1]!r}")


def _told() -> dict[str, Any]:
    """Return what a membership calls when something has changed."""
    methods = vars(clustered.ClusteredNode)
    return {name: method for name, method in methods.items() if name.startswith("on_")}


@functools.cache
def _functions(module: ModuleType) -> list[FunctionType]:
    """Return the functions and methods that a module defines and that have default arguments."""
    spaces: list[Mapping[str, Any]] = [vars(module)]
    spaces += [vars(kind) for kind in spaces[0].values() if isinstance(kind, type)]
    return [
        one
        for space in spaces
        for one in space.values()
        if isinstance(one, FunctionType)
        and one.__module__ == module.__name__
        and (one.__defaults__ or one.__kwdefaults__)
    ]


@contextmanager
def patched(run: Run) -> Iterator[None]:
    """Let what runs here be simulated."""
    system, chance = run.system, run.scheduler.random
    replacements: dict[ModuleType, Any] = {
        time: _Time(run.scheduler),
        random: chance,
        secrets: _Secrets(chance),
    }
    node, pipe_pair = wsrelay.node.host, wsrelay.wire.pipe_pair
    places: list[tuple[Any, str, Any]] = [
        (node.pipe, "os", run.os),
        (node.pipe, "fcntl", simulated.Fcntl(system)),
        (pipe_pair, "os", run.os),
        (pipe_pair, "fcntl", simulated.Fcntl(system)),
        (node.incarnation, "os", run.os),
        (node.incarnation, "signal", simulated.Signals(system)),
        (node.incarnation, "select", simulated.Select(system)),
        (node.process_host, "os", run.os),
        (node.process_host, "socket", simulated.Sockets()),
        (node.process_host, "guarded", _Guarded()),
        (node.process_host, "Family", simulated.SimFamily),
        (wsrelay.node.templates, "ProcessHost", simulated.SimHost),
        (clustered, "NatsBus", SimBus),
        (clustered, "NatsStore", SimStore),
        (Exchange, "receive", received(Exchange.receive)),
        (ClusterNames, "get_or_spawn", timed(ClusterNames.get_or_spawn)),
        *((clustered.ClusteredNode, name, told(name, method)) for name, method in _told().items()),
    ]
    clocks = {getattr(time, name): getattr(replacements[time], name) for name in _CLOCKS}
    for name, module in sorted(sys.modules.items()):
        if name.startswith("wsrelay."):
            for original, replacement in replacements.items():
                if vars(module).get(original.__name__) is original:
                    places.append((module, original.__name__, replacement))
            for function in _functions(module):
                defaults, named = function.__defaults__ or (), function.__kwdefaults__ or {}
                if clocks.keys() & set(filter(callable, defaults)):
                    given = tuple(
                        clocks.get(one, one) if callable(one) else one for one in defaults
                    )
                    places.append((function, "__defaults__", given))
                if clocks.keys() & set(filter(callable, named.values())):
                    given_named = {
                        key: clocks.get(one, one) if callable(one) else one
                        for key, one in named.items()
                    }
                    places.append((function, "__kwdefaults__", given_named))
    with ExitStack() as undo:
        for place, name, replacement in places:
            undo.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, replacement)
        handlers, propagate, level = _logger.handlers[:], _logger.propagate, _logger.level
        _logger.handlers[:], _logger.propagate = [_Trace(run)], False
        _logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            _logger.handlers[:], _logger.propagate = handlers, propagate
            _logger.setLevel(level)
