"""The option `--metrics` of `run` and `serve`: an address of its own for Prometheus."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import click

from wsrelay.errors import MissingExtra
from wsrelay.gateway.address import AddressError, Listener, bind, bind_unix, release, url
from wsrelay.gateway.allowed_hosts import AllowedHosts
from wsrelay.gateway.server import Server
from wsrelay.metrics import PATH, MetricsApp
from wsrelay.node import Node
from wsrelay.relay.asgi import App
from wsrelay.session.hosts import Hosts
from wsrelay.values import addresses
from wsrelay.values.addresses import Address

from .options import parsed
from .running import fail, say

__all__ = ["measured", "metrics_option"]

_OPTION: Final = "--metrics"

metrics_option = click.option(
    _OPTION,
    metavar="ADDRESS",
    callback=parsed(addresses.parse),
    help="Serve metrics for Prometheus at http://ADDRESS/metrics, e.g. 127.0.0.1:9464. Whoever "
    "reaches the address may read them.",
)


@contextlib.asynccontextmanager
async def measured(node: Node, at: Address | None) -> AsyncIterator[Callable[[], None]]:
    """Serve the metrics of a node meanwhile; gives a function that tells the user where.

    It ends the process with one line if that cannot be.
    """
    if at is None:
        yield lambda: None
        return
    try:
        app: App = MetricsApp(node)
        listener = _listener(at)
    except (AddressError, MissingExtra) as error:
        fail(f"{_OPTION}: {error}")
    if listener.loopback:  # no page of a browser's may read them by another name of this machine
        app = AllowedHosts(app, Hosts(""), _OPTION)
    server = Server(app, listener)
    try:
        await server.start()
        where = f"{url(listener)}{PATH}" if listener.unix is None else url(listener)
        yield lambda: say(f"Metrics at {where}")
    finally:
        server.stop_accepting()
        await server.aclose()
        release(listener, at.path)


def _listener(at: Address) -> Listener:
    return bind(at.host or "", at.port or 0) if at.path is None else bind_unix(at.path)
