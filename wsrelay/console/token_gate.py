"""Lets in who has the token of the address, and after that who has the cookie."""

from __future__ import annotations

import hmac
import secrets
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from wsrelay.relay.asgi import App, Receive, Scope, Send

from .pages import HEADERS

__all__ = ["TokenGate"]

_LOCKED: Final = (
    "This console is opened by the address with its token, "
    "which 'wsrelay console' has printed when it started.\n"
)


class TokenGate:
    """An ASGI application around another one; `token` opens it.

    The first visit, with `?token=...`, is answered with a cookie and a redirect, so that the token
    stays out of what the browser shows and sends on. The cookie is a secret of its own; its name
    has the port, since browsers send cookies to all ports of a host.
    """

    def __init__(self, app: App, port: int) -> None:
        self._app = app
        self._cookie = f"wsrelay-console-{port}"
        self._secret = secrets.token_urlsafe(32)
        self.token = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.query_params.get("token")
        if given is not None and _same(given, self.token):
            await self._let_in(request)(scope, receive, send)
        elif _same(request.cookies.get(self._cookie, ""), self._secret):
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(_LOCKED, 403, HEADERS)(scope, receive, send)

    def _let_in(self, request: Request) -> Response:
        response = RedirectResponse(request.url.path, 303, HEADERS)
        response.set_cookie(self._cookie, self._secret, httponly=True, samesite="lax", path="/")
        return response


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode(), right.encode())
