"""A console in the tests' own process, and a page without a browser that talks to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import httpx
from support import TIMEOUT, client, fronted
from websockets.asyncio.client import ClientConnection

from wsrelay import Node
from wsrelay.console.merge_patch import patched
from wsrelay.console.standalone import standalone


class Console:
    """Its address, its token, and how one gets in."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        self.socket = f"{url.replace('http', 'ws', 1)}/live"

    async def cookie(self) -> str:
        """Visit the address with its token; gives the cookie."""
        async with httpx.AsyncClient(trust_env=False) as browser:
            answer = await browser.get(f"{self.url}/?token={self.token}")
        return answer.headers["set-cookie"].partition(";")[0]


@contextlib.asynccontextmanager
async def console_on(node: Node, *, write: bool = False) -> AsyncIterator[Console]:
    """A console whose pages' processes run on this node."""
    port: list[int] = [0]
    app, token = standalone(node, 0, write=write)
    async with fronted(app) as (_, url):
        port[0] = int(url.rpartition(":")[2])
        yield Console(url.replace("ws", "http", 1), token)


class Viewer:
    """What a page does: it looks, and keeps what it is told up to date."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.state: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        self._looks = 0
        self._asked = 0
        self._answers: dict[int, dict[str, Any]] = {}

    async def look(self, page: str, **query: Any) -> Self:
        self._looks += 1
        await self.send({"type": "look", "number": self._looks, "page": page, **query})
        return self

    async def send(self, message: Any) -> None:
        await self.websocket.send(json.dumps(message))

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Ask for something; gives the answer."""
        self._asked += 1
        number = self._asked
        await self.send({**message, "id": number})
        await self._read(lambda: number in self._answers)
        return self._answers.pop(number)

    async def sees(self, condition: Callable[[dict[str, Any]], Any]) -> Any:
        """Read until what is visible now meets the condition, and return that."""

        def met() -> Any:
            return self.state.get("look") == self._looks and condition(self.state)

        return await self._read(met)

    async def hears(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Read until a line of the log or trace meets the condition, and return it."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self.lines if condition(line)), None)

        return await self._read(found)  # type: ignore[no-any-return]

    async def _read(self, met: Callable[[], Any]) -> Any:
        async with asyncio.timeout(TIMEOUT):
            while not (result := met()):
                self._take(await self.websocket.recv())
        return result

    def _take(self, text: str | bytes) -> None:
        message = json.loads(text)
        match message["type"]:
            case "state":
                self.sizes.append(len(text))
                self.state = patched(self.state, message["patch"])
            case "lines":
                if "first" in message:
                    self.lines.clear()
                self.lines += message.get("log", []) + message.get("trace", [])
            case "answer":
                self._answers[message["id"]] = message
            case "error":
                raise AssertionError(message["error"])


@contextlib.asynccontextmanager
async def viewing(console: Console) -> AsyncIterator[Viewer]:
    cookie = await console.cookie()
    async with client(console.socket, additional_headers={"Cookie": cookie}) as websocket:
        yield Viewer(websocket)


def named(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of the table by name."""
    return {row.get("name", row.get("client")): row for row in state["table"]["rows"].values()}
