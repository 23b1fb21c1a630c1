"""A connection's claim to the process of a name, while it may have to be joined to the next one.

It begins with the upgrade and ends as soon as the process is known to have read the connection's
`ws.join` (or a message of its client), or another process has moved the connection. If the process
ends in order before that, the next process of the name gets what the client has sent meanwhile.
"""

from __future__ import annotations

from typing import Any, Final

from wsrelay.values.sizes import ITEM
from wsrelay.wire import WINDOW

from .header import TargetSpec

__all__ = ["MOST_REJOINS", "Claim"]

MOST_REJOINS: Final = 3
"""How often a client is joined to the next process of a name before it is told to come again.

Each time a process of that name has ended without reading a `ws.join`: one that does so for ever
must not keep its clients waiting for ever.
"""


class Claim:
    """`kept` is what the client has sent since the join: topics and payloads."""

    __slots__ = ("kept", "rejoins", "size", "spec")

    def __init__(self, spec: TargetSpec) -> None:
        self.spec = spec
        self.rejoins = 0
        self.size = 0
        self.kept: list[tuple[str, dict[str, Any]]] = []

    def keep(self, topic: str, content: dict[str, Any]) -> None:
        """Keep a message until the join has been read."""
        self.kept.append((topic, content))
        self.size += len(content["data"]) + ITEM

    @property
    def is_full(self) -> bool:
        """Whether no more messages should be kept.

        A process that reads nothing is sent no more than this anyway.
        """
        return self.size >= WINDOW
