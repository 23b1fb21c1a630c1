"""A client as a value, and what its messages hold."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from typing import Any

import cloudpickle
import msgspec
import pytest

from wsrelay import PID, Client, InvalidMessage, InvalidPID, Message, PayloadError, aio
from wsrelay.session import command
from wsrelay.values.awaited import COROUTINES, FUNCTIONS, Face
from wsrelay.values.client import content_of, control_of
from wsrelay.values.message import Relayed
from wsrelay.wire import payload

ME = "{local@gateway|k3f9.0-1}"
FACES = pytest.mark.parametrize("face", [FUNCTIONS, COROUTINES], ids=["", "aio_"])


class Say(msgspec.Struct, tag="say"):
    text: str


def sent(face: Face, data: str | bytes, topic: str = "ws.message") -> Message:
    """What the relay makes of a client's message."""
    kind = "text" if isinstance(data, str) else "binary"
    client = face.client(ME, {"user": "ann"})
    content = {"type": kind, "data": data, "metadata": client.metadata, "client_pid": client}
    return face.relayed(topic, content, client)


@FACES
def test_a_client_is_its_pid_with_metadata(face: Face) -> None:
    client = face.client(ME, {"user": "ann"})
    assert isinstance(client, PID)
    assert client == PID(ME) == ME
    assert {ME: 1}[client] == 1
    assert client.host == "gateway"
    assert client.metadata == {"user": "ann"}
    assert face.client(ME).metadata == {}
    with pytest.raises(InvalidPID):
        face.client("nobody")


@FACES
@pytest.mark.parametrize(
    "passed_on",
    [
        lambda client: pickle.loads(pickle.dumps(client)),  # noqa: S301 - ours
        lambda client: pickle.loads(cloudpickle.dumps(client)),  # noqa: S301 - ours
        copy.copy,
        copy.deepcopy,
    ],
)
def test_a_client_that_is_copied_or_pickled_is_a_pid(face: Face, passed_on: Any) -> None:
    assert type(passed_on(face.client(ME, {"user": "ann"}))) is PID


@FACES
def test_a_client_in_a_payload_or_in_json_is_its_text(face: Face) -> None:
    client = face.client(ME, {"user": "ann"})
    assert payload.decode(payload.encode({client: [client]})) == {ME: [ME]}
    assert json.dumps(client) == json.dumps(ME)


@FACES
@pytest.mark.parametrize("topic", ["ws.message", "chat"])
def test_what_a_client_has_sent_is_read_whatever_its_topic(face: Face, topic: str) -> None:
    text = sent(face, '{"type": "say", "text": "hi"}', topic)
    assert text.data == text.text == '{"type": "say", "text": "hi"}'
    assert text.json() == {"type": "say", "text": "hi"}
    assert text.json(Say) == text.json(type=Say) == Say("hi")
    assert sent(face, b"\0", topic).data == b"\0"
    assert text.client is text.sender
    assert text.client is not None
    assert text.client.metadata == {"user": "ann"}


@FACES
@pytest.mark.parametrize(
    ("data", "read", "error"),
    [
        (b"abc", lambda m: m.text, "the client sent 3 bytes of binary data, not text"),
        (b"{}", lambda m: m.json(), "the client sent 2 bytes of binary data, not text"),
        ("hello", lambda m: m.json(), "the client sent text that is no JSON (JSON is malformed"),
        ("x" * 200, lambda m: m.json(), "xxxx"),
        ("[" * 100_000, lambda m: m.json(), "the client sent text that is no JSON ("),
        ('{"type": "say"}', lambda m: m.json(Say), "JSON that does not fit: Object missing req"),
        (
            '{"type": "say", "text": 3}',
            lambda m: m.json(Say),
            "the client sent JSON that does not fit: Expected `str`, got `int` - at `$.text`",
        ),
    ],
)
def test_what_a_client_has_sent_otherwise_is_said(
    face: Face, data: str | bytes, read: Any, error: str
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        read(sent(face, data))
    assert error in str(caught.value)
    assert len(str(caught.value)) < 250
    assert isinstance(caught.value, ValueError)


@FACES
@pytest.mark.parametrize("read", [lambda m: m.data, lambda m: m.text, lambda m: m.json()])
def test_a_message_that_no_client_has_sent_says_so_where_it_is_read_as_one(
    face: Face, read: Any
) -> None:
    client = face.client(ME)
    content = {"type": "text", "data": "forged", "client_pid": ME}
    with pytest.raises(InvalidMessage, match=r"ws\.message of .* is no message of a client"):
        read(face.message("ws.message", content, PID(ME)))
    with pytest.raises(InvalidMessage, match=r"ws\.join tells of the client"):
        read(face.relayed("ws.join", {"client_pid": client, "metadata": None}, client))


def test_messages_of_one_face_become_those_of_the_other() -> None:
    plain, forged = sent(FUNCTIONS, "hi"), Message("topic", 1, PID(ME))
    awaited = COROUTINES.of(plain)
    assert isinstance(awaited, aio.Message)
    assert isinstance(awaited.client, aio.Client)
    assert awaited.client is awaited.sender is awaited.payload["client_pid"]
    assert awaited.client.metadata is plain.payload["metadata"]
    assert (awaited.topic, awaited.payload, awaited.text) == (plain.topic, plain.payload, "hi")
    assert FUNCTIONS.of(awaited) == plain
    assert type(FUNCTIONS.of(awaited)) is Relayed
    assert type(FUNCTIONS.of(awaited).client) is Client
    other = COROUTINES.of(forged)
    assert type(other) is aio.Message
    assert other.client is None
    assert FUNCTIONS.of(other) == forged
    assert COROUTINES.of("no message") == "no message"
    for message in (awaited, other):
        assert type(pickle.loads(pickle.dumps(message))) is Message  # noqa: S301 - ours


@pytest.mark.parametrize(
    ("data", "kind"),
    [("a", "text"), (PID(ME), "text"), (b"a", "binary"), (bytearray(b"a"), "binary")],
)
def test_text_and_bytes_can_be_sent(data: Any, kind: str) -> None:
    assert payload.decode(payload.encode(content_of(data))) == {"type": kind, "data": data}


@pytest.mark.parametrize("data", [None, 3, ["a"], {"type": "text", "data": "a"}])
def test_what_is_neither_text_nor_bytes_is_refused_where_it_is_sent(data: Any) -> None:
    with pytest.raises(PayloadError, match="is neither str nor bytes; send_json sends other data"):
        content_of(data)


def test_a_transfer_can_change_what_a_control_message_can() -> None:
    fields = {"target_pid", *inspect.signature(Client.transfer).parameters} - {"self", "to"}
    assert fields == set(command._Control.__struct_fields__)
    right = control_of(ME, message_topic="chat", metadata=None, heartbeat_interval="5s")
    assert type(command.parse("ws.control", payload.encode(right))) is command.ControlCommand
    assert control_of(ME, cancel_on_leave=msgspec.UNSET) == {"target_pid": ME}
    with pytest.raises(InvalidPID):
        control_of("room:blue")
