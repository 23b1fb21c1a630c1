"""The built-in page and the page of Life, in headless Chromium against the real `wsrelay run`."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from running import HANDLERS, Running, gone, until

REQUIRED = os.environ.get("WSRELAY_REQUIRE_BROWSER") == "1"
CHROMIUM = shutil.which("chromium")
SECONDS = 20.0

try:
    from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
except ImportError:
    if REQUIRED:
        raise
    pytest.skip("playwright is not installed", allow_module_level=True)

if CHROMIUM is None and not REQUIRED:
    pytest.skip("chromium is not installed", allow_module_level=True)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> None:
    """Not looked at here: the browser starts and ends processes as it likes.

    What the servers leave behind is still seen by `Running`.
    """


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "chromium is required and not installed"
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


class Window:
    """A browser window with storage of its own; what its pages complain of is collected."""

    def __init__(self, context: BrowserContext) -> None:
        self.complaints: list[str] = []
        self._context = context
        context.set_default_timeout(SECONDS * 1000)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))

    def open(self, url: str) -> Page:
        page = self._context.new_page()
        page.goto(url)
        return page


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    context = browser.new_context()
    window = Window(context)
    yield window
    context.close()
    assert window.complaints == []


@pytest.fixture(scope="module")
def echo() -> Iterator[Running]:
    with Running(HANDLERS / "echo.py") as running:
        yield running


def connect(page: Page) -> None:
    page.click("#connect")
    expect(page.locator("#status")).to_have_text("open")


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def frames(page: Page, direction: str) -> Any:
    return page.locator(f'.frame[data-direction="{direction}"] .payload')


def no_workers(running: Running) -> None:
    until(lambda: not running.workers(), "earlier clients' processes are gone")


# The built-in page


def test_the_page_sends_text_and_shows_what_comes_back(window: Window, echo: Running) -> None:
    page = window.open(echo.http())
    expect(page).to_have_title("wsrelay")
    expect(page.locator("#status")).to_have_text("closed")
    expect(page.locator("#url")).to_have_value(echo.ws())
    expect(page.locator("#send")).to_be_disabled()
    connect(page)
    say(page, "héllo <b>there</b>")
    expect(frames(page, "out")).to_have_text(["héllo <b>there</b>"])
    expect(frames(page, "in")).to_have_text(["héllo <b>there</b>"])
    expect(page.locator("#message")).to_have_value("")
    page.fill("#message", "by the button")
    page.click("#send")
    expect(frames(page, "in")).to_have_text(["héllo <b>there</b>", "by the button"])
    expect(page.locator("#counts")).to_have_text("2 in, 2 out")


def test_the_page_sends_bytes_and_files_as_binary(
    window: Window, echo: Running, tmp_path: Path
) -> None:
    page = window.open(echo.http())
    connect(page)
    page.fill("#hex", "de ad 0xBE:ef")
    page.click("#send-binary")
    expect(frames(page, "in")).to_have_text(["de ad be ef"])
    file = tmp_path / "some.bin"
    file.write_bytes(b"\x00\x01\xff")
    page.set_input_files("#file", file)
    page.click("#send-file")
    expect(frames(page, "in")).to_have_text(["de ad be ef", "00 01 ff"])
    expect(page.locator('.frame[data-direction="in"] .type')).to_have_text(["binary", "binary"])
    page.fill("#hex", "dea")
    page.click("#send-binary")
    expect(page.locator("#send-error")).to_contain_text("pairs of the digits")
    expect(frames(page, "out")).to_have_count(2)


def test_the_page_lays_json_out_and_keeps_its_numbers(window: Window, echo: Running) -> None:
    page = window.open(echo.http())
    connect(page)
    say(page, '{"a":[1,{"b":"x, {y}"}],"n":12345678901234567890,"e":{}}')
    [shown] = [frames(page, "in").first]
    expect(shown).to_be_visible()
    assert shown.text_content() == (
        '{\n  "a": [\n    1,\n    {\n      "b": "x, {y}"\n    }\n  ],\n'
        '  "n": 12345678901234567890,\n  "e": {}\n}'
    )


def test_the_page_shows_code_and_reason_when_the_process_is_killed(
    window: Window, echo: Running
) -> None:
    no_workers(echo)
    page = window.open(echo.http())
    connect(page)
    [os_pid] = echo.workers()
    os.kill(os_pid, signal.SIGKILL)
    expect(page.locator("#close-code")).to_have_text("1011")
    expect(page.locator("#close-reason")).to_have_text("target process killed (SIGKILL)")
    expect(page.locator("#close-clean")).to_have_text("yes")
    expect(page.locator("#status")).to_have_text("closed")
    expect(page.locator("#closing")).to_have_class(re.compile("abnormal"))
    connect(page)
    expect(page.locator("#closing")).to_be_hidden()
    say(page, "again")
    expect(frames(page, "in")).to_have_text(["again"])


def test_the_page_closes_with_the_code_and_reason_that_were_asked_for(
    window: Window, echo: Running
) -> None:
    no_workers(echo)
    page = window.open(echo.http())
    connect(page)
    page.fill("#disconnect-code", "1001")
    page.click("#disconnect")
    expect(page.locator("#disconnect-error")).to_contain_text("1000, or 3000 to 4999")
    page.fill("#disconnect-code", "4001")
    page.fill("#disconnect-reason", "enough")
    page.click("#disconnect")
    expect(page.locator("#close-code")).to_have_text("4001")
    expect(page.locator("#close-reason")).to_have_text("enough")
    no_workers(echo)


def test_the_page_shows_1012_when_the_server_is_terminated(window: Window) -> None:
    with Running(HANDLERS / "echo.py") as running:
        page = window.open(running.http())
        connect(page)
        running.signal(signal.SIGTERM)
        expect(page.locator("#close-code")).to_have_text("1012")
        expect(page.locator("#close-reason")).to_have_text("node shuts down")
        assert running.wait() == 0
        page.click("#connect")
        expect(page.locator("#close-code")).to_have_text("1006")
        expect(page.locator("#close-meaning")).to_contain_text("The connection failed")


def test_closing_the_tab_ends_its_process(window: Window, echo: Running) -> None:
    no_workers(echo)
    page = window.open(echo.http())
    connect(page)
    [os_pid] = echo.workers()
    worker = psutil.Process(os_pid)
    page.close()
    until(lambda: gone(worker), "the process is gone")


def test_two_tabs_chat_with_each_other(window: Window) -> None:
    with Running(HANDLERS / "chat.py", "--scope", "room") as running:
        ada = window.open(running.http("/?room=kitchen"))
        expect(ada.locator("#room")).to_have_value("kitchen")
        bob = window.open(running.http("/?room=kitchen"))
        away = window.open(running.http("/?room=cellar"))
        for page, name in ((ada, "Ada"), (bob, "Bob"), (away, "Eve")):
            page.bring_to_front()
            page.fill("#url", f"{running.ws()}?name={name}")
            connect(page)
        expect(ada.locator("#address")).to_have_text(running.ws("/ws/kitchen?name=Ada"))
        ada.bring_to_front()
        expect(frames(ada, "in")).to_contain_text(["Ada joined", "Bob joined"])
        say(ada, "is somebody here?")
        bob.bring_to_front()
        expect(frames(bob, "in")).to_contain_text(["Bob joined", "is somebody here?"])
        say(bob, '{"text": "I am"}')
        expect(frames(ada, "in").last).to_contain_text('"name": "Bob"')
        expect(frames(ada, "in").last).to_contain_text('"text": "I am"')
        bob.close()
        ada.bring_to_front()
        expect(frames(ada, "in").last).to_contain_text("Bob left")
        expect(frames(away, "in")).to_contain_text(["Eve joined"])
        expect(frames(away, "in")).to_have_count(1)


class _BelowPrefix(socketserver.StreamRequestHandler):
    """A proxy that takes a prefix off the path, as nginx's `proxy_pass http://.../` does."""

    server: _Proxy

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        inner = head.replace(b" /tools/app/", b" /", 1)
        if inner == head:
            self.wfile.write(b"HTTP/1.1 404 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if b"Upgrade: websocket" not in head:
            inner = inner.replace(b"keep-alive", b"close")
        with socket.create_connection(self.server.inner) as upstream:
            upstream.sendall(inner)
            back = threading.Thread(target=_copy, args=(upstream, self.connection))
            back.start()
            _copy(self.connection, upstream)
            back.join()


class _Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    inner: tuple[str, int]


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def below_prefix(running: Running) -> Iterator[str]:
    """A proxy that serves all of it below `/tools/app/`; gives that URL."""
    host, port = running.address.split(":")
    with _Proxy(("127.0.0.1", 0), _BelowPrefix) as proxy:
        proxy.inner = (host, int(port))
        serving = threading.Thread(target=proxy.serve_forever, args=(0.02,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}/tools/app/"
        finally:
            proxy.shutdown()
            serving.join()


def test_the_page_works_below_the_prefix_of_a_proxy(window: Window, echo: Running) -> None:
    with below_prefix(echo) as url:
        page = window.open(url)
        expect(page.locator("#url")).to_have_value(f"{url.replace('http', 'ws', 1)}ws")
        connect(page)
        say(page, "hello")
        expect(frames(page, "in")).to_have_text(["hello"])
        page.close()


def test_the_page_of_life_works_below_the_prefix_of_a_proxy(window: Window, life: Running) -> None:
    with below_prefix(life) as url:
        page = window.open(f"{url}?room=prefix")
        living(page)
        page.close()


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


# Life


@pytest.fixture(scope="module")
def life() -> Iterator[Running]:
    options = ["--scope", "room", "--static", str(HANDLERS / "static")]
    with Running(HANDLERS / "life.py", *options) as running:
        yield running


COLOURS = """() => {
    const board = document.getElementById("board");
    const bytes = board.getContext("2d").getImageData(0, 0, board.width, board.height).data;
    const counts = {};
    for (const colour of new Uint32Array(bytes.buffer)) counts[colour] = (counts[colour] ?? 0) + 1;
    return [board.width, board.height, counts, Array.from(new Uint32Array(bytes.buffer)).join()];
}"""


def living(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("open")
    expect(page.locator("#os-pid")).to_have_text(re.compile(r"^\d+$"))


def generation(page: Page) -> int:
    return int(page.locator("#generation").text_content() or "")


def shown_since(page: Page, seen: int) -> bool:
    return generation(page) > seen


def shows_cells(page: Page, count: int) -> bool:
    """Whether the board shows so many cells of one colour, all others of another."""
    return sorted(page.evaluate(COLOURS)[2].values()) == [count, 96 * 64 - count]


def test_the_page_of_life_draws_the_generations_on_its_canvas(
    window: Window, life: Running
) -> None:
    page = window.open(life.http("/?room=drawing"))
    living(page)
    expect(page.locator("#generation")).to_have_text(re.compile(r"^([3-9]|\d\d+)$"))
    width, height, colours, first = page.evaluate(COLOURS)
    assert (width, height) == (96, 64)
    assert len(colours) > 2, "dead cells, living ones, and those that fade"
    assert max(colours.values()) < width * height
    until(lambda: page.evaluate(COLOURS)[3] != first, "the picture changes")


def test_the_page_of_life_pauses_clears_and_draws(window: Window, life: Running) -> None:
    other = window.open(life.http("/?room=pausing"))
    page = window.open(life.http("/?room=pausing"))
    for one in (page, other):
        living(one)
    page.click("#pause")
    for one in (page, other):
        expect(one.locator("#pause")).to_have_text("Resume")
    for _ in range(10):  # until what has died is faded
        seen = generation(page)
        page.click("#clear")
        until(functools.partial(shown_since, page, seen), "the board is shown once more")
    until(lambda: len(page.evaluate(COLOURS)[2]) == 1, "the board is empty")
    page.locator("#board").click(position={"x": 50, "y": 50})
    for one in (page, other):
        one.bring_to_front()
        until(functools.partial(shows_cells, one, 1), "the cell is drawn in both tabs")


def test_tabs_of_one_room_show_one_process_and_another_room_another(
    window: Window, life: Running
) -> None:
    paths = ["/?room=one", "/?room=one", "/?room=two"]
    pages = [window.open(life.http(path)) for path in paths]
    for page in pages:
        living(page)
    one, same, two = (int(page.locator("#os-pid").text_content() or "") for page in pages)
    assert one == same != two
    assert {one, two} <= set(life.workers())


def test_the_page_of_life_says_that_its_process_was_killed_and_connects_again(
    window: Window, life: Running
) -> None:
    page = window.open(life.http("/?room=victim"))
    living(page)
    os_pid = int(page.locator("#os-pid").text_content() or "")
    os.kill(os_pid, signal.SIGKILL)
    expect(page.locator("#detail")).to_contain_text("1011")
    expect(page.locator("#detail")).to_contain_text("SIGKILL")
    page.click("#reconnect")
    living(page)
    assert int(page.locator("#os-pid").text_content() or "") != os_pid


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
            cwd=Path(__file__).with_name("apps"),
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


# The example applications


def test_the_chat_of_the_configuration_is_one_room_for_two_windows(
    browser: Browser, window: Window
) -> None:
    with Running(HANDLERS / "wsrelay.yaml") as running:
        other = browser.new_context()
        pages = [window.open(running.http()), other.new_page()]
        pages[1].goto(running.http())
        for page, name in zip(pages, ("Ada", "Bob"), strict=True):
            page.fill("#name", name)
            page.click("#door button")
            expect(page.locator("#status")).to_have_text("in lobby")
        pages[0].fill("#text", "hello <b>Bob</b>")
        pages[0].press("#text", "Enter")
        for page in pages:
            expect(page.locator("li.said")).to_have_text(["Adahello <b>Bob</b>"])
        other.close()


def test_the_picture_is_painted_tile_by_tile_and_again_after_a_click(window: Window) -> None:
    with Running(HANDLERS / "mandelbrot.yaml") as running:
        page = window.open(running.http())
        done = "click: closer, right click: further away"
        expect(page.locator("#status")).to_have_text(done)

        def colours() -> int:
            count: int = page.evaluate(
                """() => {
                  const canvas = document.getElementById("picture");
                  const context = canvas.getContext("2d");
                  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
                  return new Set(new Uint32Array(data.buffer)).size;
                }"""
            )
            return count

        assert colours() > 10
        page.click("#picture", position={"x": 300, "y": 200})
        expect(page.locator("#status")).to_have_text(done)
        assert colours() > 10
