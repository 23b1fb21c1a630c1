"""A running configuration: node, services and servers, and the change to another one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from wsrelay import worker
from wsrelay.config import Configuration, ServerEntry
from wsrelay.errors import HostFailed
from wsrelay.node import Node
from wsrelay.relay.asgi import App, Receive, Scope, Send
from wsrelay.values.server_options import ServerOptions

from . import assembly
from .address import Listener, bind, bind_unix, release
from .server import FrontEnd, Server
from .systemd import InheritedSockets

if TYPE_CHECKING:
    from wsrelay.peers.options import Cluster

__all__ = ["Deployment"]

_PATIENCE: Final = 10.0
"""Seconds that a reload may take to end once the node has ended."""


class _Current:
    """An application that can be replaced between two requests."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class _Running:
    """A server entry that listens; closes the listener if its server cannot be built."""

    def __init__(
        self,
        entry: ServerEntry,
        app: _Current,
        listener: Listener,
        node: Node,
        path: Path | None = None,
    ) -> None:
        self.entry = entry
        self.certificate = _certificate(entry)  # read before it is loaded: it may change in between
        self.app = app
        self.listener = listener
        self.path = path
        """The Unix socket to remove in the end, if any."""
        try:
            options = entry.build(ServerOptions)
            self.server = Server(self.app, listener, options, node.buffered, node.numbers)
        except BaseException:
            release(listener, path)
            raise

    def close(self) -> None:
        """Accept no more connections."""
        self.server.stop_accepting()
        release(self.listener, self.path)

    def serves(self, entry: ServerEntry) -> bool:
        """Whether it is what the entry describes, with the certificate that is on disk now."""
        return entry == self.entry and _certificate(entry) == self.certificate


class Deployment:
    """Runs a configuration.

    Building it binds the sockets that were not inherited and loads the endpoint functions. Raises
    `AssemblyError`, `AddressError` or `MissingExtra`, and then leaves nothing open. The node is one
    of that `cluster`, if any; what the configuration says of one is for the caller.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        name: str | None = None,
        cluster: Cluster | None = None,
        inherited: InheritedSockets | None = None,
    ) -> None:
        self.configuration = configuration
        self.node, self._supervisor = assembly.configured_node(configuration, name, cluster)
        self._front = FrontEnd(self.node, spread=_spread(configuration))
        self._sources = _sources(configuration)
        self._running: dict[str, _Running] = {}
        self._reloading = asyncio.Lock()
        apps = self._applications(configuration)
        try:
            for entry in configuration.servers.values():
                self._running[entry.id] = _open(entry, apps[entry.id], self.node, inherited)
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> list[tuple[str, Listener, bool]]:
        """The id of each server's entry, what the server listens on, and whether it speaks TLS."""
        return [(r.entry.id, r.listener, r.entry.tls is not None) for r in self._running.values()]

    def close(self) -> None:
        """Close the sockets of servers that were never run."""
        for running in self._running.values():
            running.close()

    async def run(self, accepting: Callable[[], object]) -> None:
        """Serve until `stop`; raises `HostFailed`, `CannotJoin`.

        Calls `accepting` once clients can connect.
        """
        try:
            # An iterator, which keeps no reference: a reload may retire these servers.
            servers = iter([running.server for running in self._running.values()])
            await self._front.run(servers, accepting)
        finally:
            # A reload in progress starts nothing more, and ends by itself.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE), self._reloading:
                    pass
            self.close()

    @property
    def stopping(self) -> bool:
        """Whether the shutdown has begun."""
        return self._front.stopping

    def stop(self) -> None:
        """Shut down in order; the second call ends everything at once."""
        self._front.stop()

    async def reload(self, configuration: Configuration) -> list[str]:
        """Change to another configuration and return the ids of the entries that changed.

        Existing connections and processes carry on; whatever is spawned and requested from now on
        is the new configuration's, edited scripts included. A server that is gone closes its
        connections; one of another name at the same address takes over its listener. Raises
        `AssemblyError`, `AddressError` or `HostFailed`; then nothing has changed.
        """
        async with self._reloading:
            if self.stopping:
                raise HostFailed("the node shuts down")
            if configuration.cluster != self.configuration.cluster:
                raise assembly.AssemblyError("cluster: what it says counts after a restart only")
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
            # Everything that may fail comes first.
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
        """Build the server of an entry, unless it runs already as the entry describes it.

        If a server that is about to end listens at its address, that is its giver: the new server
        takes over the listener.
        """
        current = self._running.get(entry.id)
        if current is not None and current.entry.addr == entry.addr:
            if not current.serves(entry):
                givers[entry.id] = current
                # Old and new connections share one application.
                fresh[entry.id] = _Running(entry, current.app, current.listener.dup(), self.node)
            return
        for name, running in self._running.items():
            stays = name in new.servers and new.servers[name].addr == running.entry.addr
            if running.entry.addr == entry.addr and entry.addr.port != 0 and not stays:
                givers[entry.id] = running
                fresh[entry.id] = _Running(entry, _Current(app), running.listener.dup(), self.node)
                return
        fresh[entry.id] = _open(entry, app, self.node)

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
                # Old connections keep the options and the certificate that they began with.
                self._front.retire(running.server)
            elif self._running.get(name) is not running:
                await self._front.remove(running.server)
                running.close()

    def _applications(self, configuration: Configuration) -> dict[str, App]:
        def unready() -> str:
            return self._front.unready

        return {
            server.id: assembly.application(configuration, server, self.node, unready)
            for server in configuration.servers.values()
        }


def _spread(configuration: Configuration) -> float:
    return max((server.timeouts.drain for server in configuration.servers.values()), default=0.0)


def _open(
    entry: ServerEntry, app: App, node: Node, inherited: InheritedSockets | None = None
) -> _Running:
    address, path = entry.addr, None
    given = inherited and inherited.take(entry.name, address.path or address.port)
    if given:
        listener = Listener(given)
    elif address.path is not None:
        listener, path = bind_unix(address.path), address.path
    else:
        listener = bind(address.host or "", address.port or 0)
    return _Running(entry, _Current(app), listener, node, path)


def _certificate(entry: ServerEntry) -> tuple[bytes, ...]:
    """Return digests of the server's certificate and key as they are on disk."""
    files = (entry.tls.cert, entry.tls.key) if entry.tls else ()
    try:
        return tuple(hashlib.sha256(path.read_bytes()).digest() for path in files)
    except OSError:
        return ()  # loading it reports why


def _script(target: str) -> str | None:
    path, _, _ = target.rpartition(":")
    return path if path.endswith(".py") else None


def _sources(configuration: Configuration) -> dict[str, tuple[int, int]]:
    """Return the scripts that the configuration names, each with its modification time and size."""
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
