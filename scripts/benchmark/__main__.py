"""The command: `scripts/bench`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import uvloop
from msgspec.structs import replace

from .machine import ROOT, Others, describe
from .peers import PEERS, revision
from .report import Report
from .run import Run
from .workloads import WORKLOADS, Pace

_QUICK = Pace(repeats=2, seconds=0.2, kills=5, idle=500, workers=15, hurried=True, budget=60)


_WORK = [
    choice
    for name, work in WORKLOADS.items()
    for choice in (name, *(f"{name}:{c}" for c in work.cases if c))
]
_PEER = click.Choice(list(PEERS))


def _peers(context: click.Context, option: click.Parameter, names: str) -> list[str]:
    return [_PEER.convert(name.strip(), option, context) for name in names.split(",") if name]


async def _measure(run: Run, chosen: Mapping[str, Sequence[str]]) -> None:
    """Measure until the end or a signal, with as many open files as the system allows."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    task = asyncio.create_task(run.measure(chosen))
    # SIGINT too: a shell starts background jobs with SIGINT ignored, and that is inherited.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await task


@click.command(name="scripts/bench")
@click.option("--quick", is_flag=True, help="Less than two minutes: coarse, without the slowest.")
@click.option(
    "--only",
    type=click.Choice(_WORK),
    multiple=True,
    metavar="WORK[:CASE]",
    help=f"What to measure, also repeated: {', '.join(WORKLOADS)}; e.g. echo:32.",
)
@click.option(
    "--peers",
    default="",
    callback=_peers,
    help=f"Which peers, separated by commas: {', '.join(PEERS)}.",
)
@click.option(
    "--against", metavar="REV", help="A version to compare with; without --peers no others."
)
@click.option("--repeats", type=click.IntRange(1), help="How often each measure is taken.")
@click.option("--seconds", type=click.FloatRange(0.01), help="How long each takes.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "build",
    help="Where bench.json, bench.md and bench.svg go; by default build/.",
)
def main(
    *,
    quick: bool,
    only: Sequence[str],
    peers: list[str],
    against: str | None,
    repeats: int | None,
    seconds: float | None,
    out: Path,
) -> None:
    """Measure wsrelay beside its peers, in one run on this machine."""
    if sys.platform != "linux":
        raise click.ClickException("the bench reads /proc, so it needs Linux")
    pace = _QUICK if quick else Pace()
    pace = replace(pace, repeats=repeats or pace.repeats, seconds=seconds or pace.seconds)
    peers = peers or (["wsrelay"] if against else list(PEERS))
    skipped = {name: what for name in peers if (what := PEERS[name].missing())}
    present = [PEERS[name] for name in peers if name not in skipped]
    chosen: dict[str, list[str]] = {}
    for part in only or WORKLOADS:
        name, _, case = part.partition(":")
        chosen.setdefault(name, []).extend([case] if case else WORKLOADS[name].cases)
    about, others = describe(), Others()
    with tempfile.TemporaryDirectory(prefix="wsrelay-bench-") as folder:
        if against:
            try:
                present.append(revision(against, Path(folder)))
            except ValueError as error:
                raise click.BadParameter(str(error), param_hint="--against") from None
        run = Run(present, pace)
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_measure(run, chosen))
        except asyncio.CancelledError:
            raise click.Abort from None
    report = Report(
        about={**about, "others": others.text()},
        peers={peer.name: f"{peer.version()}; {peer.about}" for peer in present},
        skipped=skipped,
        results=run.results,
        against=f"wsrelay@{against}" if against else None,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(report.data(), indent=2) + "\n")
    (out / "bench.md").write_text(report.text() + "\n")
    click.echo(report.text())
    if importlib.util.find_spec("matplotlib"):
        from .plot import draw  # noqa: PLC0415 (all else works without matplotlib)

        draw(run.results, out / "bench.svg")
    else:
        click.echo("no plot: matplotlib is not installed", err=True)
    click.echo(f"written to {out}", err=True)
    if run.results.failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
