"""A worker tells the node when it has read a client's join, if the node wants to know."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from wsrelay import wire
from wsrelay.wire import payload
from wsrelay.wire.pipe_pair import Duplex
from wsrelay.worker.mailbox import Mailbox
from wsrelay.worker.pipe import WorkerPipe

pytestmark = pytest.mark.anyio

ONE = "{local@gateway|k3f9.0-1}"
TWO = "{local@gateway|k3f9.0-2}"
NIL = payload.pack(None)

Receive = Callable[[Mailbox, Any], Awaitable[Any]]


class Node:
    """The node's end of a worker's pipe, and the worker's mailbox."""

    def __init__(self) -> None:
        self.ends, theirs = Duplex.pair()
        os.set_blocking(self.ends.reading, False)
        self.pipe = WorkerPipe(theirs)
        self.mailbox = Mailbox(self.pipe)
        self.reader = wire.from_worker()

    def joins(self, client: str, *, receipt: bool = True) -> None:
        self.ends.write_all(wire.pack(wire.AttachFrame(client, msgspec.Raw(NIL), receipt)))
        self.ends.write_all(wire.pack(wire.RelayFrame("ws.join", client, {})))

    def says(self, client: str, topic: str = "ws.message", data: str = "text") -> None:
        content = {"type": "text", "data": data}
        self.ends.write_all(wire.pack(wire.RelayFrame(topic, client, content)))

    def heard(self) -> list[Any]:
        """What the worker has written."""
        try:
            return [frame for frame, _ in self.reader.feed(os.read(self.ends.reading, 1 << 16))]
        except BlockingIOError:
            return []


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.ends.close()
    node.pipe.ends.close()


async def plainly(mailbox: Mailbox, queue: Any) -> Any:
    return mailbox.take(queue)[1]


async def awaited(mailbox: Mailbox, queue: Any) -> Any:
    return (await mailbox.next_async(queue))[1]


@pytest.fixture(params=[plainly, awaited])
async def receive(request: pytest.FixtureRequest, node: Node) -> Any:
    yield request.param
    asyncio.get_running_loop().remove_reader(node.pipe.ends)


async def test_a_join_that_is_read_is_told_at_once_and_only_where_that_is_wanted(
    node: Node, receive: Receive
) -> None:
    node.joins(ONE)
    node.joins(TWO, receipt=False)
    assert node.heard() == []
    assert (await receive(node.mailbox, node.mailbox.inbox)).sender == ONE
    assert node.heard() == [wire.JoinReadFrame(ONE)]
    assert (await receive(node.mailbox, node.mailbox.inbox)).sender == TWO
    assert node.heard() == []


async def test_a_message_that_is_read_before_its_join_counts_as_that(
    node: Node, receive: Receive
) -> None:
    listened = node.mailbox.listen("ws.message")
    node.joins(ONE)
    node.joins(TWO)
    node.says(TWO)
    assert (await receive(node.mailbox, listened)).sender == TWO
    assert node.heard() == [wire.JoinReadFrame(TWO)]
    for client in (ONE, TWO):
        assert (await receive(node.mailbox, node.mailbox.inbox)).sender == client
    assert node.heard() == [wire.JoinReadFrame(ONE)]


async def test_what_others_send_and_events_of_a_client_count_for_nothing(
    node: Node, receive: Receive
) -> None:
    node.joins(ONE)
    node.ends.write_all(wire.pack(wire.SignalFrame("EXIT", ONE)))
    node.ends.write_all(wire.pack(wire.DeliverFrame("ws.error", ONE, NIL)))
    errors = node.mailbox.listen("ws.error")
    assert (await receive(node.mailbox, errors)).sender == ONE
    assert (await receive(node.mailbox, node.mailbox.events)).sender == ONE
    assert node.heard() == []


async def test_acknowledgements_come_as_often_while_receipts_are_owed(
    node: Node, receive: Receive
) -> None:
    listened = node.mailbox.listen("ws.message")
    node.joins(ONE, receipt=False)
    node.joins(TWO)
    told = []
    for _ in range(200):
        node.says(ONE, data="x" * 1000)
        await receive(node.mailbox, listened)
        told += node.heard()
    assert {type(frame) for frame in told} == {wire.AckFrame}
    assert 4 <= len(told) <= 7


def test_messages_take_the_short_way_as_soon_as_all_joins_are_read(node: Node) -> None:
    node.joins(ONE)
    node.joins(TWO)
    node.says(ONE)
    assert list(node.pipe) == []
    node.mailbox.take(node.mailbox.inbox)
    assert list(node.pipe) == [], "a join is unread"
    node.mailbox.take(node.mailbox.inbox)
    assert node.heard() == [wire.JoinReadFrame(ONE), wire.JoinReadFrame(TWO)]
    node.mailbox.take(node.mailbox.inbox)
    node.says(TWO)
    assert next(node.pipe).sender == TWO
