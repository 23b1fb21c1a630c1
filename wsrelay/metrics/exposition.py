"""The metrics of a node in Prometheus' text format: a collector, and an ASGI application."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from wsrelay.node import Node
from wsrelay.relay.asgi import Headers, Receive, Scope, Send, values
from wsrelay.relay.upgrade import deny
from wsrelay.values import extras

from .table import METRICS, Metric, Reading, cumulated

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

__all__ = ["PATH", "MetricsApp", "NodeCollector", "app", "text_of"]

PATH: Final = "/metrics"


class NodeCollector:
    """Reads the metrics of a node when it is scraped; for a `CollectorRegistry`.

    It must be scraped in the node's event loop. Raises `MissingExtra`.
    """

    def __init__(self, node: Node) -> None:
        with extras.named():
            from prometheus_client import core  # noqa: PLC0415 - an extra
        self._node = node
        self._kinds: dict[str, Any] = {
            "counter": core.CounterMetricFamily,
            "gauge": core.GaugeMetricFamily,
            "histogram": core.HistogramMetricFamily,
        }

    def describe(self) -> Iterable[Family]:
        """Return the metrics without values, so that registering the collector reads nothing."""
        return [self._family(metric) for metric in METRICS]

    def collect(self) -> Iterable[Family]:
        """Return the metrics with the values of now; those that a node does not have are missing.

        For a while from now on, the event loop is sampled for `wsrelay_loop_lag_seconds`.
        """
        self._node.lag.look()
        reading = Reading(self._node)
        for metric in METRICS:
            family = self._family(metric)
            for labels, value in metric.read(reading):
                if metric.kind == "histogram":
                    family.add_metric(labels, cumulated(value), value.sum)  # type: ignore[arg-type, union-attr]
                else:
                    family.add_metric(labels, value)
            if family.samples:
                yield family

    def _family(self, metric: Metric) -> Any:
        return self._kinds[metric.kind](metric.full_name, metric.help, labels=metric.labels)


class Scraping:
    """The text of a node's metrics, and of those of its OS process. Raises `MissingExtra`."""

    def __init__(self, node: Node) -> None:
        with extras.named():
            import prometheus_client  # noqa: PLC0415 - an extra
            from prometheus_client import exposition  # noqa: PLC0415
        self._registry = prometheus_client.CollectorRegistry()
        self._registry.register(NodeCollector(node))
        # The standard ones of the front end's own process: CPU time, memory, descriptors.
        prometheus_client.ProcessCollector(registry=self._registry)
        self._choose = exposition.choose_encoder

    def text(self, accepted: str = "") -> tuple[bytes, str]:
        """Return the text in the format that an Accept header prefers, and its media type."""
        encode, kind = self._choose(accepted)
        return encode(self._registry), kind


def text_of(node: Node) -> tuple[bytes, str]:
    """Return the metrics as text, and its media type; raises `MissingExtra`."""
    return Scraping(node).text()


class MetricsApp:
    """Answers GET of one path with the metrics of a node, read anew for each request.

    All other paths get 404. Raises `MissingExtra`.
    """

    def __init__(self, node: Node, path: str = PATH) -> None:
        self._path = path.rstrip("/")
        self._scraping = Scraping(node)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        del receive
        if scope["type"] == "lifespan":
            raise RuntimeError("the metrics have no lifespan")  # as ASGI has it said
        status, body, headers = self._answer(scope)
        if scope["type"] == "websocket":
            await deny(scope, send, status, body)
            return
        length = (b"content-length", str(len(body)).encode())
        start = {"status": status, "headers": [*headers, length]}
        await send({"type": "http.response.start", **start})
        is_head = scope["method"] == "HEAD"
        await send({"type": "http.response.body", "body": b"" if is_head else body})

    def _answer(self, scope: Scope) -> tuple[int, bytes, Headers]:
        """Return status, body and headers."""
        plain: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
        if not self._is_at(scope) or scope["type"] != "http":
            why = f"Not Found: the metrics are at {self._path or PATH}\n"
            return HTTPStatus.NOT_FOUND, why.encode(), plain
        if scope["method"] not in ("GET", "HEAD"):
            why = "Method Not Allowed: metrics are read with GET\n"
            return HTTPStatus.METHOD_NOT_ALLOWED, why.encode(), [*plain, (b"allow", b"GET, HEAD")]
        accepted = b", ".join(values(scope, b"accept")).decode("latin-1")
        text, kind = self._scraping.text(accepted)
        return HTTPStatus.OK, text, [(b"content-type", kind.encode())]

    def _is_at(self, scope: Scope) -> bool:
        """Whether the path is the one, below that of the mount if the application is mounted."""
        root, path = scope.get("root_path", "").rstrip("/"), scope["path"].rstrip("/")
        below = path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path
        return below == self._path or (not below and root.endswith(self._path))


def app(node: Node) -> MetricsApp:
    """Return an ASGI application that serves a node's metrics at `/metrics`.

    It may be served by itself, or be mounted, at `/metrics` or above it. Its event loop must be
    that of the node. Raises `MissingExtra` if prometheus-client is not installed.
    """
    return MetricsApp(node)
