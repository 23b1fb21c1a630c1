"""`wsrelay connect`: an interactive WebSocket client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import click
from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.formatted_text import (
    ANSI,
    AnyFormattedText,
    FormattedText,
    merge_formatted_text,
)
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.patch_stdout import patch_stdout
from rich.console import Console
from rich.json import JSON
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.typing import Origin, Subprotocol
from websockets.uri import parse_uri

from wsrelay.values import durations
from wsrelay.values.printable import escaped

from . import orders
from .options import parsed
from .running import fail

__all__ = ["connect"]

_SHOWN: Final = 64
"""Bytes of a binary message that are printed."""

_PRETTY: Final = 64 * 1024
"""Characters of JSON that are still formatted and coloured; more would hold up the prompt."""

_AHEAD: Final = 64
"""Lines of standard input that are read ahead of those already sent."""

_PATIENCE: Final = 10.0
"""Seconds that `/ping` waits for its pong."""

_NORMAL: Final = (1000, 1001, 1005)

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token (RFC 9110, section 5.6.2), as the names of headers and subprotocols are."""


def _url(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    """Complete `:8000/ws`, `host:8000/ws` and `http://...`, which can only mean one thing."""
    if "://" not in text:
        text = f"ws://{'127.0.0.1' if text.startswith(':') else ''}{text}"
    text = re.sub(r"^http(s?)://", r"ws\1://", text, flags=re.IGNORECASE)
    try:
        parse_uri(text)
    except (InvalidURI, ValueError) as error:
        why = error.msg if isinstance(error, InvalidURI) else str(error)
        raise click.BadParameter(
            f"{text!r} is not a WebSocket URL ({why}); write it like ws://host:port/path"
        ) from None
    return text


def _headers(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> list[tuple[str, str]]:
    headers = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(r"[\r\n\0]", value):
            raise click.BadParameter(f"{text!r} is not a header; write it like 'Name: value'")
        headers.append((name, value.strip()))
    return headers


def _tokens(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> list[Subprotocol]:
    for text in given:
        if not _TOKEN.fullmatch(text):
            raise click.BadParameter(f"{text!r} is not a subprotocol; use a name without spaces")
    return [Subprotocol(text) for text in given]


@click.command()
@click.argument("url", callback=_url)
@click.option("--origin", help="The Origin header, as a browser would send it.")
@click.option("-H", "--header", "headers", multiple=True, callback=_headers, metavar="NAME: VALUE")
@click.option(
    "--subprotocol",
    "subprotocols",
    multiple=True,
    callback=_tokens,
    help="A subprotocol to offer; may be repeated.",
)
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option("--timeout", default="10s", show_default=True, callback=parsed(durations.parse))
@click.option(
    "--wait",
    default="500ms",
    show_default=True,
    callback=parsed(durations.parse),
    help="Without a terminal: close once the input has ended and nothing has come for this long.",
)
def connect(
    *,
    url: str,
    origin: str | None,
    headers: list[tuple[str, str]],
    subprotocols: list[Subprotocol],
    insecure: bool,
    timeout: float,
    wait: float,
) -> None:
    """Talk to a WebSocket: type lines, or /help for more. Lines may also come from a pipe."""
    options: dict[str, Any] = {
        "origin": None if origin is None else Origin(origin),
        "additional_headers": headers,
        "subprotocols": subprotocols or None,
        "open_timeout": timeout,
        "ping_timeout": None,  # a busy handler leaves our pings unread, for as long as it computes
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
    except InvalidStatus as error:
        fail(f"{url}: {_refused(error)}")
    except ConnectionRefusedError:
        fail(f"{url}: nobody is listening there; start something with 'wsrelay run TARGET'")
    except TimeoutError:
        fail(f"{url}: no answer in time (--timeout)")
    except ssl.SSLCertVerificationError as error:
        fail(f"{url}: {error.verify_message}; use --insecure to connect anyway")
    except (OSError, InvalidHandshake) as error:
        fail(f"{url}: {error}")
    async with websocket:
        if sys.stdin is not None and sys.stdin.isatty():
            await _interactive(url, websocket)
        else:
            try:
                await _piped(websocket, wait)
            except UnicodeDecodeError as error:
                fail(f"standard input is not UTF-8 text: {error}")
    code = websocket.close_code or 1006
    click.echo(f"wsrelay: {_closed(code, websocket.close_reason or '')}", err=True)
    ours = websocket.protocol.close_rcvd_then_sent is False
    return 0 if code in _NORMAL or (ours and code >= 3000) else 1  # noqa: PLR2004 - what a client may choose, RFC 6455 section 7.4.2


def _closed(code: int, reason: str) -> str:
    """Describe a close by its code, the code's name (RFC 6455, section 7.4.1) and the reason."""
    known = code in CloseCode.__members__.values()
    name = f" {CloseCode(code).name.lower().replace('_', ' ')}" if known else ""
    return f"closed with {code}{name}" + (f": {_printable(reason)}" if reason else "")


def _refused(error: InvalidStatus) -> str:
    response = error.response
    said = bytes(response.body or b"").decode(errors="replace").strip().partition("\n")[0]
    hint = "; is the path right, and the --origin allowed?" if response.status_code == 403 else ""  # noqa: PLR2004 - Forbidden
    return f"the upgrade was refused with {response.status_code} {_printable(said)}".rstrip() + hint


def _printable(text: str) -> str:
    """Replace the characters that a terminal would act on."""
    return "".join(character if character.isprintable() else "?" for character in text)


# With a terminal


async def _interactive(url: str, websocket: ClientConnection) -> None:
    session: PromptSession[str] = PromptSession("> ", history=_history())
    with patch_stdout():
        print_formatted_text(f"Connected to {url}. Type /help for help, Ctrl-D to close.")
        reader = asyncio.create_task(_show_all(websocket))
        try:
            while not reader.done():
                asking = asyncio.ensure_future(session.prompt_async())
                await asyncio.wait({asking, reader}, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    asking.cancel()
                    await asyncio.wait({asking})  # it restores the terminal
                    break
                try:
                    await _obey(asking.result(), websocket)
                except ValueError as error:
                    print_formatted_text(FormattedText([("ansired", str(error))]))
        except (EOFError, KeyboardInterrupt, ConnectionClosed):
            pass
        await websocket.close()
        await reader


def _history() -> History:
    """Return the history of typed lines, kept in a file that only its owner can read."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state", "wsrelay")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "connect_history"
        file.touch(mode=0o600)
        file.chmod(0o600)
    except (OSError, RuntimeError):  # a read-only folder, or a user without a home
        return InMemoryHistory()
    return FileHistory(str(file))


async def _obey(line: str, websocket: ClientConnection) -> None:
    """Do what a line says; raises `ValueError` if that is not possible."""
    if not line:
        return
    order = orders.parse(line)
    match order:
        case orders.Say():
            await websocket.send(order.data)
        case orders.Ping():
            try:
                latency = await asyncio.wait_for(await websocket.ping(), _PATIENCE)
            except TimeoutError:
                raise ValueError(f"no pong within {_PATIENCE:g} s") from None
            print_formatted_text(f"pong after {latency * 1000:.2f} ms")
        case orders.Bye():
            await websocket.close(order.code, order.reason)
        case orders.Help():
            print_formatted_text(orders.HELP)


async def _show_all(websocket: ClientConnection) -> None:
    mark = FormattedText([("ansicyan", "< ")])
    with contextlib.suppress(ConnectionClosed):
        async for message in websocket:
            print_formatted_text(merge_formatted_text([mark, _shown(message)]))


def _shown(message: str | bytes) -> AnyFormattedText:
    """Return a message as people read it: JSON indented and coloured, bytes in hexadecimal."""
    if isinstance(message, bytes):
        more = " ..." if len(message) > _SHOWN else ""
        return f"({len(message)} bytes) {message[:_SHOWN].hex(' ')}{more}"
    if message[:1] in ("{", "[") and len(message) <= _PRETTY:
        try:
            pretty = JSON(message)
        except (ValueError, RecursionError):
            return _harmless(message)
        console = Console(force_terminal=True, color_system="standard", soft_wrap=True)
        with console.capture() as capture:
            console.print(pretty)
        text = capture.get().rstrip("\n")  # its escape sequences are ours: JSON escapes its own
        return ANSI("".join(one if one < "\x7f" else escaped(one) for one in text))
    return _harmless(message)


def _harmless(message: str) -> str:
    """Escape the characters that a terminal would act on."""
    return "\n".join(map(escaped, message.expandtabs().split("\n")))


# Without a terminal


async def _piped(websocket: ClientConnection, wait: float) -> None:
    """Send each line of standard input as a text message, and print what comes."""
    loop = asyncio.get_running_loop()
    as_it_is = sys.stdout is None or not sys.stdout.isatty()  # a program reads it
    sending = asyncio.create_task(_send_lines(websocket))
    try:
        async with asyncio.timeout(None) as quiet:

            def wait_on(_: object = None) -> None:
                quiet.reschedule(loop.time() + wait)

            sending.add_done_callback(wait_on)
            try:
                async for message in websocket:
                    text = message if isinstance(message, str) else message.hex()
                    click.echo(text if as_it_is else _harmless(text), color=True)
                    if sending.done():
                        wait_on()
            finally:
                sending.remove_done_callback(wait_on)
    except (TimeoutError, ConnectionClosed):
        pass
    finally:
        sending.cancel()
    await websocket.close()
    with contextlib.suppress(asyncio.CancelledError):
        await sending


async def _send_lines(websocket: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        async for line in _lines():
            await websocket.send(line)


async def _lines() -> AsyncIterator[str]:
    """Yield the lines of standard input; raises `UnicodeDecodeError`."""
    if sys.stdin is None:
        return  # it was closed, and its descriptor may be the socket's by now
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | UnicodeDecodeError | None] = asyncio.Queue()
    room = threading.Semaphore(_AHEAD)

    def put(line: str | UnicodeDecodeError | None) -> None:
        room.acquire()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the line is no longer wanted
            loop.call_soon_threadsafe(lines.put_nowait, line)

    def read() -> None:
        # Not `sys.stdin`: the interpreter takes its lock at exit, while this is still reading.
        try:
            with open(0, encoding="utf-8", closefd=False) as stdin:
                for line in stdin:
                    put(line.rstrip("\n"))
            put(None)
        except UnicodeDecodeError as error:
            put(error)

    # The thread is not joined: the connection may end while the input is still open.
    threading.Thread(target=read, daemon=True).start()
    while (line := await lines.get()) is not None:
        room.release()
        if isinstance(line, UnicodeDecodeError):
            raise line
        yield line
