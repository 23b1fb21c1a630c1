"""Control of a running node from a shell, over a Unix socket that only its owner can open."""

from .client import ControlClient, NodeGone, find_nodes
from .runtime import ControlError
from .socket import ControlSocket

__all__ = ["ControlClient", "ControlError", "ControlSocket", "NodeGone", "find_nodes"]
