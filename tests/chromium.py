"""Headless Chromium; where there is none, its tests are skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Iterator

import pytest
from running import Running, until

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


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    assert CHROMIUM is not None, "chromium is required and not installed"
    expect.set_options(timeout=SECONDS * 1000)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,  # it leaves files there
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            env={**os.environ, "TMPDIR": folder},
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


@contextlib.contextmanager
def opened(browser: Browser) -> Iterator[Window]:
    context = browser.new_context()
    window = Window(context)
    yield window
    context.close()
    assert window.complaints == []


def no_workers(running: Running) -> None:
    until(lambda: not running.workers(), "earlier clients' processes are gone")


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
