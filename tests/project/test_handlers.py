"""The examples in `handlers/`, each served by the real `wsrelay run` as its docstring says."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from running import HANDLERS, Running, client, closed, gone, news, received, until
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


# Chat


@pytest.fixture(scope="module")
def chat() -> Iterator[Running]:
    with Running(HANDLERS / "chat.py", "--scope", "room", *LINGER) as running:
        yield running


def test_chat_tells_the_room_who_joined_what_was_said_and_who_left(chat: Running) -> None:
    with client(chat.ws("/ws/kitchen?name=Ada")) as ada:
        assert news(ada) == {
            "type": "joined",
            "name": "Ada",
            "text": "Ada joined",
            "members": ["Ada"],
        }
        with client(chat.ws("/ws/kitchen?name=Bob")) as bob:
            for websocket in (ada, bob):
                joined = news(websocket)
                assert (joined["type"], joined["name"]) == ("joined", "Bob")
                assert joined["members"] == ["Ada", "Bob"]
            ada.send("plain words")
            bob.send(json.dumps({"text": "words in JSON"}))
            for websocket in (ada, bob):
                said = [news(websocket), news(websocket)]
                assert {one["type"] for one in said} == {"said"}
                assert {(one["name"], one["text"]) for one in said} == {
                    ("Ada", "plain words"),
                    ("Bob", "words in JSON"),
                }
        left = news(ada)
        assert (left["type"], left["name"]) == ("left", "Bob")
        assert left["members"] == ["Ada"]


def test_chat_rooms_do_not_hear_each_other(chat: Running) -> None:
    with (
        client(chat.ws("/ws/cellar?name=Ada")) as ada,
        client(chat.ws("/ws/attic?name=Bob")) as bob,
    ):
        assert news(ada)["members"] == ["Ada"]
        assert news(bob)["members"] == ["Bob"]
        ada.send("only here")
        assert news(ada)["text"] == "only here"
        bob.send("only there")
        assert news(bob)["text"] == "only there"


def test_chat_gives_names_to_guests_and_changes_them_on_request(chat: Running) -> None:
    with client(chat.ws("/ws/hall")) as one, client(chat.ws("/ws/hall")) as two:
        assert news(one)["name"] == "guest-1"
        assert news(one)["name"] == "guest-2"
        assert news(two)["members"] == ["guest-1", "guest-2"]
        two.send(json.dumps({"name": "  Grace \n Hopper ", "text": "hi"}))
        renamed, said = news(one), news(one)
        assert renamed["text"] == "guest-2 is now Grace Hopper"
        assert renamed["members"] == ["guest-1", "Grace Hopper"]
        assert (said["type"], said["name"], said["text"]) == ("said", "Grace Hopper", "hi")


def test_chat_ignores_binary_and_takes_odd_json_as_words(chat: Running) -> None:
    with client(chat.ws("/ws/yard?name=Ada")) as ada:
        news(ada)
        ada.send(b"\x00")
        for odd in ("[1, 2]", '{"text": 3}', "{", "[" * 100_000):
            ada.send(odd)
            assert news(ada)["text"] == odd


# Life


@pytest.fixture(scope="module")
def life() -> Iterator[Running]:
    options = ["--scope", "room", "--static", str(HANDLERS / "static"), *LINGER]
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


# Lobby


@pytest.fixture
def lobby() -> Iterator[Running]:
    with Running(HANDLERS / "lobby.py", "--scope", "shared") as running:
        yield running


def paired(running: Running, players: ExitStack) -> tuple[ClientConnection, ClientConnection]:
    """Two players in a game, X first."""
    one = players.enter_context(client(running.ws()))
    assert news(one) == {"status": "waiting for an opponent"}
    two = players.enter_context(client(running.ws()))
    assert news(two) == {"status": "waiting for an opponent"}
    beginnings = {}
    for websocket in (one, two):
        begins = news(websocket)
        assert begins["board"] == ["...", "...", "..."]
        assert begins["turn"] == "X"
        assert begins["result"] is None
        beginnings[begins["you"]] = websocket
    return beginnings["X"], beginnings["O"]


def test_lobby_pairs_two_players_who_play_a_game_to_its_end(lobby: Running) -> None:
    with ExitStack() as players:
        cross, nought = paired(lobby, players)
        assert len(lobby.workers()) == 2, "the lobby and the game are processes of their own"
        turns = itertools.cycle([cross, nought])
        for move in "142536"[:5]:
            next(turns).send(move)
            shown = [news(websocket) for websocket in (cross, nought)]
            assert shown[0]["board"] == shown[1]["board"]
        assert shown[0]["board"] == ["XXX", "OO.", "..."]
        assert {one["result"] for one in shown} == {"X has won"}
        for websocket in (cross, nought):
            assert closed(websocket) == (1000, "X has won")
        until(lambda: len(lobby.workers()) == 1, "the game has ended, the lobby has not")


def test_lobby_refuses_moves_out_of_turn_and_onto_taken_cells(lobby: Running) -> None:
    with ExitStack() as players:
        cross, nought = paired(lobby, players)
        nought.send("1")
        assert news(nought) == {"error": "it is your opponent's turn"}
        cross.send("5")
        for websocket in (cross, nought):
            assert news(websocket)["board"] == ["...", ".X.", "..."]
        for wrong in ("5", "0", "ten", b"1"):
            nought.send(wrong)
            assert news(nought) == {"error": "a move is one of 1, 2, 3, 4, 6, 7, 8, 9"}


def test_lobby_ends_a_game_whose_player_leaves(lobby: Running) -> None:
    with ExitStack() as players:
        cross, nought = paired(lobby, players)
        cross.close()
        assert closed(nought) == (1000, "your opponent has left")


def test_lobby_runs_two_games_beside_each_other(lobby: Running) -> None:
    with ExitStack() as players:
        games = [paired(lobby, players), paired(lobby, players)]
        assert len(lobby.workers()) == 3
        for move, (cross, nought) in zip("19", games, strict=True):
            cross.send(move)
            for websocket in (cross, nought):
                assert "".join(news(websocket)["board"])[int(move) - 1] == "X"


def test_lobby_does_not_pair_a_player_with_one_who_has_left(lobby: Running) -> None:
    with client(lobby.ws()) as leaving:
        news(leaving)
    with ExitStack() as players:
        paired(lobby, players)


# All of them


RUN = re.compile(r"^ *wsrelay run (handlers/\S+)(.*)$", re.MULTILINE)
BY_COMMAND = sorted(path for path in HANDLERS.glob("*.py") if RUN.search(path.read_text()))


@pytest.mark.parametrize("script", BY_COMMAND, ids=lambda path: path.stem)
def test_an_example_runs_by_the_command_in_its_docstring(script: Path) -> None:
    described = RUN.search(script.read_text())
    assert described is not None
    target, options = described[1], described[2].split()
    assert target == f"handlers/{script.name}"
    with Running(target, *options, cwd=HANDLERS.parent) as running:
        with client(running.ws("/ws/room")):
            [os_pid] = until(running.workers, "its process runs")
        assert not gone(running.template)
        assert os_pid != running.pid
        assert "ERROR" not in running.stderr.text
