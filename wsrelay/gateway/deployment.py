"""A configuration as it runs: node, services and servers, and its change into another one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from wsrelay import worker
from wsrelay.config import Configuration
from wsrelay.config import Server as ServerEntry
from wsrelay.relay.asgi import App, Receive, Scope, Send

from . import assembly
from .address import Listener, bind, bind_unix, release
from .server import FrontEnd, Server
from .systemd import Inherited

__all__ = ["Deployment"]


class _Current:
    """An application that can be exchanged between two requests."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class _Running:
    """One server entry as it listens."""

    def __init__(
        self, entry: ServerEntry, app: _Current, listener: Listener, path: Path | None = None
    ) -> None:
        self.entry = entry
        self.certificate = _certificate(entry)  # before it is loaded: it may change meanwhile
        self.app = app
        self.listener = listener
        self.server = Server(self.app, listener, assembly.server_options(entry))
        self.path = path
        """That of a Unix socket which is to be removed in the end."""

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
        inherited: Inherited | None = None,
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
                self._running[entry.id] = _open(entry, apps[entry.id], inherited)
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
            release(running.listener, running.path)

    async def run(self, accepting: Callable[[], object]) -> None:
        """Serve until `stop`; raises `HostFailed`. `accepting` is called when clients may come."""
        try:
            # An iterator lets go of what it gave: a reload may retire these servers.
            servers = iter([running.server for running in self._running.values()])
            await self._front.run(servers, accepting)
        finally:
            self.close()

    def stop(self) -> None:
        """End in order; called again, at once."""
        self._front.stop()

    async def reload(self, configuration: Configuration) -> list[str]:
        """Change into another configuration and return the ids of the entries that changed.

        Connections and processes that there are go on; what is spawned and asked for from now on
        is the new configuration's, scripts that were edited included. A server that is gone closes
        its connections. Raises `AssemblyError`, `AddressError`, `HostFailed`: then nothing has
        changed.
        """
        async with self._reloading:
            return await self._reload(configuration)

    async def _reload(self, new: Configuration) -> list[str]:
        old, sources = self.configuration, _sources(new)
        edited = {source for source, stamp in sources.items() if self._sources.get(source) != stamp}
        for source in edited:
            worker.forget_script(source)
        apps = self._applications(new)
        opened: dict[str, _Running] = {}
        exchanged: dict[str, _Running] = {}
        hosts, services = assembly.hosts(new), assembly.services(new)
        stale = {host.name for host in hosts if edited & {_script(t) for t in host.targets}}
        try:
            for entry in new.servers.values():
                there = self._running.get(entry.id)
                if there is None or there.entry.addr != entry.addr:
                    opened[entry.id] = _open(entry, apps[entry.id])
                elif not there.serves(entry):
                    listener = there.listener.dup()
                    try:
                        exchanged[entry.id] = _Running(entry, there.app, listener, there.path)
                    except BaseException:
                        listener.close()
                        raise
            await self.node.reconfigure(hosts, assembly.entries(new), stale)
        except BaseException:
            for running in opened.values():
                release(running.listener, running.path)
            for running in exchanged.values():
                running.listener.close()
            raise
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
        await self._exchange_servers(new, apps, opened, exchanged)
        self._front.spread = _spread(new)
        self.configuration, self._sources = new, sources
        return changed

    async def _exchange_servers(
        self,
        new: Configuration,
        apps: dict[str, App],
        opened: dict[str, _Running],
        exchanged: dict[str, _Running],
    ) -> None:
        for name in list(self._running):
            running = self._running[name]
            entry = new.servers.get(name)
            if entry is None or name in opened:
                del self._running[name]
                await self._front.remove(running.server)
                release(running.listener, running.path)
                continue
            running.app.app = apps[name]
            if name in exchanged:
                # The old connections stay with the options and certificate that they began with.
                self._running[name] = exchanged[name]
                await self._front.add(exchanged[name].server)
                self._front.retire(running.server)
        for name, running in opened.items():
            self._running[name] = running
            await self._front.add(running.server)

    def _applications(self, configuration: Configuration) -> dict[str, App]:
        def ready() -> bool:
            return self._front.ready

        return {
            server.id: assembly.application(configuration, server, self.node, ready)
            for server in configuration.servers.values()
        }


def _spread(configuration: Configuration) -> float:
    return max((server.timeouts.drain for server in configuration.servers.values()), default=0.0)


def _open(entry: ServerEntry, app: App, inherited: Inherited | None = None) -> _Running:
    address, path = entry.addr, None
    given = inherited and inherited.take(entry.name, address.path or address.port)
    if given:
        listener = Listener(given)
    elif address.path is not None:
        listener, path = bind_unix(address.path), address.path
    else:
        listener = bind(address.host or "", address.port or 0)
    try:
        return _Running(entry, _Current(app), listener, path)
    except BaseException:
        release(listener, path)
        raise


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
