"""`wsrelay connect`: an interactive WebSocket client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import click
from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.patch_stdout import patch_stdout
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Origin, Subprotocol

from wsrelay import durations

from . import orders
from .running import fail

__all__ = ["connect"]

_SHOWN: Final = 64
"""Bytes of a binary message that are printed."""

_NORMAL: Final = (1000, 1001, 1005)


def _url(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    """Let `:8000/ws`, `host:8000/ws` and `http://...` mean what they can only mean."""
    if "://" not in text:
        text = f"ws://{'127.0.0.1' if text.startswith(':') else ''}{text}"
    text = re.sub(r"^http(s?)://", r"ws\1://", text)
    if not re.match(r"wss?://[^/]+", text):
        raise click.BadParameter(f"{text!r} is no WebSocket URL; it looks like ws://host:port/path")
    return text


def _headers(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> list[tuple[str, str]]:
    headers = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", name):
            raise click.BadParameter(f"{text!r} is no header; write it like 'Name: value'")
        headers.append((name, value.strip()))
    return headers


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return durations.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("url", callback=_url)
@click.option("--origin", help="The Origin header, as a browser would send it.")
@click.option("-H", "--header", "headers", multiple=True, callback=_headers, metavar="NAME: VALUE")
@click.option("--subprotocol", "subprotocols", multiple=True, help="Offer it; may be repeated.")
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option("--timeout", default="10s", show_default=True, callback=_seconds)
@click.option(
    "--wait",
    default="500ms",
    show_default=True,
    callback=_seconds,
    help="Without a terminal: how long to wait for a last message once the input has ended.",
)
def connect(
    *,
    url: str,
    origin: str | None,
    headers: list[tuple[str, str]],
    subprotocols: tuple[str, ...],
    insecure: bool,
    timeout: float,
    wait: float,
) -> None:
    """Talk to a WebSocket: type lines, /help tells more. Lines may also come from a pipe."""
    options: dict[str, Any] = {
        "origin": None if origin is None else Origin(origin),
        "additional_headers": headers,
        "subprotocols": [Subprotocol(name) for name in subprotocols] or None,
        "open_timeout": timeout,
        "compression": None,
        "max_size": None,
        "proxy": None,
    }
    if url.startswith("wss:"):
        context = ssl.create_default_context()
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        options["ssl"] = context
    try:
        sys.exit(asyncio.run(_talk(url, options, wait)))
    except KeyboardInterrupt:
        sys.exit(0)


async def _talk(url: str, options: dict[str, Any], wait: float) -> int:
    try:
        websocket = await open_websocket(url, **options)
    except InvalidURI as error:
        fail(str(error))
    except InvalidStatus as error:
        fail(f"{url}: {_refused(error)}")
    except ConnectionRefusedError:
        fail(f"{url}: nobody listens there; start something with 'wsrelay run TARGET'")
    except TimeoutError:
        fail(f"{url}: no answer in time (--timeout)")
    except (OSError, InvalidHandshake) as error:
        fail(f"{url}: {error}")
    async with websocket:
        if sys.stdin.isatty():
            await _interactive(url, websocket)
        else:
            await _piped(websocket, wait)
    code, reason = websocket.close_code or 1006, websocket.close_reason or ""
    closed = f"closed with {code} {reason}".rstrip()
    click.echo(f"wsrelay: {closed}", err=True)
    return 0 if code in _NORMAL else 1


def _refused(error: InvalidStatus) -> str:
    response = error.response
    said = bytes(response.body or b"").decode(errors="replace").strip().partition("\n")[0]
    hint = "; does --origin have to be set?" if response.status_code == 403 else ""  # noqa: PLR2004
    return f"the upgrade was refused with {response.status_code} {said}".rstrip() + hint


# With a terminal


async def _interactive(url: str, websocket: ClientConnection) -> None:
    history = _history()
    session: PromptSession[str] = PromptSession("> ", history=history)
    with patch_stdout():
        print_formatted_text(f"Connected to {url}. /help tells more, Ctrl-D closes.")
        reader = asyncio.create_task(_print_all(websocket, terminal=True))
        try:
            while not reader.done():
                asking = asyncio.ensure_future(session.prompt_async())
                await asyncio.wait({asking, reader}, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    asking.cancel()
                    break
                try:
                    await _obey(asking.result(), websocket)
                except ValueError as error:
                    print_formatted_text(FormattedText([("ansired", str(error))]))
        except (EOFError, KeyboardInterrupt, ConnectionClosed):
            pass
        await websocket.close()
        await reader


def _history() -> FileHistory:
    """Return the lines typed before, in a file that only its owner can read."""
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state", "wsrelay")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "connect_history"
    file.touch(mode=0o600)
    return FileHistory(str(file))


async def _obey(line: str, websocket: ClientConnection) -> None:
    """Do what a line says; raises `ValueError` for one that says nothing known."""
    if not line:
        return
    order = orders.parse(line)
    match order:
        case orders.Say():
            await websocket.send(order.data)
        case orders.Ping():
            latency = await (await websocket.ping())
            print_formatted_text(f"pong after {latency * 1000:.2f} ms")
        case orders.Bye():
            await websocket.close(order.code, order.reason)
        case orders.Help():
            print_formatted_text(orders.HELP)


async def _print_all(websocket: ClientConnection, *, terminal: bool) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for message in websocket:
            if terminal:
                print_formatted_text(FormattedText([("ansicyan", "< "), ("", _shown(message))]))
            else:
                click.echo(message if isinstance(message, str) else message.hex())


def _shown(message: str | bytes) -> str:
    """Write a message to be read: JSON spread over lines, bytes in hexadecimal."""
    if isinstance(message, bytes):
        more = " ..." if len(message) > _SHOWN else ""
        return f"({len(message)} bytes) {message[:_SHOWN].hex(' ')}{more}"
    if message[:1] in ("{", "["):
        try:
            return json.dumps(json.loads(message), indent=2, ensure_ascii=False)
        except ValueError:
            pass
    return message


# Without one


async def _piped(websocket: ClientConnection, wait: float) -> None:
    """Send each line of standard input as a text message, and print what comes."""
    reader = asyncio.create_task(_print_all(websocket, terminal=False))
    async for line in _lines():
        if reader.done():
            break
        try:
            await websocket.send(line)
        except ConnectionClosed:
            break
    await asyncio.wait({reader}, timeout=wait)
    await websocket.close()
    await reader


async def _lines() -> AsyncIterator[str]:
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield line.rstrip("\n")
