"""The relay itself, and Starlette's CORS and compression."""

from __future__ import annotations

from pydantic import Field
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from wsrelay.node import Node
from wsrelay.relay.asgi import App
from wsrelay.relay.middleware import WebSocketRelay

from .options import Duration, Names, Options, Size

__all__ = ["CORSOptions", "CompressOptions", "RelayOptions", "compress", "cors", "relay"]


class RelayOptions(Options):
    """`wsrelay.allowed.origins`, `wsrelay.outbox.limit`, `.overflow` and `wsrelay.linger`.

    Their values are described in `WebSocketRelay`.
    """

    allowed_origins: str = ""
    outbox_limit: Size = 4 * 1024 * 1024
    outbox_overflow: str = "close"
    linger: Duration = 2.0


def relay(app: App, options: RelayOptions, node: Node | None) -> App:
    """Relay upgrades."""
    return WebSocketRelay(
        app,
        node=node,
        allowed_origins=options.allowed_origins,
        outbox_limit=options.outbox_limit,
        outbox_overflow=options.outbox_overflow,
        linger=options.linger,
        native=False,
    )


class CORSOptions(Options):
    """Cross-origin requests of browsers (Fetch standard); for WebSockets see `RelayOptions`."""

    allow_origins: Names = Field(default=[])
    allow_methods: Names = Field(default=["GET"])
    allow_headers: Names = Field(default=[])
    allow_credentials: bool = False
    expose_headers: Names = Field(default=[])
    max_age: Duration = 600.0


def cors(app: App, options: CORSOptions, _node: Node | None) -> App:
    """Answer preflight requests and add the headers."""
    return CORSMiddleware(
        app,
        allow_origins=options.allow_origins,
        allow_methods=options.allow_methods,
        allow_headers=options.allow_headers,
        allow_credentials=options.allow_credentials,
        expose_headers=options.expose_headers,
        max_age=round(options.max_age),
    )


class CompressOptions(Options):
    """Responses of at least `minimum_size` are compressed with gzip."""

    minimum_size: Size = 500
    level: int = Field(default=6, ge=1, le=9)


def compress(app: App, options: CompressOptions, _node: Node | None) -> App:
    """Compress HTTP responses."""
    return GZipMiddleware(app, minimum_size=options.minimum_size, compresslevel=options.level)
