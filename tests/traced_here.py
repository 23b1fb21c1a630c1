"""Fixtures: OpenTelemetry in the tests' process, as long as a test runs.

A module that uses them has `pytest_plugins = ["traced_here"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from traces import Spans


@pytest.fixture
def spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """A provider for this process, as long as the test runs."""
    found = Spans(tmp_path / "spans")
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", found.provider)
    yield found
    found.provider.shutdown()


@pytest.fixture
def path(spans: Spans) -> str:
    """The file of the workers' spans."""
    return str(spans.path)
