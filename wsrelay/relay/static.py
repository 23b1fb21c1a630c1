"""`wsrelay.static`: serves what pages take from wsrelay, the module and the style sheet."""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocketClose

from .asgi import Receive, Scope, Send

__all__ = ["MEDIA_TYPES", "PageFiles", "static"]

# What the system's table of types says does not count: browsers take nothing else for a module.
MEDIA_TYPES: Final = {"wsrelay.js": "text/javascript", "wsrelay.css": "text/css"}


class PageFiles:
    """An ASGI application that serves `wsrelay.js` and `wsrelay.css` at all paths that end so.

    So it can be a route, `Route("/wsrelay.js", wsrelay.static)`, or be mounted,
    `app.mount("/static", wsrelay.static)`. Browsers ask each time whether there is a new version,
    which costs no transfer as long as there is none.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        elif scope["type"] == "http":
            await _answer(scope)(scope, receive, send)


def _answer(scope: Scope) -> Response:
    # A mount leaves a slash behind when its own path is asked for.
    name = scope["path"].rstrip("/").rpartition("/")[2]
    if name not in MEDIA_TYPES:
        return PlainTextResponse("Not Found\n", 404)
    if scope["method"] not in ("GET", "HEAD"):
        return PlainTextResponse("Method Not Allowed\n", 405, {"allow": "GET, HEAD"})
    source, tag = _source(name)
    headers = {"etag": tag, "cache-control": "no-cache"}
    known = Headers(scope=scope).get("if-none-match", "")
    if {"*", tag} & {one.strip().removeprefix("W/") for one in known.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(source, headers=headers, media_type=MEDIA_TYPES[name])


@functools.cache
def _source(name: str) -> tuple[bytes, str]:
    source = files(__package__).joinpath(name).read_bytes()
    return source, f'"{hashlib.sha256(source).hexdigest()[:16]}"'


static: Final = PageFiles()
