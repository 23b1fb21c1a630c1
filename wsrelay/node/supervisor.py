"""Services: named processes that start with the node and are restarted when they fail.

A service that returns has finished and is not restarted; one that ends with an error (it raised,
was killed, could not start) is restarted under its restart policy. A service is registered under
its name while it is alive, so it can be reached across restarts. The name is exclusive: a service
that is started again while its former process is still stopping waits until that has ended.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from msgspec import Struct

from wsrelay.errors import InvalidName, WsrelayError
from wsrelay.kernel.restart import RestartPolicy, Restarts
from wsrelay.values.bounds import MOST, Bounds, InvalidOptions, wrong
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID, nameable
from wsrelay.values.printable import shortened
from wsrelay.wire.logrecord import fields

from . import Node

__all__ = ["RestartPolicy", "Service", "Supervisor"]

logger = logging.getLogger(__name__)

_BOUNDS: Final = {"stable_threshold": Bounds(0, MOST, "0 seconds or more")}


class Service(Struct, frozen=True, kw_only=True):
    """One service, the kind `process.service` of `docs/configuration.md`.

    `target`, `host` and `args` are as in `process.spawn`. With `auto_start` it starts with the
    node. Once it has run for `stable_threshold` seconds, earlier failures are forgotten. Raises
    `InvalidOptions`, a `ValueError`, with everything that is wrong.
    """

    name: str
    target: str | Callable[..., Any]
    host: str | None = None
    args: tuple[Any, ...] = ()
    auto_start: bool = True
    stable_threshold: float = 5.0
    restart: RestartPolicy = RestartPolicy()

    def __post_init__(self) -> None:
        """Raise `InvalidOptions` for invalid values."""
        problems = wrong(self, _BOUNDS)
        try:
            nameable(self.name)
        except InvalidName as error:
            problems.append(("name", str(error)))
        if problems:
            raise InvalidOptions(problems, f"service {self.name!r:.80}")


class Supervisor:
    """Runs services beside a node: started with it in order, stopped with it in reverse order.

    Creating it starts nothing. Raises `ValueError` if two services have the same name.
    """

    def __init__(self, node: Node, services: Sequence[Service]) -> None:
        self._node = node
        self._keepers = {name: _Keeper(node, service) for name, service in _named(services)}
        node.accompany(self)

    def start(self) -> None:
        """Start the services with `auto_start`; the node calls this."""
        self._node.engine.on_reopened.append(self._go_on)
        for keeper in self._keepers.values():
            if keeper.service.auto_start:
                keeper.start()

    def _go_on(self) -> None:
        """Start those that ran, or were to start, when the node could start nothing."""
        for keeper in self._keepers.values():
            keeper.go_on()

    async def stop(self) -> None:
        """Stop all services, the last one first; the node calls this."""
        for keeper in reversed(self._keepers.values()):
            await keeper.stop()

    async def reconfigure(self, services: Sequence[Service], renew: Collection[str] = ()) -> None:
        """Use other services: stop those removed, changed or in `renew`, and start the new ones.

        While the node is shutting down nothing is started. Raises `ValueError` as the constructor
        does; then nothing has changed.
        """
        wanted = dict(_named(services))
        for name, keeper in reversed(self._keepers.items()):
            if name in renew or wanted.get(name) != keeper.service:
                await keeper.stop()
        kept = {
            name: keeper
            for name, keeper in self._keepers.items()
            if name not in renew and wanted.get(name) == keeper.service
        }
        self._keepers = {
            name: kept.get(name) or _Keeper(self._node, service) for name, service in wanted.items()
        }
        for name, keeper in self._keepers.items():
            if name not in kept and keeper.service.auto_start:
                keeper.start()

    def start_service(self, name: str) -> None:
        """Start a service that is not running; its failures are forgotten. Raises `KeyError`."""
        self._keepers[name].start()

    async def stop_service(self, name: str) -> None:
        """Stop a service and leave it stopped. Raises `KeyError`."""
        await self._keepers[name].stop()

    def pid(self, name: str) -> PID | None:
        """Return the PID of a service, None while it is not running. Raises `KeyError`."""
        return self._keepers[name].pid


def _named(services: Sequence[Service]) -> list[tuple[str, Service]]:
    names = [service.name for service in services]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"several services have the same name: {', '.join(sorted(twice))}")
    return [(service.name, service) for service in services]


class _Keeper:
    """Keeps one service running."""

    def __init__(self, node: Node, service: Service) -> None:
        self.service = service
        self.pid: PID | None = None
        self._node = node
        self._stopping = False
        self._is_due = False
        """Whether it starts as soon as the node starts processes again."""
        self._timer: asyncio.TimerHandle | None = None
        self._restarts = Restarts(service.restart, service.stable_threshold)
        self._ended: dict[PID, asyncio.Event] = {}
        """For each process that has not ended: itself, and one before it that is stopping."""

    def start(self) -> None:
        if self.pid is None or self._stopping:
            self._disarm()
            self._stopping = False
            self._restarts = Restarts(self.service.restart, self.service.stable_threshold)
            self._start()

    def go_on(self) -> None:
        if self._is_due:
            self.start()

    async def stop(self) -> None:
        self._stopping = True
        self._disarm()
        if self.pid is not None:
            self._node.cancel(self.pid, "the service stops")
        for ended in list(self._ended.values()):
            await ended.wait()

    def _disarm(self) -> None:
        self._is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        service = self.service
        self._timer = self.pid = None
        if not self._node.running:
            return  # the node was killed while closing; its next start starts all services
        if self._node.draining:
            self._is_due = True
            return
        self._restarts.started(asyncio.get_running_loop().time())
        try:
            self.pid = self._node.spawn_service(
                service.name, service.target, service.host, service.args
            )
        except (WsrelayError, ValueError) as error:
            self._failed(ExitError(ExitKind.START_FAILED, str(error)))
        else:
            self._ended[self.pid] = asyncio.Event()
            self._node.when_ended(self.pid, functools.partial(self._over, self.pid))

    def _over(self, pid: PID, result: Result) -> None:
        self._ended.pop(pid).set()
        if pid != self.pid:
            return  # its successor has taken its place
        self.pid = None
        if self._stopping:
            return
        if self._node.draining:
            self._is_due = result.error is not None
        elif result.error is None:
            logger.info("service %s has finished", self.service.name)
        else:
            self._failed(result.error)

    def _failed(self, error: ExitError) -> None:
        loop = asyncio.get_running_loop()
        delay = self._restarts.failed(loop.time(), random.random())  # noqa: S311 - no secret
        attempts = self._restarts.attempts
        about = fields(names=[self.service.name], exit=error.kind.value)
        if delay is None:
            logger.error(
                "service %s is given up after %d failures in a row, the last one: %s",
                self.service.name,
                attempts,
                shortened(str(error)),
                extra=about,
            )
            return
        logger.warning(
            "service %s failed (%s), %d in a row; it starts again in %.2f s",
            self.service.name,
            shortened(str(error)),
            attempts,
            delay,
            extra=about,
        )
        self._timer = loop.call_later(delay, self._start)
