"""`wsrelay run`: which clients meet in one process, and how long it lives."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from acting import ACTOR, ended, written
from running import Running, client, news, until
from websockets.typing import Subprotocol


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script that does what its clients say and tells who it is."""
    return written(tmp_path_factory.mktemp("scripts"), "actor.py", ACTOR)


@pytest.fixture(scope="module")
def acting(actor: Path) -> Iterator[Running]:
    """A server of the actor, in `connection` scope, for tests that leave it as it was."""
    with Running(actor) as running:
        yield running


@pytest.fixture(scope="module")
def in_rooms(actor: Path) -> Iterator[Running]:
    """A server of the actor in `room` scope."""
    with Running(actor, "--scope", "room", "--room-linger", "500ms") as running:
        yield running


def test_in_connection_scope_each_client_has_a_process_that_ends_with_it(acting: Running) -> None:
    with client(acting.ws()) as one, client(acting.ws()) as two:
        leaving, staying = news(one)["os_pid"], news(two)["os_pid"]
        assert leaving != staying
        assert {leaving, staying} <= set(acting.workers())
        one.close()
        until(lambda: ended(leaving), "the process of the client that left is gone")
        two.send("say still here")
        assert news(two) == {"said": "still here"}
    until(lambda: ended(staying), "the other process is gone too")


def test_a_client_that_vanishes_takes_its_process_with_it(acting: Running) -> None:
    with client(acting.ws()) as websocket:
        os_pid = news(websocket)["os_pid"]
        websocket.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: ended(os_pid), "its process is gone")


def test_in_room_scope_a_path_is_a_process(in_rooms: Running) -> None:
    paths = ["/ws/a", "/ws/b", "/ws/a", "/ws/b/c", "/ws", "/ws/a?x=1"]
    os_pids = {}
    with (
        client(in_rooms.ws(paths[0])) as one,
        client(in_rooms.ws(paths[1])) as two,
        client(in_rooms.ws(paths[2])) as three,
        client(in_rooms.ws(paths[3])) as four,
        client(in_rooms.ws(paths[4])) as five,
        client(in_rooms.ws(paths[5])) as six,
    ):
        os_pids = {
            number: news(websocket)["os_pid"]
            for number, websocket in enumerate((one, two, three, four, five, six), 1)
        }
        assert os_pids[1] == os_pids[3] == os_pids[6]
        assert len(set(os_pids.values())) == 4
        assert set(os_pids.values()) <= set(in_rooms.workers())


def test_in_shared_scope_all_clients_meet_in_one_process(actor: Path) -> None:
    with (
        Running(actor, "--scope", "shared") as running,
        client(running.ws()) as one,
        client(running.ws("/ws/a")) as two,
        client(running.ws("/ws/b")) as three,
    ):
        os_pids = {news(websocket)["os_pid"] for websocket in (one, two, three)}
        assert [*os_pids] == running.workers()


def test_metadata_tells_the_path_the_room_the_query_the_headers_and_the_client(
    in_rooms: Running,
) -> None:
    url = in_rooms.ws("/ws/big%20room/2?name=Ada&empty=")
    with client(url, additional_headers={"X-Mine": "1"}) as websocket:
        metadata = news(websocket)["metadata"]
        host, port = websocket.socket.getsockname()[:2]
    assert set(metadata) == {"path", "room", "query", "headers", "client"}
    assert metadata["path"] == "/ws/big room/2"
    assert metadata["room"] == "big room/2"
    assert metadata["query"] == {"name": "Ada", "empty": ""}
    assert metadata["headers"]["x-mine"] == "1"
    assert metadata["headers"]["host"] == in_rooms.address
    assert metadata["client"] == [host, port]


def test_metadata_keeps_what_is_repeated(in_rooms: Running) -> None:
    repeated = [
        ("X-Forwarded-For", "203.0.113.1"),
        ("Cookie", "a=1"),
        ("X-Forwarded-For", "203.0.113.2, 203.0.113.3"),
        ("Cookie", "b=2"),
    ]
    url = in_rooms.ws("/ws/repeated?tag=x&name=Ada&tag=y")
    with client(url, additional_headers=repeated) as websocket:
        metadata = news(websocket)["metadata"]
    assert metadata["query"] == {"tag": "y", "name": "Ada"}  # texts, whatever a client repeats
    assert metadata["query_lists"] == {"tag": ["x", "y"]}
    headers = metadata["headers"]
    assert headers["x-forwarded-for"] == "203.0.113.1, 203.0.113.2, 203.0.113.3"
    assert headers["cookie"] == "a=1; b=2"


def test_rooms_whose_encoded_names_differ_are_different_rooms(in_rooms: Running) -> None:
    rooms = {
        "a/b": "a/b",
        "a%2Fb": "a%2Fb",
        "caf%E9": "caf%E9",
        "caf%E8": "caf%E8",
        "caf%C3%A9": "café",
        "%63af%C3%A9": "café",
    }
    with contextlib.ExitStack() as stack:
        told = [
            news(stack.enter_context(client(in_rooms.ws(f"/ws/{path}"))))  # each keeps its room
            for path in rooms
        ]
    assert [one["metadata"]["room"] for one in told] == [*rooms.values()]
    os_pids = [one["os_pid"] for one in told]
    assert len(set(os_pids)) == 5
    assert os_pids[-1] == os_pids[-2]


def test_subprotocol_selects_what_the_handler_speaks_and_the_offer_is_in_the_metadata(
    actor: Path,
) -> None:
    with Running(actor, "--subprotocol", "chat.v1", "--subprotocol", "chat.v2") as running:
        for offer, selected in (
            (["bearer.abc", "chat.v2", "chat.v1"], "chat.v2"),
            (["chat.v1"], "chat.v1"),
            (["other"], None),
        ):
            names = [Subprotocol(name) for name in offer]
            with client(running.ws(), subprotocols=names) as websocket:
                assert news(websocket)["metadata"]["subprotocols"] == offer
                assert websocket.subprotocol == selected
        running.stderr.line("--subprotocol")
        assert "bearer.abc" not in running.stderr.text
        with client(running.ws()) as websocket:
            assert "subprotocols" not in news(websocket)["metadata"]


def test_a_room_outlives_its_last_client_by_the_linger_and_then_ends(in_rooms: Running) -> None:
    with client(in_rooms.ws("/ws/lingering")) as websocket:
        os_pid = news(websocket)["os_pid"]
        left = time.monotonic()
    until(lambda: ended(os_pid), "the room is gone")
    assert time.monotonic() - left >= 0.5
    with client(in_rooms.ws("/ws/lingering")) as websocket:
        assert news(websocket)["os_pid"] != os_pid


def test_a_client_that_returns_in_between_meets_the_same_room_and_keeps_it(
    in_rooms: Running,
) -> None:
    with client(in_rooms.ws("/ws/returning")) as websocket:
        os_pid = news(websocket)["os_pid"]
    with client(in_rooms.ws("/ws/returning")) as websocket:
        assert news(websocket)["os_pid"] == os_pid
        # Another room's linger begins later and so ends after what would have ended this one.
        with client(in_rooms.ws("/ws/clock")) as clock:
            clock_pid = news(clock)["os_pid"]
        until(lambda: ended(clock_pid), "the other room is gone")
        websocket.send("say still here")
        assert news(websocket) == {"said": "still here"}
        assert not ended(os_pid)
    until(lambda: ended(os_pid), "the room is gone")


def test_a_room_without_linger_lets_its_client_in_and_ends_as_soon_as_it_is_empty(
    actor: Path,
) -> None:
    with Running(actor, "--scope", "room", "--room-linger", "0s") as running:
        with client(running.ws("/ws/a")) as one, client(running.ws("/ws/a")) as two:
            os_pid = news(one)["os_pid"]
            assert news(two)["os_pid"] == os_pid
            one.close()
            two.send("say still here")
            assert news(two) == {"said": "still here"}
        until(lambda: ended(os_pid), "the room is gone")
