"""A node of the cluster as the others know it."""

from __future__ import annotations

from typing import NamedTuple

from wsrelay.values.pid import PID

__all__ = ["Peer"]


class Peer(NamedTuple):
    """A node and one of its lives: `incarnation` is a text that it draws each time it joins."""

    node: str
    incarnation: str

    def __str__(self) -> str:
        return f"{self.node} ({self.incarnation})"

    @property
    def pid(self) -> PID:
        """A PID that stands for the node as a whole, where other nodes count what it asked for."""
        return PID.trusted(f"{{{self.node}@peer|{self.incarnation}}}")
