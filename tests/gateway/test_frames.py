"""The relay's own frames against wsproto's, which is the authority."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import events
from wsproto.connection import Connection, ConnectionType

from wsrelay.gateway.masking import unmask
from wsrelay.session import rfc6455
from wsrelay.session.command import SendCommand

SIZES = (0, 1, 125, 126, 127, 4095, 4096, 65_535, 65_536, 200_000)

messages = st.one_of(st.text(max_size=300), st.binary(max_size=300))


def from_client(data: str | bytes) -> bytes:
    message = events.TextMessage(data) if isinstance(data, str) else events.BytesMessage(data)
    return Connection(ConnectionType.CLIENT).send(message)


def at_client(frame: bytes) -> list[str | bytes]:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(frame)
    whole: list[str | bytes] = []
    for event in client.events():
        assert isinstance(event, events.TextMessage | events.BytesMessage)
        data = bytes(event.data) if isinstance(event, events.BytesMessage) else event.data
        whole.append(data)
        assert event.message_finished
    return whole


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_client_reads_what_a_server_frame_holds(size: int, kind: type) -> None:
    data = "x" * size if kind is str else b"\xff" * size
    assert at_client(SendCommand(data).frame) == [data]


@given(messages)
def test_any_message_survives_its_frame(data: str | bytes) -> None:
    assert at_client(SendCommand(data).frame) == [data]


def test_a_message_becomes_a_frame_once() -> None:
    message = SendCommand("to many")
    assert message.frame is message.frame


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("before", [b"", b"what stands before"])
def test_a_client_frame_is_taken_apart(size: int, before: bytes) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    wire = before + from_client(data[:size]) + b"what comes behind"
    for buffer in (wire, bytearray(wire)):
        measures = rfc6455.head(buffer, len(before), len(buffer))
        assert measures is not None
        header, length, is_right = measures
        body = len(before) + header
        assert (length, is_right) == (size, True)
        assert buffer[len(before)] == rfc6455.BINARY
        assert unmask(buffer, body, body + length) == data[:size]


@given(messages)
def test_text_and_binary_have_the_first_bytes_that_the_hot_path_knows(data: str | bytes) -> None:
    wire = from_client(data)
    assert wire[0] == (rfc6455.TEXT if isinstance(data, str) else rfc6455.BINARY)


@pytest.mark.parametrize("size", SIZES)
def test_a_header_that_is_not_all_there_has_no_measures(size: int) -> None:
    wire = from_client(bytes(size))
    measures = rfc6455.head(wire, 0, len(wire))
    assert measures is not None
    for end in range(measures[0]):
        assert rfc6455.head(wire, 0, end) is None
    assert rfc6455.head(wire, 0, measures[0]) == measures


@pytest.mark.parametrize(
    "header",
    [
        b"\x82\x05hello",
        b"\x82\x7e\x01\x00",
        b"\x82\xfe\x00\x7dmask",
        b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xffmask",
    ],
    ids=["not masked", "long and not masked", "16 bits for 125", "64 bits for 65535"],
)
def test_headers_that_are_wrong_are_left_to_wsproto(header: bytes) -> None:
    measures = rfc6455.head(header, 0, len(header))
    assert measures is not None
    assert not measures[2]


def test_a_ping_is_one_of_wsproto_s() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(rfc6455.frame(rfc6455.PING, b"four"))
    [event] = client.events()
    assert isinstance(event, events.Ping)
    assert client.send(event.response())[0] == rfc6455.PONG
