"""Access with a token only, from a header, a query parameter, a subprotocol or a cookie."""

from __future__ import annotations

import hmac
import inspect
import logging
import time
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, SecretStr, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from wsrelay import worker
from wsrelay.errors import InvalidTarget
from wsrelay.node import Node
from wsrelay.relay.asgi import (
    SELECTS,
    App,
    Event,
    Headers,
    Receive,
    Scope,
    Send,
    client_of,
    offered,
)
from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.session.header import HEADER, check_subprotocol
from wsrelay.values import targets
from wsrelay.values.printable import printable

from .options import Options
from .refusal import refuse

__all__ = ["TokenAuth", "TokenAuthOptions"]

logger = logging.getLogger(__name__)

_PROTOCOL = b"sec-websocket-protocol"


def _target(text: str) -> str:
    try:
        targets.parse(text)
    except InvalidTarget as error:
        raise ValueError(str(error)) from None
    return text


class TokenAuthOptions(Options):
    """Either a shared `secret`, or a `function` that gets the token and says whether it is valid.

    A browser cannot set headers on a WebSocket, so `query`, `subprotocol` or `cookie` say where
    else to look. `subprotocol` is a prefix: with `bearer.`, the page offers
    `["chat", "bearer.TOKEN"]`.
    """

    secret: SecretStr | None = None
    function: Annotated[str, AfterValidator(_target)] | None = None
    header: str = "Authorization"
    query: str | None = None
    subprotocol: Annotated[str, AfterValidator(check_subprotocol)] | None = None
    cookie: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.secret is None) is (self.function is None):
            raise ValueError("token_auth needs either token_auth.secret or token_auth.function")
        if self.secret is not None and not self.secret.get_secret_value():
            raise ValueError("token_auth.secret is empty")
        if self.secret is not None and self.subprotocol is not None:
            try:
                check_subprotocol(self.secret.get_secret_value())
            except ValueError:
                raise ValueError(
                    "token_auth.secret cannot be part of a subprotocol, which may only have "
                    "letters, digits and !#$%&'*+-.^_`|~"
                ) from None
        return self


class TokenAuth:
    """Answers 401 to clients without a valid token; `state.token` is what the function returned."""

    def __init__(self, app: App, options: TokenAuthOptions) -> None:
        self._app = app
        self._options = options
        self._refusals = RateLimitedLog(logger)
        self._check = self._same_secret if options.function is None else _load(options.function)

    @classmethod
    def build(cls, app: App, options: TokenAuthOptions, _node: Node | None) -> TokenAuth:
        """Wrap an application; raises `ValueError` if the function cannot be loaded."""
        return cls(app, options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] in ("http", "websocket"):
            tokens, others = self._offered(scope)
            token = self._token(HTTPConnection(scope), tokens)
            claims = token and await self._claims(token)
            if not claims:
                await refuse(scope, receive, send, 401, (b"www-authenticate", b"Bearer"))
                return
            if tokens and not others:
                self._refusals.warning(
                    time.monotonic(),
                    "%s: 400: the client offers its token and no other subprotocol; it must also "
                    'offer one that can be selected, as in ["chat", "%sTOKEN"]',
                    printable(scope["path"]),
                    self._options.subprotocol,
                    client=client_of(scope),
                )
                await refuse(scope, receive, send, 400)
                return
            if tokens:
                scope, send = _without(scope, others), _selecting(others[0], send)
            scope.setdefault("state", {})["token"] = claims
        await self._app(scope, receive, send)

    def _offered(self, scope: Scope) -> tuple[list[str], list[str]]:
        """Return the tokens among the offered subprotocols, and the other subprotocols."""
        prefix = self._options.subprotocol
        if prefix is None:
            return [], []
        names = offered(scope)
        tokens = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        return tokens, [name for name in names if not name.startswith(prefix)]

    def _token(self, connection: HTTPConnection, tokens: list[str]) -> str | None:
        options = self._options
        given = ", ".join(connection.headers.getlist(options.header)) or None
        if given is not None and options.header.lower() == "authorization":
            scheme, _, given = given.partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else None
        if given is None and options.query is not None:
            given = connection.query_params.get(options.query)
        if given is None and tokens:
            given = tokens[0]
        if given is None and options.cookie is not None:
            given = connection.cookies.get(options.cookie)
        return given

    async def _claims(self, token: str) -> Any:
        if inspect.iscoroutinefunction(self._check):
            return await self._check(token)
        if self._options.function is None:
            return self._check(token)
        return await run_in_threadpool(self._check, token)

    def _same_secret(self, token: str) -> bool:
        secret = self._options.secret
        assert secret is not None  # noqa: S101 - the options have one of the two
        return hmac.compare_digest(token.encode(), secret.get_secret_value().encode())


def _without(scope: Scope, others: list[str]) -> Scope:
    """Return the scope without the token, so that nothing inside can select it or log it."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != _PROTOCOL]
    headers.append((_PROTOCOL, ", ".join(others).encode("latin-1")))
    extensions = scope["extensions"] = scope.get("extensions") or {}
    extensions[SELECTS] = {}
    return {**scope, "headers": headers, "subprotocols": others}


def _selecting(subprotocol: str, send: Send) -> Send:
    """Have an upgrade select this subprotocol if the application selects none.

    A browser that offers subprotocols closes the connection if none of them is selected.
    """

    async def select(event: Event) -> None:
        if event["type"] == "websocket.accept" and event.get("subprotocol") is None:
            event = {**event, "subprotocol": subprotocol}
        elif event["type"] == "http.response.start":
            headers: Headers = [(bytes(name), bytes(v)) for name, v in event.get("headers", ())]
            names = {name.lower() for name, _ in headers}
            if HEADER.encode() in names and _PROTOCOL not in names:
                headers.append((_PROTOCOL, subprotocol.encode("latin-1")))
            event = {**event, "headers": headers}
        await send(event)

    return select


def _load(text: str) -> Callable[[str], Any]:
    try:
        return worker.load_function(targets.parse(text))
    except worker.LoadError as error:
        raise ValueError(f"token_auth.function: {error}") from None
