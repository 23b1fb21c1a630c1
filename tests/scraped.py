"""The metrics of a node as Prometheus reads them, and how they have moved."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response
from support import endpoint, until

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway import address
from wsrelay.gateway.server import Server, ServerOptions
from wsrelay.metrics import text_of

__all__ = ["Moved", "fronting", "sample", "samples", "text"]


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a scrape by its name and labels."""
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def sample(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels; fails if there are none."""
    wanted = labels.items()
    found = [
        value
        for (one, its), value in samples(text).items()
        if one == f"wsrelay_{name}" and wanted <= dict(its).items()
    ]
    assert found, f"there is no {name} {labels}"
    return sum(found)


def text(node: Node) -> str:
    """What Prometheus would read of a node now."""
    return text_of(node)[0].decode()


class Moved:
    """How far the metrics of a node have moved since it was made."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._before = samples(text(node))

    def by(self, name: str, **labels: str) -> float:
        before, wanted = self._before, labels.items()
        now = samples(text(self._node))
        keys = [k for k in now if k[0] == f"wsrelay_{name}" and wanted <= dict(k[1]).items()]
        assert keys, f"there is no {name} {labels}"
        return sum(now[key] - before.get(key, 0.0) for key in keys)

    async def to(self, by: float, name: str, **labels: str) -> None:
        """Wait until that has moved so far; fails if it goes beyond."""
        await until(lambda: self.by(name, **labels) >= by, f"{name} {labels} moves by {by}")
        assert self.by(name, **labels) == by

    def others(self, *names: str) -> dict[str, float]:
        """Which series of these metrics have moved, and by how much."""
        now = samples(text(self._node))
        moved = {key: value - self._before.get(key, 0.0) for key, value in now.items()}
        return {
            ",".join(value for _, value in labels): by
            for (name, labels), by in moved.items()
            if by and name.removeprefix("wsrelay_") in names
        }


@contextlib.asynccontextmanager
async def fronting(
    node: Node,
    answer: Callable[[Request], Response] | Any,
    *,
    server: dict[str, Any] | None = None,
    around: Callable[[Any], Any] = lambda app: app,
    **options: Any,
) -> AsyncIterator[str]:
    """Our own server, as `run` and `serve` have it, which asks a function; gives its URL."""
    app = around(WebSocketRelay(endpoint(answer), node=node, **options))
    listener = address.bind("127.0.0.1", 0)
    running = Server(app, listener, ServerOptions(**server or {}), node.buffered, node.numbers)
    await running.start()
    try:
        yield address.url(listener).replace("http", "ws", 1)
    finally:
        running.stop_accepting()
        await running.aclose()
