"""Control of a running node from a shell, over a Unix socket that only its owner can open.

Names are imported on first use: who asks nodes from a process of its own, as the console does,
needs neither a node nor a web server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import ControlClient, NodeGone, find_nodes
    from .runtime import ControlError
    from .socket import ControlSocket

__all__ = ["ControlClient", "ControlError", "ControlSocket", "NodeGone", "find_nodes"]

_LAZY = {
    "ControlClient": ".client",
    "ControlError": ".runtime",
    "ControlSocket": ".socket",
    "NodeGone": ".client",
    "find_nodes": ".client",
}


def __getattr__(name: str) -> Any:
    if (module := _LAZY.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module, __name__), name)
