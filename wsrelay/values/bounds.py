"""What options may be: each stands once, where the option is defined.

Whoever takes options checks them as they are built, and tells all that is wrong at once, each by
the option's name; a configuration puts its key in that name's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Final, NamedTuple

__all__ = ["MOST", "Bounds", "InvalidOptions", "check", "wrong"]

MOST: Final = 2**62
"""The system takes no larger limits, and infinity is larger still."""


class InvalidOptions(ValueError):  # noqa: N818 - like InvalidPID
    """Options that cannot be: `problems` are their names, each with what is wrong with it."""

    def __init__(self, problems: Iterable[tuple[str, str]], owner: str = "") -> None:
        self.problems = list(problems)
        told = "; ".join(f"{name} {message}" for name, message in self.problems)
        super().__init__(f"{owner}: {told}" if owner else told)


class Bounds(NamedTuple):
    """The least and the most that an option may be, and how that is said; `whole` numbers only."""

    least: float
    most: float
    said: str
    whole: bool = False


def wrong(options: Any, bounds: Mapping[str, Bounds]) -> list[tuple[str, str]]:
    """Return what is out of bounds, by name; names may be dotted, and None is always within."""
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
