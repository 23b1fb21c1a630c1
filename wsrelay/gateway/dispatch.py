"""Which router, endpoint or folder of a configuration answers a request."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from starlette.datastructures import URLPath
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import BaseRoute, Match, Mount, NoMatchFound, Route

from wsrelay.node import Node
from wsrelay.relay.asgi import App, Receive, Scope, Send
from wsrelay.relay.upgrade import deny
from wsrelay.values import current

__all__ = ["Dispatch", "Router"]


class _Found(NamedTuple):
    route: Route
    match: Match
    scope: Scope


class Router:
    """The endpoints under one prefix, inside the router's own middleware.

    `wrap` adds the middleware; `routes` have full paths.
    """

    def __init__(self, prefix: str, routes: Sequence[Route], wrap: Callable[[App], App]) -> None:
        self.prefix = prefix.rstrip("/")
        self.routes = routes
        self.app = wrap(self._answer)

    def find(self, scope: Scope) -> _Found | None:
        """Return the best match: FULL before PARTIAL (a wrong method)."""
        asked = {**scope, "type": "http", "method": scope.get("method", "GET")}
        partial = None
        for route in self.routes:
            match, child = route.matches(asked)
            if match is Match.FULL:
                return _Found(route, match, child)
            if match is Match.PARTIAL and partial is None:
                partial = _Found(route, match, child)
        return partial

    def owns(self, path: str) -> bool:
        """Whether a path is under the prefix; the prefix `/` leaves the rest to others."""
        return bool(self.prefix) and (path + "/").startswith(self.prefix + "/")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self.find(scope)
        if found is None:
            await _refuse(scope, receive, send, 404)
        elif found.match is Match.PARTIAL:
            routes = [route for route in self.routes if route.path == found.route.path]
            methods = {method for route in routes for method in route.methods or ()}
            await _refuse(scope, receive, send, 405, methods)
        else:
            scope.update(found.scope)
            await found.route.app(scope, receive, send)


class Dispatch(BaseRoute):
    """The only route of a server's application; it finds what answers a request.

    An endpoint that matches comes first, then a router with the prefix of the path (so that its
    middleware sees its 404 and 405 responses, and CORS preflight requests), then folders and single
    files, the longest path first.
    """

    def __init__(
        self, node: Node, routers: Sequence[Router], files: Sequence[Mount | Route]
    ) -> None:
        self._node = node
        self._routers = sorted(routers, key=lambda router: -len(router.prefix))
        self._files = sorted(files, key=lambda route: -len(route.path))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Take every request."""
        return (Match.FULL if scope["type"] in ("http", "websocket") else Match.NONE), {}

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        """Return the path of the endpoint whose entry has this name."""
        for router in self._routers:
            for route in router.routes:
                try:
                    return route.url_path_for(name, **path_params)
                except NoMatchFound:
                    continue
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; meanwhile `process` acts for the node."""
        token = current.node_of_request.set(self._node)
        try:
            await self._handle(scope, receive, send)
        finally:
            current.node_of_request.reset(token)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (router := self._router(scope)) is not None:
            await router.app(scope, receive, send)
            return
        if scope["type"] == "http":
            for route in self._files:
                match, child = route.matches(scope)
                if match is Match.FULL:
                    scope.update(child)
                    await route.handle(scope, receive, send)
                    return
                if isinstance(route, Mount) and route.path and scope["path"] == route.path:
                    # Relative, because a proxy in front may serve all of this below a prefix.
                    await RedirectResponse(f"./{route.path.rpartition('/')[2]}/")(
                        scope, receive, send
                    )
                    return
        await _refuse(scope, receive, send, 404)

    def _router(self, scope: Scope) -> Router | None:
        partial = None
        for router in self._routers:
            found = router.find(scope)
            if found is not None and found.match is Match.FULL:
                return router
            if found is not None and partial is None:
                partial = router
        if partial is not None:
            return partial
        return next((router for router in self._routers if router.owns(scope["path"])), None)


async def _refuse(
    scope: Scope, receive: Receive, send: Send, status: int, allow: Collection[str] = ()
) -> None:
    text = f"{HTTPStatus(status).phrase}\n"
    if scope["type"] == "websocket":
        await deny(scope, send, status, text.encode())
        return
    headers = {"allow": ", ".join(sorted(allow))} if allow else None
    await PlainTextResponse(text, status, headers)(scope, receive, send)
