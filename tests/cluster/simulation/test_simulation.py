"""Nodes in virtual time: what is promised holds whatever happens to them, as far as seeds show.

`scripts/simulate` runs more seeds, and repeats one that has failed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simulation.books import PROMISES
from simulation.mutations import MUTATIONS, mutated
from simulation.world import World

_ENOUGH = 60
"""Seeds within which a broken rule must be noticed; most are at the first."""


def _simulated(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "simulation", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("nodes", "seeds"), [(1, 12), (3, 12)])
def test_what_is_promised_holds_whatever_happens(nodes: int, seeds: int) -> None:
    told = _simulated("--seeds", f"1-{seeds}", "--nodes", str(nodes))
    assert f"{seeds} seeds, 0 failed" in told


def test_the_same_seed_is_the_same_run_in_another_interpreter() -> None:
    once, again = (_simulated("--seed", "7", "--trace") for _ in range(2))
    assert once.count("\n") > 10
    assert once == again


def test_another_seed_is_another_run() -> None:
    assert World(1, seconds=2).run().digest != World(2, seconds=2).run().digest


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_run_notices_that_a_rule_is_broken(name: str) -> None:
    mutation = MUTATIONS[name]
    noticed: set[str] = set()
    with mutated(mutation):
        for seed in range(1, _ENOUGH + 1):
            noticed |= {promise for promise, _ in World(seed, nodes=mutation.nodes).run().broken}
            if mutation.promise in noticed:
                return
    pytest.fail(f"{_ENOUGH} runs noticed {noticed or 'nothing'}")


def test_every_promise_can_be_broken() -> None:
    assert {mutation.promise for mutation in MUTATIONS.values()} == PROMISES.keys()
