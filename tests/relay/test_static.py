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

TYPES = {"wsrelay.js": "text/javascript", "wsrelay.css": "text/css"}
ROUTES = Starlette(routes=[Route(f"/{name}", wsrelay.static) for name in TYPES])


async def answer(app: Any, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, headers=named, follow_redirects=True)


def fastapi() -> FastAPI:
    app = FastAPI()
    app.mount("/static", wsrelay.static)
    return app


APPLICATIONS = [
    (ROUTES, ""),
    (Starlette(routes=[Route("/wsrelay.{ending}", wsrelay.static)]), ""),
    (Starlette(routes=[Mount("/js", wsrelay.static)]), "/js"),
    (Starlette(routes=[Mount(f"/{name}", wsrelay.static) for name in TYPES]), ""),
    (fastapi(), "/static"),
    (wsrelay.WebSocketRelay(ROUTES, node=wsrelay.Node()), ""),
]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(("app", "folder"), APPLICATIONS)
async def test_it_is_a_route_or_mounted_and_serves_the_files(
    app: Any, folder: str, name: str
) -> None:
    got = await answer(app, f"{folder}/{name}")
    source = files("wsrelay.relay").joinpath(name).read_bytes()
    assert (got.status_code, got.content) == (200, source)
    assert got.headers["content-type"] == f"{TYPES[name]}; charset=utf-8"
    assert got.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", TYPES)
async def test_a_browser_that_has_it_is_told_so(name: str) -> None:
    path = f"/{name}"
    first = await answer(ROUTES, path)
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = await answer(ROUTES, path, if_none_match=known)
        assert (again.status_code, again.content) == (304, b"")
        assert (again.headers["etag"], again.headers["cache-control"]) == (tag, "no-cache")
    assert (await answer(ROUTES, path, if_none_match='"other"')).status_code == 200


async def test_the_files_have_tags_of_their_own() -> None:
    tags = [(await answer(ROUTES, f"/{name}")).headers["etag"] for name in TYPES]
    assert len({*tags}) == len(TYPES)


@pytest.mark.parametrize("name", TYPES)
async def test_head_has_its_length_and_no_body_and_other_methods_are_refused(name: str) -> None:
    head = await answer(ROUTES, f"/{name}", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    source = files("wsrelay.relay").joinpath(name).read_bytes()
    assert head.headers["content-length"] == str(len(source))
    post = await answer(ROUTES, f"/{name}", "POST")
    assert (post.status_code, post.headers["allow"]) == (405, "GET, HEAD")


async def test_a_mount_has_nothing_else() -> None:
    wrong = ("", "static.py", "wsrelay.js/more", "no-wsrelay.css", "wsrelay.py")
    for path in (f"/static/{name}" for name in wrong):
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
