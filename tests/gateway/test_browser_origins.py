"""Which pages a browser lets in: tokens, origins, an application beside the relay."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import SECONDS, Window, launched, no_workers, opened
from playwright.sync_api import Browser, expect
from running import HANDLERS, Running, until


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> None:
    """Not looked at here: the browser starts and ends processes as it likes.

    What the servers leave behind is still seen by `Running`.
    """


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    with opened(browser) as window:
        yield window


@pytest.fixture(scope="module")
def echo() -> Iterator[Running]:
    with Running(HANDLERS / "echo.py") as running:
        yield running


# Subprotocols

OFFER = """([url, names]) => new Promise(told => {
    const socket = new WebSocket(url, names);
    socket.onopen = () => { told(`open ${socket.protocol}`); socket.close(); };
    socket.onclose = event => told(`closed ${event.code}`);
})"""


def test_a_browser_gets_the_subprotocol_that_the_handler_speaks(window: Window) -> None:
    with Running(HANDLERS / "echo.py", "--subprotocol", "chat.v1") as running:
        page = window.open(running.http())
        assert page.evaluate(OFFER, [running.ws(), ["bearer.abc", "chat.v1"]]) == "open chat.v1"
        assert page.evaluate(OFFER, [running.ws(), ["bearer.abc"]]) == "closed 1006"
        running.stderr.line("--subprotocol")


AUTH = """
version: "1.0"
namespace: app
entries:
  - {name: connect, kind: function.python, source: "file://%s", method: connect}
  - {name: gateway, kind: http.service, addr: "127.0.0.1:0"}
  - name: router
    kind: http.router
    meta: {server: gateway}
    post_middleware: [token_auth, websocket_relay]
    post_options: {token_auth.secret: hush, token_auth.subprotocol: "bearer."}
  - {name: endpoint, kind: http.endpoint, meta: {router: router}, path: /ws, func: connect}
"""


def test_a_browser_brings_its_token_as_a_subprotocol(window: Window, tmp_path: Path) -> None:
    configuration = tmp_path / "wsrelay.yaml"
    configuration.write_text(AUTH % (HANDLERS / "relay_http.py"))
    with Running(configuration) as running:
        page = window.open(running.http("/healthz"))
        for names, told in (
            (["chat", "bearer.hush"], "open chat"),
            (["bearer.hush", "chat"], "open chat"),
            (["chat", "bearer.wrong"], "closed 1006"),
            (["bearer.hush"], "closed 1006"),
        ):
            assert page.evaluate(OFFER, [running.ws(), names]) == told


# Origins

FOREIGN = """<!doctype html><title>foreign</title><script>
const socket = new WebSocket("{url}");
socket.onopen = () => {{ document.title = "open"; }};
socket.onclose = event => {{ document.title = `closed ${{event.code}}`; }};
</script>"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@contextlib.contextmanager
def foreign_page(folder: Path, url: str) -> Iterator[str]:
    """Serve a page of another origin that connects to the URL; gives the page's origin."""
    (folder / "index.html").write_text(FOREIGN.format(url=url))
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()


def test_a_page_of_a_foreign_origin_cannot_connect(
    window: Window, echo: Running, tmp_path: Path
) -> None:
    no_workers(echo)
    with foreign_page(tmp_path, echo.ws()) as origin:
        page = window.open(origin)
        expect(page).to_have_title("closed 1006")
        assert "403" in echo.stderr.line(origin)
        assert echo.workers() == []


def test_a_page_of_an_allowed_foreign_origin_can_connect(window: Window, tmp_path: Path) -> None:
    with (
        Running(HANDLERS / "echo.py", "--origins", "*") as running,
        foreign_page(tmp_path, running.ws()) as origin,
    ):
        expect(window.open(origin)).to_have_title("open")


def test_a_page_from_a_file_can_connect_where_its_origin_is_listed(
    window: Window, echo: Running, tmp_path: Path
) -> None:
    options = ("--origins", "null, file://")
    page = tmp_path / "page.html"
    with Running(HANDLERS / "echo.py", *options) as running:
        for asked, title in ((echo, "closed 1006"), (running, "open")):
            page.write_text(FOREIGN.format(url=asked.ws()))
            expect(window.open(page.as_uri())).to_have_title(title)
            sandboxed = tmp_path / "sandboxed.html"
            inside = html.escape(page.read_text())
            sandboxed.write_text(f'<iframe sandbox="allow-scripts" srcdoc="{inside}"></iframe>')
            frame = window.open(sandboxed.as_uri()).frame_locator("iframe")
            expect(frame.locator("title")).to_have_js_property("textContent", title)


# An application under uvicorn

TALK = """path => new Promise(resolve => {
  const socket = new WebSocket(`ws://${location.host}${path}`);
  const heard = [];
  socket.onopen = () => { socket.send("hello"); socket.send("x".repeat(300000)); };
  socket.onmessage = event => { if (heard.push(event.data.length) == 2) socket.close(4001); };
  socket.onclose = event => resolve([socket.extensions, heard, event.code, event.wasClean]);
})"""


def test_a_page_talks_to_the_relay_and_to_a_native_route_under_uvicorn_s_defaults(
    window: Window, tmp_path: Path
) -> None:
    command = "--http h11 --ws wsrelay.gateway.protocol:RelayProtocol --port 0 native:app"
    with (tmp_path / "log").open("w+") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", *command.split()],
            cwd=Path(__file__).parents[1] / "apps",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            address = r"unning on (http://127.0.0.1:[0-9]+)"
            url = until(lambda: re.search(address, (tmp_path / "log").read_text()), "it serves")[1]
            page = window.open(f"{url}/openapi.json")
            assert page.evaluate(TALK, "/ws") == ["", [5, 300_000], 4001, True]
            [extension, *rest] = page.evaluate(TALK, "/native")
            assert extension.startswith("permessage-deflate")
            assert rest == [[5, 300_000], 4001, True]
        finally:
            server.terminate()
            server.wait(SECONDS)
        assert "Traceback" not in (tmp_path / "log").read_text()
