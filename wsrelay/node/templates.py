"""The process hosts of a node, and their replacement while it runs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from wsrelay.confinement import HostOptions, doubts
from wsrelay.errors import HostFailed
from wsrelay.values.bounds import InvalidOptions
from wsrelay.values.numbers import Numbers

from .host import ProcessHost

__all__ = ["Templates"]

logger = logging.getLogger(__name__)

_PATIENCE: Final = 10.0
"""Seconds that a template gets to end before it is killed."""


class Templates:
    """One template per process host; those that were replaced end with their last worker.

    `options` has every host that ever existed, `names` those that take processes now.
    """

    def __init__(self, hosts: Sequence[HostOptions], numbers: Numbers) -> None:
        _check_rights(hosts)
        self.numbers = numbers
        """What the node counts."""
        self.options = {host.name: host for host in hosts}
        self.names = list(self.options)
        self._running: dict[str, ProcessHost] = {}
        self._retired: list[ProcessHost] = []
        self._fresh: list[ProcessHost] = []
        """Those that are loading before they replace others."""
        self._deadline: int | None = None

    def __getitem__(self, name: str) -> ProcessHost:
        """Return a running host."""
        return self._running[name]

    @property
    def os_pids(self) -> dict[str, int | None]:
        """The templates' process ids; None for one that has not been needed yet."""
        return {name: template.os_pid for name, template in self._running.items()}

    @property
    def limits(self) -> dict[str, int]:
        """How many processes each host takes."""
        return {name: self.options[name].max_processes for name in self.names}

    def start(self) -> None:
        """Prepare to start the templates, each when it is first needed."""
        self._deadline = None
        self._running = {name: self._host(self.options[name]) for name in self.names}
        _warn(self.options.values())

    def _host(self, options: HostOptions) -> ProcessHost:
        host = ProcessHost(options, self.numbers)
        if self._deadline is not None:
            host.freeze_deadline(self._deadline)
        return host

    def freeze_deadline(self, monotonic_ns: int) -> None:
        """Set when all hosts, later ones too, stop their fenced workers."""
        self._deadline = monotonic_ns
        for template in self._all():
            template.freeze_deadline(monotonic_ns)

    async def loaded(self) -> None:
        """Wait until all have preloaded what they should; raises `HostFailed`."""
        for template in self._running.values():
            await template.loaded()

    async def exchange(self, hosts: Sequence[HostOptions], renew: Collection[str]) -> None:
        """Use other hosts; those that changed, and those in `renew`, get a new template.

        Raises `HostFailed`, `InvalidOptions`; then nothing has changed.
        """
        _check_rights(hosts)
        fresh = {
            host.name: self._host(host)
            for host in hosts
            if host.name in renew
            or host.name not in self._running
            or host != self.options[host.name]
        }
        self._fresh += fresh.values()
        try:
            for template in fresh.values():
                await template.loaded()
        except BaseException:
            await _end(self._take_back(fresh))
            raise
        if len(self._take_back(fresh)) < len(fresh):
            raise HostFailed("the node shuts down")
        _warn(
            host
            for host in hosts
            if host.name not in self.options or host.isolation != self.options[host.name].isolation
        )
        kept = {host.name: fresh.get(host.name) or self._running[host.name] for host in hosts}
        for name, template in self._running.items():
            if kept.get(name) is not template:
                self._retired.append(template)
                template.retire()
        self._retired = [template for template in self._retired if not template.over]
        self._running = kept
        self.names = list(kept)
        self.options |= {host.name: host for host in hosts}

    def _take_back(self, fresh: Mapping[str, ProcessHost]) -> list[ProcessHost]:
        """Remove these from `_fresh` and return those found there; `close` may have ended some."""
        taken = [template for template in fresh.values() if template in self._fresh]
        self._fresh = [template for template in self._fresh if template not in taken]
        return taken

    async def aclose(self) -> None:
        """End all templates and their workers."""
        await _end(self.close())

    def close(self) -> list[ProcessHost]:
        """Release all templates, which then end with their workers; returns them."""
        ending = self._all()
        self._running, self._retired, self._fresh = {}, [], []
        for template in ending:
            template.close()
        return ending

    def abandon(self) -> list[ProcessHost]:
        """Release all templates where there is no event loop any more; returns them."""
        ending = self._all()
        self._running, self._retired, self._fresh = {}, [], []
        for template in ending:
            template.abandon()
        return ending

    def reap(self) -> None:
        """End all templates and wait for them, where their event loop is closed."""
        for template in self.abandon():
            template.reap()

    def _all(self) -> list[ProcessHost]:
        return [*self._running.values(), *self._retired, *self._fresh]


def _check_rights(hosts: Sequence[HostOptions]) -> None:
    """Raise `InvalidOptions` for rights over hosts that do not exist, and for nested names."""
    names = [host.name for host in hosts]
    walled = [host.name for host in hosts if host.rights is not None]
    for host in hosts:
        problems = [
            (option, f"names {one!r:.80}; there is {', '.join(names)}")
            for option in ("may_spawn", "may_control")
            for one in getattr(host, option)
            if one not in names
        ]
        outer = [name for name in walled if host.name.startswith(f"{name}/")]
        if outer and host.name in walled:
            problems.append(
                ("name", f"begins with {outer[0]}/, as do the names that {outer[0]} may take")
            )
        if problems:
            raise InvalidOptions(problems, f"host {host.name}")


def _warn(hosts: Iterable[HostOptions]) -> None:
    """Log what the walls of these hosts cannot prevent without a `user`."""
    for host in hosts:
        if left := doubts(host.isolation):
            logger.warning(
                "process host %s has no `user` of its own, so its processes can, in spite of its "
                "walls, %s. Give it a user, which requires that the node runs as root",
                host.name,
                "; ".join(left),
            )


async def _end(templates: Collection[ProcessHost]) -> None:
    for template in templates:
        template.close()
    for template in templates:
        await template.join(_PATIENCE)
