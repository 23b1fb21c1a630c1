"""Finding the process or connection that somebody means, on this node or another of its cluster.

They say it by a PID, with or without its braces, by the part of it after the `|`, or by a name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar

from wsrelay.errors import InvalidPID
from wsrelay.node import Node
from wsrelay.node.snapshot import locate
from wsrelay.values.pid import PID, address

__all__ = ["PATIENCE", "Finder", "Unknown", "unknown"]

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds that another node gets to answer, beyond what the request itself allows."""


class Unknown(Exception):  # noqa: N818 - it becomes a 404
    """There is no such process; the message says so."""


def unknown(node: Node, text: str) -> Unknown:
    """Return the error that says that the node has no such process."""
    is_alone = node.engine.elsewhere.members() is None or _pid(text) is not None
    hint = "" if is_alone else "; --cluster looks on all nodes"
    return Unknown(f"node {node.name} has no process {text!r:.200}{hint}")


class Finder:
    """Finds what is alive; with `anywhere` also what only another node knows, as a part of a PID.

    Raises `Unknown`.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    async def alive(self, text: str, *, anywhere: bool) -> str:
        """Return the PID or name of a living process or connection.

        Raises `TimeoutError` too, if another node does not answer.
        """
        node = self._node
        if (pid := locate(node, text)) is not None:
            return pid if node.kernel.names.get(text) is None else text
        if (there := self._there(text)) is not None:
            found = await _within(
                str(there.node), node.engine.elsewhere.locate(str(there.node), there)
            )
            if found is None:
                raise Unknown(f"node {there.node} has no process {text!r}")
            return found
        if anywhere and (nodes := self._others()) is not None:
            return await self._anywhere(text, nodes)
        raise unknown(node, text)

    async def place(self, text: str, *, anywhere: bool) -> tuple[str, str]:
        """Return the node that should know it, and how to ask for it there.

        That is this one for what none is known to have.
        """
        with contextlib.suppress(InvalidPID):  # which this node says
            if locate(self._node, text) is None:
                if (there := self._there(text)) is not None:
                    return str(there.node), there
                if anywhere and (nodes := self._others()) is not None:
                    found = await self._anywhere(text, nodes)
                    return str(found.node), found
        return self._node.name, text

    def _there(self, text: str) -> PID | None:
        """Return what is known to be of another node: by a whole PID, or a name of the cluster."""
        found = _pid(text) or self._node.engine.elsewhere.find(address(text))
        return None if found is None or found.node in {None, self._node.name} else found

    def _others(self) -> list[str] | None:
        """Return the other nodes that can be asked; None if it is in no cluster."""
        members = self._node.engine.elsewhere.members()
        return None if members is None else [one.name for one in members if one.link is not None]

    async def _anywhere(self, text: str, nodes: Sequence[str]) -> PID:
        """Return the one process of other nodes that is meant."""
        locate_on = self._node.engine.elsewhere.locate
        asks = (_within(name, locate_on(name, text)) for name in nodes)
        answers = await asyncio.gather(*asks, return_exceptions=True)
        found = [one for one in answers if isinstance(one, str)]
        if len(found) > 1:
            raise Unknown(f"{text!r} may be any of {', '.join(found)}: say which by its PID")
        if found:
            return PID(found[0])
        problems = [str(one) for one in answers if isinstance(one, Exception)]
        raise Unknown("; ".join([f"no node has a process {text!r}", *problems]))


def _pid(text: str) -> PID | None:
    """Return the PID that a text is, with or without its braces."""
    for one in (text, f"{{{text}}}"):
        with contextlib.suppress(InvalidPID):
            return PID(one)
    return None


async def _within(node: str, answer: Awaitable[T]) -> T:
    """Return the answer of another node; raises `TimeoutError` if that takes too long."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await answer
    except TimeoutError:
        raise TimeoutError(f"node {node} does not answer within {PATIENCE:g} s") from None
