"""A configuration as it runs: node, services and servers, and its change into another one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wsrelay import worker
from wsrelay.config import Configuration, ServerEntry
from wsrelay.errors import HostFailed
from wsrelay.relay.asgi import App, Receive, Scope, Send
from wsrelay.values.buffered import Buffered
from wsrelay.values.server_options import ServerOptions

from . import assembly
from .address import Listener, bind, bind_unix, release
from .server import FrontEnd, Server
from .systemd import InheritedSockets

__all__ = ["Deployment"]

_PATIENCE: Final = 10.0
"""Seconds that a reload gets to end once the node has ended."""


class _Current:
    """An application that can be exchanged between two requests."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class _Running:
    """One server entry as it listens; closes the listener if it cannot be built."""

    def __init__(
        self,
        entry: ServerEntry,
        app: _Current,
        listener: Listener,
        buffered: Buffered,
        path: Path | None = None,
    ) -> None:
        self.entry = entry
        self.certificate = _certificate(entry)  # before it is loaded: it may change meanwhile
        self.app = app
        self.listener = listener
        self.path = path
        """That of a Unix socket which is to be removed in the end."""
        try:
            self.server = Server(self.app, listener, entry.build(ServerOptions), buffered)
        except BaseException:
            release(listener, path)
            raise

    def close(self) -> None:
        """Let no more connections in."""
        self.server.stop_accepting()
        release(self.listener, self.path)

    def serves(self, entry: ServerEntry) -> bool:
        """Whether it is as the entry wants it, with the certificate that is on disk now."""
        return entry == self.entry and _certificate(entry) == self.certificate


class Deployment:
    """Runs a configuration.

    Building it binds the sockets that were not inherited and loads the endpoint functions; raises
    `AssemblyError` and `AddressError`, and leaves nothing open then.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        name: str = "local",
        inherited: InheritedSockets | None = None,
    ) -> None:
        self.configuration = configuration
        self.node, self._supervisor = assembly.configured_node(configuration, name)
        self._front = FrontEnd(self.node, spread=_spread(configuration))
        self._sources = _sources(configuration)
        self._running: dict[str, _Running] = {}
        self._reloading = asyncio.Lock()
        apps = self._applications(configuration)
        try:
            for entry in configuration.servers.values():
                self._running[entry.id] = _open(
                    entry, apps[entry.id], self.node.buffered, inherited
                )
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> list[tuple[str, Listener, bool]]:
        """The servers' entry ids, what they listen on, and whether they speak TLS."""
        return [(r.entry.id, r.listener, r.entry.tls is not None) for r in self._running.values()]

    def close(self) -> None:
        """Close the sockets of servers that were never run."""
        for running in self._running.values():
            running.close()

    async def run(self, accepting: Callable[[], object]) -> None:
        """Serve until `stop`; raises `HostFailed`. `accepting` is called when clients may come."""
        try:
            # An iterator lets go of what it gave: a reload may retire these servers.
            servers = iter([running.server for running in self._running.values()])
            await self._front.run(servers, accepting)
        finally:
            # A reload that is under way starts nothing any more, and ends on its own.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE), self._reloading:
                    pass
            self.close()

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._front.stopping

    def stop(self) -> None:
        """End in order; called again, at once."""
        self._front.stop()

    async def reload(self, configuration: Configuration) -> list[str]:
        """Change into another configuration and return the ids of the entries that changed.

        Connections and processes that there are go on; what is spawned and asked for from now on
        is the new configuration's, scripts that were edited included. A server that is gone closes
        its connections; one of another name at the same address takes its listener over. Raises
        `AssemblyError`, `AddressError`, `HostFailed`: then nothing has changed.
        """
        async with self._reloading:
            if self.stopping:
                raise HostFailed("the node shuts down")
            return await self._reload(configuration)

    async def _reload(self, new: Configuration) -> list[str]:
        old, sources = self.configuration, _sources(new)
        edited = {source for source, stamp in sources.items() if self._sources.get(source) != stamp}
        for source in edited:
            worker.forget_script(source)
        apps = self._applications(new)
        hosts, services = assembly.hosts(new), assembly.services(new)
        stale = {host.name for host in hosts if edited & {_script(t) for t in host.targets}}
        fresh: dict[str, _Running] = {}
        givers: dict[str, _Running] = {}
        try:
            # All that may fail comes first.
            for entry in new.servers.values():
                self._renew(entry, new, apps[entry.id], fresh, givers)
            for running in fresh.values():
                await running.server.prepare()
            await self.node.reconfigure(hosts, assembly.entries(new), stale)
        except BaseException:
            for running in fresh.values():
                running.close()
            raise
        exchanged = {name for name, giver in givers.items() if self._running.get(name) is giver}
        changed = [
            name
            for name in {**old.entries, **new.entries}
            if old.entries.get(name) != new.entries.get(name) or name in exchanged
        ]
        renewed = {
            service.id
            for service in new.services.values()
            if service.process in changed
            or _script(new.processes[service.process].target) in edited
        }
        await self._supervisor.reconfigure(services, renewed)
        await self._exchange_servers(new, apps, fresh, givers)
        self._front.spread = _spread(new)
        self.node.buffered.most = assembly.max_buffered(new)
        self.configuration, self._sources = new, sources
        return changed

    def _renew(
        self,
        entry: ServerEntry,
        new: Configuration,
        app: App,
        fresh: dict[str, _Running],
        givers: dict[str, _Running],
    ) -> None:
        """Build the server of an entry, unless one runs that is as it should be.

        It listens on what one has that listens at its address and is to end: that is its giver.
        """
        there = self._running.get(entry.id)
        if there is not None and there.entry.addr == entry.addr:
            if not there.serves(entry):
                givers[entry.id] = there
                # The application of old and new connections is one.
                fresh[entry.id] = _Running(
                    entry, there.app, there.listener.dup(), self.node.buffered
                )
            return
        for name, running in self._running.items():
            stays = name in new.servers and new.servers[name].addr == running.entry.addr
            if running.entry.addr == entry.addr and entry.addr.port != 0 and not stays:
                givers[entry.id] = running
                fresh[entry.id] = _Running(
                    entry, _Current(app), running.listener.dup(), self.node.buffered
                )
                return
        fresh[entry.id] = _open(entry, app, self.node.buffered)

    async def _exchange_servers(
        self,
        new: Configuration,
        apps: dict[str, App],
        fresh: dict[str, _Running],
        givers: dict[str, _Running],
    ) -> None:
        before = self._running
        for name, giver in givers.items():
            fresh[name].path, giver.path = giver.path, None
        self._running = {name: fresh.get(name) or before[name] for name in new.servers}
        for name, running in self._running.items():
            running.app.app = apps[name]
            if name in fresh:
                await self._front.add(running.server)
        for name, running in before.items():
            if givers.get(name) is running:
                # The old connections stay with the options and certificate that they began with.
                self._front.retire(running.server)
            elif self._running.get(name) is not running:
                await self._front.remove(running.server)
                running.close()

    def _applications(self, configuration: Configuration) -> dict[str, App]:
        def ready() -> bool:
            return self._front.ready

        return {
            server.id: assembly.application(configuration, server, self.node, ready)
            for server in configuration.servers.values()
        }


def _spread(configuration: Configuration) -> float:
    return max((server.timeouts.drain for server in configuration.servers.values()), default=0.0)


def _open(
    entry: ServerEntry, app: App, buffered: Buffered, inherited: InheritedSockets | None = None
) -> _Running:
    address, path = entry.addr, None
    given = inherited and inherited.take(entry.name, address.path or address.port)
    if given:
        listener = Listener(given)
    elif address.path is not None:
        listener, path = bind_unix(address.path), address.path
    else:
        listener = bind(address.host or "", address.port or 0)
    return _Running(entry, _Current(app), listener, buffered, path)


def _certificate(entry: ServerEntry) -> tuple[bytes, ...]:
    """Return what is on disk of the server's certificate and key."""
    files = (entry.tls.cert, entry.tls.key) if entry.tls else ()
    try:
        return tuple(hashlib.sha256(path.read_bytes()).digest() for path in files)
    except OSError:
        return ()  # who loads it says why


def _script(target: str) -> str | None:
    path, _, _ = target.rpartition(":")
    return path if path.endswith(".py") else None


def _sources(configuration: Configuration) -> dict[str, tuple[int, int]]:
    """Return the scripts that the configuration names, each with what an edit changes."""
    named = [*configuration.processes.values(), *configuration.functions.values()]
    paths = {str(entry.source) for entry in named if entry.source is not None}
    routers = configuration.routers.values()
    options = [entry.options for entry in (*configuration.servers.values(), *routers)]
    for values in (*options, *(router.post_options for router in routers)):
        paths |= {path for value in values.values() if (path := _script(str(value))) is not None}
    stamps = {}
    for path in paths:
        try:
            stat = Path(path).stat()
        except OSError:
            continue
        stamps[path] = stat.st_mtime_ns, stat.st_size
    return stamps
