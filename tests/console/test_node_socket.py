"""Requests to a control socket, and what may be at its other end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from made_up import answering

from wsrelay.console.node_socket import NodeAway, NodeRefuses, NodeSocket, UnknownRoute

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def saying(path: Path, *parts: bytes, stays: bool = False) -> AsyncIterator[NodeSocket]:
    """A socket that says this, whatever it is asked."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.partition(b"Content-Length: ")[2]))
        writer.write(b"".join(parts))
        if stays:
            await over.wait()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield NodeSocket(str(path))
    finally:
        over.set()
        server.close()
        path.unlink()


async def test_what_is_asked_for_arrives_with_its_query(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", lambda path, query: [path, query]) as asked:
        found = await NodeSocket(str(tmp_path / "s")).get("/x", after="{a@b|c}", node="ä &")
        assert found == ["/x", {"after": "{a@b|c}", "node": "ä &"}]
        assert asked == ["/x?after=%7Ba%40b%7Cc%7D&node=%C3%A4+%26"]


async def test_a_node_that_has_ended_is_away_for_good(tmp_path: Path) -> None:
    with pytest.raises(NodeAway, match="it has ended") as missing:
        await NodeSocket(str(tmp_path / "s")).get("/node")
    assert missing.value.is_over
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(NodeAway) as refused:
            await NodeSocket(str(tmp_path / "s")).get("/node")
    assert refused.value.is_over


async def test_a_node_that_does_not_answer_is_away_for_now(tmp_path: Path) -> None:
    async with saying(tmp_path / "s", b"HTTP/1.1 200 OK\r\n", stays=True) as node:
        with pytest.raises(NodeAway, match=r"does not answer within 0\.05 s") as silent:
            await node.get("/node", 0.05)
    assert not silent.value.is_over


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b'HTTP/1.1 200 OK\r\n\r\n{"a":'])
async def test_a_node_that_ends_amid_an_answer_has_ended(tmp_path: Path, said: bytes) -> None:
    async with saying(tmp_path / "s", said) as node:
        with pytest.raises(NodeAway) as error:
            await node.get("/node")
    assert error.value.is_over


async def test_a_refusal_has_the_words_of_the_node(tmp_path: Path) -> None:
    said = b'HTTP/1.1 404 Not Found\r\nx: y\r\n\r\n{"error": "node local has no process \'x\'"}'
    async with saying(tmp_path / "s", said) as node:
        with pytest.raises(NodeRefuses, match="node local has no process 'x'"):
            await node.post("/kill", {"to": "x"})
    async with saying(tmp_path / "s", b"HTTP/1.1 500 Oh\r\n\r\nInternal Server Error") as node:
        with pytest.raises(NodeRefuses, match="it answers with 500"):
            await node.get("/node")


async def test_a_route_that_an_older_node_does_not_have_is_unknown(tmp_path: Path) -> None:
    async with saying(tmp_path / "s", b"HTTP/1.1 404 Not Found\r\n\r\nNot Found") as node:
        with pytest.raises(UnknownRoute, match="not known to this node"):
            await node.get("/ends")


async def test_lines_come_one_by_one_until_the_node_ends(tmp_path: Path) -> None:
    said = b'HTTP/1.1 200 OK\r\n\r\n{"a":1}\n{"a":2}\n'
    async with saying(tmp_path / "s", said) as node:
        assert [line async for line in node.lines("/logs")] == [{"a": 1}, {"a": 2}]
