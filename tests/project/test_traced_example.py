"""`handlers/traced.py` and the example of docs/tracing.md: one trace over several processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from opentelemetry.propagate import inject
from pages import DOCS, written
from running import HANDLERS, MARK, TIMEOUT, client, family_of, received, until
from traces import Spans, of_line

TRACED = str(HANDLERS / "traced.py")


def running(traces: Path) -> contextlib.AbstractContextManager[str]:
    """The command of the example's docstring."""
    described = re.search(r"^ +TRACES=\S+ (uvicorn .+)$", Path(TRACED).read_text(), re.MULTILINE)
    assert described is not None
    return served(described[1], HANDLERS.parent, traces)


@contextlib.contextmanager
def served(command: str, folder: Path, traces: Path) -> Iterator[str]:
    """Run a command of uvicorn on a free port and end it by SIGTERM; gives `host:port`."""
    mark = str(traces)
    with (
        traces.with_name("printed").open("w") as printed,
        subprocess.Popen(
            [sys.executable, "-m", *command.split(), "--port", "0"],
            cwd=folder,
            stdout=printed,
            stderr=subprocess.PIPE,
            env={**os.environ, "TRACES": str(traces), MARK: mark, "PYTHONUNBUFFERED": "1"},
            text=True,
        ) as server,
    ):
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if found := re.search(r"running on http://(\S+)", line):
                    yield found[1]
                    break
        finally:
            server.terminate()
            server.communicate(timeout=TIMEOUT)
    until(lambda: not family_of(mark), "nothing of it runs any more")


def test_the_example_is_one_trace_over_client_front_end_room_and_worker(tmp_path: Path) -> None:
    spans = Spans(tmp_path / "traces")
    headers: dict[str, str] = {}
    with running(spans.path) as address:
        with spans.provider.get_tracer("test").start_as_current_span("client"):
            inject(headers)
            with client(f"ws://{address}/rooms/blue", additional_headers=headers) as websocket:
                websocket.send("to be or not to be")
                assert received(websocket) == "6 words"
        assert httpx.get(f"http://{address}/rooms/blue/words").json() == 6
    # Each process has sent its spans by its end, for all that it exports in the background.
    told = [of_line(json.loads(line)) for line in spans.path.read_text().splitlines()]
    [mine] = [of_line(json.loads(span.to_json())) for span in spans.here.get_finished_spans()]
    chain = [
        "count",
        f"process {TRACED}:words_in",
        f"spawn {TRACED}:words_in",
        "count and answer",
        "GET /rooms/{room}",
    ]
    links = [*(next(span for span in told if span.name == name) for name in chain), mine]
    for child, parent in itertools.pairwise(links):
        assert child.is_child_of(parent), (child.name, parent.name)
    in_trace = {span.name for span in told if span.trace == mine.trace}
    assert in_trace == {*chain, f"spawn {TRACED}:Words", f"process {TRACED}:Words"}
    [asked] = [span for span in told if span.name == "call words"]
    [answered] = [span for span in told if span.name == "answer words"]
    [looked_up] = [span for span in told if span.name == "look up"]
    assert answered.is_child_of(asked)
    assert looked_up.is_child_of(answered)


def test_the_application_of_the_page_tells_its_spans_when_it_is_ended(tmp_path: Path) -> None:
    written(DOCS / "tracing.md", tmp_path)
    with (
        served("uvicorn app:app", tmp_path, tmp_path / "traces") as address,
        client(f"ws://{address}/rooms/blue") as websocket,
    ):
        websocket.send("hello")
        assert received(websocket) == "HELLO"
    told = (tmp_path / "printed").read_text()
    for name in ("GET /rooms/{room}", "spawn upper:Upper", "process upper:Upper"):
        assert f'"name": "{name}"' in told
