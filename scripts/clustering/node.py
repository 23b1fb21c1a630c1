"""One node of the cluster, with the chat."""

from __future__ import annotations

import asyncio
import re
import sys

from wsrelay.cli.running import say

from .program import Program, StartError

__all__ = ["ChatNode"]

_CHAT = ["handlers/chat.py:Chat", "--scope", "room", "--path", "/ws/rooms"]
_PAGE = ["--static", "handlers/pages/chat"]

_ADDRESS = re.compile(r"Open (http://\S+)")
"""What a node says when it serves."""


class ChatNode(Program):
    """A node on a port of the loopback interface (0: a free one) with the cluster's NATS.

    What it says is shown with its name in front.
    """

    def __init__(self, name: str, nats: str, port: int) -> None:
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        command = [sys.executable, "-m", "wsrelay", "run", *_CHAT, *_PAGE, "--port", str(port)]
        super().__init__(name, [*command, "--cluster", nats, "--node", name], self._show)

    async def serving(self) -> str:
        """Start it and wait until it serves; returns its address. Raises `StartError`."""
        await self.start()
        ended = asyncio.create_task(self.ended())
        try:
            await asyncio.wait([self._address, ended], return_when=asyncio.FIRST_COMPLETED)
            if self._address.done():
                return self._address.result()
            raise StartError(f"{self.name} did not start: {ended.result()}")
        finally:
            ended.cancel()

    def _show(self, line: str) -> None:
        say(f"{self.name} | {line}")
        if (found := _ADDRESS.search(line)) is not None and not self._address.done():
            self._address.set_result(found[1])
