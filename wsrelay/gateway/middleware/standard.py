"""The relay itself, and what Starlette has: CORS and compression."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from wsrelay.node import Node
from wsrelay.relay.asgi import App
from wsrelay.relay.middleware import WebSocketRelay
from wsrelay.relay.origins import Origins
from wsrelay.relay.outbox import Overflow

from .options import Duration, Names, Options, Size

__all__ = ["CORSOptions", "CompressOptions", "RelayOptions", "compress", "cors", "relay"]


def _origins(text: str) -> str:
    Origins(text)  # raises ValueError
    return text


def _overflow(text: str) -> str:
    if text not in list(Overflow):
        raise ValueError(f"must be one of {', '.join(Overflow)}, not {text!r}")
    return text


class RelayOptions(Options):
    """`wsrelay.allowed.origins`, `wsrelay.outbox.limit`, `.overflow` and `wsrelay.linger`."""

    allowed_origins: Annotated[str, AfterValidator(_origins)] = ""
    outbox_limit: Size = 4 * 1024 * 1024
    outbox_overflow: Annotated[str, AfterValidator(_overflow)] = "close"
    linger: Duration = 2.0


def relay(app: App, options: RelayOptions, node: Node) -> App:
    """Relay upgrades (contract section 2)."""
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
    """Cross-origin requests of browsers (Fetch standard); WebSockets have origins instead."""

    allow_origins: Names = Field(default=[])
    allow_methods: Names = Field(default=["GET"])
    allow_headers: Names = Field(default=[])
    allow_credentials: bool = False
    expose_headers: Names = Field(default=[])
    max_age: Duration = 600.0


def cors(app: App, options: CORSOptions, _node: Node) -> App:
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
    """Responses of at least that size are compressed with gzip."""

    minimum_size: Size = 500
    level: int = Field(default=6, ge=1, le=9)


def compress(app: App, options: CompressOptions, _node: Node) -> App:
    """Compress HTTP responses."""
    return GZipMiddleware(app, minimum_size=options.minimum_size, compresslevel=options.level)
