"""Only who has a token gets in: from a header, a query parameter or a cookie."""

from __future__ import annotations

import hmac
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, SecretStr, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection

from wsrelay import targets, worker
from wsrelay.errors import InvalidTarget
from wsrelay.node import Node
from wsrelay.relay.asgi import App, Receive, Scope, Send

from .options import Options
from .refusal import refuse

__all__ = ["TokenAuth", "TokenAuthOptions"]


def _target(text: str) -> str:
    try:
        targets.parse(text)
    except InvalidTarget as error:
        raise ValueError(str(error)) from None
    return text


class TokenAuthOptions(Options):
    """Either a shared `secret`, or a `function` that gets the token and returns whether it is good.

    A browser cannot set headers on a WebSocket: `query` or `cookie` names where else to look.
    """

    secret: SecretStr | None = None
    function: Annotated[str, AfterValidator(_target)] | None = None
    header: str = "Authorization"
    query: str | None = None
    cookie: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.secret is None) is (self.function is None):
            raise ValueError("token_auth needs either token_auth.secret or token_auth.function")
        if self.secret is not None and not self.secret.get_secret_value():
            raise ValueError("token_auth.secret is empty")
        return self


class TokenAuth:
    """Answers 401 to who has no good token; what the function returned is `state.token`."""

    def __init__(self, app: App, options: TokenAuthOptions) -> None:
        self._app = app
        self._options = options
        self._check = self._same_secret if options.function is None else _load(options.function)

    @classmethod
    def build(cls, app: App, options: TokenAuthOptions, _node: Node) -> TokenAuth:
        """Put it around an application; raises `ValueError` if the function cannot be loaded."""
        return cls(app, options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] in ("http", "websocket"):
            token = self._token(HTTPConnection(scope))
            claims = token and await self._claims(token)
            if not claims:
                await refuse(scope, receive, send, 401, (b"www-authenticate", b"Bearer"))
                return
            scope.setdefault("state", {})["token"] = claims
        await self._app(scope, receive, send)

    def _token(self, connection: HTTPConnection) -> str | None:
        options = self._options
        given = connection.headers.get(options.header)
        if given is not None and options.header.lower() == "authorization":
            scheme, _, given = given.partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else None
        if given is None and options.query is not None:
            given = connection.query_params.get(options.query)
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


def _load(text: str) -> Callable[[str], Any]:
    try:
        return worker.load_function(targets.parse(text))
    except worker.LoadError as error:
        raise ValueError(f"token_auth.function: {error}") from None
