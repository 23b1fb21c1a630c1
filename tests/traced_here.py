"""Fixtures: OpenTelemetry in the tests' process, as long as a test runs.

A module that uses them has `pytest_plugins = ["traced_here"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from traces import Spans


@pytest.fixture
def spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """A provider for this process, as long as the test runs."""
    found = Spans(tmp_path / "spans")
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found.here))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield found
    provider.shutdown()


@pytest.fixture
def path(spans: Spans) -> str:
    """The file of the workers' spans."""
    return str(spans.path)
