"""`wsrelay run`: one handler script behind a WebSocket, from the command line."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any, Never

import click

from wsrelay import durations, targets
from wsrelay.errors import HostFailed, InvalidTarget
from wsrelay.gateway.script import Scope, ScriptOptions, script_app
from wsrelay.gateway.server import AddressError, Server, bind, on_signals
from wsrelay.node import HostOptions, Node
from wsrelay.relay import header, origins

__all__ = ["run"]

_STOP_TIMEOUT = 2.0


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


def _origins(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    try:
        origins.Origins(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return text


def _path(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not text.startswith("/") or "{" in text:
        raise click.BadParameter(f"{text!r} is no path; it starts with / like /ws")
    return text


@click.command()
@click.argument("target", callback=_target)
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
@click.option("--heartbeat", callback=_heartbeat, help="Send ws.heartbeat so often, e.g. 30s.")
@click.option("--max-processes", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--room-linger",
    default="5s",
    show_default=True,
    callback=_duration(0),
    help="How long a room outlives its last client.",
)
@click.option(
    "--static",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Serve this folder at / in place of the built-in page.",
)
def run(
    *,
    target: str,
    scope: str,
    host: str,
    port: int,
    path: str,
    origins: str,
    heartbeat: str | None,
    max_processes: int,
    room_linger: float,
    static: Path | None,
) -> None:
    """Serve the handler script TARGET, e.g. handlers/echo.py or app.rooms:lobby.

    Each process of it is a real OS process. Ctrl-C ends everything in order, a second one at once.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    options = ScriptOptions(
        target=target,
        scope=Scope(scope),
        path=path,
        origins=origins,
        heartbeat=heartbeat,
        room_linger=room_linger,
        static=static,
    )
    processes = HostOptions(
        targets=(target,), max_processes=max_processes, stop_timeout=_STOP_TIMEOUT
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(options, processes, host, port))


async def _serve(options: ScriptOptions, processes: HostOptions, host: str, port: int) -> None:
    try:
        listener = bind(host, port)
    except AddressError as error:
        _fail(str(error))
    with listener:
        node = Node(hosts=[processes])
        server = Server(
            script_app(node, options),
            node,
            grace=_STOP_TIMEOUT,
            ready=lambda: _welcome(options, listener.getsockname()[:2]),
        )
        with on_signals(server.stop):
            try:
                await server.run_when_loaded(listener)
            except HostFailed as error:
                await node.aclose()
                _fail(str(error), error.details)


def _welcome(options: ScriptOptions, address: tuple[str, int]) -> None:
    name = f"[{address[0]}]" if ":" in address[0] else address[0]
    place = f"{name}:{address[1]}"
    socket = f"ws://{place}{options.path}"
    if options.scope is Scope.ROOM:
        socket = f"{socket.rstrip('/')}/<room>"
    click.echo(f"Serving {options.target} (a process per {options.scope}) at {socket}", err=True)
    click.echo(f"Open http://{place}/ in a browser. Ctrl-C ends it.", err=True)


def _fail(line: str, details: str = "") -> Never:
    if details:
        click.echo(details.rstrip(), err=True)
    click.echo(f"wsrelay: {line}", err=True)
    sys.exit(1)


def _loop_factory() -> Any:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
