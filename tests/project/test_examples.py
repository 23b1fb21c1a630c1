"""The example applications: `wsrelay serve` on the configurations in `handlers/`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import HANDLERS, Running, client, received, until
from starlette.requests import Request
from websockets.sync.client import ClientConnection

from wsrelay.testing import Client, serve
from wsrelay.values.targets import Target
from wsrelay.worker import load_target

MANDELBROT = str(HANDLERS / "mandelbrot.py")


def ask(viewer: Client | ClientConnection, **changes: Any) -> None:
    request = {"id": 1, "x": -0.5, "y": 0.0, "scale": 0.02, "width": 150, "height": 100}
    viewer.send(json.dumps({**request, **changes}))


def tile(message: str | bytes) -> tuple[int, int, int, int, int, bytes]:
    """Id, left, top, width, height, shades."""
    assert isinstance(message, bytes)
    number, left, top, width, height = struct.unpack("<5I", message[:20])
    assert len(message) == 20 + width * height
    return number, left, top, width, height, message[20:]


def test_the_tiles_cover_the_picture_once() -> None:
    with serve(MANDELBROT) as server, server.connect() as viewer:
        ask(viewer)
        picture: dict[tuple[int, int], int] = {}
        for _ in range(3 * 2):
            number, left, top, width, height, shades = tile(viewer.receive())
            assert number == 1
            for at, shade in enumerate(shades):
                place = left + at % width, top + at // width
                assert place not in picture
                picture[place] = shade
            assert height > 0
        assert picture.keys() == {(x, y) for x in range(150) for y in range(100)}
        assert picture[75 + 25, 50] == 255, "the origin is inside"
        assert picture[0, 0] < 10, "the corner is far outside"
        viewer.expect_nothing()


def test_a_newer_request_ends_the_older_one() -> None:
    with serve(MANDELBROT) as server, server.connect() as viewer:
        ask(viewer, id=1, width=4096, height=4096)
        assert tile(viewer.receive())[0] == 1
        ask(viewer, id=2, width=64, height=64)
        count = 1
        while tile(viewer.receive())[0] == 1:
            count += 1
        assert count < 64 * 64
        viewer.expect_nothing()


@pytest.mark.parametrize("data", ["", "[]", '{"id": 1}', '{"x": 1e999}', b"\x00"])
def test_a_wrong_request_is_told_and_harms_nobody(data: str | bytes) -> None:
    with serve(MANDELBROT) as server, server.connect() as viewer:
        viewer.send(data)
        viewer.expect({"error": "send {id, x, y, scale, width, height} as JSON numbers"})
        ask(viewer, width=10**9)
        viewer.expect({"error": "width and height must be 1 to 4096"})
        ask(viewer)
        tile(viewer.receive())


@contextlib.contextmanager
def busy(running: Running, count: int) -> Iterator[list[ClientConnection]]:
    """Viewers whose processes render all the time."""
    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(client(running.ws("/ws"))) for _ in range(count)]
        for viewer in viewers:
            ask(viewer, width=4096, height=4096)
            tile(received(viewer))
        yield viewers


def test_rooms_beside_four_renderings_answer() -> None:
    with (
        Running(HANDLERS / "mandelbrot.yaml") as running,
        busy(running, 4),
        client(running.ws("/ws/rooms/a?name=Ada")) as ada,
    ):
        assert json.loads(received(ada))["type"] == "history"
        assert json.loads(received(ada))["text"] == "Ada joined"
        for number in range(20):
            ada.send(json.dumps({"type": "say", "text": f"{number}"}))
            assert json.loads(received(ada))["text"] == f"{number}"


def test_every_viewer_has_a_process_that_ends_with_it() -> None:
    with Running(HANDLERS / "mandelbrot.yaml") as running:
        node = running.family()

        def viewers() -> int:
            return len(running.family()) - len(node)

        with busy(running, 2):
            # The heavy host's template starts with the node, and so is counted already.
            until(lambda: viewers() == 2, "two more processes")
        until(lambda: viewers() == 0, "they are gone")


def test_the_chat_s_rooms_are_found_by_their_names() -> None:
    with (
        Running(HANDLERS / "wsrelay.yaml") as running,
        client(running.ws("/ws/rooms/a?name=Ada")) as ada,
        client(running.ws("/ws/rooms/a?name=Bob")) as bob,
        client(running.ws("/ws/rooms/b?name=Eve")) as eve,
    ):
        for one, members in ((ada, ["Ada"]), (bob, ["Ada", "Bob"]), (eve, ["Eve"])):
            assert json.loads(received(one))["type"] == "history"
            assert json.loads(received(one))["members"] == members


def test_the_configuration_on_its_page_runs_as_it_stands(tmp_path: Path) -> None:
    for name in ("relay_http.py", "echo.py"):
        shutil.copy(HANDLERS / name, tmp_path)
    page = (HANDLERS.parent / "docs" / "serving.md").read_text()
    text = page.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "wsrelay.yaml").write_text(text.replace('":8080"', '"127.0.0.1:0"'))
    with (
        Running(tmp_path / "wsrelay.yaml") as running,
        client(running.ws("/ws/echo"), origin="https://app.example.com") as one,
    ):
        assert httpx.get(running.http("/ws/echo")).status_code == 426
        assert len(running.workers()) == 1, "the plain request has started nothing"
        one.send("hello")
        assert received(one) == "hello"


@pytest.mark.parametrize(
    ("script", "function"),
    [
        ("relay_http.py", "connect"),
        ("chat_http.py", "connect"),
        ("chat_http.py", "connect_beside"),
        ("mandelbrot.py", "connect"),
    ],
)
def test_an_example_says_what_to_start_and_starts_nothing_itself(
    script: str, function: str
) -> None:
    connect = load_target(Target(function, script=str(HANDLERS / script)))
    scope: dict[str, Any] = {
        "type": "http",
        "headers": [],
        "query_string": b"",
        "path_params": {"room": "a"},
        "client": None,
    }
    response = asyncio.run(connect(Request(scope)))  # without a node a spawn would raise
    assert "target" in json.loads(response.headers["x-ws-relay"])
