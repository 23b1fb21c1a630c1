"""The examples in `handlers/`, each served by the real `wsrelay run` as its docstring says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from running import HANDLERS, Running, client, gone, received, until
from websockets.sync.client import ClientConnection

Data = TypeVar("Data", str, bytes)

LINGER = ["--room-linger", "500ms"]

# Echo


@pytest.fixture(scope="module")
def echo() -> Iterator[Running]:
    with Running(HANDLERS / "echo.py") as running:
        yield running


def test_echo_gives_text_and_binary_back_in_order(echo: Running) -> None:
    messages: list[str | bytes] = ["héllo", b"\x00\xff", "", b"", "x" * 100_000, bytes(100_000)]
    with client(echo.ws()) as websocket:
        for message in messages:
            websocket.send(message)
        assert [received(websocket) for _ in messages] == messages


def test_echo_tells_nobody_else(echo: Running) -> None:
    with client(echo.ws()) as one, client(echo.ws()) as two:
        one.send("from one")
        two.send("from two")
        assert received(one) == "from one"
        assert received(two) == "from two"


# Life


@pytest.fixture(scope="module")
def life() -> Iterator[Running]:
    options = ["--scope", "room", "--static", str(HANDLERS / "pages" / "life"), *LINGER]
    with Running(HANDLERS / "life.py", *options) as running:
        yield running


def next_of(websocket: ClientConnection, kind: type[Data]) -> Data:
    """Skip what is of the other kind; there are ten bitmaps and more in each second."""
    for _ in range(200):
        if isinstance(message := received(websocket), kind):
            return message
    raise AssertionError(f"no {kind} has come")


def state(websocket: ClientConnection) -> dict[str, Any]:
    """Skip bitmaps up to the next JSON."""
    told: dict[str, Any] = json.loads(next_of(websocket, str))
    return told


def board(websocket: ClientConnection) -> bytes:
    """Skip JSON up to the next bitmap."""
    return next_of(websocket, bytes)


def command(websocket: ClientConnection, **order: Any) -> None:
    websocket.send(json.dumps(order))


def bitmap(*cells: tuple[int, int]) -> bytes:
    return sum(1 << y * 96 + x for x, y in cells).to_bytes(96 * 64 // 8, "little")


def test_life_begins_with_its_state_and_goes_on_with_bitmaps(life: Running) -> None:
    with client(life.ws("/ws/begin")) as websocket:
        first = received(websocket)
        assert isinstance(first, str)
        told = json.loads(first)
        assert told["os_pid"] in life.workers()
        assert told == {
            "width": 96,
            "height": 64,
            "rate": 10,
            "paused": False,
            "os_pid": told["os_pid"],
        }
        boards = [board(websocket) for _ in range(3)]
        assert {len(one) for one in boards} == {96 * 64 // 8}
        assert len(set(boards)) == 3, "a random board does not stand still"


def test_life_pauses_shows_what_is_drawn_and_goes_on_by_the_rules(life: Running) -> None:
    with client(life.ws("/ws/draw")) as one, client(life.ws("/ws/draw")) as two:
        for websocket in (one, two):
            state(websocket)
        command(one, pause=True)
        for websocket in (one, two):
            assert state(websocket)["paused"] is True
        # Across the edges: the board is a torus.
        upright = bitmap((0, 63), (0, 0), (0, 1))
        level = bitmap((95, 0), (0, 0), (1, 0))
        command(one, clear=True)
        command(one, set=[[0, 63], [0, 0], [0, 1]])
        for websocket in (one, two):
            assert upright in (board(websocket) for _ in range(20))
        command(two, rate=60)
        assert state(two)["rate"] == 60
        command(two, pause=False)
        assert state(two)["paused"] is False
        assert [board(two) for _ in range(4)] == [level, upright, level, upright]


def test_life_answers_what_is_no_command_and_goes_on(life: Running) -> None:
    with client(life.ws("/ws/wrong")) as websocket:
        os_pid = state(websocket)["os_pid"]
        for wrong in (
            "nonsense",
            "[]",
            "{}",
            '{"set": [[96, 0]]}',
            '{"set": 3}',
            '{"rate": 0}',
            '{"rate": 1e9}',
            '{"rate": NaN}',
            '{"pause": 1}',
            '{"clear": true, "random": true}',
            '{"unknown": true}',
            "[" * 100_000,
            b"\xff",
        ):
            websocket.send(wrong)
            assert state(websocket)["error"], wrong
        command(websocket, pause=True)
        assert state(websocket)["os_pid"] == os_pid


# All of them


RUN = re.compile(r"^ *wsrelay run (handlers/\S+)(.*)$", re.MULTILINE)
BY_COMMAND = sorted(path for path in HANDLERS.glob("*.py") if RUN.search(path.read_text()))


@pytest.mark.parametrize("script", BY_COMMAND, ids=lambda path: path.stem)
def test_an_example_runs_by_the_command_in_its_docstring(script: Path) -> None:
    described = RUN.search(script.read_text())
    assert described is not None
    target, options = described[1], described[2].split()
    assert target.partition(":")[0] == f"handlers/{script.name}"
    path = options[options.index("--path") + 1] if "--path" in options else "/ws"
    with Running(target, *options, cwd=HANDLERS.parent) as running:
        with client(running.ws(f"{path}/room?player=ada")):
            [os_pid] = until(running.workers, "its process runs")
        assert not gone(running.template)
        assert os_pid != running.pid
        assert "ERROR" not in running.stderr.text
