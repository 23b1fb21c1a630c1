"""`scripts/cluster`: the chat on three ports, served by three nodes that are one cluster."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from wsrelay.cli.running import fail, say
from wsrelay.gateway.address import AddressError, bind

from .nats import Nats
from .node import ChatNode
from .program import Program, StartError

_NAMES = ("node-1", "node-2", "node-3")


async def serve(port: int) -> None:
    """Serve until no node is left, or this is cancelled; raises `StartError`."""
    with tempfile.TemporaryDirectory(prefix="wsrelay-cluster-") as folder:
        nats = Nats(Path(folder))
        nodes: list[ChatNode] = []
        try:
            url = await nats.serving()
            nodes += [
                ChatNode(name, url, port + number if port else 0)
                for number, name in enumerate(_NAMES)
            ]
            welcome(nodes, await asyncio.gather(*(node.serving() for node in nodes)), url)
            telling = asyncio.create_task(tell(nats))
            try:
                await asyncio.gather(*map(tell_again, nodes))
            finally:
                telling.cancel()
        finally:
            # The nodes leave the cluster in order, for which they need NATS.
            try:
                await asyncio.gather(*(node.stop() for node in nodes))
            finally:
                await nats.stop()
    raise StartError("no node is left")


def welcome(nodes: Sequence[Program], addresses: Sequence[str], nats: str) -> None:
    """Say what to do."""
    say(f"\nThree nodes are one cluster, over {nats}. Open any of these, enter a room, and talk:\n")
    for node, address in zip(nodes, addresses, strict=True):
        say(f"  {address}  {node.name}, OS pid {node.pid}")
    say("\nPress Ctrl-C to stop them.\n")


async def tell(program: Program) -> None:
    """Say when a program has ended by itself, and how."""
    say(f"{program.name} has ended: {await program.ended()}")


async def tell_again(node: Program) -> None:
    """Say when a node has ended by itself, and how to start it again."""
    await tell(node)
    say(f"\nIn another terminal, this starts it again:\n\n  {node.command}\n")


async def until_signal(port: int) -> None:
    """Serve until a signal, at the second of which everything ends at once."""
    serving = asyncio.create_task(serve(port))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    await asyncio.wait([serving])
    if not serving.cancelled():
        serving.result()


@click.command()
@click.option(
    "--port",
    default=8001,
    show_default=True,
    type=click.IntRange(0, 65536 - len(_NAMES)),
    help="The first node's; the others take the next ones. 0: any that are free.",
)
def main(port: int) -> None:
    """Serve the chat from three nodes that are one cluster over NATS."""
    try:
        for number in range(len(_NAMES) if port else 0):
            bind("127.0.0.1", port + number).close()
        asyncio.run(until_signal(port))
    except (AddressError, StartError) as error:
        fail(str(error))


main()
