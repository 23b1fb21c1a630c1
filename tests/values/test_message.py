from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import rooms
from support import Journal, client, relay_to, room, serving, until, value_of

from wsrelay import PID, InvalidReply, Message, Node, NotAProcess, WebSocketRelay
from wsrelay.values.awaited import COROUTINES, FUNCTIONS
from wsrelay.values.message import Called, Relayed
from wsrelay.wire import payload

CLIENT = PID("{local@gateway|1}")
JOIN = {"client_pid": CLIENT, "metadata": None}


@pytest.mark.anyio
@pytest.mark.parametrize("handler", [rooms.witness, rooms.aio_witness])
async def test_what_the_relay_sends_has_a_client_and_nothing_else_has(
    node: Node, journal: Journal, handler: Callable[..., Any]
) -> None:
    pid = node.spawn(room(handler), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid, heartbeat_interval="10ms"), node=node)
    async with serving(app) as url, client(url) as websocket:
        me = (await journal.line("ws.join"))["payload"]["client_pid"]
        await websocket.send("hello")
        await journal.line("ws.message")
        await journal.line("ws.heartbeat")
        assert {line["client"] for line in journal.lines()} == {me}
        node.send(me, "ws.control", {"message_topic": "chat", "heartbeat_interval": None})
        node.send(pid, "ws.join", {"client_pid": me, "metadata": None})
        assert (await journal.line("ws.join", 2))["client"] is None
        await websocket.send("hello")
        assert (await journal.line("chat"))["client"] == me
        real = len(journal.lines())
        await value_of(node, room(rooms.forge), pid, me)
        await until(lambda: len(journal.lines()) == real + 3 * 6 + 1, "all that was forged")
        forged = journal.lines()[real:]
        assert {line["client"] for line in forged} == {None}
        assert {"ws.join", "ws.leave", "chat"} <= {line["topic"] for line in forged}
    assert (await journal.line("ws.leave", 4))["client"] == me


@pytest.mark.anyio
async def test_an_error_of_the_relay_answers_a_process_and_has_no_client(
    node: Node, journal: Journal
) -> None:
    witness = node.spawn(room(rooms.witness), None, str(journal.path))
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(witness), node=node)
    async with serving(app) as url, client(url):
        me = (await journal.line("ws.join"))["client"]
        node.send(pid, "do", ["send", [me, "ws.send", "no text"]])
        assert (await journal.line("ws.error"))["sender"] == me
        node.clients.refuse(PID(me), witness, "ws.send", "told by the relay itself")
        assert (await journal.line("ws.error", 2))["client"] is None


def test_a_message_that_was_pickled_and_sent_on_is_as_any_other() -> None:
    relayed = Relayed("ws.join", JOIN, CLIENT)
    assert relayed.client == CLIENT
    plain = Message("ws.join", JOIN, CLIENT)
    assert plain.client is None
    pickled = pickle.dumps(relayed)
    for opened in (pickle.loads(pickled), copy.deepcopy(relayed)):  # noqa: S301 - ours
        assert type(opened) is Message
        assert opened == plain
        assert opened.client is None
    assert copy.copy(relayed).client == CLIENT


def test_a_message_as_a_payload_does_not_say_whose_it_is() -> None:
    relayed = Relayed("ws.join", JOIN, CLIENT)
    data = payload.decode(payload.encode(relayed))
    assert data == {"topic": "ws.join", "payload": JOIN, "sender": CLIENT}
    told = {**data, "client": CLIENT}
    made = msgspec.convert(told, Message, dec_hook=lambda kind, text: kind(text))
    assert made == Message("ws.join", JOIN, CLIENT)
    assert made.client is None
    with pytest.raises(TypeError, match="client"):
        Message("ws.join", JOIN, CLIENT, client=CLIENT)  # type: ignore[call-arg]


def test_messages_are_equal_if_they_hold_the_same_and_came_the_same_way() -> None:
    relayed = Relayed("ws.join", JOIN, CLIENT)
    assert relayed == Relayed("ws.join", JOIN, CLIENT)
    assert relayed != Message("ws.join", JOIN, CLIENT)
    assert repr(relayed).startswith("Relayed(topic='ws.join', payload={'client_pid': ")
    match [relayed]:
        case [Message(topic="ws.join", client=PID() as found)]:
            assert found == CLIENT
        case _:
            pytest.fail("it has a client")


def called(number: int) -> Called:
    return Called.known("members", {"of": "all"}, CLIENT, number)


def test_a_call_that_was_pickled_or_sent_on_can_be_answered_by_nobody_else() -> None:
    message = called(7)
    assert message.wants_reply
    for opened in (pickle.loads(pickle.dumps(message)), copy.deepcopy(message)):  # noqa: S301 - ours
        assert type(opened) is Message
        assert not opened.wants_reply
        with pytest.raises(
            InvalidReply, match=r"wants no answer: only what process\.call has sent"
        ):
            opened.reply("here")
    assert not copy.copy(message).wants_reply
    data = payload.decode(payload.encode(message))
    assert data == {"topic": "members", "payload": {"of": "all"}, "sender": CLIENT}
    made = msgspec.convert(data, Called, dec_hook=lambda kind, text: kind(text))
    assert not made.wants_reply
    assert message.wants_reply, "it is still here"


def test_an_answer_that_could_not_be_sent_leaves_the_call_to_be_answered() -> None:
    message = called(7)
    with pytest.raises(NotAProcess):
        message.reply("there is no worker here")
    with pytest.raises(NotAProcess):
        message.refuse("there is no worker here")
    assert message.wants_reply


def test_a_message_wants_no_answer() -> None:
    for message in (Message("x", None, CLIENT), Relayed("x", None, CLIENT)):
        assert not message.wants_reply
        for answer in (message.reply, message.refuse):
            with pytest.raises(InvalidReply, match=r"'x' of \{local@gateway\|1\} wants no answer"):
                answer("text")


def test_a_call_keeps_its_answer_to_be_given_where_the_other_face_receives_it() -> None:
    message = called(7)
    awaited = COROUTINES.of(message)
    assert (type(awaited), awaited.wants_reply) == (COROUTINES.called, True)
    plain = FUNCTIONS.of(awaited)
    assert plain == message
    assert plain.wants_reply
    assert not COROUTINES.message("x", None, CLIENT).wants_reply
