"""What a configuration's entries become: hosts, targets, services, applications."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from wsrelay import config, targets, worker
from wsrelay.config import Configuration
from wsrelay.node import Filesystem, HostOptions, Isolation, Limits, Node
from wsrelay.relay.asgi import App
from wsrelay.relay.hosts import Hosts
from wsrelay.supervisor import RestartPolicy, Service, Supervisor
from wsrelay.targets import Entry

from . import middleware
from .allowed_hosts import AllowedHosts
from .dispatch import Dispatch, Router
from .endpoint import EndpointApp
from .health import health_routes
from .server import ServerOptions

__all__ = [
    "AssemblyError",
    "application",
    "configured_node",
    "entries",
    "from_config",
    "hosts",
    "load",
    "server_options",
    "services",
]


class AssemblyError(Exception):
    """An entry is well-formed and cannot be used all the same.

    One line that names it, and the traceback of the user's code if that raised.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def load(paths: Sequence[Path]) -> Configuration:
    """Read and check configuration files; raises `wsrelay.config.ConfigError`.

    What each entry says is tried by building what it becomes: what that refuses, nothing serves.
    """
    configuration = config.load(paths, check_middleware=middleware.check)
    problems = []

    def tried(entry: config.Entry, build: Callable[[], object]) -> None:
        try:
            build()
        except ValueError as error:
            file, line = configuration.where[entry.id]
            problems.append(config.Problem(file, line, entry.id, "", str(error)))

    for host in configuration.hosts.values():
        tried(host, functools.partial(_host, host, ()))
    for service in configuration.services.values():
        tried(service, functools.partial(_service, service, configuration))
    for server in configuration.servers.values():
        tried(server, functools.partial(server_options, server))
    if problems:
        raise config.ConfigError(problems)
    return configuration


def from_config(*paths: str | Path, name: str = "local") -> Node:
    """Return a node with the hosts, processes and services of configuration files.

    Its servers and routers are left out: the application around the node has its own. Raises
    `wsrelay.config.ConfigError`.
    """
    node, _ = configured_node(load([Path(path) for path in paths]), name)
    return node


def configured_node(configuration: Configuration, name: str) -> tuple[Node, Supervisor]:
    """Return a node and the supervisor of its services."""
    node = Node(name=name, hosts=hosts(configuration), entries=entries(configuration))
    return node, Supervisor(node, services(configuration))


def hosts(configuration: Configuration) -> list[HostOptions]:
    """Return the process hosts, each with the targets that it is to load."""
    if not configuration.hosts:
        everything = tuple(process.target for process in configuration.processes.values())
        return [HostOptions(targets=everything)]
    first = next(iter(configuration.hosts))
    declared: dict[str, list[str]] = {name: [] for name in configuration.hosts}
    for process in configuration.processes.values():
        declared[process.host or first].append(process.target)
    for service in configuration.services.values():
        target = configuration.processes[service.process].target
        if target not in (there := declared[_host_of(service, configuration) or first]):
            there.append(target)
    return [_host(host, declared[host.id]) for host in configuration.hosts.values()]


def _host(host: config.Host, declared: Sequence[str]) -> HostOptions:
    return HostOptions(
        name=host.id,
        preload=tuple(host.preload),
        targets=tuple(declared),
        max_processes=host.max_processes,
        warm=host.warm,
        start_timeout=host.start_timeout,
        stop_timeout=host.stop_timeout,
        mailbox=host.limits.mailbox,
        spawn_rate=host.spawn_rate,
        log_rate=host.limits.log_rate,
        limits=Limits(
            memory=host.limits.memory,
            cpu_time=host.limits.cpu_time,
            open_files=host.limits.open_files,
            processes=host.limits.processes,
        ),
        nice=host.nice,
        isolation=_isolation(host),
    )


def _isolation(host: config.Host) -> Isolation:
    folder, files = host.working_directory, host.filesystem
    return Isolation(
        user=host.user,
        group=host.group,
        umask=host.umask,
        working_directory=None if folder is None else str(folder),
        environment=None if host.environment is None else tuple(host.environment),
        filesystem=None
        if files is None
        else Filesystem(read=tuple(map(str, files.read)), write=tuple(map(str, files.write))),
        network=host.network,
        no_new_privs=host.no_new_privs,
        core_dumps=host.core_dumps,
    )


def _host_of(service: config.Service, configuration: Configuration) -> str | None:
    return service.host or configuration.processes[service.process].host


def entries(configuration: Configuration) -> dict[str, Entry]:
    """Return what can be spawned by its id."""
    return {
        name: Entry(process.target, process.host)
        for name, process in configuration.processes.items()
    }


def services(configuration: Configuration) -> list[Service]:
    """Return the services, each under the id of its entry."""
    return [_service(service, configuration) for service in configuration.services.values()]


def _service(service: config.Service, configuration: Configuration) -> Service:
    lifecycle = service.lifecycle
    return Service(
        name=service.id,
        target=service.process,
        host=_host_of(service, configuration),
        args=tuple(service.args),
        auto_start=lifecycle.auto_start,
        stable_threshold=lifecycle.stable_threshold,
        restart=RestartPolicy(
            initial_delay=lifecycle.restart.initial_delay,
            max_delay=lifecycle.restart.max_delay,
            backoff_factor=lifecycle.restart.backoff_factor,
            jitter=lifecycle.restart.jitter,
            max_attempts=lifecycle.restart.max_attempts,
        ),
    )


def server_options(server: config.Server) -> ServerOptions:
    """Return how a server treats its connections."""
    return ServerOptions(
        max_message_size=server.max_message_size,
        max_head_size=server.max_head_size,
        max_connections=server.max_connections,
        max_connections_per_ip=server.max_connections_per_ip,
        header_timeout=server.timeouts.header,
        keep_alive=server.timeouts.keep_alive,
        ping_interval=server.timeouts.ping_interval,
        ping_timeout=server.timeouts.ping_timeout,
        cert=server.tls.cert if server.tls else None,
        key=server.tls.key if server.tls else None,
    )


def application(
    configuration: Configuration, server: config.Server, node: Node, ready: Callable[[], bool]
) -> App:
    """Return the ASGI application of one server; raises `AssemblyError`."""
    routers = [
        _router(configuration, router, node)
        for router in configuration.routers.values()
        if router.meta.server == server.id
    ]
    if server.health:
        routers.append(Router("", health_routes(ready), lambda app: app))
    folders = [
        Mount(static.path.rstrip("/"), StaticFiles(directory=static.directory, html=True))
        for static in configuration.statics.values()
        if static.meta.server == server.id
    ]
    app = Starlette(routes=[Dispatch(node, routers, folders)])
    wrapped = _wrapped(app, server.id, server.middleware, server.options, node)
    hosts = Hosts(server.allowed_hosts)
    return wrapped if hosts.any else AllowedHosts(wrapped, hosts, f"{server.id}: allowed_hosts")


def _router(configuration: Configuration, router: config.Router, node: Node) -> Router:
    routes = []
    for endpoint in configuration.endpoints.values():
        if endpoint.meta.router == router.id:
            inner = EndpointApp(_function(configuration, endpoint.func), endpoint.func)
            app = _wrapped(inner, router.id, router.post_middleware, router.post_options, node)
            path = router.prefix.rstrip("/") + endpoint.path
            # What is written with a slash at its end answers without it, too.
            for one in dict.fromkeys((path.rstrip("/") or "/", path)):
                try:
                    route = Route(one, app, methods=endpoint.method, name=endpoint.id)
                except (ValueError, AssertionError) as error:
                    raise AssemblyError(f"{endpoint.id}: path {one!r}: {error}") from None
                routes.append(route)

    def wrap(app: App) -> App:
        return _wrapped(app, router.id, router.middleware, router.options, node)

    return Router(router.prefix, routes, wrap)


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
