"""An assistant that streams its answer word by word, can be stopped, and uses a program as a tool.

    wsrelay run handlers/agent.py:Agent --static handlers/pages/agent

Ask it for `calendar 2026 11`. In place of `answer`, put the stream of your own model.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator

import msgspec

from wsrelay import on
from wsrelay.aio import Client, Room

PACE = 0.05


class Ask(msgspec.Struct, tag="ask"):
    """A question; it ends the answer to the one before."""

    text: str


class Stop(msgspec.Struct, tag="stop"):
    """Enough of this answer."""


class Agent(Room):
    """A conversation: each client has a process of its own."""

    async def on_start(self) -> None:
        self.answering: asyncio.Task[None] | None = None

    @on(Ask)
    async def ask(self, client: Client, message: Ask) -> None:
        await self.stop(client, Stop())
        self.answering = self.start_soon(stream(client, message.text))

    @on(Stop)
    async def stop(self, client: Client, message: Stop) -> None:
        if self.answering is not None:
            self.answering.cancel()
            await asyncio.wait([self.answering])


async def stream(client: Client, question: str) -> None:
    """Send the answer as it comes, and how it ended."""
    try:
        async for token in answer(question):
            await client.send_json({"type": "token", "text": token})
    except asyncio.CancelledError:
        await client.send_json({"type": "end", "how": "stopped"})
        raise
    await client.send_json({"type": "end", "how": "done"})


async def answer(question: str) -> AsyncIterator[str]:
    """Yield the tokens of the answer; this one knows calendars, and repeats all other words."""
    if (asked := re.fullmatch(r"calendar (\d{1,4}) (\d{1,2})", question.strip())) is not None:
        yield "Here it is:\n"
        yield await tool("calendar", *asked.groups())
        return
    for word in ("You", "said:", *question.split()):
        await asyncio.sleep(PACE)  # as a model takes its time
        yield f"{word} "


async def tool(module: str, *arguments: str) -> str:
    """Run a program of the standard library; it ends with this task, and with the process."""
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await program.communicate()
    except asyncio.CancelledError:
        program.kill()
        await program.wait()
        raise
    return output.decode()
