"""What a configuration's entries become: hosts, targets, services, applications."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

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
from wsrelay.values.buffered import Buffered
from wsrelay.values.targets import TargetEntry

from . import address, middleware
from .allowed_hosts import AllowedHosts
from .dispatch import Dispatch, Router
from .endpoint import EndpointApp
from .health import health_routes
from .options import ServerOptions
from .server import Server

__all__ = [
    "AssemblyError",
    "application",
    "configured_node",
    "entries",
    "hosts",
    "load",
    "max_buffered",
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


def load(paths: Sequence[Path], environment: Mapping[str, str] = os.environ) -> Configuration:
    """Read and check configuration files; raises `wsrelay.config.ConfigError`.

    What each entry says is tried by building what it becomes: what that refuses, nothing serves.
    Only user code is not run: whether it loads shows when it is served.
    """
    return config.load(paths, environment, middleware.check, _mistakes)


def _mistakes(
    entry: config.ConfigEntry, others: Mapping[str, config.ConfigEntry]
) -> Iterator[tuple[str, str]]:
    """Build what an entry becomes, and tell each key's mistake."""
    match entry:
        case config.Host():
            yield from (mistakes := _refused(functools.partial(_isolation, entry)))
            # Where its walls are wrong, what needs walls is not told to be wrong too.
            isolation = Isolation(network="none") if mistakes else _isolation(entry)
            yield from _refused(functools.partial(_host, entry, (), isolation))
            yield from _refused(functools.partial(check_cgroup, _limits(entry)))
        case config.ServiceEntry():
            yield from _refused(functools.partial(_restart, entry))
            yield from _refused(functools.partial(_service, entry, None, RestartPolicy()))
        case config.ServerEntry():
            yield from _refused(functools.partial(address.check, entry.addr.host, entry.addr.path))
            yield from _refused(functools.partial(_tried_server, entry))
        case config.EndpointEntry():
            router = others.get(entry.meta.router)
            if isinstance(router, config.RouterEntry):
                yield from _refused(functools.partial(_routes, entry, router, _nobody))
        case config.Static():
            yield from _refused(functools.partial(_folder, entry))


_KEYS: Final = {
    "mailbox": "limits.mailbox",
    "log_rate": "limits.log_rate",
    "stable_threshold": "lifecycle.stable_threshold",
    **{name: f"lifecycle.restart.{name}" for name in RestartPolicy.__struct_fields__},
    "header_timeout": "timeouts.header",
    "message_timeout": "timeouts.message",
    "body_timeout": "timeouts.body",
    "response_timeout": "timeouts.response",
    "keep_alive": "timeouts.keep_alive",
    "ping_interval": "timeouts.ping_interval",
    "ping_timeout": "timeouts.ping_timeout",
    "cert": "tls.cert",
}
"""Where options stand in their entries that do not stand under their own name."""


def _refused(build: Callable[[], object]) -> list[tuple[str, str]]:
    try:
        build()
    except InvalidOptions as error:
        return [(_KEYS.get(name, name), message) for name, message in error.problems]
    return []


def _tried_server(server: config.ServerEntry) -> None:
    """Build a server that listens nowhere: its certificate is loaded."""
    options = server_options(server)
    try:
        Server(_nobody, address.Listener(), options)
    except address.AddressError as error:
        raise InvalidOptions([("cert", str(error))]) from None


async def _nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer nothing: it stands where an application is to be."""


def configured_node(configuration: Configuration, name: str) -> tuple[Node, Supervisor]:
    """Return a node and the supervisor of its services."""
    node = Node(
        name=name,
        hosts=hosts(configuration),
        entries=entries(configuration),
        max_buffered=max_buffered(configuration),
    )
    return node, Supervisor(node, services(configuration))


def max_buffered(configuration: Configuration) -> int:
    """Return what clients of all servers may have begun: the largest of what the servers say."""
    servers = configuration.servers.values()
    return max((server.max_buffered for server in servers), default=Buffered().most)


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
    return [
        _host(host, declared[host.id], _isolation(host)) for host in configuration.hosts.values()
    ]


def _limits(host: config.Host) -> Limits:
    return Limits(**{name: getattr(host.limits, name) for name in Limits.__struct_fields__})


def _host(host: config.Host, declared: Sequence[str], isolation: Isolation) -> HostOptions:
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
        limits=_limits(host),
        nice=host.nice,
        isolation=isolation,
        may_spawn=tuple(host.may_spawn),
        may_control=tuple(host.may_control),
        may_name=tuple(host.may_name),
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


def _host_of(service: config.ServiceEntry, configuration: Configuration) -> str | None:
    return service.host or configuration.processes[service.process].host


def entries(configuration: Configuration) -> dict[str, TargetEntry]:
    """Return what can be spawned by its id."""
    return {
        name: TargetEntry(process.target, process.host)
        for name, process in configuration.processes.items()
    }


def services(configuration: Configuration) -> list[Service]:
    """Return the services, each under the id of its entry."""
    return [
        _service(service, _host_of(service, configuration), _restart(service))
        for service in configuration.services.values()
    ]


def _service(service: config.ServiceEntry, host: str | None, restart: RestartPolicy) -> Service:
    lifecycle = service.lifecycle
    return Service(
        name=service.id,
        target=service.process,
        host=host,
        args=tuple(service.args),
        auto_start=lifecycle.auto_start,
        stable_threshold=lifecycle.stable_threshold,
        restart=restart,
    )


def _restart(service: config.ServiceEntry) -> RestartPolicy:
    given = service.lifecycle.restart
    return RestartPolicy(
        initial_delay=given.initial_delay,
        max_delay=given.max_delay,
        backoff_factor=given.backoff_factor,
        jitter=given.jitter,
        max_attempts=given.max_attempts,
    )


def server_options(server: config.ServerEntry) -> ServerOptions:
    """Return how a server treats its connections."""
    return ServerOptions(
        max_message_size=server.max_message_size,
        max_head_size=server.max_head_size,
        max_connections=server.max_connections,
        max_connections_per_ip=server.max_connections_per_ip,
        max_buffered=server.max_buffered,
        header_timeout=server.timeouts.header,
        message_timeout=server.timeouts.message,
        body_timeout=server.timeouts.body,
        response_timeout=server.timeouts.response,
        keep_alive=server.timeouts.keep_alive,
        ping_interval=server.timeouts.ping_interval,
        ping_timeout=server.timeouts.ping_timeout,
        cert=server.tls.cert if server.tls else None,
        key=server.tls.key if server.tls else None,
    )


def application(
    configuration: Configuration, server: config.ServerEntry, node: Node, ready: Callable[[], bool]
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
        _folder(static)
        for static in configuration.statics.values()
        if static.meta.server == server.id
    ]
    app = Starlette(routes=[Dispatch(node, routers, folders)])
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
        # What is written with a slash at its end answers without it, too.
        return [
            Route(one, app, methods=endpoint.method, name=endpoint.id)
            for one in dict.fromkeys((path.rstrip("/") or "/", path))
        ]
    except (ValueError, AssertionError) as error:
        raise InvalidOptions([("path", f"{path!r} is no path: {error}")]) from None


def _folder(static: config.Static) -> Mount:
    try:
        return Mount(static.path.rstrip("/"), StaticFiles(directory=static.directory, html=True))
    except (ValueError, AssertionError) as error:
        raise InvalidOptions([("path", f"{static.path!r} is no path: {error}")]) from None


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
