"""What RFC 6455 asks of a server, section by section: our front end, with a real process behind."""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import rooms
import trustme
from rfc6455_client import BINARY, CLOSE, PING, PONG, TEXT, Frame, Place, close, frame, request
from support import Journal, fronted, relay_to, room

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway import direct

pytestmark = pytest.mark.anyio

LIMIT = 1000


@pytest.fixture
async def place(node: Node, tmp_path: Path) -> AsyncIterator[Place]:
    journal = Journal(tmp_path / "journal")
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with fronted(app, max_message_size=LIMIT) as (_, url):
        yield Place(url, journal)


@pytest.fixture
async def secure(node: Node, tmp_path: Path) -> AsyncIterator[Place]:
    """The same under TLS."""
    authority = trustme.CA()
    pem = tmp_path / "all.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    journal = Journal(tmp_path / "journal")
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with fronted(app, max_message_size=LIMIT, cert=pem, key=pem) as (_, url):
        yield Place(url, journal, context)


@pytest.fixture
async def echo(node: Node, tmp_path: Path) -> AsyncIterator[Place]:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with fronted(app, max_message_size=70_000) as (_, url):
        yield Place(url, Journal(tmp_path / "none"))


# 4.2 The opening handshake


async def test_the_accept_key_is_that_of_the_example(place: Place) -> None:
    """Section 1.3."""
    async with place.connected() as client:
        client.send(request())
        status, headers = await client.head()
    assert status == 101
    assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".lower()
    assert headers["upgrade"] == "websocket"
    assert headers["connection"] == "upgrade"


@pytest.mark.parametrize(
    "changes",
    [
        {"Sec_WebSocket_Key": None},
        {"Sec_WebSocket_Version": None},
        {"Host": None},
        {"Sec_WebSocket_Version": "12"},
        {"method": "POST"},
    ],
    ids=str,
)
async def test_a_request_that_is_no_handshake_is_refused(
    place: Place, changes: dict[str, str]
) -> None:
    """Section 4.2.1; a wrong version is told the right one (4.4)."""
    async with place.connected() as client:
        client.send(request(**changes))
        status, headers = await client.head()
    assert status in (400, 405, 426)
    if changes.get("Sec_WebSocket_Version"):
        assert (status, headers["sec-websocket-version"]) == (426, "13")
    assert not place.journal.lines("ws.message")


@pytest.mark.parametrize(
    "line",
    [b"Host: \xc4", b"Host: x\r\nSec-WebSocket-Protocol: \xc4"],
    ids=["host", "protocol"],
)
async def test_headers_that_cannot_be_decoded_are_refused(place: Place, line: bytes) -> None:
    async with place.connected() as client:
        client.send(request(Host=None)[:-2] + line + b"\r\n\r\n")
        assert (await client.head())[0] == 400


async def test_names_and_tokens_are_compared_without_case(place: Place) -> None:
    """Section 4.2.1: `Connection` is a list."""
    async with place.connected() as client:
        client.send(request(Upgrade="WebSocket", Connection="keep-alive, UPGRADE"))
        assert (await client.head())[0] == 101


@pytest.mark.parametrize("size", [1, 2, 3, 7])
async def test_it_does_not_matter_how_the_bytes_are_cut(echo: Place, size: int) -> None:
    async with echo.connected() as client:
        client.send(request())
        assert (await client.head())[0] == 101
        data = frame(TEXT, "grüße".encode()) + frame(PING, b"p") + frame(BINARY, bytes(200))
        for start in range(0, len(data), size):
            client.send(data[start : start + size])
            await asyncio.sleep(0)
        frames = [await client.frame() for _ in range(3)]
        assert sorted(frames) == [(TEXT, "grüße".encode()), (BINARY, bytes(200)), (PONG, b"p")]


# 5.1, 5.2 Framing


async def test_an_unmasked_frame_fails_the_connection(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, b"bare", masked=False))
        await client.fails(1002)
    assert (await place.left())[0] == 1002


@pytest.mark.parametrize("rsv", [1, 2, 4])
async def test_reserved_bits_fail_the_connection(place: Place, rsv: int) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, b"x", rsv=rsv))
        await client.fails(1002)
    assert (await place.left())[0] == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
async def test_reserved_opcodes_fail_the_connection(place: Place, opcode: int) -> None:
    async with place.opened() as client:
        client.send(frame(opcode, b"x"))
        await client.fails(1002)
    assert (await place.left())[0] == 1002


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536])
async def test_every_encoding_of_the_length_is_understood_and_written(
    echo: Place, size: int
) -> None:
    async with echo.opened() as client:
        client.send(frame(BINARY, bytes(size)))
        assert await client.frame() == Frame(BINARY, bytes(size))


@pytest.mark.parametrize(
    "head",
    [b"\x82\xfe\x00\x7d", b"\x82\xff" + struct.pack(">Q", 65_535)],
    ids=["16 bit", "64 bit"],
)
async def test_a_length_that_could_be_shorter_fails_the_connection(
    place: Place, head: bytes
) -> None:
    async with place.opened() as client:
        client.send(head, b"mask")
        await client.fails(1002)


async def test_a_length_with_the_highest_bit_set_fails_the_connection(place: Place) -> None:
    async with place.opened() as client:
        client.send(b"\x82\xff" + b"\xff" * 8, b"mask")
        assert await client.closing() in (1002, 1009)


# 5.4 Fragmentation


async def test_fragments_are_one_message(echo: Place) -> None:
    async with echo.opened() as client:
        client.send(frame(TEXT, b"one ", fin=False), frame(0, b"two ", fin=False), frame(0, b"end"))
        assert await client.frame() == Frame(TEXT, b"one two end")


async def test_empty_fragments_are_fragments(echo: Place) -> None:
    async with echo.opened() as client:
        client.send(frame(BINARY, fin=False), frame(0, fin=False), frame(0, b"x", fin=False))
        client.send(frame(0))
        assert await client.frame() == Frame(BINARY, b"x")


async def test_control_frames_may_stand_between_fragments(echo: Place) -> None:
    async with echo.opened() as client:
        client.send(frame(TEXT, b"a", fin=False), frame(PING, b"now"))
        assert await client.frame() == Frame(PONG, b"now")
        client.send(frame(PONG, b"unasked"), frame(0, b"b"))
        assert await client.frame() == Frame(TEXT, b"ab")


async def test_a_character_may_be_cut_by_fragments(echo: Place) -> None:
    async with echo.opened() as client:
        data = "€".encode()
        client.send(frame(TEXT, data[:1], fin=False), frame(0, data[1:2], fin=False))
        client.send(frame(0, data[2:]))
        assert await client.frame() == Frame(TEXT, data)


async def test_a_close_between_fragments_ends_it(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, b"a", fin=False), close(1000, "enough"))
        assert await client.closing() == 1000
    assert await place.left() == (1000, "enough")
    assert not place.journal.lines("ws.message")


async def test_a_continuation_of_nothing_fails_the_connection(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(0, b"x"))
        await client.fails(1002)


async def test_a_new_message_among_fragments_fails_the_connection(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, b"a", fin=False), frame(TEXT, b"b"))
        await client.fails(1002)


# 5.5 Control frames


@pytest.mark.parametrize("data", [b"", b"x", bytes(125)])
async def test_a_ping_is_answered_with_its_data(echo: Place, data: bytes) -> None:
    async with echo.opened() as client:
        client.send(frame(PING, data))
        assert await client.frame() == Frame(PONG, data)


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
async def test_a_long_control_frame_fails_the_connection(place: Place, opcode: int) -> None:
    async with place.opened() as client:
        client.send(frame(opcode, bytes(126)))
        await client.fails(1002)


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
async def test_a_fragmented_control_frame_fails_the_connection(place: Place, opcode: int) -> None:
    async with place.opened() as client:
        client.send(frame(opcode, b"", fin=False))
        await client.fails(1002)


async def test_an_unasked_pong_means_nothing(echo: Place) -> None:
    async with echo.opened() as client:
        client.send(frame(PONG, b"x"), frame(TEXT, b"on"))
        assert await client.frame() == Frame(TEXT, b"on")


# 5.5.1, 7 Closing


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
async def test_a_close_is_answered_with_its_code_and_told(place: Place, code: int) -> None:
    async with place.opened() as client:
        client.send(close(code, "why"))
        assert await client.closing() == code
    assert await place.left() == (code, "why")


async def test_a_close_without_a_code_is_1005(place: Place) -> None:
    """Section 7.1.5."""
    async with place.opened() as client:
        client.send(frame(CLOSE))
        assert await client.closing() in (None, 1000)
    assert await place.left() == (1005, "")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535])
async def test_codes_that_nobody_may_send_fail_the_connection(place: Place, code: int) -> None:
    """Section 7.4."""
    async with place.opened() as client:
        client.send(close(code))
        await client.fails(1002)


async def test_half_a_code_fails_the_connection(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(CLOSE, b"\x03"))
        await client.fails(1002)


async def test_a_reason_that_is_no_utf_8_fails_the_connection(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(CLOSE, struct.pack(">H", 1000) + b"\xff"))
        assert await client.closing() in (1002, 1007)


async def test_what_comes_behind_a_close_is_ignored(place: Place) -> None:
    """Section 5.5.1."""
    async with place.opened() as client:
        client.send(close(1000), frame(TEXT, b"too late"), frame(PING))
        assert await client.closing() == 1000
    await place.left()
    assert not place.journal.lines("ws.message")


BROKEN = {
    1002: frame(TEXT, b"x", rsv=4),
    1007: frame(TEXT, b"\xff"),
    1009: frame(TEXT, b"x" * (LIMIT + 1)),
}


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would give a client that does not answer a quarter of an hour."""
    monkeypatch.setattr(direct, "_LINGER", 1000.0)
    monkeypatch.setattr(direct, "_CLOSING", 1000.0)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("code", BROKEN)
async def test_a_failed_connection_ends_at_once_for_a_client_that_answers(
    secure: Place, code: int
) -> None:
    """Section 7.1.1; under TLS, where no end of our side can tell it to."""
    async with secure.opened() as client:
        client.send(BROKEN[code], frame(PING, b"late"), frame(TEXT, b"late"))
        assert (await client.frame())[1][:2] == struct.pack(">H", code)
        client.send(frame(TEXT, b"later", fin=False), close(code)[:3])
        client.send(close(code)[3:])
        assert await client.rest() == b""


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("code", BROKEN)
async def test_a_failed_connection_ends_on_our_side_for_a_client_that_does_not_answer(
    place: Place, code: int
) -> None:
    async with place.opened() as client:
        client.send(BROKEN[code])
        assert (await client.frame())[1][:2] == struct.pack(">H", code)
        assert await client.rest() == b""


@pytest.mark.usefixtures("patience")
async def test_a_close_frame_that_fails_the_connection_is_its_answer(secure: Place) -> None:
    async with secure.opened() as client:
        client.send(close(999))
        assert (await client.frame())[1][:2] == struct.pack(">H", 1002)
        assert await client.rest() == b""


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("begun", [b"", frame(BINARY, b"half", fin=False)[:-2]])
async def test_pings_and_messages_behind_our_close_frame_do_not_cut_the_handshake(
    place: Place, caplog: pytest.LogCaptureFixture, begun: bytes
) -> None:
    """Section 5.5.1: what crossed it is read and goes nowhere, whatever of it was begun before."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with place.opened() as client:
        order = json.dumps(["send", None, "ws.close", {"code": 4321, "reason": "enough"}])
        client.send(frame(TEXT, f"!{order}".encode()), begun)
        assert await client.frame() == Frame(CLOSE, struct.pack(">H", 4321) + b"enough")
        if begun:
            client.send(b"lf")
        client.send(frame(PING, b"p"), frame(TEXT, b"late"), frame(PONG), frame(BINARY, b"\xff"))
        assert not await client.says_more()
        client.send(close(4321))
        assert await client.rest() == b""
    assert len(place.journal.lines("ws.message")) == 1
    assert not problems
    assert "Traceback" not in caplog.text


@pytest.mark.usefixtures("patience")
async def test_a_server_that_shuts_down_waits_for_the_client_s_close_frame(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with fronted(app) as (server, url), Place(url, Journal(Path())).opened() as client:
        ended = asyncio.ensure_future(server.aclose())
        assert await client.frame() == Frame(CLOSE, struct.pack(">H", 1012))
        client.send(frame(TEXT, b"x" * 100_000), frame(PING), close(1012))
        assert await client.rest() == b""
        await ended


async def test_a_client_that_is_gone_without_a_close_is_1006(place: Place) -> None:
    """Section 7.1.5."""
    async with place.opened():
        pass
    assert (await place.left())[0] == 1006


# 8.1 UTF-8


@pytest.mark.parametrize(
    "data",
    [b"\xff", b"ok \xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"cut \xe2\x82"],
    ids=["never", "continuation", "surrogate", "beyond", "overlong", "cut"],
)
async def test_text_that_is_no_utf_8_fails_the_connection(place: Place, data: bytes) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, data))
        await client.fails(1007)
    assert (await place.left())[0] == 1007
    assert not place.journal.lines("ws.message")


async def test_it_fails_as_soon_as_a_fragment_cannot_be_right(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, b"fine", fin=False), frame(0, b"\xff", fin=False))
        await client.fails(1007)


async def test_binary_messages_are_anything(echo: Place) -> None:
    async with echo.opened() as client:
        client.send(frame(BINARY, b"\xff\xfe\x00"))
        assert await client.frame() == Frame(BINARY, b"\xff\xfe\x00")


# 10.4 Limits


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
async def test_a_message_up_to_the_limit_is_taken(place: Place, size: int) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, b"x" * size))
        line = await place.journal.line("ws.message")
        assert len(line["payload"]["data"]) == size


async def test_a_message_over_the_limit_is_1009(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, b"x" * (LIMIT + 1)))
        await client.fails(1009)
    assert (await place.left())[0] == 1009
    assert not place.journal.lines("ws.message")


async def test_fragments_that_add_up_to_more_than_the_limit_are_1009(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(BINARY, bytes(600), fin=False), frame(0, bytes(600), fin=False))
        await client.fails(1009)
    assert (await place.left())[0] == 1009


async def test_the_limit_counts_bytes_not_characters(place: Place) -> None:
    async with place.opened() as client:
        client.send(frame(TEXT, "€".encode() * (LIMIT // 3 + 1)))
        await client.fails(1009)


async def test_many_small_messages_are_no_large_one(place: Place) -> None:
    async with place.opened() as client:
        client.send(*[frame(TEXT, b"x" * LIMIT)] * 10)
        await place.journal.line("ws.message", 10)
