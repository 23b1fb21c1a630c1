"""What hostile workers make the node decode: each attempt is refused or bounded."""

from __future__ import annotations

import asyncio
import struct
import tracemalloc
import typing
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
import psutil
import pytest
import rooms
from hostile import next_one, own_pipe
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from one_node import left_as_found
from support import client, end_of, received, relay_to, room, serving, until, value_of

from wsrelay import ExitKind, Node, Result, WebSocketRelay, process, wire
from wsrelay.errors import WireError
from wsrelay.session import command
from wsrelay.values.pid import LONGEST
from wsrelay.wire import payload

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


KB = 1024
MB = 1024 * 1024

KINDS: list[type[wire.Frame]] = list(typing.get_args(wire.FromWorker))
named = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def bomb(elements: int) -> bytes:
    """Many empty arrays in one: a byte each, and 56 and a pointer once they are decoded."""
    return b"\xdd" + struct.pack(">I", elements) + b"\x90" * elements


def unbounded(kind: Any) -> list[str]:
    """What in a field's type has no bound of its own."""
    if kind in (int, float, bool, bytes, Raw, type(None)) or typing.get_origin(kind) is Literal:
        return []  # numbers have 64 bits, bytes are not decoded
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        inner, meta = arguments
        rest = unbounded(*typing.get_args(inner)) if typing.get_origin(inner) is list else []
        return rest if meta.max_length else [str(kind)]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [why for field in msgspec.structs.fields(kind) for why in unbounded(field.type)]
    if kind is ExitKind:
        return []
    if arguments and origin is not dict and origin is not list:
        return [why for argument in arguments for why in unbounded(argument)]
    return [str(kind)]


@named
def test_all_that_the_node_decodes_of_a_frame_is_bounded_in_its_type(
    kind: type[wire.Frame],
) -> None:
    assert [why for field in msgspec.structs.fields(kind) for why in unbounded(field.type)] == []


@pytest.mark.parametrize("kind", [str, Any, list[str], dict[str, int], str | None])
def test_types_without_a_bound_are_found(kind: Any) -> None:
    assert unbounded(kind)


def plain(kind: Any, filler: Any) -> Any:
    """The parts of a frame as plain data, each text and list in it the filler."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return filler
    if isinstance(kind, type) and issubclass(kind, wire.Frame):
        parts = [plain(field.type, filler) for field in msgspec.structs.fields(kind)]
        return [kind.__struct_config__.tag, *parts]
    if kind is wire.WorkerError:
        return {"kind": "error", "message": filler, "traceback": filler}
    if origin is Literal:
        return arguments[0]
    if arguments:
        return plain(arguments[0], filler)
    return {int: 1, float: 1.0, bool: True, bytes: b"", Raw: {}}[kind]


@named
@pytest.mark.parametrize(
    "filler",
    ["x" * 3 * MB, "\U0001f600" * MB, [""] * 3 * MB, [[]] * 3 * MB, ["{local@x|1}"] * 300_000],
    ids=["text", "wide text", "texts", "arrays", "receivers"],
)
def test_a_frame_that_is_much_once_it_is_decoded_is_refused_before(
    kind: type[wire.Frame], filler: Any
) -> None:
    body = msgspec.msgpack.encode(plain(kind, filler))
    if len(body) < MB:
        return  # it has nothing that could be much
    data = len(body).to_bytes(4, "big") + body
    reader = wire.from_worker()
    del body, filler
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            reader.feed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(data) + MB, "there are its bytes, a copy of them, and nothing else"


@pytest.mark.parametrize("size", [10, 50 * KB, 5 * MB])
def test_a_payload_is_not_looked_at_on_its_way(size: int) -> None:
    for content in (bomb(size), b"\x91" * size, b"\xc1" * size):
        frame = wire.SendFrame("somebody", "topic", content)
        [(read, _)] = wire.from_worker().feed(wire.pack(frame))
        assert read == frame


DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.datetimes()
    | st.text() | st.binary()
    | st.sampled_from([0, 1, 31, 32, 255, 256, 65535, 65536]).map(bytes)
    | st.sampled_from([0, 31, 32, 255, 256, 65535, 65536]).map(lambda size: "x" * size),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)  # fmt: skip


def count(data: Any) -> tuple[int, int]:
    """Elements, and bytes of bytes objects."""
    if isinstance(data, bytes):
        return 1, len(data)
    inner = data if isinstance(data, list) else []
    if isinstance(data, dict):
        inner = [*data.keys(), *data.values()]
    counts = [count(one) for one in inner]
    return 1 + sum(elements for elements, _ in counts), sum(size for _, size in counts)


@settings(deadline=None, max_examples=60)
@given(DATA)
def test_the_size_of_what_is_decoded_is_known_before(data: Any) -> None:
    packed = payload.pack(data)
    elements, size = count(data)
    assert payload.size_to_decode(packed, elements) == len(packed) - size
    with pytest.raises(ValueError, match="more than"):
        payload.size_to_decode(packed, elements - 1)


@given(st.binary(max_size=30))
def test_the_size_of_any_bytes_is_told(data: bytes) -> None:
    assert payload.size_to_decode(data, 30) >= 0


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_payload_is_decoded_for_a_client_up_to_a_million_elements(beyond: int) -> None:
    content = (
        b"\xdd"
        + struct.pack(">I", payload.MOST_ELEMENTS - 1 + beyond)
        + b"\1" * (payload.MOST_ELEMENTS - 1 + beyond)
    )
    parsed = command.parse("news", content)
    if beyond:
        assert parsed == command.InvalidCommand("news", "it has more than 1,048,576 elements")
    else:
        assert isinstance(parsed, command.SendCommand)


@pytest.mark.parametrize("topic", ["ws.control", "ws.close"])
def test_an_order_to_a_connection_has_256_kilobytes_and_16384_elements_at_most(topic: str) -> None:
    key = {"ws.control": "message_topic", "ws.close": "reason"}[topic]
    content = payload.pack({key: "x" * 256 * 1024})
    assert command.parse(topic, content) == command.InvalidCommand(
        topic,
        f"it has {len(content)} bytes, at most 262144 are allowed; let the process itself keep "
        "larger data, by client_pid",
    )
    many = payload.pack({"metadata": {"all": [[]] * 16_384}})
    assert command.parse(topic, many) == command.InvalidCommand(
        topic, "it has more than 16,384 elements"
    )


def test_a_message_topic_has_at_most_a_thousand_characters() -> None:
    parsed = command.parse("ws.control", payload.pack({"message_topic": "x" * (LONGEST + 1)}))
    assert parsed == command.InvalidCommand(
        "ws.control", "message_topic has 1001 characters, at most 1000 are allowed"
    )


def send_bomb(to: str) -> str:
    process.send(to, "news", [[]] * 5_000_000)
    error: str = process.inbox().receive(20).payload["error"]
    return error


async def test_five_megabytes_of_empty_arrays_for_a_client_stay_that_in_the_node(
    node: Node,
) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url, client(url) as websocket:
        [to] = await until(lambda: list(node.connections))
        before = psutil.Process().memory_info().rss
        peak = before

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, psutil.Process().memory_info().rss)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        said = await value_of(node, send_bomb, str(to))
        watching.cancel()
        assert said == "it has more than 1,048,576 elements"
        assert peak - before < 64 * MB, "it was 388 MB"
        await websocket.send("still here")
        assert await received(websocket) == "still here"


@pytest.mark.parametrize("value", [b"\xc1", b"\x91" * 5000, b"", b"\xc7\x01\x05x"])
async def test_a_result_that_is_no_data_is_none_where_it_is_read(node: Node, value: bytes) -> None:
    assert await value_of(node, watch_one_who_says, value) == repr(Result(None))


def watch_one_who_says(value: bytes) -> str:
    def hostile(value: bytes) -> None:
        import os  # noqa: PLC0415 - it travels by value

        own_pipe().write(wire.DoneFrame(value, None, 0, []))
        os._exit(0)

    process.spawn_monitored(hostile, None, value)
    return repr(process.events().receive(20).result)


def send_past_payload(to: str, content: bytes) -> None:
    own_pipe().write(wire.SendFrame(to, "odd", content))
    process.send(to, "right", "data")


@pytest.mark.parametrize("content", [b"\xc1", b"\1\2", b"\x91" * 5000, b""])
async def test_a_payload_that_is_no_data_harms_neither_node_nor_receiver(
    node: Node, content: bytes
) -> None:
    results: list[Result] = []
    to = node.spawn(next_one)
    node.when_ended(to, results.append)
    assert (await end_of(node, send_past_payload, to, content)).error is None
    await until(lambda: results, "the receiver has ended")
    assert results == [Result("data")]
