"""What the user of the console orders, as requests to the node that has the process."""

from __future__ import annotations

from typing import Any, Final

from .looks import Act
from .node_socket import NodeSocket

__all__ = ["NotAnOrder", "obey", "stack"]

_PATIENCE: Final = 10.0
"""Seconds for what a node asks of its processes."""

_CALL: Final = 5.0
"""Seconds that a process gets to answer a call."""


class NotAnOrder(Exception):  # noqa: N818 - reads as a sentence
    """It cannot be done; the message says why."""


async def obey(act: Act, socket: NodeSocket | None) -> Any:
    """Do it, and return what comes of it; raises `NotAnOrder` and what `NodeSocket` does."""
    there = _there(act.of, socket)
    order: dict[str, Any] = {"to": act.of}
    match act.what:
        case "send" | "call":
            if not act.topic:
                raise NotAnOrder("a message needs a topic")
            order |= {"topic": act.topic, "payload": act.payload}
            if act.what == "call":
                order["timeout"] = _CALL
        case "cancel":
            order["reason"] = act.reason
        case "close":
            order |= {"code": act.code, "reason": act.reason}
    return await there.post(f"/{act.what}", order, _CALL + _PATIENCE)


async def stack(pid: str, socket: NodeSocket | None) -> Any:
    """Return the Python stacks of a process, as its node has them."""
    return await _there(pid, socket).get("/stack", _PATIENCE, of=pid)


def _there(pid: str, socket: NodeSocket | None) -> NodeSocket:
    if socket is None:
        raise NotAnOrder(f"no node has {pid}: it has ended")
    return socket
