"""Tells the log which other nodes serve other entries than this one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Final

from wsrelay.cluster.frames import HelloFrame
from wsrelay.cluster.peer import Peer
from wsrelay.values.printable import printable

__all__ = ["Sameness"]

logger = logging.getLogger(__name__)

_SHOWN: Final = 10


class Sameness:
    """What was told of the entries of each other node: their ids, which is all that is compared."""

    def __init__(self) -> None:
        self._told: dict[str, frozenset[str]] = {}
        """For each node with other entries those that only one of the two has."""

    def look(self, own: Collection[str], loads: Mapping[Peer, HelloFrame]) -> None:
        """Tell what has changed; nodes that shut down are left out: newer ones replace them."""
        for peer, hello in loads.items():
            if hello.draining or hello.leaving:
                continue
            more, less = {*hello.entries} - {*own}, {*own} - {*hello.entries}
            former, differs = self._told.pop(peer.node, frozenset()), frozenset(more | less)
            if differs:
                self._told[peer.node] = differs
            if differs and differs != former:
                logger.warning(
                    "node %s serves other entries than this one: %s. All nodes of a cluster should "
                    "serve the same application: what only one of them has cannot be started on "
                    "the others",
                    peer.node,
                    "; ".join([*_listed("it has", more), *_listed("it lacks", less)]),
                )
            elif former and not differs:
                logger.info("node %s serves the same entries as this one now", peer.node)


def _listed(what: str, ids: Collection[str]) -> list[str]:
    if not ids:
        return []
    rest = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return [f"{what} {', '.join(map(printable, sorted(ids)[:_SHOWN]))}{rest}"]
