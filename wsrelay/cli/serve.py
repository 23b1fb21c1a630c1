"""`wsrelay serve` and `wsrelay check`: a configuration, from the command line."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsrelay import config
from wsrelay.config import ConfigError, Configuration
from wsrelay.errors import CannotJoin, HostFailed, MissingExtra
from wsrelay.gateway import address, assembly
from wsrelay.gateway.deployment import Deployment
from wsrelay.gateway.server import on_signals
from wsrelay.gateway.systemd import InheritedSockets, SystemdNotifier
from wsrelay.values.addresses import Address

from .joining import cluster_of, cluster_options
from .logs import log_options, set_up_logging
from .measuring import measured, metrics_option
from .running import fail, loop_factory, prepare_process, reload_on_edits, say

if TYPE_CHECKING:
    from wsrelay.peers.options import Cluster

__all__ = ["check", "serve"]

logger = logging.getLogger(__name__)

_files = click.option(
    "-c",
    "--config",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path),
    default=(Path("wsrelay.yaml"),),
    show_default="wsrelay.yaml",
    help="A configuration file, or a folder of *.yaml; may be repeated.",
)


@click.command()
@_files
@cluster_options
@metrics_option
@click.option("--reload", is_flag=True, help="For development: restart when a file changes.")
@log_options
def serve(
    *,
    paths: tuple[Path, ...],
    servers: tuple[str, ...],
    node: str | None,
    timeout: float | None,
    metrics: Address | None,
    reload: bool,
    log_format: str,
    log_level: str,
) -> None:
    """Serve a configuration.

    SIGHUP reads it again, once it serves; Ctrl-C or SIGTERM ends everything in order, a second one
    at once.
    """
    if reload:
        reload_on_edits([path if path.is_dir() else path.parent for path in paths])
    hangups: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: hangups.append(number))
    set_up_logging(log_format, log_level)
    sys.path.insert(0, "")  # so that a module in this folder is found, as by `python -m`
    configuration = _load(paths)
    if not configuration.servers:
        fail("the configuration has no http.service entry: there is nothing to serve")
    section = configuration.cluster
    build = None if section is None else section.options
    cluster = cluster_of(build, servers, node, timeout)
    prepare_process(
        sum(server.max_connections for server in configuration.servers.values()),
        sum(host.max_processes for host in assembly.hosts(configuration)),
    )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(configuration, paths, node, cluster, hangups, metrics=metrics))


@click.command()
@_files
def check(*, paths: tuple[Path, ...]) -> None:
    """Validate a configuration and print its entries; exit code 0 or 1."""
    sys.path.insert(0, "")
    configuration = _load(paths)
    rows = config.rows(configuration)
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[3]]))


def _load(paths: tuple[Path, ...]) -> Configuration:
    try:
        return assembly.load(paths)
    except ConfigError as error:
        for problem in error.problems:
            say(f"wsrelay: {problem}")
        count = len(error.problems)
        fail(f"{count} problem{'s' if count > 1 else ''} in the configuration")


async def _serve(
    configuration: Configuration,
    paths: tuple[Path, ...],
    name: str | None,
    cluster: Cluster | None,
    hangups: list[int],
    *,
    metrics: Address | None,
) -> None:
    """Serve it; `hangups` are the SIGHUPs that have arrived so far."""
    inherited, notify = InheritedSockets(), SystemdNotifier()
    try:
        deployment = Deployment(
            configuration,
            name=None if cluster is not None else name,
            cluster=cluster,
            inherited=inherited,
        )
    except (address.AddressError, MissingExtra) as error:
        fail(str(error))
    except assembly.AssemblyError as error:
        fail(str(error), error.details)
    inherited.close()
    reloads = _Reloads(deployment, paths, notify)

    def addresses() -> list[str]:
        return [address.url(listener, tls=tls) for _, listener, tls in deployment.addresses]

    def accepting() -> None:
        for entry, listener, tls in deployment.addresses:
            say(f"Serving {entry} at {address.url(listener, tls=tls)}")
        tell_metrics()
        notify.ready()
        reloads.begin()

    def stop() -> None:
        notify.stopping()
        deployment.stop()

    with on_signals(stop), on_signals(reloads.ask, [signal.SIGHUP]):
        if hangups:
            reloads.ask()
        try:
            files = ", ".join(str(path.resolve()) for path in paths)
            node = deployment.node
            node.application, node.addresses = files, addresses
            async with measured(node, metrics) as tell_metrics, notify.watchdog():
                await deployment.run(accepting)
        except HostFailed as error:
            fail(str(error), error.details)
        except CannotJoin as error:
            fail(str(error))


class _Reloads:
    """Reads the configuration again on request: one at a time, and not before `begin`."""

    def __init__(
        self, deployment: Deployment, paths: tuple[Path, ...], notify: SystemdNotifier
    ) -> None:
        self._deployment = deployment
        self._paths = paths
        self._notify = notify
        self._serving = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        """The one that was requested and has not read anything yet."""
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Carry out requests, those made so far included: the deployment serves now."""
        self._serving.set()

    def ask(self) -> None:
        """Read it again, unless that is about to happen anyway."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._read_again())
            self._tasks.add(self._next)
            self._next.add_done_callback(self._tasks.discard)

    async def _read_again(self) -> None:
        async with self._one_at_a_time:
            await self._serving.wait()
            self._next = None
            self._notify.reloading()
            try:
                await _reload(self._deployment, self._paths)
            except Exception:
                logger.exception("reading the configuration again failed")
            finally:
                if not self._deployment.stopping:
                    self._notify.ready()


async def _reload(deployment: Deployment, paths: tuple[Path, ...]) -> None:
    try:
        changed = await deployment.reload(assembly.load(paths))
    except ConfigError as error:
        for problem in error.problems:
            logger.error("%s", problem)  # noqa: TRY400 - the user's mistake, not our bug
        logger.error("the configuration stays as it was")  # noqa: TRY400
    except (assembly.AssemblyError, address.AddressError, HostFailed) as error:
        if details := getattr(error, "details", ""):
            logger.error("%s", details)  # noqa: TRY400
        logger.error("%s; the configuration stays as it was", error)  # noqa: TRY400
    else:
        logger.info(
            "the configuration was read again; changed: %s", ", ".join(changed) or "nothing"
        )
