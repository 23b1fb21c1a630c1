"""Runs a scenario once for every way in which its choices can be made."""

from __future__ import annotations

from collections.abc import Callable

Choose = Callable[[int], int]
"""Returns one of the numbers below the given one."""


def explore(scenario: Callable[[Choose], None], most: int = 2_000_000) -> int:
    """Run the scenario for all choices, depth first; returns how many runs there were."""
    path: list[tuple[int, int]] = []
    for run in range(1, most):
        depth = 0

        def choose(options: int) -> int:
            nonlocal depth
            assert options > 0
            if depth == len(path):
                path.append((0, options))
            taken, known = path[depth]
            assert known == options, "the scenario depends on more than its choices"
            depth += 1
            return taken

        scenario(choose)
        while path and path[-1][0] == path[-1][1] - 1:
            path.pop()
        if not path:
            return run
        taken, options = path[-1]
        path[-1] = taken + 1, options
    raise AssertionError(f"more than {most} runs")
