"""The console in headless Chromium, from its first page on: real rooms that misbehave are found.

No test uses a PID; what it clicks is what the page shows. Screenshots are kept in the folder that
WSRELAY_SCREENSHOTS names.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import troubled
from chromium import Window, launched, opened
from console_command import ConsoleCommand
from playwright.sync_api import Browser, Locator, Page, expect
from running import Lines, Running, client, closed
from websockets.sync.client import ClientConnection

ROOM = f"{troubled.__file__}:room"
FOUND = 60_000
"""Milliseconds within which a room has shown what is wrong with it."""


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> None:
    """Not looked at here: the browser starts and ends processes as it likes.

    What the servers leave behind is still seen by `Running`.
    """


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A runtime directory in which there are no other nodes."""
    directory = tmp_path_factory.mktemp("looked-at")
    directory.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WSRELAY_RUNTIME_DIR", str(directory))
        yield directory


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    with opened(browser) as window:
        yield window


@pytest.fixture(scope="module")
def rooms(folder: Path) -> Iterator[Running]:
    assert folder.is_dir()
    with Running(ROOM, "--scope", "room") as running:
        yield running


@pytest.fixture(scope="module")
def console(rooms: Running) -> Iterator[ConsoleCommand]:
    assert rooms.address
    with ConsoleCommand() as console:
        yield console


@pytest.fixture
def page(window: Window, console: ConsoleCommand) -> Page:
    return window.open(console.address)


def shot(page: Page, name: str, tmp_path: Path) -> None:
    """Keep a picture of what the page shows."""
    kept = Path(os.environ.get("WSRELAY_SCREENSHOTS") or tmp_path)
    kept.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(kept / f"{name}.png"))


@contextlib.contextmanager
def said(rooms: Running, name: str, text: str) -> Iterator[ClientConnection]:
    """A client of a room, which it has told what to do."""
    with client(rooms.ws(f"/ws/{quote(name)}")) as one:
        one.send(text)
        yield one


def finding(page: Page, text: str) -> Locator:
    return page.locator(".findings li").filter(has_text=re.compile(text))


def row(page: Page, name: str) -> Locator:
    return page.locator("tbody tr").filter(has_text=name)


# From the first page to the room


def test_a_room_in_an_endless_loop_is_found(page: Page, rooms: Running, tmp_path: Path) -> None:
    with said(rooms, "one", "spin"):
        found = finding(page, r"burns \d+ % of a core")
        expect(found).to_have_count(1, timeout=FOUND)
        shot(page, "endless-loop-home", tmp_path)
        found.click()
        expect(page.locator(".title")).to_have_text("room:one")
        expect(page.locator(".stat").first).to_contain_text("%")
        shot(page, "endless-loop", tmp_path)


def test_a_room_whose_client_does_not_read_is_found(
    page: Page, rooms: Running, tmp_path: Path
) -> None:
    host, port = rooms.address.split(":")
    with socket.create_connection((host, int(port))) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(_upgrade("/ws/two"))
        assert deaf.recv(12).endswith(b"101")
        deaf.sendall(_masked(b"flood"))
        found = finding(page, r"its client \S+ does not read: .* wait")
        expect(found).to_have_count(1, timeout=FOUND)
        shot(page, "deaf-client-home", tmp_path)
        found.click()
        expect(page.locator(".title")).to_have_text("room:two")
        expect(page.locator("tbody td .wait")).to_contain_text("MB")
        shot(page, "deaf-client", tmp_path)


def _upgrade(path: str) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def _masked(text: bytes) -> bytes:
    """A text frame of a client, whose mask is zeros."""
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


def test_a_room_that_leaks_is_found(page: Page, rooms: Running, tmp_path: Path) -> None:
    with said(rooms, "three", "hoard"):
        found = finding(page, r"memory grew by \d+\.\d MB")
        expect(found).to_have_count(1, timeout=FOUND)
        found.click()
        expect(page.locator(".title")).to_have_text("room:three")
        expect(page.get_by_label("Memory")).to_contain_text("MB")
        shot(page, "leak", tmp_path)


def test_a_room_that_crashes_again_and_again_is_found(
    page: Page, rooms: Running, tmp_path: Path
) -> None:
    for _ in range(3):
        with said(rooms, "four", "crash") as one:
            assert closed(one)[0] == 1011
    found = finding(page, "crashed 3 times lately")
    expect(found).to_have_count(1, timeout=FOUND)
    found.click()
    ended = row(page, "room:four")
    expect(ended).to_have_count(3)
    shot(page, "crashes", tmp_path)
    ended.first.get_by_role("link").click()
    expect(page.locator(".title")).to_have_text("room:four")
    expect(page.locator(".traceback:visible")).to_contain_text(
        "RuntimeError: the <b>ledger</b> does not add up"
    )
    shot(page, "crash", tmp_path)


# What it shows


def test_the_first_page_lists_processes_with_their_name_before_their_cpu(
    page: Page, rooms: Running
) -> None:
    with said(rooms, "calm", "hello"), said(rooms, "<img src=x onerror=alert(1)>", "hello"):
        expect(row(page, "room:calm")).to_have_text(re.compile(r"^room:calm\s*\d+\.\d %"))
        hostile = row(page, "room:<img src=x onerror=alert(1)>")
        expect(hostile).to_have_count(1)
        assert page.locator("img").count() == 0
        page.keyboard.press("/")
        page.keyboard.type("calm")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(hostile).to_have_count(1)
        page.keyboard.press("/")
        page.keyboard.type("room:calm")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.locator(".search").blur()
        page.keyboard.press("j")
        expect(page.locator("tr[aria-selected=true]")).to_have_count(1)
        page.keyboard.press("Enter")
        expect(page.locator(".title")).to_have_text("room:calm")
        expect(page.get_by_role("button", name="Kill")).to_have_count(0)
        page.keyboard.press("Escape")
        expect(page.locator("tbody tr")).to_have_count(1)
        page.keyboard.press("?")
        expect(page.locator("#help")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#help")).to_be_hidden()


@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_the_window(
    browser: Browser,
    rooms: Running,
    width: int,
    scheme: str,
    tmp_path: Path,
) -> None:
    context = browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 900},
    )
    with (
        contextlib.closing(context),
        said(rooms, "x" * 60, "hello"),
        ConsoleCommand("--write") as writing,
    ):
        window = Window(context)
        page = window.open(writing.address)
        expect(row(page, "x" * 60)).to_have_count(1)
        row(page, "x" * 60).get_by_role("link").click()
        expect(page.locator(".title")).to_have_text(f"room:{'x' * 60}")
        for number, heading in enumerate(
            ("Processes", "Connections", "Ended", "Logs", "running"), 1
        ):
            _fits(page, width)
            shot(page, f"page-{number}-{width}-{scheme}", tmp_path)
            page.keyboard.press(str(number))
            expect(page.locator("#view")).to_contain_text(heading)
            if heading == "Connections":
                expect(page.locator("tbody").get_by_role("button").first).to_be_visible()
        _fits(page, width)
        assert window.complaints == []


def _fits(page: Page, width: int) -> None:
    """Nothing is cut off at the side, and no table has to be scrolled there."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tables = "[...document.querySelectorAll('.scroll')]"
    assert not page.evaluate(f"{tables}.some(one => one.scrollWidth > one.clientWidth)")


def test_an_application_under_uvicorn_is_shown_by_the_command_and_by_itself(
    page: Page, window: Window, tmp_path: Path
) -> None:
    with application() as address, client(f"ws://{address}/ws/blue"):
        expect(row(page, "room:blue")).to_have_count(1)
        page.keyboard.press("5")
        shop = page.locator(".node").filter(has_text="A shop")
        expect(shop).to_contain_text(address)
        shot(page, "fastapi", tmp_path)
        own = window.open(f"http://{address}/console/")
        expect(row(own, "room:blue")).to_have_text(re.compile(r"^room:blue\s*\d+\.\d %"))


@contextlib.contextmanager
def application() -> Iterator[str]:
    """An application of FastAPI under the real uvicorn; gives `host:port`."""
    options = ["--http", "h11", "--ws", "wsproto", "--port", "0"]
    uvicorn = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *options, "with_console:app"],
        cwd=Path(__file__).parent.parent / "apps",
        stderr=subprocess.PIPE,
        text=True,
    )
    assert uvicorn.stderr is not None
    said = Lines(uvicorn.stderr)
    try:
        yield said.line("running on http://").partition("http://")[2].split()[0]
    finally:
        uvicorn.terminate()
        uvicorn.wait(20)
        said.join()
        uvicorn.stderr.close()


# What it loses, and how it comes back


def test_a_node_that_goes_is_shown_as_gone_and_the_next_one_appears(
    page: Page, tmp_path: Path
) -> None:
    with Running(ROOM, "--scope", "room") as other, client(other.ws("/ws/passing")):
        expect(row(page, "room:passing")).to_have_count(1)
        other.signal(signal.SIGKILL)
        expect(row(page, "room:passing")).to_have_class("gone")
        expect(finding(page, "gone for")).to_have_count(1)
        shot(page, "node-gone", tmp_path)
    with Running(ROOM, "--scope", "room") as next_one, client(next_one.ws("/ws/again")):
        expect(row(page, "room:again")).to_have_count(1)
        finding(page, "gone for").first.click()
        expect(page.locator(".node")).to_contain_text(["running"] * 2)


def test_the_page_says_that_the_console_is_away_and_comes_back(
    window: Window, rooms: Running
) -> None:
    with ConsoleCommand() as first:
        page = window.open(first.address)
        expect(page.locator("#status")).to_have_text("live")
        port = first.port
    expect(page.locator("#lost")).to_contain_text("cannot be reached")
    with ConsoleCommand(port=port) as second:
        expect(page.locator("#lost")).to_contain_text("started anew: open the address")
        page.goto(second.address)
        expect(page.locator("#status")).to_have_text("live")
        expect(page.locator("#lost")).to_be_hidden()
        assert rooms.address
    assert all("403" in one for one in window.complaints)
    window.complaints.clear()


# What it may do


def test_with_write_a_process_gets_a_message_and_is_killed_by_hand(
    window: Window, rooms: Running, tmp_path: Path
) -> None:
    ended: list[tuple[int, str]] = []
    with ConsoleCommand("--write") as writing, said(rooms, "doomed", "hello") as one:
        waiting = threading.Thread(target=lambda: ended.append(closed(one)))
        waiting.start()
        page = window.open(writing.address)
        row(page, "room:doomed").get_by_role("link").click()
        page.get_by_role("button", name="Send").click()
        page.get_by_label("Topic").fill("note")
        page.get_by_label("Payload, as JSON").fill("no json")
        dialog = page.locator("dialog[open]")
        dialog.get_by_role("button", name="Send").click()
        expect(dialog.locator(".error")).to_contain_text("The payload is not JSON")
        shot(page, "send", tmp_path)
        page.get_by_label("Payload, as JSON").fill('{"a": 1}')
        dialog.get_by_role("button", name="Send").click()
        expect(dialog).to_have_count(0)
        page.get_by_role("button", name="Kill").click()
        page.locator("dialog[open]").get_by_role("button", name="Kill").click()
        waiting.join(20)
        expect(page.get_by_role("button", name="Kill")).to_have_count(0)
    assert ended[0][0] == 1011
