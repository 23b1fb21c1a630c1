"""What a line typed into `wsrelay connect` means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from msgspec import Struct

from wsrelay.values.spelling import nearest

__all__ = ["HELP", "Bye", "Help", "Order", "Ping", "Say", "parse"]

HELP: Final = """\
text                  send it as a text message (//text for text that begins with /)
/json {"a": 1}        check JSON and send it as a text message
/file PATH            send a file as a text message
/binary 00ff          send bytes, in hexadecimal
/binary @PATH         send a file as a binary message
/ping                 measure a round trip
/close [CODE [WHY]]   close the connection, with 1000 by default
/help                 print this list"""

_ORDERS: Final = ("json", "file", "binary", "ping", "close", "help")


class Say(Struct, frozen=True):
    """Send a message."""

    data: str | bytes


class Ping(Struct, frozen=True):
    """Send a ping and wait for its pong."""


class Bye(Struct, frozen=True):
    """Close the connection."""

    code: int = 1000
    reason: str = ""


class Help(Struct, frozen=True):
    """Print the help."""


Order = Say | Ping | Bye | Help


def parse(line: str) -> Order:
    """Return the order on a line; raises `ValueError`, which says what is wrong with it."""
    if not line.startswith("/") or line.startswith("//"):
        return Say(line.removeprefix("/") if line.startswith("//") else line)
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    order: Order
    match name:
        case "json":
            order = Say(_json(rest))
        case "file":
            order = Say(_read(rest).decode(errors="replace"))
        case "binary":
            order = Say(_read(rest[1:]) if rest.startswith("@") else _hex(rest))
        case "ping":
            order = Ping()
        case "close":
            order = _close(rest)
        case "help":
            order = Help()
        case _:
            hint = nearest(name, _ORDERS)
            raise ValueError(f"there is no /{name}; {hint} (//... sends text that begins with /)")
    return order


def _json(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text!r:.80} is not JSON: {error}") from None


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither hexadecimal like '00 ff' nor @PATH") from None


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, RuntimeError) as error:  # the latter for an unknown ~user
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path!r} cannot be read: {why}") from None


def _close(text: str) -> Bye:
    code, _, reason = text.partition(" ")
    if not code:
        return Bye()
    if not code.isdecimal() or not (int(code) == 1000 or 3000 <= int(code) <= 4999):  # noqa: PLR2004 - RFC 6455 section 7.4, as in browsers
        raise ValueError(f"{code!r} is not a client's close code: use 1000, or 3000 to 4999")
    if len(reason.encode()) > 123:  # noqa: PLR2004 - RFC 6455 section 5.5
        raise ValueError("a reason has at most 123 bytes")
    return Bye(int(code), reason)
