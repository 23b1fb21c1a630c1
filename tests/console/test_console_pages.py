"""Who gets in: the token, the cookie, the host, the origin; and what is served then."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from consoles import Console, console_on
from one_node import left_as_found, running_node
from support import client, processes
from websockets.exceptions import InvalidStatus

from wsrelay import Node

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with running_node(processes()) as node:
        yield node


@pytest.fixture
async def console(shared: Node) -> AsyncIterator[Console]:
    async with left_as_found(shared), console_on(shared) as console:
        yield console


@pytest.fixture
async def browser(console: Console) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=console.url, trust_env=False) as browser:
        yield browser


async def test_the_token_of_the_address_opens_it_and_leaves_the_address(
    console: Console, browser: httpx.AsyncClient
) -> None:
    answer = await browser.get(f"/?token={console.token}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    attributes = answer.headers["set-cookie"].lower()
    assert "httponly" in attributes
    assert "samesite=lax" in attributes
    assert console.token not in answer.headers["set-cookie"]
    page = await browser.get("/")
    assert page.status_code == 200
    assert "wsrelay console" in page.text


@pytest.mark.parametrize("path", ["/", "/console.js", "/wsrelay.js", "/live", "/nothing"])
@pytest.mark.parametrize("token", ["", "?token=", "?token=wrong", "?token=%C3%A4"])
async def test_without_the_token_nothing_is_served(
    browser: httpx.AsyncClient, path: str, token: str
) -> None:
    answer = await browser.get(f"{path}{token}")
    assert answer.status_code == 403
    assert "the address with its token" in answer.text
    assert "set-cookie" not in answer.headers
    wrong = await browser.get(path, headers={"Cookie": "wsrelay-console-0=wrong"})
    assert wrong.status_code == 403


async def test_without_the_cookie_there_is_no_connection(console: Console, shared: Node) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with client(console.socket):
            pass
    assert refused.value.response.status_code == 403
    assert not shared.workers


async def test_another_site_gets_no_connection_though_the_browser_sends_the_cookie(
    console: Console, shared: Node
) -> None:
    headers = {"Cookie": await console.cookie(), "Origin": "https://evil.example"}
    with pytest.raises(InvalidStatus) as refused:
        async with client(console.socket, additional_headers=headers):
            pass
    assert refused.value.response.status_code == 403
    assert not shared.workers


async def test_under_the_name_of_another_site_nothing_is_served(
    console: Console, browser: httpx.AsyncClient
) -> None:
    answer = await browser.get(f"/?token={console.token}", headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert "host not allowed" in answer.text


async def test_the_page_may_run_nothing_but_its_own_files(
    console: Console, browser: httpx.AsyncClient
) -> None:
    await browser.get(f"/?token={console.token}")
    page = await browser.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "<script>" not in page.text
    assert " on" not in page.text.replace(" on it", "").partition("<body")[2].split("<dialog")[0]
    assert " style=" not in page.text
    tag = page.headers["etag"]
    assert (await browser.get("/", headers={"If-None-Match": tag})).status_code == 304
    module = await browser.get("/console.js")
    assert module.headers["content-type"].startswith("text/javascript")
    for name in ("wsrelay.js", "wsrelay.css", "console.css"):
        assert (await browser.get(f"/{name}")).status_code == 200, name
    for name in ("view.py", "../pages.py", "page", "%2e%2e/pages.py"):
        assert (await browser.get(f"/{name}")).status_code == 404, name


async def test_the_connection_asked_for_over_http_is_refused(
    console: Console, browser: httpx.AsyncClient, shared: Node
) -> None:
    await browser.get(f"/?token={console.token}")
    assert (await browser.get("/live")).status_code == 426
    assert not shared.workers
