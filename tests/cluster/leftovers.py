"""What a node still keeps, and need not when nothing runs on any node."""

from __future__ import annotations

from typing import Any

from wsrelay import Node

__all__ = ["kept"]


def kept(node: Node) -> dict[str, Any]:
    """Return all that a node may keep of processes and clients; each is empty if it keeps none."""
    kernel = node.kernel
    here = {
        "processes": [*kernel.processes],
        "names": len(kernel.names),
        "relations": bool(kernel.relations),
        "groups": bool(kernel.groups),
        "watchers": kernel.groups._watchers,
        "accounts": kernel.ledger,
        "connections": node.connections,
        "execs": node.starts.execs,
        "calls": len(node.calls),
        "timers": len(node._requests.timers),
        "when_ended": node.engine.when_ended,
        "guests": node.clients.guests,
    }
    is_alone = not hasattr(node.engine.elsewhere, "exchange")
    return here if is_alone else here | _kept_for_others(node)


def _kept_for_others(node: Node) -> dict[str, Any]:
    elsewhere: Any = node.engine.elsewhere
    kept: dict[str, Any] = {
        "execs elsewhere": elsewhere._execs,
        "visits": [*filter(None, elsewhere.guests._visits.values())],
        "targets": elsewhere.targets._targets,
        "names elsewhere": [*elsewhere.names.directory],
        "keys": len(elsewhere.names.keys),
    }
    for neighbour in elsewhere.exchange.neighbours.values():
        for what in ("asked", "serving", "unlinking", "held", "holds"):
            kept[f"{what} of {neighbour.node}"] = getattr(neighbour, what)
    return kept
