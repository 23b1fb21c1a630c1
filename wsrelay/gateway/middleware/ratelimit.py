"""A limit on each client's requests per interval."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from starlette.requests import HTTPConnection

from wsrelay.node import Node
from wsrelay.relay.asgi import App, Receive, Scope, Send
from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.values.bounds import MOST
from wsrelay.values.bucket import Bucket
from wsrelay.values.netblock import netblock
from wsrelay.values.numbers import Numbers
from wsrelay.values.printable import printable

from .options import Duration, Options
from .refusal import refuse

__all__ = ["Buckets", "RateLimit", "RateLimitOptions"]

logger = logging.getLogger(__name__)

_KEYS: Final = ("ip", "header:NAME", "query:NAME")

_LONGEST: Final = 256
"""Characters of a key that are significant."""


def _key(text: str) -> str:
    kind, _, name = text.partition(":")
    if text != "ip" and (kind not in ("header", "query") or not name):
        raise ValueError(f"must be one of {', '.join(_KEYS)}, not {text!r}")
    return text


def _interval(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than 0s")
    return seconds


class RateLimitOptions(Options):
    """`requests` per `interval` and client, `burst` at once (as many as requests by default)."""

    requests: int = Field(ge=1, le=MOST)
    interval: Annotated[Duration, AfterValidator(_interval)] = 1.0
    burst: int | None = Field(default=None, ge=1, le=MOST)
    key: Annotated[str, AfterValidator(_key)] = "ip"
    max_keys: int = Field(default=10_000, ge=1)


class Buckets:
    """Token buckets by key; of the keys beyond `most`, the least recently used are forgotten."""

    def __init__(self, rate: float, burst: int, most: int) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of buckets."""
        return len(self._buckets)

    def take(self, key: str, now: float) -> float:
        """Take a token and return 0, or the seconds until there is one."""
        bucket = self._buckets.pop(key, None) or Bucket(self._rate, self._burst, now)
        self._buckets[key] = bucket
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket.take(now)

    def has_room(self, key: str, now: float) -> bool:
        """Whether this key costs no other its bucket, except for a full one, which is like new."""
        if key in self._buckets or len(self._buckets) < self._most:
            return True
        return next(iter(self._buckets.values())).full(now)


class RateLimit:
    """Answers 429 to clients that request too often, upgrades included, before spawning anything.

    An address counts by its netblock. A key that a client chooses never displaces another: if all
    buckets are in use, the client's address counts instead.
    """

    def __init__(self, app: App, options: RateLimitOptions, numbers: Numbers | None = None) -> None:
        self._app = app
        self._numbers = numbers or Numbers()
        rate = options.requests / options.interval
        burst = options.burst or options.requests
        self._addresses = Buckets(rate, burst, options.max_keys)
        self._keys = Buckets(rate, burst, options.max_keys)
        self._most = options.max_keys
        self._kind, _, self._name = options.key.partition(":")
        self._crowded = RateLimitedLog(logger)

    @classmethod
    def build(cls, app: App, options: RateLimitOptions, node: Node | None) -> RateLimit:
        """Wrap an application."""
        return cls(app, options, None if node is None else node.numbers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        counts = scope["type"] in ("http", "websocket")
        if counts and (wait := self._take(HTTPConnection(scope), time.monotonic())):
            if scope["type"] == "websocket":
                self._numbers.refused["rate_limit"] += 1
            again = (b"retry-after", str(math.ceil(wait)).encode())
            await refuse(scope, receive, send, 429, again)
        else:
            await self._app(scope, receive, send)

    def _take(self, connection: HTTPConnection, now: float) -> float:
        host = connection.client.host if connection.client else ""
        if (key := self._key(connection)) is not None:
            if self._keys.has_room(key, now):
                return self._keys.take(key, now)
            self._crowded.warning(
                now,
                "%.80s: its address counts instead of its %s %s: %d others are in use "
                "(ratelimit.max.keys)",
                printable(host),
                self._kind,
                self._name,
                self._most,
            )
        return self._addresses.take(netblock(host)[:_LONGEST], now)

    def _key(self, connection: HTTPConnection) -> str | None:
        given: list[str] = []
        if self._kind == "header":
            given = connection.headers.getlist(self._name)
        elif self._kind == "query":
            given = connection.query_params.getlist(self._name)
        # If there are two, one may be forged to get a bucket of its own.
        return given[0][:_LONGEST] if len(given) == 1 else None
