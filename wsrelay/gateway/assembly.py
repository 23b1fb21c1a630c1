"""What a configuration's entries become: hosts, targets, services, applications."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from wsrelay import config, worker
from wsrelay.config import Configuration
from wsrelay.confinement import check_cgroup
from wsrelay.node import Filesystem, HostOptions, Isolation, Limits, Node
from wsrelay.node.supervisor import RestartPolicy, Service, Supervisor
from wsrelay.relay.asgi import App, Receive, Scope, Send
from wsrelay.session.hosts import Hosts
from wsrelay.values import targets
from wsrelay.values.bounds import InvalidOptions
from wsrelay.values.server_options import ServerOptions
from wsrelay.values.targets import TargetEntry

from . import address, middleware
from .allowed_hosts import AllowedHosts
from .dispatch import Dispatch, Router
from .endpoint import EndpointApp
from .health import health_routes
from .page_files import page_files
from .server import Server

if TYPE_CHECKING:
    from wsrelay.peers.options import Cluster

__all__ = [
    "AssemblyError",
    "application",
    "configured_node",
    "entries",
    "hosts",
    "load",
    "max_buffered",
    "services",
]


class AssemblyError(Exception):
    """An entry is well-formed but cannot be used.

    The text is one line that names it; `details` is the traceback if the user's code raised.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def load(paths: Sequence[Path], environment: Mapping[str, str] = os.environ) -> Configuration:
    """Read and check configuration files; raises `wsrelay.config.ConfigError`.

    Each entry is tried by building what it becomes, so whatever passes can be served. Only user
    code is not run: whether it loads shows when it is served.
    """
    return config.load(paths, environment, middleware.check, _mistakes)


def _mistakes(
    entry: config.ConfigEntry, others: Mapping[str, config.ConfigEntry]
) -> Iterator[tuple[str, str]]:
    """Build what an entry becomes, and yield each key with what is wrong with it."""
    match entry:
        case config.Host():
            yield from (mistakes := _refused(entry, _isolation, entry))
            # With a mistake in its walls, what needs walls is not refused for having none.
            isolation = Isolation(network="none") if mistakes else _isolation(entry)
            yield from _refused(entry, _host, entry, (), isolation)
            yield from _refused(entry, check_cgroup, entry.limits.build(Limits))
        case config.ServiceEntry():
            yield from _refused(entry, entry.lifecycle.restart.build, RestartPolicy)
            yield from _refused(entry, _service, entry, None, RestartPolicy())
        case config.ServerEntry():
            yield from _refused(entry, address.check, entry.addr.host, entry.addr.path)
            yield from _refused(entry, _tried_server, entry)
        case config.EndpointEntry():
            router = others.get(entry.meta.router)
            if isinstance(router, config.RouterEntry):
                yield from _refused(entry, _routes, entry, router, _nobody)
        case config.Static():
            yield from _refused(entry, _folder, entry)


def _refused(
    entry: config.ConfigEntry, build: Callable[..., object], *args: object
) -> list[tuple[str, str]]:
    try:
        build(*args)
    except InvalidOptions as error:
        return [(entry.key_of(name) or name, message) for name, message in error.problems]
    return []


def _tried_server(server: config.ServerEntry) -> None:
    """Build a server that listens nowhere, which loads its certificate."""
    options = server.build(ServerOptions)
    try:
        Server(_nobody, address.Listener(), options)
    except address.AddressError as error:
        raise InvalidOptions([("cert", str(error))]) from None


async def _nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer nothing, as a placeholder for an application."""


def configured_node(
    configuration: Configuration, name: str | None, cluster: Cluster | None
) -> tuple[Node, Supervisor]:
    """Return a node of that name, or of the cluster, and the supervisor of its services.

    Raises `MissingExtra`.
    """
    node = Node(
        name=name,
        hosts=hosts(configuration),
        entries=entries(configuration),
        max_buffered=max_buffered(configuration),
        cluster=cluster,
    )
    return node, Supervisor(node, services(configuration))


def max_buffered(configuration: Configuration) -> int:
    """Return what clients of all servers may have begun and not finished, in bytes.

    It is the largest that a server allows.
    """
    servers = configuration.servers.values()
    return max((server.max_buffered for server in servers), default=ServerOptions().max_buffered)


def hosts(configuration: Configuration) -> list[HostOptions]:
    """Return the process hosts, each with the targets that its template loads."""
    if not configuration.hosts:
        everything = tuple(process.target for process in configuration.processes.values())
        return [HostOptions(targets=everything)]
    first = next(iter(configuration.hosts))
    declared: dict[str, list[str]] = {name: [] for name in configuration.hosts}
    for process in configuration.processes.values():
        declared[process.host or first].append(process.target)
    for service in configuration.services.values():
        target = configuration.processes[service.process].target
        if target not in (its := declared[_host_of(service, configuration) or first]):
            its.append(target)
    return [
        _host(host, declared[host.id], _isolation(host)) for host in configuration.hosts.values()
    ]


def _host(host: config.Host, declared: Sequence[str], isolation: Isolation) -> HostOptions:
    return host.build(
        HostOptions,
        name=host.id,
        targets=tuple(declared),
        limits=host.limits.build(Limits),
        isolation=isolation,
    )


def _isolation(host: config.Host) -> Isolation:
    folder, files = host.working_directory, host.filesystem
    return host.build(
        Isolation,
        working_directory=folder and str(folder),
        filesystem=files
        and Filesystem(read=tuple(map(str, files.read)), write=tuple(map(str, files.write))),
    )


def _host_of(service: config.ServiceEntry, configuration: Configuration) -> str | None:
    return service.host or configuration.processes[service.process].host


def entries(configuration: Configuration) -> dict[str, TargetEntry]:
    """Return what can be spawned by the id of its entry."""
    return {
        name: TargetEntry(process.target, process.host)
        for name, process in configuration.processes.items()
    }


def services(configuration: Configuration) -> list[Service]:
    """Return the services, each under the id of its entry."""
    return [
        _service(
            service,
            _host_of(service, configuration),
            service.lifecycle.restart.build(RestartPolicy),
        )
        for service in configuration.services.values()
    ]


def _service(service: config.ServiceEntry, host: str | None, restart: RestartPolicy) -> Service:
    return service.build(Service, name=service.id, host=host, restart=restart)


def application(
    configuration: Configuration,
    server: config.ServerEntry,
    node: Node,
    unready: Callable[[], str],
) -> App:
    """Return the ASGI application of one server; raises `AssemblyError`."""
    routers = [
        _router(configuration, router, node)
        for router in configuration.routers.values()
        if router.meta.server == server.id
    ]
    if server.health:
        routers.append(Router("", health_routes(unready), lambda app: app))
    statics = [one for one in configuration.statics.values() if one.meta.server == server.id]
    folders = [_folder(static) for static in statics]
    own = page_files(one.directory for one in statics if not one.path.strip("/"))
    app = Starlette(routes=[Dispatch(node, routers, [*folders, *own])])
    wrapped = _wrapped(app, server.id, server.middleware, server.options, node)
    hosts = Hosts(server.allowed_hosts)
    return wrapped if hosts.any else AllowedHosts(wrapped, hosts, f"{server.id}: allowed_hosts")


def _router(configuration: Configuration, router: config.RouterEntry, node: Node) -> Router:
    routes: list[Route] = []
    for endpoint in configuration.endpoints.values():
        if endpoint.meta.router == router.id:
            inner = EndpointApp(_function(configuration, endpoint.func), endpoint.func)
            app = _wrapped(inner, router.id, router.post_middleware, router.post_options, node)
            routes += _routes(endpoint, router, app)

    def wrap(app: App) -> App:
        return _wrapped(app, router.id, router.middleware, router.options, node)

    return Router(router.prefix, routes, wrap)


def _routes(endpoint: config.EndpointEntry, router: config.RouterEntry, app: App) -> list[Route]:
    path = router.prefix.rstrip("/") + endpoint.path
    try:
        # A path that ends with a slash also answers without it.
        return [
            Route(one, app, methods=endpoint.method, name=endpoint.id)
            for one in dict.fromkeys((path.rstrip("/") or "/", path))
        ]
    except (ValueError, AssertionError) as error:
        raise InvalidOptions([("path", f"{path!r} is not a path: {error}")]) from None


def _folder(static: config.Static) -> Mount:
    try:
        return Mount(static.path.rstrip("/"), StaticFiles(directory=static.directory, html=True))
    except (ValueError, AssertionError) as error:
        raise InvalidOptions([("path", f"{static.path!r} is not a path: {error}")]) from None


def _function(configuration: Configuration, name: str) -> Callable[..., Any]:
    try:
        return worker.load_function(targets.parse(configuration.functions[name].target))
    except worker.LoadError as error:
        raise AssemblyError(f"{name}: {error}", error.details) from None


def _wrapped(app: App, name: str, names: Sequence[str], options: Any, node: Node) -> App:
    try:
        return middleware.wrap(app, list(names), options, node)
    except ValueError as error:
        raise AssemblyError(f"{name}: {error}") from None
