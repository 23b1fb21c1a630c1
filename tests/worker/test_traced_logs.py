"""Log records that are written inside a span have its ids."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path

import pytest
from logged import Write, scripted
from opentelemetry import trace
from running import Running, client, received

from wsrelay.cli import logs

TRACER = """
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    tracer = TracerProvider().get_tracer("script")
    def say(text, **extra):
        with tracer.start_as_current_span("span") as span:
            logging.warning(text, extra=extra)
            return span.get_span_context()
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return functools.partial(scripted, tmp_path / "script.py")


def test_a_process_s_record_inside_a_span_has_its_ids_beside_the_others(write: Write) -> None:
    with (
        Running(write(TRACER), "--log-format", "json", "--scope", "room") as running,
        client(running.ws("/ws/blue")) as websocket,
    ):
        for order in (
            "c = say('inside', user='Ada'); print('ids', f'{c.trace_id:032x} {c.span_id:016x}')",
            "logging.warning('outside', extra={'user': 'Ada'})",
            "say('many', **{f'k{number}': number for number in range(50)})",
        ):
            websocket.send(order)
            received(websocket)
        printed = json.loads(running.stderr.line('"ids '))["message"]
        inside, outside, many = (
            json.loads(running.stderr.line(f'"message": "{text}"'))
            for text in ("inside", "outside", "many")
        )
    assert printed.split()[1:] == [inside["trace_id"], inside["span_id"]]
    assert inside["extra"] == outside["extra"] == {"user": "Ada"}
    assert not {"trace_id", "span_id"} & outside.keys()
    assert len(many["trace_id"]) == 32
    assert len(many["extra"]) == 14


def test_the_node_s_own_record_has_the_ids_of_the_span_that_is_current() -> None:
    record = logging.LogRecord("name", logging.INFO, "", 0, "text", (), None)
    span = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    with trace.use_span(span):
        line = json.loads(logs._JSONFormatter().format(record))
    assert (line["trace_id"], line["span_id"]) == (f"{1:032x}", f"{2:016x}")
    assert "extra" not in line
    assert "trace_id" not in json.loads(logs._JSONFormatter().format(record))
