"""The bounds of options: each is stated once, where the option is defined.

Options are checked when they are built, and all problems are reported at once, each with the name
of the option; a configuration replaces the name by its key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

__all__ = ["MOST", "Bounds", "InvalidOptions", "check", "wrong"]

MOST: Final = 2**62
"""The system accepts no larger limits, and infinity is larger still."""


class InvalidOptions(ValueError):  # noqa: N818 - like InvalidPID
    """Invalid options: `problems` lists their names, each with what is wrong with it."""

    def __init__(self, problems: Iterable[tuple[str, str]], owner: str = "") -> None:
        self.problems = list(problems)
        told = "; ".join(f"{name} {message}" for name, message in self.problems)
        super().__init__(f"{owner}: {told}" if owner else told)


class Bounds(NamedTuple):
    """The least and the greatest value of an option, in words as `said`; `whole` for integers."""

    least: float
    most: float
    said: str
    whole: bool = False


def wrong(options: Any, bounds: Mapping[str, Bounds]) -> list[tuple[str, str]]:
    """Return what is out of bounds, by name; names may be dotted, and None is always allowed."""
    problems = []
    for name, (least, most, said, whole) in bounds.items():
        given = attrgetter(name)(options)
        kinds = int if whole else (int, float)
        is_number = isinstance(given, kinds) and not isinstance(given, bool)
        if given is not None and not (is_number and least <= given <= most):
            is_huge = is_number and given > most == MOST
            problems.append(
                (name, f"is {given!r:.60} and must be {'2**62 or less' if is_huge else said}")
            )
    return problems


def check(options: Any, bounds: Mapping[str, Bounds], owner: str = "") -> None:
    """Raise `InvalidOptions` if something is out of bounds."""
    if problems := wrong(options, bounds):
        raise InvalidOptions(problems, owner)
