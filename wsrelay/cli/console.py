"""`wsrelay console`: a web page that shows the running nodes of this user."""

from __future__ import annotations

import asyncio
import contextlib

import click

from wsrelay.console.standalone import console_node, standalone
from wsrelay.errors import HostFailed
from wsrelay.gateway.address import AddressError, Listener, bind, url
from wsrelay.gateway.server import FrontEnd, Server, on_signals

from .logs import set_up_logging
from .running import fail, loop_factory

__all__ = ["console"]


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=4040,
    show_default=True,
    help="Where on this machine; 0 is any that is free.",
)
@click.option(
    "--write", is_flag=True, help="Let the page send messages to processes, and end them."
)
def console(*, port: int, write: bool) -> None:
    """Show the running nodes of this user on a web page, of which the address is printed.

    Only this machine can open it, and only with the token in that address. Ctrl-C ends it.
    """
    set_up_logging("plain", "warning")
    try:
        listener = bind("127.0.0.1", port)
    except AddressError as error:
        fail(str(error).replace("choose another port", "choose another one with --port"))
    with contextlib.closing(listener), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(listener, write=write))


async def _serve(listener: Listener, *, write: bool) -> None:
    node = console_node()
    front = FrontEnd(node)
    app, token = standalone(node, listener.names[0][1], write=write)

    def accepting() -> None:
        click.echo(f"{url(listener)}/?token={token}")

    with on_signals(front.stop):
        try:
            await front.run([Server(app, listener, buffered=node.buffered)], accepting)
        except HostFailed as error:
            fail(str(error), error.details)
