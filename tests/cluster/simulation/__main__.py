"""Runs seeds: scripts/simulate [--seeds 1-1000] [--nodes 3] [--seconds 20]; see --help."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Generator
from typing import Final

from .mutations import MUTATIONS, mutated
from .run import Outcome
from .world import NODES, SECONDS, World

_LAST: Final = 25
"""Lines of the trace of a run that has failed."""

_MANY: Final = 10
"""Runs that have failed after which the rest is given up."""


def main() -> int:
    """Run what the command line says; returns the exit code."""
    given = _given()
    if given.seed is not None:
        outcome = _run(given, given.seed)
        if given.trace:
            print(*outcome.trace, sep="\n")
        _tell(given, outcome, 0 if given.trace else _LAST)
        return bool(outcome.broken)
    first, _, last = given.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    begun, failed, steps = time.monotonic(), 0, 0
    with contextlib.closing(_outcomes(given, seeds)) as outcomes:
        for outcome in outcomes:
            steps += outcome.steps
            if outcome.broken:
                failed += 1
                _tell(given, outcome, _LAST)
            if failed == _MANY:
                print(f"{_MANY} runs have failed; the rest is left out")
                break
    seconds = time.monotonic() - begun
    print(f"{len(seeds)} seeds, {failed} failed: {steps} steps in {seconds:.1f} s")
    return bool(failed)


def _given() -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/simulate", description="Simulate nodes, by seed.")
    parser.add_argument("--seeds", default="1-1000", metavar="A-B", help="run these, in parallel")
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happens")
    parser.add_argument("--nodes", type=int, default=NODES, help=f"default {NODES}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"default {SECONDS:g}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--mutation", choices=MUTATIONS, help="with one rule broken")
    return parser.parse_args()


def _run(given: argparse.Namespace, seed: int) -> Outcome:
    with mutated(MUTATIONS[given.mutation]) if given.mutation else contextlib.nullcontext():
        return World(seed, nodes=given.nodes, seconds=given.seconds).run()


def _one(task: tuple[argparse.Namespace, int]) -> Outcome:
    outcome = _run(*task)
    del outcome.trace[: 0 if outcome.broken else None]
    return outcome


def _outcomes(given: argparse.Namespace, seeds: range) -> Generator[Outcome]:
    tasks = [(given, seed) for seed in seeds]
    if given.jobs == 1:
        yield from map(_one, tasks)
        return
    with multiprocessing.get_context("fork").Pool(given.jobs) as pool:
        yield from pool.imap(_one, tasks, chunksize=4)


def _tell(given: argparse.Namespace, outcome: Outcome, lines: int) -> None:
    """Say how a run has ended, and how it is repeated."""
    print(*outcome.trace[-lines:] if lines else (), sep="\n")
    print(f"seed {outcome.seed}: {outcome.steps} steps, digest {outcome.digest}")
    for promise, what in outcome.broken[:3]:
        print(f"BROKEN {promise}: {what}")
    if outcome.broken:
        options = f"--seed {outcome.seed} --nodes {given.nodes} --seconds {given.seconds:g}"
        if given.mutation:
            options += f" --mutation {given.mutation!r}"
        print(f"to repeat it: scripts/simulate {options} --trace", flush=True)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of texts follows from it
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulation", *sys.argv[1:]])
    sys.exit(main())
