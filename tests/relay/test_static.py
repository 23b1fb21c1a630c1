"""`wsrelay.static`, in applications of others."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount, Route

import wsrelay

pytestmark = pytest.mark.anyio

SOURCE = files("wsrelay.relay").joinpath("wsrelay.js").read_bytes()
ROUTE = Starlette(routes=[Route("/wsrelay.js", wsrelay.static)])


async def answer(app: Any, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, headers=named, follow_redirects=True)


def fastapi() -> FastAPI:
    app = FastAPI()
    app.mount("/static", wsrelay.static)
    return app


@pytest.mark.parametrize(
    ("app", "path"),
    [
        (ROUTE, "/wsrelay.js"),
        (Starlette(routes=[Mount("/js", wsrelay.static)]), "/js/wsrelay.js"),
        (Starlette(routes=[Mount("/wsrelay.js", wsrelay.static)]), "/wsrelay.js"),
        (fastapi(), "/static/wsrelay.js"),
        (wsrelay.WebSocketRelay(ROUTE, node=wsrelay.Node()), "/wsrelay.js"),
    ],
)
async def test_it_is_a_route_or_mounted_and_serves_the_module(app: Any, path: str) -> None:
    got = await answer(app, path)
    assert (got.status_code, got.content) == (200, SOURCE)
    assert got.headers["content-type"] == "text/javascript; charset=utf-8"
    assert got.headers["cache-control"] == "no-cache"


async def test_a_browser_that_has_it_is_told_so() -> None:
    first = await answer(ROUTE, "/wsrelay.js")
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = await answer(ROUTE, "/wsrelay.js", if_none_match=known)
        assert (again.status_code, again.content) == (304, b"")
        assert (again.headers["etag"], again.headers["cache-control"]) == (tag, "no-cache")
    assert (await answer(ROUTE, "/wsrelay.js", if_none_match='"other"')).status_code == 200


async def test_head_has_its_length_and_no_body_and_other_methods_are_refused() -> None:
    head = await answer(ROUTE, "/wsrelay.js", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(SOURCE))
    post = await answer(ROUTE, "/wsrelay.js", "POST")
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")


async def test_a_mount_has_nothing_else() -> None:
    for path in ("/static/", "/static/static.py", "/static/wsrelay.js/more", "/static/no-wsrelay"):
        assert (await answer(fastapi(), path)).status_code == 404


async def test_a_websocket_is_refused() -> None:
    told: list[Any] = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        told.append(event["type"])

    scope = {"type": "websocket", "path": "/static/wsrelay.js", "headers": [], "query_string": b""}
    await fastapi()(scope, receive, send)
    assert told == ["websocket.close"]
