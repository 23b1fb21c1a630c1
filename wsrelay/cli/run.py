"""`wsrelay run`: one handler script behind a WebSocket, from the command line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from wsrelay.errors import CannotJoin, HostFailed, MissingExtra
from wsrelay.gateway.address import AddressError, Listener, bind, url
from wsrelay.gateway.script import Scope, ScriptOptions, script_app
from wsrelay.gateway.server import FrontEnd, Server, ServerOptions, on_signals
from wsrelay.gateway.systemd import InheritedSockets, SystemdNotifier
from wsrelay.node import HostOptions, Limits, Node
from wsrelay.session import header, origins
from wsrelay.session.hosts import Hosts
from wsrelay.values import durations, sizes, targets
from wsrelay.values.addresses import Address
from wsrelay.values.bounds import InvalidOptions
from wsrelay.values.targets import TargetEntry

from .joining import cluster_of, cluster_options
from .logs import log_options, set_up_logging
from .measuring import measured, metrics_option
from .options import Callback
from .options import parsed as _parsed
from .running import fail, loop_factory, prepare_process, reload_on_edits, say

if TYPE_CHECKING:
    from wsrelay.peers.options import Cluster

__all__ = ["run"]


_HOST: Final = HostOptions()
_SCRIPT: Final = ScriptOptions(target="")


def _checked(check: Callable[[Any], object]) -> Callback:
    """Return a callback of click's that leaves an option as it was written."""

    def same(given: Any) -> Any:
        check(given)
        return given

    return _parsed(same)


def _target(text: str) -> str:
    parsed = targets.parse(text)
    if parsed.script is not None:
        script = Path(parsed.script).resolve()
        return str(targets.Target(parsed.function, script=str(script)))
    sys.path.insert(0, "")  # so that a module in this folder is found, as by `python -m`
    return text


def _subprotocols(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(header.check_subprotocol, names))


def _check_path(text: str) -> None:
    if not text.startswith("/") or "{" in text:
        raise ValueError(f"{text!r} is not a path; it starts with / like /ws")


@click.command()
@click.argument("target", callback=_parsed(_target))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS]...")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=_SCRIPT.scope.value,
    show_default=True,
    callback=_parsed(Scope),
    help="A process per connection, per room (the path under --path), or one for all.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--path",
    default=_SCRIPT.path,
    show_default=True,
    callback=_checked(_check_path),
    help="WebSocket path.",
)
@click.option(
    "--origins",
    default=_SCRIPT.origins,
    callback=_checked(origins.Origins),
    help="Allowed origins besides the same one, e.g. 'https://*.example.com'.",
)
@click.option(
    "--allowed-hosts",
    callback=_checked(Hosts),
    help="Names besides localhost under which it may be reached, e.g. "
    "'app.example.com, *.example.com' or '*'; the default is none on a loopback address, "
    "otherwise all.",
)
@click.option(
    "--subprotocol",
    "subprotocols",
    multiple=True,
    callback=_parsed(_subprotocols),
    help="One that the handler speaks, e.g. chat.v1; may be repeated. "
    "A client gets the first of them that it offers.",
)
@click.option(
    "--heartbeat",
    callback=_checked(header.heartbeat),
    help="How often to send ws.heartbeat, e.g. 30s.",
)
@click.option(
    "--max-processes",
    type=click.IntRange(int(_HOST.bounds["max_processes"].least)),
    default=_HOST.max_processes,
    show_default=True,
    help="How many may run; beyond that, clients get 503.",
)
@click.option(
    "--warm",
    type=click.IntRange(0),
    default=_HOST.warm,
    show_default=True,
    help="Processes forked ahead that wait for a client; each takes 2 MB.",
)
@click.option(
    "--memory",
    callback=_parsed(sizes.parse),
    help="What each process may use, e.g. 512MB; beyond that, it is ended.",
)
@click.option(
    "--stall",
    callback=_parsed(partial(durations.parse, least=_HOST.bounds["stall"].least)),
    help="Log a process that has messages waiting and takes none for so long, e.g. 30s.",
)
@click.option(
    "--stall-action",
    type=click.Choice(["log", "terminate"]),
    default=_HOST.stall_action,
    show_default=True,
    help="With --stall: whether such a process is also ended.",
)
@click.option(
    "--start-timeout",
    default=f"{_HOST.start_timeout:g}s",
    show_default=True,
    callback=_parsed(partial(durations.parse, least=0.1)),
    help="How long TARGET may take to load, and a process to start.",
)
@click.option(
    "--room-linger",
    default=f"{_SCRIPT.room_linger:g}s",
    show_default=True,
    callback=_parsed(durations.parse),
    help="How long a room stays after its last client has left.",
)
@click.option(
    "--stop-timeout",
    default="2s",
    show_default=True,
    callback=_parsed(durations.parse),
    help="How long a process may keep running once it should end; after half of that it is "
    "interrupted.",
)
@click.option(
    "--static",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve this folder at / instead of the built-in page.",
)
@cluster_options
@metrics_option
@click.option("--reload", is_flag=True, help="For development: restart when a file changes.")
@click.option(
    "--raw-output",
    is_flag=True,
    help="For development: what processes print goes to the terminal unchanged, not into the log, "
    "and input(), breakpoint() and pdb read from there.",
)
@log_options
def run(
    *,
    target: str,
    host: str,
    port: int,
    allowed_hosts: str | None,
    memory: int | None,
    servers: tuple[str, ...],
    node: str | None,
    timeout: float | None,
    metrics: Address | None,
    reload: bool,
    log_format: str,
    log_level: str,
    **given: Any,
) -> None:
    """Serve the handler script TARGET, e.g. handlers/echo.py or app.rooms:lobby.

    It finds ARGUMENTS in sys.argv.

    Each of its processes is a real OS process. Ctrl-C ends everything in order, a second one
    at once.
    """
    cluster = cluster_of(None, servers, node, timeout)
    entry = None if cluster is None else _entry(target)
    options = ScriptOptions(target=target, entry=entry, **_of(ScriptOptions, given))
    try:
        processes = HostOptions(
            targets=(target,), limits=Limits(memory=memory), **_of(HostOptions, given)
        )
    except InvalidOptions as error:
        name, message = error.problems[0]
        option = f"--{name.removeprefix('limits.').replace('_', '-')}"
        raise click.BadParameter(message, param_hint=f"'{option}'") from None
    if reload:
        script, static = targets.parse(target).script, options.static
        reload_on_edits([Path(script).parent if script else Path(), *([static] if static else [])])
    set_up_logging(log_format, log_level)
    try:
        made = _node(options, processes, node, cluster)
    except MissingExtra as error:
        fail(str(error))
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(
            _serve(
                made,
                options,
                processes,
                host=host,
                port=port,
                allowed=allowed_hosts,
                metrics=metrics,
            )
        )


def _of(definition: type[msgspec.Struct], given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a definition has."""
    return {name: given[name] for name in definition.__struct_fields__ if name in given}


def _entry(target: str) -> str:
    """Return what all nodes of a cluster call the target, wherever the script is on each."""
    parsed = targets.parse(target)
    return f"{Path(parsed.script).name}:{parsed.function}" if parsed.script else target


def _node(
    options: ScriptOptions, processes: HostOptions, name: str | None, cluster: Cluster | None
) -> Node:
    """Return the node; raises `MissingExtra`."""
    if cluster is None or options.entry is None:
        return Node(name=name, hosts=[processes])
    entries = {options.entry: TargetEntry(str(options.target))}
    return Node(hosts=[processes], entries=entries, cluster=cluster)


async def _serve(
    node: Node,
    options: ScriptOptions,
    processes: HostOptions,
    *,
    host: str,
    port: int,
    allowed: str | None,
    metrics: Address | None,
) -> None:
    inherited, notify = InheritedSockets(), SystemdNotifier()
    try:
        given = inherited.take_any()
        listener = Listener(given) if given else bind(host, port)
    except AddressError as error:
        fail(str(error))
    inherited.close()
    if allowed is None:
        allowed = "" if listener.loopback else "*"
    options = msgspec.structs.replace(options, allowed_hosts=allowed)

    def stop() -> None:
        notify.stopping()
        front.stop()

    def accepting() -> None:
        _welcome(options, url(listener))
        tell_metrics()
        notify.ready()

    with contextlib.closing(listener):
        prepare_process(ServerOptions().max_connections, processes.max_processes)
        front = FrontEnd(node)
        app = script_app(node, options)
        server = Server(app, listener, buffered=node.buffered, numbers=node.numbers)
        with on_signals(stop):
            try:
                places = [url(listener)]
                node.application, node.addresses = str(options.target), lambda: places
                async with measured(node, metrics) as tell_metrics, notify.watchdog():
                    await front.run([server], accepting)
            except HostFailed as error:
                fail(str(error), error.details)
            except CannotJoin as error:
                fail(str(error))


_PROCESSES: Final = {
    Scope.CONNECTION: "a process for each connection",
    Scope.ROOM: "a process for each room",
    Scope.SHARED: "one process for all connections",
}


def _welcome(options: ScriptOptions, place: str) -> None:
    socket = f"{place.replace('http', 'ws', 1)}{options.path}"
    if options.scope is Scope.ROOM:
        socket = f"{socket.rstrip('/')}/<room>"
    say(f"Serving {options.target} ({_PROCESSES[options.scope]}) at {socket}")
    has_page = options.static is not None or options.path != "/"
    browse = f"Open {place}/ in a browser. " if has_page else ""
    say(f"{browse}Press Ctrl-C to stop.")
