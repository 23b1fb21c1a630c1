"""`scripts/soak`: prints a line a minute, and exits non-zero if anything grew or was lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from .checks import growth
from .latency import measure
from .node import Node, Sample
from .traffic import Traffic

MB = 1024 * 1024
HEADING = (
    "  time  clients  in/s  out/s  p50 ms  p99 ms  node MB  workers MB  fds  processes"
    "  killed  reloads  transfers"
)


def quantile(values: list[float], share: float) -> float:
    """Return a quantile, or 0 if there are no values."""
    return sorted(values)[int(share * (len(values) - 1))] if values else 0.0


def line(seconds: float, sample: Sample, traffic: Traffic, since: Counter[str], took: float) -> str:
    """Return a line of the table; its rates are since the previous line."""
    counts = traffic.counts
    latencies, traffic.latencies = traffic.latencies, []
    killed = counts["workers killed"] + counts["templates killed"]
    arrived, sent = ((counts[name] - since[name]) / took for name in ("in", "out"))
    return (
        f"{int(seconds) // 60:3}:{int(seconds) % 60:02}  {sample.connections:7}"
        f"  {arrived:4.0f}  {sent:5.0f}"
        f"  {quantile(latencies, 0.5) * 1000:6.1f}  {quantile(latencies, 0.99) * 1000:6.1f}"
        f"  {sample.rss / MB:7.1f}  {sample.workers_rss / MB:10.1f}  {sample.descriptors:3}"
        f"  {sample.processes:9}  {killed:6}  {counts['reloads']:7}  {counts['transfers']:9}"
    )


async def watch(node: Node, traffic: Traffic, minutes: float, every: float) -> list[Sample]:
    """Print a line every `every` seconds until the time is up or Ctrl-C; returns the samples."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    samples: list[Sample] = []
    began = time.monotonic()
    click.echo(HEADING)
    while not stop.is_set() and time.monotonic() - began < minutes * 60 and node.running:
        before, since = time.monotonic(), Counter(traffic.counts)
        several: list[Sample] = []
        while (left := before + every - time.monotonic()) > 0 and not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(left, every / 6))
            if (one := await node.sample()) is not None:
                several.append(one)
        if several:
            median = Sample(
                *(int(statistics.median(column)) for column in zip(*several, strict=True))
            )
            samples.append(median)
            now = time.monotonic()
            click.echo(line(now - began, median, traffic, since, now - before))
    return samples


async def settled(node: Node) -> list[str]:
    """Wait until nothing is left of the clients; returns what stays."""
    left = 0, 0
    for _ in range(100):
        info = await node.info()
        if info is None:
            return ["the node is gone"]
        left = len(info.connections), len(info.processes)
        if left == (0, 0):
            return []
        await asyncio.sleep(0.1)
    return [f"{left[0]} connections and {left[1]} processes stay after all clients have left"]


async def ended(node: Node) -> list[str]:
    """Wait until nothing is left but two templates, their guardians and the resource tracker."""
    for _ in range(100):
        if len(left := node.descendants()) <= 5:  # noqa: PLR2004 - these five
            return []
        await asyncio.sleep(0.1)
    return [f"{len(left)} processes stay: {left}"]


async def soak(minutes: float, clients: int, every: float, seed: int, patience: float) -> list[str]:
    """Run everything; returns what went wrong."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        node = Node(Path(folder))
        async with node:
            at_rest = await node.sample()
            traffic = Traffic(node, seed, patience)
            traffic.start(clients)
            samples = await watch(node, traffic, minutes, every)
            await traffic.stop()
            if not node.running:
                problems.append("the node ended by itself")
            problems += traffic.problems + await settled(node)
            after = await node.sample()
            if at_rest is not None and after is not None and not problems:
                # A template may have been started meanwhile, and imports keep files open.
                if after.descriptors > at_rest.descriptors + 4:
                    problems.append(
                        f"descriptors: {at_rest.descriptors}, {after.descriptors} after"
                    )
                problems += await ended(node)
            for name, column, share, allowance in (
                ("memory of the node", [s.rss for s in samples], 0.05, 2 * MB),
                ("descriptors", [s.descriptors for s in samples], 0.2, 10),
                ("processes", [s.processes for s in samples], 0.2, 5),
            ):
                if (grew := growth(column, share, allowance)) is not None:
                    problems.append(f"{name} grew {grew}")
        problems += node.problems
        done = ", ".join(f"{name} {count}" for name, count in sorted(traffic.counts.items()))
        click.echo(f"seed {seed}: {done}")
    return problems


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--clients", default=56, show_default=True)
@click.option("--every", default=60.0, show_default=True, help="Seconds between lines.")
@click.option("--seed", type=int, help="Makes the clients choose the same again.")
@click.option("--patience", default=30.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--latency", is_flag=True, help="Measure a healthy echo beside stalled peers.")
def main(
    *,
    minutes: float,
    clients: int,
    every: float,
    seed: int | None,
    patience: float,
    latency: bool,
) -> None:
    """Soak a node in mixed traffic; exit code 1 if anything grew or was lost."""
    if latency:
        asyncio.run(measure())
        return
    seed = random.randrange(1 << 32) if seed is None else seed  # noqa: S311 - not a secret
    problems = asyncio.run(soak(minutes, clients, every, seed, patience))
    for problem, count in Counter(problems).most_common(50):
        click.echo(f"WRONG: {problem}" + (f" ({count} times)" if count > 1 else ""))
    click.echo("failed" if problems else "nothing grew, nothing was lost")
    sys.exit(1 if problems else 0)


main()
