"""`wsrelay run`: one handler script behind a WebSocket, from the command line."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from wsrelay.errors import HostFailed, InvalidTarget
from wsrelay.gateway.address import AddressError, Listener, bind, url
from wsrelay.gateway.script import Scope, ScriptOptions, script_app
from wsrelay.gateway.server import FrontEnd, Server, ServerOptions, on_signals
from wsrelay.gateway.systemd import InheritedSockets, SystemdNotifier
from wsrelay.node import HostOptions, Limits, Node
from wsrelay.session import header, origins
from wsrelay.session.hosts import Hosts
from wsrelay.values import durations, sizes, targets
from wsrelay.values.bounds import InvalidOptions

from .logs import log_options, set_up_logging
from .running import controlled, fail, loop_factory, prepare_process, reload_on_edits, say

__all__ = ["run"]


def _target(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    try:
        parsed = targets.parse(text)
    except InvalidTarget as error:
        raise click.BadParameter(str(error)) from None
    if parsed.script is not None:
        script = Path(parsed.script).resolve()
        return str(targets.Target(parsed.function, script=str(script)))
    sys.path.insert(0, "")  # a module here is found, as with `python -m`
    return text


def _duration(least: float) -> Any:
    def convert(
        _context: click.Context, _parameter: click.Parameter, text: str | None
    ) -> float | None:
        if text is None:
            return None
        try:
            return durations.parse(text, least=least)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert


def _heartbeat(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> str | None:
    try:
        header.heartbeat(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def _size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    try:
        return None if text is None else sizes.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _origins(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    try:
        origins.Origins(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def _hosts(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    try:
        Hosts(text or "")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def _subprotocols(
    _context: click.Context, _parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    try:
        return tuple(header.check_subprotocol(name) for name in names)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _path(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not text.startswith("/") or "{" in text:
        raise click.BadParameter(f"{text!r} is no path; it starts with / like /ws")
    return text


@click.command()
@click.argument("target", callback=_target)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS]...")
@click.option(
    "--scope",
    type=click.Choice([scope.value for scope in Scope]),
    default=Scope.CONNECTION.value,
    show_default=True,
    help="A process per connection, per room (the path under --path), or one for all.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--path", default="/ws", show_default=True, callback=_path, help="WebSocket path.")
@click.option(
    "--origins",
    default="",
    callback=_origins,
    help="Allowed origins besides the same one, e.g. 'https://*.example.com'.",
)
@click.option(
    "--allowed-hosts",
    callback=_hosts,
    help="Names besides localhost that it may be reached by, e.g. 'app.example.com, *.example.com' "
    "or '*'; the default is none on a loopback address, else all.",
)
@click.option(
    "--subprotocol",
    "subprotocols",
    multiple=True,
    callback=_subprotocols,
    help="One that the handler speaks, e.g. chat.v1; may be given several times. "
    "A client gets the first of them that it offers.",
)
@click.option("--heartbeat", callback=_heartbeat, help="How often to send ws.heartbeat, e.g. 30s.")
@click.option("--max-processes", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--warm",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Processes forked ahead that wait for a client; each takes 2 MB.",
)
@click.option(
    "--memory", callback=_size, help="What each process may use, e.g. 512MB; beyond it, it ends."
)
@click.option(
    "--start-timeout",
    default="10s",
    show_default=True,
    callback=_duration(0.1),
    help="How long TARGET may take to load, and a process to start.",
)
@click.option(
    "--room-linger",
    default="5s",
    show_default=True,
    callback=_duration(0),
    help="How long a room outlives its last client.",
)
@click.option(
    "--stop-timeout",
    default="2s",
    show_default=True,
    callback=_duration(0),
    help="How long a process may go on when it is to end; at half of it, it is interrupted.",
)
@click.option(
    "--static",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve this folder at / in place of the built-in page.",
)
@click.option("--reload", is_flag=True, help="For development: start again when a file changes.")
@click.option(
    "--raw-output",
    is_flag=True,
    help="For development: what processes print goes to the terminal as it is, not into the log, "
    "and input(), breakpoint() and pdb read from there.",
)
@log_options
def run(
    *,
    target: str,
    arguments: tuple[str, ...],
    scope: str,
    host: str,
    port: int,
    path: str,
    origins: str,
    allowed_hosts: str | None,
    subprotocols: tuple[str, ...],
    heartbeat: str | None,
    max_processes: int,
    warm: int,
    memory: int | None,
    start_timeout: float,
    room_linger: float,
    stop_timeout: float,
    static: Path | None,
    reload: bool,
    raw_output: bool,
    log_format: str,
    log_level: str,
) -> None:
    """Serve the handler script TARGET, e.g. handlers/echo.py or app.rooms:lobby.

    It finds ARGUMENTS in sys.argv.

    Each of its processes is a real OS process. Ctrl-C ends everything in order, a second one
    at once.
    """
    if reload:
        script = targets.parse(target).script
        reload_on_edits([Path(script).parent if script else Path(), *([static] if static else [])])
    set_up_logging(log_format, log_level)
    options = ScriptOptions(
        target=target,
        scope=Scope(scope),
        path=path,
        origins=origins,
        subprotocols=subprotocols,
        heartbeat=heartbeat,
        room_linger=room_linger,
        static=static,
    )
    try:
        processes = HostOptions(
            targets=(target,),
            arguments=arguments,
            max_processes=max_processes,
            warm=warm,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            raw_output=raw_output,
            limits=Limits(memory=memory),
        )
    except InvalidOptions as error:
        name, message = error.problems[0]
        option = f"--{name.removeprefix('limits.').replace('_', '-')}"
        raise click.BadParameter(message, param_hint=f"'{option}'") from None
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(options, processes, host, port, allowed_hosts))


async def _serve(
    options: ScriptOptions, processes: HostOptions, host: str, port: int, allowed: str | None
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
        notify.ready()

    with contextlib.closing(listener):
        prepare_process(ServerOptions().max_connections, processes.max_processes)
        node = Node(hosts=[processes])
        front = FrontEnd(node)
        server = Server(script_app(node, options), listener, buffered=node.buffered)
        with on_signals(stop):
            try:
                places = [url(listener)]
                async with (
                    controlled(node, str(options.target), lambda: places),
                    notify.watchdog(),
                ):
                    await front.run([server], accepting)
            except HostFailed as error:
                fail(str(error), error.details)


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
