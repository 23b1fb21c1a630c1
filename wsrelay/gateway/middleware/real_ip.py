"""The client's own address behind proxies that are trusted."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from wsrelay.node import Node
from wsrelay.relay.asgi import App

from .options import Names, Options

__all__ = ["RealIPOptions", "real_ip"]


def _subnets(names: list[str]) -> list[str]:
    for name in names:
        try:
            ipaddress.ip_network(name)
        except ValueError as error:
            raise ValueError(f"{name!r} is no subnet like '10.0.0.0/8': {error}") from None
    return names


class RealIPOptions(Options):
    """`trusted`: subnets of the proxies whose X-Forwarded-For and X-Forwarded-Proto count."""

    trusted: Annotated[Names, AfterValidator(_subnets)] = Field(min_length=1)


def real_ip(app: App, options: RealIPOptions, _node: Node) -> App:
    """Take client and scheme from the headers of trusted proxies, from nobody else's."""
    return ProxyHeadersMiddleware(app, options.trusted)  # type: ignore[arg-type, return-value]
