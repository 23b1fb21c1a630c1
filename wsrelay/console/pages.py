"""The console over HTTP: its page, and the upgrade to the process behind it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from wsrelay.node import Node
from wsrelay.relay.asgi import App
from wsrelay.relay.middleware import WebSocketRelay
from wsrelay.relay.response import RelayResponse
from wsrelay.relay.static import static

__all__ = ["HEADERS", "VIEW", "app", "pages"]

VIEW: Final = "wsrelay.console.view:ConsoleView"
"""The target that is started for each page."""

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
"""They keep whatever the names and logs of processes say from running as code."""


_TYPES: Final = {"css": "text/css", "html": "text/html", "js": "text/javascript"}


def app(node: Node, *, write: bool = False, host: str | None = None) -> App:
    """Return the console of one node as an ASGI application, to be mounted in another one.

    With `write`, it can send messages to processes and end them. Who may open it is for the
    application to decide, by middleware around it, for example. Each open page has a process, on
    the process host `host` of the node (None: its first one), which must be able to reach the
    node's control socket. The application's own `WebSocketRelay` serves it; where there is none
    around it, it has one itself.
    """

    def arguments() -> tuple[str | None, str]:
        path = node.control_path
        return None if path is None else str(path), "this node has no control socket"

    return WebSocketRelay(pages(arguments, write=write, host=host), node=node, native=False)


def pages(
    only: Callable[[], tuple[str | None, str]] | None, *, write: bool, host: str | None = None
) -> Starlette:
    """Return what serves the page; to be put inside a `WebSocketRelay`.

    `only` returns the control socket of the one node to show, or None and why there is none; if it
    is None itself, all nodes of this user are shown.
    """

    async def live(_: Request) -> Response:
        path = None
        if only is not None:
            path, problem = only()
            if path is None:
                return PlainTextResponse(f"{problem}\n", 503)
        return RelayResponse(target=VIEW, args=[path, write], host=host)

    return Starlette(
        routes=[
            Route("/", _file),
            Route("/live", live),
            *(Route(f"/{name}", _file) for name in _files()),
            Mount("/", static),
        ]
    )


async def _file(request: Request) -> Response:
    content, tag, kind = _files()[request.url.path.rpartition("/")[2] or "index.html"]
    headers = {**HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


@functools.cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Return the files of the page: what is in each, its tag, and its type."""
    found = {}
    for file in files(__package__).joinpath("page").iterdir():
        content = file.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[file.name] = content, tag, _TYPES[file.name.rpartition(".")[2]]
    return found
