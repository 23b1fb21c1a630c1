"""A client that writes any bytes, and a process that tells what it got."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ssl
import struct
import termios
from collections.abc import AsyncIterator
from typing import NamedTuple

from support import Journal, until

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

REQUEST = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def frame(
    opcode: int, data: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0
) -> bytes:
    """A frame with the shortest length encoding (section 5.2)."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    mask = 0x80 if masked else 0
    if len(data) < 126:
        head += bytes([mask | len(data)])
    elif len(data) < 65536:
        head += struct.pack(">BH", mask | 126, len(data))
    else:
        head += struct.pack(">BQ", mask | 127, len(data))
    if not masked:
        return head + data
    key = b"\x37\xfa\x21\x3d"
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(data))


def close(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, struct.pack(">H", code) + reason.encode())


class Frame(NamedTuple):
    opcode: int
    data: bytes


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of a response."""
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def frame(self) -> Frame:
        """The next frame, which must be whole and unmasked."""
        async with asyncio.timeout(10):
            first, second = await self.reader.readexactly(2)
            assert first & 0xF0 == 0x80, "FIN and no reserved bit"
            assert not second & 0x80, "a server masks nothing"
            size = second
            if second == 126:
                [size] = struct.unpack(">H", await self.reader.readexactly(2))
            elif second == 127:
                [size] = struct.unpack(">Q", await self.reader.readexactly(8))
            return Frame(first & 0x0F, await self.reader.readexactly(size))

    async def closing(self) -> int | None:
        """The code of the close frame, behind which there must be nothing."""
        answer = await self.frame()
        assert answer.opcode == CLOSE
        self.writer.write_eof()
        async with asyncio.timeout(10):
            assert await self.reader.read() == b""
        return struct.unpack(">H", answer.data[:2])[0] if answer.data else None

    async def rest(self) -> bytes:
        """What comes until the server ends its side."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def says_more(self) -> bool:
        """Whether anything comes, or the end, while the server has taken all that was sent."""
        async with asyncio.timeout(10):
            await self.writer.drain()
            sock = self.writer.get_extra_info("socket")

            def unsent() -> object:
                return fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))

            await until(lambda: unsent() == bytes(4), "the server's machine has all of it")
        more = asyncio.ensure_future(self.reader.read(1))
        for _ in range(10):  # turns of the event loop that the server shares
            await asyncio.sleep(0)
        said = more.done()
        more.cancel()
        await asyncio.wait({more})
        return said

    async def fails(self, code: int) -> None:
        """Expect the server to fail the connection (section 7.1.7)."""
        assert await self.closing() == code


class Place(NamedTuple):
    """A server and what its process has seen."""

    url: str
    journal: Journal
    context: ssl.SSLContext | None = None

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        host, port = self.url.removeprefix("ws://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=self.context)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Client]:
        async with self.connected() as client:
            client.send(request())
            status, _ = await client.head()
            assert status == 101
            yield client

    async def left(self) -> tuple[int, str]:
        """What the process was told of the client's end."""
        line = await self.journal.line("ws.leave")
        return line["payload"]["code"], line["payload"]["reason"]


def request(method: str = "GET", version: str = "1.1", **changes: str | None) -> bytes:
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    headers = {**REQUEST, **changed}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} /chat HTTP/{version}", *lines, "", ""]).encode()
