from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from soaking.checks import growth

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@given(st.floats(1, 1e9), st.integers(6, 100))
def test_what_stays_the_same_does_not_grow(value: float, count: int) -> None:
    assert growth([value] * count, 0.0, 0.0) is None


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.integers(2, 30))
def test_a_warm_up_is_no_growth(low: float, step: float, third: int) -> None:
    assert growth([low] * third + [low + step] * 2 * third, 0.0, 0.0) is None


@given(st.integers(6, 100))
def test_a_steady_leak_is_growth(count: int) -> None:
    assert growth([100.0 + i for i in range(count)], 0.0, 1.0) is not None


def test_a_peak_is_no_growth_and_a_share_and_an_allowance_are_let() -> None:
    assert growth([1, 1, 1, 1, 1, 1, 1, 99, 1], 0.0, 0.0) is None
    assert growth([1, 1, 100, 100, 110, 110], 0.1, 0.5) is None
    assert growth([1, 1, 100, 100, 111, 111], 0.1, 0.5) == "from 100 to 111 (at most 111)"


def test_too_few_points_say_nothing() -> None:
    assert growth([1, 2, 3, 4, 5], 0.0, 0.0) is None


def soak(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soaking", "--every", "1", *options],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_short_soak_of_a_sound_node_ends_well() -> None:
    done = soak("--clients", "14", "--minutes", "0.05")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[0] == "time"
    assert lines[1].split()[0] == "0:01"
    assert lines[-1] == "nothing grew, nothing was lost"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("swallow", "waited in vain"),
        ("double", "and got"),
        ("complain", "room: something is wrong"),
    ],
)
def test_a_soak_tells_what_was_lost(fault: str, told: str) -> None:
    done = soak("--clients", "5", "--minutes", "0.03", "--patience", "0.5", SOAK_FAULT=fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert told in done.stdout
    assert done.stdout.splitlines()[-1] == "failed"
