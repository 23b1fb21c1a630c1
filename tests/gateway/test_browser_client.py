"""`wsrelay.js` in headless Chromium against the real `wsrelay run`."""

from __future__ import annotations

import contextlib
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import Window, launched, opened
from playwright.sync_api import Browser, Page
from ports import free_port
from running import Running

OBEDIENT = Path(__file__).parents[1] / "apps" / "obedient.py"

PAGE = """
<!doctype html><link rel="icon" href="data:,"><script type="module">
import { connect } from "./wsrelay.js";
window.seen = [];
window.join = (url, options) => {
  window.room = connect(url, options);
  for (const kind of ["say", "news"]) room.on(kind, message => seen.push([kind, message]));
  room.onText(text => seen.push(["text", text]));
  room.onBinary(data => seen.push(["binary", [...new Uint8Array(data)]]));
  room.onState(status => seen.push(["state", { ...status, wait: status.retryAt - Date.now() }]));
};
</script>
"""


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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder without a `wsrelay.js` of its own."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "index.html").write_text(PAGE)
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with Running(OBEDIENT, "--static", str(folder)) as running:
        yield running


def joined(window: Window, url: str, room: str = '"/ws"') -> Page:
    page = window.open(url)
    page.wait_for_function("!!window.join")
    page.evaluate(f"join({room})")
    page.wait_for_function("room.status.state === 'open'")
    return page


def seen(page: Page, kind: str) -> list[Any]:
    found: list[Any] = page.evaluate("kind => seen.filter(one => one[0] === kind)", kind)
    return [one for _, one in found]


def states(page: Page) -> list[str]:
    return [status["state"] for status in seen(page, "state")]


def answered(page: Page, count: int) -> None:
    page.wait_for_function(
        "count => seen.filter(one => one[0] !== 'state').length === count", arg=count
    )


def test_json_goes_to_its_kind_and_text_and_bytes_to_theirs(
    window: Window, running: Running
) -> None:
    page = joined(window, running.http())
    page.evaluate(
        """() => {
          room.sendJson({ type: "say", text: "hi" });
          room.send("news from a process");
          room.send("plain");
          room.send(new Uint8Array([0, 255]).buffer);
          room.send(new Blob(["ab"]));
        }"""
    )
    answered(page, 5)
    assert seen(page, "say") == [{"type": "say", "text": "hi"}]
    assert seen(page, "news") == [{"text": "from a process"}]
    assert seen(page, "text") == ["plain"]
    assert seen(page, "binary") == [[0, 255], [97, 98]]


def test_a_connection_that_was_ended_on_purpose_stays_closed(
    window: Window, running: Running
) -> None:
    page = joined(window, running.http())
    for code in (1000, 1008, 4001):
        page.evaluate(f"room.send('close {code}')")
        page.wait_for_function("room.status.state === 'closed'")
        status = page.evaluate("room.status")
        assert (status["code"], status["reason"], status["clean"]) == (code, "asked", True)
        page.evaluate("room.reconnect()")
        page.wait_for_function("room.status.state === 'open'")
    assert states(page) == ["connecting", "open", "closed"] * 3 + ["connecting", "open"]


def test_after_1013_it_is_back_at_once_and_asks_for_a_fresh_url(
    window: Window, running: Running
) -> None:
    page = joined(
        window, running.http(), "async () => `ws?token=${window.token = (window.token ?? 0) + 1}`"
    )
    page.evaluate("room.send('close 1013')")
    page.wait_for_function("room.status.opens === 2")
    assert states(page) == ["connecting", "open", "waiting", "connecting", "open"]
    assert seen(page, "state")[2]["wait"] <= 0  # the clock goes on until it is noted
    assert page.evaluate("token") == 2


def test_a_restart_of_the_server_loses_nothing_that_was_sent_meanwhile(
    window: Window, folder: Path
) -> None:
    port = free_port()
    with Running(OBEDIENT, "--static", str(folder), port=port) as first:
        page = joined(window, first.http())
        first.signal(signal.SIGTERM)
        page.wait_for_function("room.status.state === 'waiting'")
        assert first.wait() == 0
    page.evaluate("for (const text of ['one', 'two', 'three']) room.send(text)")
    with Running(OBEDIENT, "--static", str(folder), port=port):
        answered(page, 3)
        assert seen(page, "text") == ["one", "two", "three"]
        assert page.evaluate("room.status.opens") == 2
        ends = [status for status in seen(page, "state") if status["state"] == "waiting"]
        assert (ends[0]["code"], ends[0]["reason"]) == (1012, "node shuts down")
        page.evaluate("room.close()")


# Networks that die silently


class _Forwarding(socketserver.BaseRequestHandler):
    server: Wire

    def handle(self) -> None:
        with socket.create_connection(self.server.inner) as upstream:
            back = threading.Thread(target=self._copy, args=(upstream, self.request))
            back.start()
            self._copy(self.request, upstream)
            back.join()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        cuts = self.server.cuts
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.server.cuts == cuts:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


class Wire(socketserver.ThreadingTCPServer):
    """Forwards to a server; after a cut, what came before stays connected and hears nothing."""

    daemon_threads = True

    def __init__(self, running: Running) -> None:
        host, port = running.address.split(":")
        self.inner = (host, int(port))
        self.cuts = 0
        super().__init__(("127.0.0.1", 0), _Forwarding)

    def http(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


@pytest.fixture
def wire(running: Running) -> Iterator[Wire]:
    with Wire(running) as wire:
        serving = threading.Thread(target=wire.serve_forever, args=(0.02,))
        serving.start()
        yield wire
        wire.shutdown()
        serving.join()


def test_a_connection_that_died_while_the_machine_slept_is_replaced(
    window: Window, wire: Wire
) -> None:
    page = window.open("about:blank")
    page.clock.install()
    page.goto(wire.http())
    page.wait_for_function("!!window.join")
    page.evaluate("join('/ws')")
    page.wait_for_function("room.status.state === 'open'")
    wire.cuts += 1
    page.clock.fast_forward(120_000)  # the lid is closed for two minutes
    page.evaluate("room.send('after the sleep')")
    page.clock.fast_forward(2_000)
    page.wait_for_function("room.status.opens === 2")
    answered(page, 1)
    assert seen(page, "text") == ["after the sleep"]
    assert seen(page, "state")[2]["reason"] == "silent after a sleep"
    page.close()


def test_offline_and_online_again(window: Window, wire: Wire) -> None:
    page = joined(window, wire.http())
    network = page.context.new_cdp_session(page)
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}

    def offline(away: bool) -> None:
        network.send("Network.emulateNetworkConditions", {**conditions, "offline": away})

    # A connection that is open and silent is replaced when the network is back.
    offline(True)
    wire.cuts += 1
    page.wait_for_function("!navigator.onLine")
    offline(False)
    page.wait_for_function("navigator.onLine")
    page.evaluate("room.send('back')")
    page.wait_for_function("room.status.opens === 2")
    answered(page, 1)
    # The next try, which would be in half a minute, is made when the network is back.
    page.evaluate("Math.random = () => 60")
    offline(True)
    page.wait_for_function("!navigator.onLine")
    page.evaluate("room.reconnect()")
    page.wait_for_function("room.status.state === 'waiting'")
    assert seen(page, "state")[-1]["wait"] > 25_000
    offline(False)
    page.wait_for_function("room.status.opens === 3")
    page.close()
