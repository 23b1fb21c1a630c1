"""The client's own address, behind trusted proxies."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from wsrelay.node import Node
from wsrelay.relay.asgi import App, Receive, Scope, Send

from .options import Names, Options

__all__ = ["RealIPOptions", "real_ip"]

_UNIX: Final = "unix"
_PEER: Final = (_UNIX, 0)
"""The name of a Unix socket's peer while the trusted subnets are checked."""


def _subnets(names: list[str]) -> list[str]:
    for name in names:
        if name == _UNIX:
            continue
        try:
            ipaddress.ip_network(name)
        except ValueError as error:
            raise ValueError(
                f"{name!r} is neither a subnet like '10.0.0.0/8' nor 'unix': {error}"
            ) from None
    return names


class RealIPOptions(Options):
    """`trusted`: subnets of the proxies whose X-Forwarded-For and X-Forwarded-Proto count.

    `unix` stands for clients that connect over a Unix socket.
    """

    trusted: Annotated[Names, AfterValidator(_subnets)] = Field(min_length=1)


def real_ip(app: App, options: RealIPOptions, _node: Node | None) -> App:
    """Take client and scheme from the headers of trusted proxies only."""

    async def as_it_is(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("client") == _PEER:  # the proxy named no client
            scope["client"] = None
        await app(scope, receive, send)

    inside = ProxyHeadersMiddleware(as_it_is, options.trusted)  # type: ignore[arg-type]

    async def by_peer(scope: Scope, receive: Receive, send: Send) -> None:
        if _is_unix(scope):
            scope["client"] = _PEER
        await inside(scope, receive, send)  # type: ignore[arg-type]

    return by_peer


def _is_unix(scope: Scope) -> bool:
    """Whether the request came over a Unix socket: there the server has a path and no port."""
    server = scope.get("server")
    return not scope.get("client") and server is not None and server[1] is None
