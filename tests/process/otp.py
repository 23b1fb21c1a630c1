"""What the tests of sentences from Erlang's and Elixir's documentation share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exits import Exits
from relating import WAIT, told, witness

from wsrelay import Node, process


async def value_of(node: Node, handler: Callable[[], Any]) -> Any:
    """Run a handler and give what it returns."""
    result = await Exits(node).of(node.spawn(handler))
    assert result.error is None, result.error.traceback or result.error
    return result.value


def next_event() -> dict[str, Any]:
    return told(process.events().receive(timeout=WAIT))


def after(*pids: str) -> list[dict[str, Any]]:
    """Wait for these to end, in another way than by events, and give the events that came."""
    channel = process.listen("gone")
    for pid in pids:
        process.spawn(witness, None, process.pid(), pid)
    for _ in pids:
        channel.receive(timeout=WAIT)
    seen = []
    try:
        while True:
            seen.append(told(process.events().receive(timeout=0)))
    except TimeoutError:
        return seen
