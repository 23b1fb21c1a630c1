"""What was measured: rows of figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from .figures import Figure

__all__ = ["Key", "Results"]


class Key(Struct, frozen=True, order=True):
    """Which row."""

    work: str
    case: str
    peer: str


class Results:
    """Figures by row and name, and what failed."""

    def __init__(self) -> None:
        self._values: dict[Key, dict[str, list[float]]] = {}
        self.failed: dict[Key, str] = {}

    def add(self, key: Key, figures: Mapping[str, float]) -> None:
        """Take in one repetition."""
        row = self._values.setdefault(key, {})
        for name, value in figures.items():
            row.setdefault(name, []).append(value)

    def __iter__(self) -> Iterator[Key]:
        """Give the rows in the order in which they were first measured, or failed."""
        return iter(dict.fromkeys([*self._values, *self.failed]))

    def row(self, key: Key) -> dict[str, Figure]:
        """Return the figures of one row by name; none if it was not measured."""
        return {name: Figure(tuple(values)) for name, values in self._values.get(key, {}).items()}

    def median(self, work: str, case: str, peer: str, name: str) -> float | None:
        """Return one figure's median."""
        figure = self.row(Key(work, case, peer)).get(name)
        return None if figure is None else figure.median
