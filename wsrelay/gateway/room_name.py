"""The name of the room that a URL names."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote, unquote_to_bytes

from wsrelay.relay.asgi import Scope

__all__ = ["room_name"]

_ESCAPE: Final = re.compile("%(?=[0-9A-Fa-f]{2})")
_UNDECODED: Final = re.compile("[\udc80-\udcff]")


def room_name(scope: Scope, path: str) -> str | None:
    """Return the room that a request's URL names below `path`, or None if it names none.

    The name is decoded, except for what would merge two rooms into one: an encoded slash, bytes
    that are not UTF-8, and a percent sign that looks like the start of an escape stay encoded.
    """
    asked = _decoded(scope).removeprefix(scope.get("root_path", ""))
    if asked == path:
        return ""
    return asked.removeprefix(f"{path}/") if asked.startswith(f"{path}/") else None


def _decoded(scope: Scope) -> str:
    path: str = scope["path"]
    raw = (scope.get("raw_path") or b"").partition(b"?")[0].decode("latin-1")
    if unquote(raw) != path:  # the server gives none, or something has changed the path
        raw = quote(path)
    return "/".join(map(_segment, raw.split("/")))


def _segment(raw: str) -> str:
    text = unquote_to_bytes(raw).decode(errors="surrogateescape")
    text = _ESCAPE.sub("%25", text).replace("/", "%2F")
    return _UNDECODED.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)
