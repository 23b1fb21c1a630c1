"""The examples that are rooms: chat, game, agent and document, served by the shipped fixture."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from running import HANDLERS

from wsrelay.testing import Client, RelayServer, serve

Start = Callable[..., RelayServer]

EXAMPLES = ("chat", "game", "agent", "document")


def kind(name: str, **fields: Any) -> Callable[[str | bytes], bool]:
    """Whether a message is JSON of that kind with these fields."""

    def fits(message: str | bytes) -> bool:
        told = json.loads(message)
        return bool(told["type"] == name and {**told, **fields} == told)

    return fits


def next_of(client: Client, name: str) -> Any:
    return json.loads(client.expect(kind(name), skip=True))


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_short(example: str) -> None:
    assert len((HANDLERS / f"{example}.py").read_text().splitlines()) < 100


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_has_a_page_that_connects_by_the_module(example: str) -> None:
    page = (HANDLERS / "pages" / example / "index.html").read_text()
    assert 'import { connect } from "./wsrelay.js";' in page


# Chat


@pytest.fixture
def chat(relay_server: Start) -> RelayServer:
    return relay_server(f"{HANDLERS}/chat.py:Chat", scope="room")


def test_the_chat_tells_who_is_there_what_was_said_and_who_left(chat: RelayServer) -> None:
    ada = chat.connect("/ws/kitchen?name=Ada")
    ada.expect({"type": "history", "messages": []})
    ada.expect({"type": "news", "text": "Ada joined", "members": ["Ada"]})
    with chat.connect("/ws/kitchen?name=%20Bob%0A") as bob:
        ada.expect({"type": "news", "text": "Bob joined", "members": ["Ada", "Bob"]})
        bob.send({"type": "say", "text": "hello"})
        ada.expect({"type": "said", "name": "Bob", "text": "hello"})
        bob.send({"type": "rename", "name": "Grace \n Hopper"})
        ada.expect(kind("news", text="Bob is now Grace Hopper", members=["Ada", "Grace Hopper"]))
    ada.expect({"type": "news", "text": "Grace Hopper left", "members": ["Ada"]})
    with chat.connect("/ws/kitchen") as guest:
        guest.expect(kind("history", messages=[{"type": "said", "name": "Bob", "text": "hello"}]))
        guest.expect(kind("news", text="guest-1 joined"))
    with chat.connect("/ws/attic") as elsewhere:
        elsewhere.expect({"type": "history", "messages": []})


def test_only_the_moderator_of_the_chat_throws_out(chat: RelayServer) -> None:
    ada, bob = chat.connect("/ws/yard?name=Ada"), chat.connect("/ws/yard?name=Bob")
    bob.expect(kind("news", members=["Ada", "Bob"]), skip=True)
    bob.send({"type": "kick", "name": "Ada"})
    bob.expect({"type": "error", "error": "only the moderator can do that"})
    ada.send({"type": "kick", "name": "Bob"})
    bob.expect_close(4001, "thrown out by Ada")
    ada.expect(kind("news", text="Bob left", members=["Ada"]), skip=True)


def test_the_chat_says_what_it_cannot_use(chat: RelayServer) -> None:
    ada = chat.connect("/ws/cellar?name=Ada")
    ada.expect(kind("news"), skip=True)
    for wrong in ("words", '{"type": "shout"}', '{"type": "say"}', '{"type": "say", "text": 3}'):
        ada.send(wrong)
        ada.expect(kind("error"))


# Game


@pytest.fixture
def game(relay_server: Start) -> RelayServer:
    return relay_server(f"{HANDLERS}/game.py:Lobby", scope="shared")


def test_two_players_are_paired_play_come_back_and_are_watched(game: RelayServer) -> None:
    ada = game.connect("/ws?player=ada")
    ada.expect({"type": "waiting"})
    bob = game.connect("/ws?player=bob")
    for player in (ada, bob):
        player.expect(kind("game", players=["ada", "bob"]), skip=True)
    assert len(game.workers) == 2, "the lobby and the game are processes of their own"
    for to, paddle in ((2.0, 1.0), (0.25, 0.25)):
        ada.send({"type": "move", "to": to})
        ada.expect(lambda told, at=paddle: json.loads(told)["paddles"][0] == at, skip=True)
    ada.close()
    with game.connect("/ws?player=ada") as back, game.connect("/ws") as watching:
        for one in (back, watching):
            one.expect(kind("game", players=["ada", "bob"]))
        assert next_of(back, "state")["paddles"][0] == 0.25
        watching.send({"type": "move", "to": 0.9})
        back.send({"type": "move", "to": 0.75})
        watching.expect(lambda told: json.loads(told)["paddles"] == [0.75, 0.5], skip=True)


def test_a_game_goes_on_thirty_times_a_second_and_the_goals_count(game: RelayServer) -> None:
    eve = game.connect("/ws?player=eve")
    eve.expect({"type": "waiting"})
    dan = game.connect("/ws?player=dan")
    balls = [next_of(dan, "state")["ball"] for _ in range(3)]
    steps = {round(abs(later - at), 6) for (at, _), (later, _) in itertools.pairwise(balls)}
    assert steps == {round(0.5 / 30, 6)}
    for player in (eve, dan):  # out of the ball's way
        player.send({"type": "move", "to": 0})
    assert next_of(eve, "state")["goals"] == [0, 0]
    eve.expect(lambda told: json.loads(told)["goals"] != [0, 0], skip=True)


# Agent


@pytest.fixture
def agent(relay_server: Start) -> RelayServer:
    return relay_server(f"{HANDLERS}/agent.py:Agent")


def test_the_agent_streams_its_answer_and_can_be_stopped_in_the_middle(agent: RelayServer) -> None:
    client = agent.connect()
    client.send({"type": "ask", "text": "one two"})
    for token in ("You ", "said: ", "one ", "two "):
        client.expect({"type": "token", "text": token})
    client.expect({"type": "end", "how": "done"})
    client.send({"type": "ask", "text": "word " * 10_000})
    client.expect({"type": "token", "text": "You "})
    client.send({"type": "stop"})
    client.expect({"type": "end", "how": "stopped"}, skip=True)
    client.send({"type": "ask", "text": "again"})
    client.expect({"type": "token", "text": "You "})


def test_the_agent_uses_a_program_as_a_tool(agent: RelayServer) -> None:
    client = agent.connect()
    client.send({"type": "ask", "text": "calendar 2026 11"})
    client.expect({"type": "token", "text": "Here it is:\n"})
    client.expect(lambda told: "November 2026" in json.loads(told)["text"])
    client.expect({"type": "end", "how": "done"})


# Document


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("numpy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HANDLERS))
    monkeypatch.delitem(sys.modules, "document", raising=False)
    return importlib.import_module("document")


def test_a_column_is_edited_by_many_estimated_in_a_child_and_saved_at_its_end(
    document: ModuleType, relay_server: Start
) -> None:
    numbers = [1.0, 2.0, 3.0, 4.0]
    with serve(document.app) as server:
        ada, bob = server.connect("/ws/prices"), server.connect("/ws/prices")
        for one in (ada, bob):
            one.expect({"type": "column", "numbers": []})
        ada.send({"type": "edit", "numbers": numbers})
        bob.expect({"type": "column", "numbers": numbers})
        assert httpx.get(f"{server.http_url}/columns/prices").json() == numbers
        assert httpx.get(f"{server.http_url}/columns/others").json() == []
        bob.send({"type": "edit", "numbers": "none"})
        bob.expect(kind("error"))
        bob.send({"type": "estimate"})
        for one in (ada, bob):
            told = json.loads(one.expect(kind("estimate", error=None), timeout=30))
            assert 1 <= told["bounds"][0] < 2.5 < told["bounds"][1] <= 4
        assert "Column" in httpx.get(f"{server.http_url}/").text
        assert "export function connect" in httpx.get(f"{server.http_url}/wsrelay.js").text
    again = relay_server(document.app)
    assert httpx.get(f"{again.http_url}/columns/prices").json() == numbers
    again.connect("/ws/prices").expect({"type": "column", "numbers": numbers})
