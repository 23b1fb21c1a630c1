"""What a node measures of itself: for Prometheus, and as JSON."""

from .exposition import PATH, MetricsApp, NodeCollector, app, text_of
from .table import METRICS, PREFIX, Metric, numbers_of

__all__ = [
    "METRICS",
    "PATH",
    "PREFIX",
    "Metric",
    "MetricsApp",
    "NodeCollector",
    "app",
    "numbers_of",
    "text_of",
]
