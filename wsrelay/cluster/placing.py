"""Where a process goes that may run on any node: to where its host has most room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["roomiest"]

_CLEARLY: Final = 4 / 3
"""By how much another node must have more room than the one before: all workers are told of each
change, and nodes with about as much room as each other would take turns every second."""


def roomiest(
    own: Mapping[str, int], others: Mapping[str, Mapping[str, int]], before: Mapping[str, str]
) -> dict[str, str]:
    """Return for each host the other node where it has most room, unless this one has as much.

    `own` has the places that are free in each host of this node, `others` the same of each other
    node. Who was chosen `before`, this node included, stays so until another has clearly more room.
    """
    chosen = {}
    for host in {host for hosts in others.values() for host in hosts}:
        room: dict[str | None, int] = {}
        if host in own:
            room[None] = own[host]  # this node, the first among equals
        room |= {node: others[node][host] for node in sorted(others) if host in others[node]}
        best, former = max(room, key=room.__getitem__), before.get(host)
        if (kept := room.get(former, 0)) > 0 and room[best] < kept * _CLEARLY:
            best = former
        if best is not None:
            chosen[host] = best
    return chosen
