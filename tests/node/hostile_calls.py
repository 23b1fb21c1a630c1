"""What hostile workers do to calls."""

from __future__ import annotations

import os
from typing import Any

from hostile import own_pipe

from wsrelay import process, wire
from wsrelay.wire import payload

NIL = payload.pack(None)
FALSE = payload.pack("false")


def answer_late() -> None:
    """Answer all calls so far when told to."""
    calls = []
    for message in process.inbox():
        if message.wants_reply:
            calls.append(message)
        else:
            for call in calls:
                call.reply(["right", call.payload])


def answer_for_others() -> None:
    """Answer all calls that there may be."""
    for number in range(-1, 100):
        own_pipe().write(wire.AnswerFrame(number, FALSE))
        own_pipe().write(wire.AnswerFrame(number, NIL, "refused by a stranger"))
        own_pipe().write(wire.ForgetFrame(number))
    own_pipe().write(wire.AnswerFrame(2**64 - 1, FALSE))
    process.groups.members("")  # an answer comes behind all that went before


def answer_twice() -> None:
    for message in process.inbox():
        [number] = vars(message).values()
        own_pipe().write(wire.AnswerFrame(number, payload.pack("first")))
        own_pipe().write(wire.AnswerFrame(number, payload.pack("second")))
        own_pipe().write(wire.AnswerFrame(number, NIL, "third"))


def ask_twice(to: str) -> list[Any]:
    return [process.call(to, "x"), process.call(to, "x")]


def answer_garbage(content: bytes) -> None:
    for message in process.inbox():
        [number] = vars(message).values()
        own_pipe().write(wire.AnswerFrame(number, content))


def ask_once(to: str) -> Any:
    return process.call(to, "x")


def call_with_garbage(to: str, content: bytes) -> None:
    own_pipe().write(wire.CallFrame(1000, to, "x", content))
    process.call(to, "right", "go on", timeout=60)


def answer_one() -> Any:
    [message] = [process.inbox().receive(60)]
    message.reply()
    return message.payload


def call_with_one_number(to: str) -> list[Any]:
    mailbox = process._worker().mailbox
    queue = mailbox.expect(1000)
    for _ in range(2):
        own_pipe().write(wire.CallFrame(1000, to, "x", NIL))
    _, reply = mailbox.take(queue, timeout=20)
    return [reply.error, reply.message]


def ask_for_much() -> list[int]:
    """Ask for refusals and for a large answer before one reads any."""
    to = process.spawn(answer_largely)
    pipe, mailbox = own_pipe(), process._worker().mailbox
    queues = [mailbox.expect(number) for number in range(1000, 1051)]
    for number in range(1000, 1050):
        pipe.write(wire.CallFrame(number, to, "refuse", NIL))
    pipe.write(wire.CallFrame(1050, to, "answer", NIL))
    replies = [mailbox.take(queue, timeout=60)[1] for queue in queues]
    refused = sum(reply.refused == "x" * 1000 for reply in replies)
    return [refused, len(replies[-1].result.opened().value)]


def answer_largely() -> None:
    for message in process.inbox():
        if message.topic == "refuse":
            message.refuse("x" * 1000)
        else:
            message.reply(bytes(16 * 1024 * 1024))


def refuse_at_length() -> None:
    data = wire.pack(wire.AnswerFrame(1, NIL, "x" * 1001))
    os.write(own_pipe().writing, data)
    process.inbox().receive(60)


def call_often(to: str, often: int) -> list[Any]:
    pipe, mailbox = own_pipe(), process._worker().mailbox
    queues = [mailbox.expect(number) for number in range(1000, 1000 + often)]
    for number in range(1000, 1000 + often):
        pipe.write(wire.CallFrame(number, to, "x", NIL))
    _, refused = mailbox.take(*queues, timeout=20)
    process.send(to, "told")
    process.inbox().receive(60)
    return [refused.ref, refused.error, refused.message]


def count_until_told() -> list[str]:
    topics: list[str] = []
    for message in process.inbox():
        topics.append(message.topic)
        if message.topic == "told":
            process.send(message.sender, "go on")
            break
    return topics
