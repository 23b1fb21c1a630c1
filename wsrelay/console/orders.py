"""What the user of the console orders, as requests to the node that has the process."""

from __future__ import annotations

from typing import Any, Final

from .looks import Act
from .watched_node import WatchedNode

__all__ = ["NotAnOrder", "obey", "stack"]

_PATIENCE: Final = 10.0
"""Seconds for what a node asks of its processes."""

_CALL: Final = 5.0
"""Seconds that a process gets to answer a call."""


class NotAnOrder(Exception):  # noqa: N818 - reads as a sentence
    """It cannot be done; the message says why."""


async def obey(act: Act, node: WatchedNode | None) -> Any:
    """Do it, and return what comes of it; raises `NotAnOrder` and what `NodeSocket` does."""
    there = _there(act.of, node)
    order: dict[str, Any] = {"to": act.of}
    if "/ends" not in there.unknown and act.what in {"cancel", "kill", "close"}:
        order["by"] = "console"  # that is where it is shown who has ended what
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
    return await there.socket.post(f"/{act.what}", order, _CALL + _PATIENCE)


async def stack(pid: str, node: WatchedNode | None) -> str:
    """Return the Python stacks of a process, as its node writes them."""
    return await _there(pid, node).socket.text("/stack", _PATIENCE, of=pid)


def _there(pid: str, node: WatchedNode | None) -> WatchedNode:
    if node is None:
        raise NotAnOrder(f"no node has {pid}: it has ended")
    return node
